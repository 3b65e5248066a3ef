"""Fine-tuning, watched category by category."""
