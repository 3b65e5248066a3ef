"""The rows of a finished run on one local page: search, filters, sorting, and why each row has its label."""
