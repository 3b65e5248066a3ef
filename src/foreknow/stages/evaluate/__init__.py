"""foreknow evaluate: asks a tuned model its rows and scores the answers that it generates."""
