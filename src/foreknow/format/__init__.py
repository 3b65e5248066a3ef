"""Numbers and texts as people read them: on the terminal, in messages, in a notebook and on the pages."""
