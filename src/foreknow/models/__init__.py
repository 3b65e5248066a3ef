"""Find, load and check models, and plan the memory that they take."""
