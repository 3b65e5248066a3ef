"""Coordinate several processes: torch's process group, and Ray."""
