"""Describe a tokenizer's vocabulary for the answer search. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foreknow.data.exact_match import answer_of, opening_code
from foreknow.errors import ModelError

TokenPath = tuple[int, ...]
"""A sequence of token ids that follows a prompt."""


@dataclass(frozen=True)
class Vocabulary:
    """The properties of a tokenizer that the answer search needs.

    `decode`: token path -> text. `ends`: ids that end the answer and add nothing to it (end-of-sequence ids, and
    blanks that contain a newline). `breaks`: other ids whose text contains a newline; the text before the newline
    still belongs to the answer. `pieces`: the text of each token id, where the text of a path is its tokens' texts one
    after the other (byte-level tokenizers); None where it is not. Raises ModelError where no token ends an answer.
    """

    decode: Callable[[TokenPath], str]
    ends: frozenset[int]
    breaks: frozenset[int]
    pieces: Sequence[str] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.ends and not self.breaks:
            raise ModelError(
                "this model's tokenizer has neither an end-of-sequence token nor a line break: no answer could end, "
                "and every row would be called Unknown; choose another model, or set eos_token in its tokenizer"
            )

    @cached_property
    def opening_codes(self) -> NDArray[np.uint16] | None:
        """Return the `opening_code` of each token's text, 0 for tokens that end an answer; None without `pieces`."""
        if self.pieces is None:
            return None
        codes = np.array([opening_code(piece) for piece in self.pieces], dtype=np.uint16)
        codes[[token for token in self.ends | self.breaks if token < len(codes)]] = 0
        return codes

    def is_end(self, token: int) -> bool:
        """Return whether the answer is over with this token."""
        return token in self.ends or token in self.breaks

    def ended(self, path: TokenPath) -> bool:
        """Return whether a path's answer is over."""
        return bool(path) and self.is_end(path[-1])

    def decode_next(self, text: str, path: TokenPath, token: int) -> str:
        """Return the text of `path` and `token` after it. `text`: that of `path`.

        A text with U+FFFD may hold part of a character, which the next token may complete: it is decoded as a whole.
        """
        if self.pieces is not None and token < len(self.pieces):
            piece = self.pieces[token]
            if "\ufffd" not in piece and "\ufffd" not in text:
                return text + piece
        return self.decode((*path, token))

    def said(self, path: TokenPath) -> str:
        """Return the answer text of a path; an unfinished answer ends with an ellipsis."""
        if not self.ended(path):
            return self.decode(path).strip() + "\u2026"
        answer_path = path[:-1] if path[-1] in self.ends else path
        return answer_of(self.decode(answer_path)) if answer_path else ""
