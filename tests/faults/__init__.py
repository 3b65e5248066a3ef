"""What is done to a run that people do to theirs: kill it, fill its disk, damage its files. See docs/reliability.md."""
