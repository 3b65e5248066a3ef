"""Turn an answer's fact spans into a tree of tokens that one forward pass scores. Pure: no model, no torch.

The row's question and answer are the trunk. At every span, branches leave it: the span's other spellings and its
alternatives. The model's state in front of a span is the same for all of them.

A token of the trunk may hold more than the span (`(Par` for `Par`, `5%` for `5`). The span is then scored by the tokens
that cover it, and its alternatives with the same text around them; such spans are flagged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from foreknow.data.spans.alternatives import variants
from foreknow.data.spans.finder import UNSPACED, continues_word
from foreknow.inference.answer_tokens import Text
from foreknow.prompts.prompt_template import Prompter
from foreknow.prompts.vocabulary import TokenPath

TOKEN_EDGES: Final = "token_edges"
"""Flag of a span whose first or last token holds more than the span."""
OPEN_END: Final = "open_end"
"""Flag of a span whose end is not asked for: its word goes on, or its script has no blanks between words."""


class SpanText(NamedTuple):
    """A span to score: characters `start:end` of its answer, its type, and the texts of its alternatives."""

    start: int
    end: int
    type: str
    alternatives: Sequence[str]


class SpanPaths(NamedTuple):
    """A span as token paths that follow the first `first` tokens of its answer.

    `spellings`: those that count as the span, its own first. `alternatives`: one path for each that the tokenizer can
    write there. `asks_end`: whether a path counts only if the next token does not go on with its word. `after`: the
    answer's own next token, which ends the span whatever it is; None behind the last one.
    """

    first: int
    spellings: list[TokenPath]
    alternatives: list[TokenPath]
    asks_end: bool
    after: int | None
    flags: tuple[str, ...]

    @property
    def last(self) -> int:
        """Return the index behind the last of the answer's tokens that cover the span."""
        return self.first + len(self.spellings[0])


def span_paths(prompter: Prompter, prompt: str, answer: str, text: Text, span: SpanText) -> SpanPaths | None:
    """Return a span's token paths; None if no token of `text`, the prompt and answer tokenised together, covers it.

    The span's own tokens are those of the whole text. Other texts are tokenised on their own, with the blank in front,
    if the span's own text comes out as its tokens that way; if not, behind the whole text in front of them.
    """
    covering = [t for t, (a, b) in enumerate(text.offsets) if b > span.start and a < span.end and b > a]
    if not covering:
        return None
    first, last = covering[0], covering[-1] + 1
    begin, end = min(text.offsets[first][0], span.start), max(text.offsets[last - 1][1], span.end)
    before, behind = answer[begin : span.start], answer[span.end : end]
    own = tuple(text.ids[text.first + first : text.first + last])
    begins = not answer[: span.start].strip() or answer[: span.start].rstrip()[-1] in ".!?\n"
    spellings = variants(answer[span.start : span.end], span.type, begins)
    others = [before + other + behind for other in (*spellings, *span.alternatives)]
    blank = answer[text.offsets[first - 1][1] : begin] if first else prompter.gap + answer[:begin]
    paths = _paths_alone(prompter, blank, answer[begin:end], own, others)
    if paths is None:
        paths = _paths_behind(prompter, prompt + answer[:begin], text.ids[: text.first + first], others)
    goes_on = (
        any(map(continues_word, answer[span.end : span.end + 1])) or UNSPACED.search(answer[span.end - 1]) is not None
    )
    edges = bool(before.strip() or behind.strip())
    behind_own = text.first + last
    return SpanPaths(
        first,
        list(dict.fromkeys([own, *(path for path in paths[: len(spellings)] if path)])),
        [path for path in dict.fromkeys(paths[len(spellings) :]) if path and path != own],
        not goes_on and not behind.strip(),
        text.ids[behind_own] if behind_own < text.last else None,
        tuple(flag for flag, is_set in ((OPEN_END, goes_on), (TOKEN_EDGES, edges)) if is_set),
    )


def _paths_alone(
    prompter: Prompter, blank: str, own_text: str, own: TokenPath, others: Sequence[str]
) -> list[TokenPath | None] | None:
    """Tokenise texts on their own, behind `blank` or nothing; None if the span's own text gets other tokens so."""
    for lead in dict.fromkeys((blank, "")):
        encoded = prompter.special.encode([lead + text for text in (own_text, *others)], around=False)
        if tuple(encoded[0].ids) == own:
            return [tuple(each.ids) for each in encoded[1:]]
    return None


def _paths_behind(prompter: Prompter, before: str, ids: Sequence[int], others: Sequence[str]) -> list[TokenPath | None]:
    """Tokenise texts behind the whole text before them, which has the tokens `ids`; None where it gets others."""
    if not others:
        return []
    wholes = prompter.ids([before + other for other in others])
    return [tuple(whole[len(ids) :]) if whole[: len(ids)] == list(ids) else None for whole in wholes]


class PathStates(NamedTuple):
    """A path in the tree: its `tokens`, the index in the tree of the token in front of each, and the last one's index.

    The last one's state tells whether the span ends.
    """

    tokens: TokenPath
    before: list[int]
    last: int


class Branch(NamedTuple):
    """The tokens of a tree that leave the trunk behind its token `at`: their indices, parents first."""

    at: int
    nodes: list[int]


class SpanTree:
    """A row's tokens behind a shared prefix as a tree: the trunk, and the branches that `add` adds.

    `trunk`: the row's own tokens; the attribute is their number. `ids` and `parents` (-1 = the end of the prefix)
    describe the tree.
    """

    def __init__(self, trunk: Sequence[int]):
        self.trunk = len(trunk)
        self.ids = list(trunk)
        self.parents = list(range(-1, len(trunk) - 1))
        self._children = {(n - 1, token): n for n, token in enumerate(trunk)}

    def add(self, at: int, path: TokenPath) -> PathStates:
        """Add a path behind the token with index `at`; tokens that the tree has already are shared."""
        before, node = [], at
        for token in path:
            before.append(node)
            child = self._children.get((node, token))
            if child is None:
                child = self._children[node, token] = len(self.ids)
                self.ids.append(token)
                self.parents.append(node)
            node = child
        return PathStates(path, before, node)

    def branches(self) -> list[Branch]:
        """Return all that leaves the trunk, one branch for each token at which something does."""
        at_of: dict[int, int] = {}
        nodes: dict[int, list[int]] = {}
        for node in range(self.trunk, len(self.ids)):
            parent = self.parents[node]
            at_of[node] = parent if parent < self.trunk else at_of[parent]
            nodes.setdefault(at_of[node], []).append(node)
        return [Branch(at, nodes[at]) for at in sorted(nodes)]

    def sequences(self) -> list[list[int]]:
        """Return the indices of each way from the root to a leaf."""
        inner = set(self.parents)
        ways = []
        for leaf in range(len(self.ids)):
            if leaf not in inner:
                way, node = [], leaf
                while node >= 0:
                    way.append(node)
                    node = self.parents[node]
                ways.append(way[::-1])
        return ways


def word_ends(texts: Iterable[str]) -> list[bool]:
    """Return for each token, given the text it adds behind a letter, whether it ends a word.

    A token ends a word unless it begins with a letter, a digit, a combining mark or half a character. A point or comma
    with a digit behind it goes on too, as in 1.5.
    """
    return [not _goes_on(text) for text in texts]


def _goes_on(text: str) -> bool:
    if not text:
        return False
    first = text[0]
    if first in ".," and text[1:2].isdigit():
        return True
    return continues_word(first) or first in "_\ufffd"
