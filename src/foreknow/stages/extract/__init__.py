"""foreknow extract: extract short facts from long answers."""
