"""Compares recipes for teaching new facts by what they cost of the old ones."""
