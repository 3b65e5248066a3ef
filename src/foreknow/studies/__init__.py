"""The paper's whole experiment, its statistics and its claims."""
