"""Several processes: torch's process group, and Ray."""
