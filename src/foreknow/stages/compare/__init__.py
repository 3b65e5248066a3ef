"""Finished runs of one kind beside each other: what they got right, whether they differ, and in which settings."""
