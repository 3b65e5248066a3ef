"""What is wrong with a file, told before any model runs."""
