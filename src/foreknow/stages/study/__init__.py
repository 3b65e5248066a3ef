"""foreknow study: the paper's whole experiment, its statistics and its claims."""
