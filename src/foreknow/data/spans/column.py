"""Take fact spans from the user's own column: texts, or places [start, end] of the answer. Pure.

    "spans": ["Avens", [31, 37], {"start": 52, "end": 60}, {"text": "River Aven", "type": "name"}]

A text stands for its first mention in the answer. Places count characters of the answer as the file has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from foreknow.data.spans.finder import AnswerText, Span, without_overlaps
from foreknow.data.spans.schema import TYPES
from foreknow.errors import InputError
from foreknow.io.quoting import quoted


class ColumnFinder:
    """Reads the rows' own entries (`AnswerText.own`). `source`: the file's name, for errors.

    Unlike the spans of other finders, these are taken as they are, whether or not they are first mentions.
    """

    name: Final = "column"

    def __init__(self, source: str):
        self.source = source

    def find(self, texts: Sequence[AnswerText]) -> list[list[Span]]:
        """See `Finder.find`. Raises InputError for an entry that is not of the answer, with file and row."""
        return [self._find(text) for text in texts]

    def _find(self, text: AnswerText) -> list[Span]:
        if text.own is None:
            return []
        entries = json.loads(text.own)
        if not isinstance(entries, list):
            raise self._refusal(text, entries, "a list")
        spans = [self._span(text, entry) for entry in entries]
        separate = without_overlaps(dict.fromkeys(spans))
        if len(separate) < len(set(spans)):
            crossing = next(span for span in spans if span not in separate)
            raise self._refusal(text, text.answer[crossing.start : crossing.end], "spans that do not overlap")
        return separate

    def _span(self, text: AnswerText, entry: Any) -> Span:
        kind, start, end, own = "own", None, None, None
        if isinstance(entry, str):
            own = entry
        elif isinstance(entry, list) and len(entry) == 2:
            start, end = entry
        elif isinstance(entry, Mapping):
            start, end, own = (entry.get(name) for name in ("start", "end", "text"))
            kind = entry["type"] if entry.get("type") in TYPES else "own"
        if start is None and end is None and isinstance(own, str):
            start = text.answer.find(own)
            end = start + len(own)
            if start < 0 or not own.strip():
                raise self._refusal(text, entry, "a text that stands in the row's answer")
        if type(start) is not int or type(end) is not int:
            raise self._refusal(text, entry, "a text, or [start, end]")
        if not 0 <= start < end <= len(text.answer) or not text.answer[start:end].strip():
            raise self._refusal(text, entry, f"a place within the answer's {len(text.answer):,} characters")
        if isinstance(own, str) and text.answer[start:end] != own:
            raise self._refusal(text, entry, f"the text at its place, {quoted(text.answer[start:end], 40)}")
        return Span(start, end, kind)

    def _refusal(self, text: AnswerText, entry: Any, expected: str) -> InputError:
        return InputError(
            f"{self.source}: row {text.row}: column spans: found {quoted(json.dumps(entry, ensure_ascii=False), 60)}, "
            f"expected {expected}.\nCorrect it, or find spans by rules with --spans rules."
        )
