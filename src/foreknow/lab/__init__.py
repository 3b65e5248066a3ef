"""A small model whose every exposure to every fact is known."""
