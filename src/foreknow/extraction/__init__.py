"""Short facts out of long answers."""
