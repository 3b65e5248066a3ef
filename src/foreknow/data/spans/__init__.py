"""Fact spans of long answers: the stretches of text that could be wrong, how they are found, and their labels."""
