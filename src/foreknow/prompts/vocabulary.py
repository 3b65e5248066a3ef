"""Describe a tokenizer's vocabulary for the answer search. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from foreknow.data.exact_match import answer_of
from foreknow.errors import ModelError

TokenPath = tuple[int, ...]
"""A sequence of token ids that follows a prompt."""


@dataclass(frozen=True)
class Vocabulary:
    """The properties of a tokenizer that the answer search needs.

    `decode`: token path -> text. `ends`: ids that end the answer and add nothing to it (end-of-sequence ids, and
    blanks that contain a newline). `breaks`: other ids whose text contains a newline; the text before the newline
    still belongs to the answer. Raises ModelError where no token ends an answer.
    """

    decode: Callable[[TokenPath], str]
    ends: frozenset[int]
    breaks: frozenset[int]

    def __post_init__(self) -> None:
        if not self.ends and not self.breaks:
            raise ModelError(
                "this model's tokenizer has neither an end-of-sequence token nor a line break: no answer could end, "
                "and every row would be called Unknown; choose another model, or set eos_token in its tokenizer"
            )

    def is_end(self, token: int) -> bool:
        """Return whether the answer is over with this token."""
        return token in self.ends or token in self.breaks

    def ended(self, path: TokenPath) -> bool:
        """Return whether a path's answer is over."""
        return bool(path) and self.is_end(path[-1])

    def said(self, path: TokenPath) -> str:
        """Return the answer text of a path; an unfinished answer ends with an ellipsis."""
        if not self.ended(path):
            return self.decode(path).strip() + "\u2026"
        answer_path = path[:-1] if path[-1] in self.ends else path
        return answer_of(self.decode(answer_path)) if answer_path else ""
