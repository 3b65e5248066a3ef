"""Asking a model on this machine: the exact probe, sampling, long answers."""
