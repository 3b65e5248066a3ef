"""Models: where they come from, loading and checking them, what memory they take."""
