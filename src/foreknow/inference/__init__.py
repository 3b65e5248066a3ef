"""Ask a model on this machine: the exact probe, the answer search, generation, SliCK labels."""
