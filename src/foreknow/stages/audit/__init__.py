"""foreknow audit: label each row by what the model knows."""
