"""What a user wrote, quoted in a message. Pure."""

from __future__ import annotations


def quoted(value: object, most: int = 80) -> str:
    """A value as Python writes it, control characters spelled out, cut after `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
