"""foreknow extract: short facts out of long answers."""
