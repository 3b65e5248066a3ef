"""Language models: where they come from, what memory they take, which processes hold them."""
