"""The commands: each reads its flags, calls, and prints. Nothing heavy is imported before one runs."""
