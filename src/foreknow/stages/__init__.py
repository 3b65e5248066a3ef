"""The verbs: each stage has a result, a run that makes it, and a page that shows it."""
