"""foreknow evaluate: what a tuned model really answers."""
