"""Rows: facts in any layout, and the known data sets."""
