"""Layouts: which columns of a file hold the question and the answers."""
