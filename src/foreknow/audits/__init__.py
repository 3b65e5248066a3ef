"""The audit, here, on Ray or at a server."""
