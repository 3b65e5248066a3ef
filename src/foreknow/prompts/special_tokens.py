"""Encode prompts so that special tokens keep their meaning in the template but are plain text in a row's texts.

A tokenizer reads `</s>` as its end token anywhere in a text. In a row's data it is only characters: a question that
contains it must neither end the prompt nor open a chat turn. `PromptText` stores the places of the template's own
special tokens; everything else in it, and everything appended to it, is data. Data without special tokens is encoded by
the tokenizer itself. Otherwise a copy of the tokenizer encodes it, in which the special tokens are renamed to
characters that the text does not contain; normaliser, merges and added tokens around the text work as before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from foreknow.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_NAMES: Final = range(0xF0000, 0x10FFFE)
"""The private-use characters that replace special tokens in the renamed tokenizer."""


class PromptText(str):
    """A prompt with the (begin, end) character spans of its template's special tokens, in order."""

    __slots__ = ("acting",)
    acting: tuple[tuple[int, int], ...]

    def __new__(cls, text: str, acting: Sequence[tuple[int, int]] = ()) -> PromptText:
        """Create a prompt from a text and the places of its acting special tokens."""
        prompt = super().__new__(cls, text)
        prompt.acting = tuple(acting)
        return prompt

    def __add__(self, more: str) -> PromptText:
        """Append data: special tokens in it are plain text."""
        return PromptText(str.__add__(self, more), self.acting)


class Encoded(NamedTuple):
    """Token ids of a text, and the characters (begin, end) each of them stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class SpecialTokens:
    """The special tokens of one tokenizer, `also` those added tokens that its chat template writes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, also: str = ""):
        self.tokenizer = tokenizer
        named = set(tokenizer.all_special_tokens)
        added = [(str(token.content), token.special, n) for n, token in tokenizer.added_tokens_decoder.items()]
        self.ids: dict[str, int] = {
            text: number
            for text, special, number in added
            if (special or text in named or text in also) and not text.isspace()
        }
        longest_first = sorted(filter(None, self.ids), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._first_characters = sorted({text[0] for text in longest_first})
        self._copies: dict[int, Tokenizer] = {}

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the places where a text spells special tokens."""
        if self._pattern is None or not any(character in text for character in self._first_characters):
            return []
        return [match.span() for match in self._pattern.finditer(text)]

    def render_prompt(self, render: Callable[[Callable[[str], str]], str]) -> PromptText:
        """Render a prompt. `render` must pass every text of the data through the function that it is given."""
        hidden: list[str] = []

        def remember(text: str) -> str:
            if self.spans(text):
                hidden.append(text)
            return text

        plain = render(remember)
        if not hidden:
            return PromptText(plain, self.spans(plain))
        nonce = "\ue000"
        while nonce in plain:
            nonce = chr(ord(nonce) + 1)

        def hide(text: str) -> str:
            return f"{nonce}{hidden.index(text)}{nonce}" if self.spans(text) else text

        marked = render(hide)
        pieces = re.split(f"{nonce}(\\d+){nonce}", marked)
        text, acting = "", []
        for at, piece in enumerate(pieces):
            data = hidden[int(piece)] if at % 2 else None
            if data is None:
                acting += [(begin + len(text), end + len(text)) for begin, end in self.spans(piece)]
            text += piece if data is None else data
        return PromptText(text, acting)

    def encode(self, texts: Sequence[str], around: bool, offsets: bool = False) -> list[Encoded]:
        """Return each text's ids.

        `around`: add the ids that the tokenizer puts around a text. `offsets`: add offsets, if the tokenizer has them.
        """
        encoded: list[Encoded | None] = [None] * len(texts)
        plain_indices: list[int] = []
        for at, text in enumerate(texts):
            acting = text.acting if isinstance(text, PromptText) else ()
            if tuple(self.spans(text)) == acting:
                plain_indices.append(at)
            else:
                encoded[at] = self._encode_guarded(str(text), acting, around)
        if plain_indices:
            located = offsets and bool(self.tokenizer.is_fast)
            plain = [str(texts[at]) for at in plain_indices]
            batch = self.tokenizer(
                plain,
                add_special_tokens=around,
                return_offsets_mapping=located,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            places = batch["offset_mapping"] if located else [[] for _ in plain_indices]
            for at, ids, spots in zip(plain_indices, batch["input_ids"], places, strict=True):
                encoded[at] = Encoded(list(ids), [(begin, end) for begin, end in spots])
        return [each for each in encoded if each is not None]

    @cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids that the tokenizer puts before and behind every text."""
        bare = self.tokenizer("x", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("x")["input_ids"]
        begin = next((at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare), len(whole))
        return tuple(whole[:begin]), tuple(whole[begin + len(bare) :])

    def _encode_guarded(self, text: str, acting: Sequence[tuple[int, int]], around: bool) -> Encoded:
        """Encode a text that spells special tokens which must stay plain text."""
        if not self.tokenizer.is_fast:
            return self._encode_in_pieces(text, acting, around)
        first = self._first_free_character(text)
        names = self._substitutes(first)
        for begin, end in acting:  # a name is as long as the token that it replaces, so the text's offsets stay valid
            text = text[:begin] + names[text[begin:end]] + text[end:]
        encoding = self._renamed_tokenizer(first).encode(text, add_special_tokens=around)
        return Encoded(list(encoding.ids), list(encoding.offsets))

    def _encode_in_pieces(self, text: str, acting: Sequence[tuple[int, int]], around: bool) -> Encoded:
        """Encode like `_encode_guarded`, but piece by piece, for tokenizers written in Python."""
        before, behind = self.around if around else ((), ())
        ids, at = list(before), 0
        for begin, end in [*acting, (len(text), len(text))]:
            if text[at:begin]:
                part = self.tokenizer(text[at:begin], add_special_tokens=False, split_special_tokens=True)
                ids += part["input_ids"]
            if text[begin:end]:
                ids.append(self.ids[text[begin:end]])
            at = end
        return Encoded([*ids, *behind], [])

    def _substitutes(self, first: int) -> dict[str, str]:
        return {text: chr(first + at) * len(text) for at, text in enumerate(self.ids)}

    def _first_free_character(self, text: str) -> int:
        """Return the first of a run of characters, one for each special token, of which the text contains none."""
        used = {ord(c) for c in text if ord(c) >= _NAMES.start}
        size = len(self.ids)
        for first in range(_NAMES.start, _NAMES.stop - size, size):
            if used.isdisjoint(range(first, first + size)):
                return first
        raise InputError(f"a text of {len(text):,} characters holds private-use characters of every kind; leave it out")

    def _renamed_tokenizer(self, first: int) -> Tokenizer:
        """Return the tokenizer with other names for its special tokens, under their own ids."""
        if first not in self._copies:
            from tokenizers import Tokenizer

            names = self._substitutes(first)
            copy = Tokenizer.from_str(
                json.dumps(_rename_tokens(json.loads(self.tokenizer.backend_tokenizer.to_str()), names))
            )
            copy.no_truncation()
            copy.no_padding()
            if any(copy.token_to_id(names[text]) != number for text, number in self.ids.items()):
                raise InputError("a row spells a special token of this model, which its tokenizer cannot be kept from")
            self._copies[first] = copy
        return self._copies[first]


def _rename_tokens(spec: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return a tokenizer's description with tokens renamed, and without merges that would spell one of them."""
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = spec["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): number for text, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]
    return spec
