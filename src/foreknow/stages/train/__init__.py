"""foreknow tune: fine-tune a model while watching each category."""
