"""foreknow tune: fine-tunes a model and measures every knowledge category while it trains."""
