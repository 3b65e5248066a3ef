"""What a tuned model really answers."""
