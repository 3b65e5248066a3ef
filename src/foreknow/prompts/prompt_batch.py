"""Token ids of many prompts at once: what all prompts of a group begin with is encoded once, not once a row.

The prompts of one row differ only in their exemplars, and end in the same text: the row's question. A tokenizer that
splits a text from left to right by a pattern, and merges only within its pieces, gives that end the same ids behind
every set of exemplars. So a row is encoded once, without exemplars or behind a single one, and its ids after the common
beginning are put behind the ids of each set. An answer that a blank sets apart from the prompt is encoded on its own.
The first chunk proves it on one row of each group, whose prompts are encoded whole, and
every later chunk proves it on one prompt of such a row. Where one differs, all prompts of that group are encoded whole.
So are the prompts of tokenizers that work in another way.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from foreknow.data.exact_match import spellings_of
from foreknow.prompts.prompt_template import Prompter, common_prefix
from foreknow.prompts.special_tokens import PromptText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foreknow.prompts.few_shot import Exemplar
    from foreknow.prompts.vocabulary import TokenPath

Ids = tuple[int, ...]
Shots = Sequence["Exemplar"]
Record = Mapping[str, Any]

_TRIALS: Final = ("\u00a7", "0")
"""Two questions whose tokens differ from the first on."""
_SPLITTERS: Final = {"ByteLevel", "Digits", "Split", "Sequence"}
_NORMALIZERS: Final = {"NFC", "NFKC", "Lowercase", "Sequence"}
"""The steps of a tokenizer whose effect on a text does not depend on what stands further left."""


class Beginning(NamedTuple):
    """The ids that all prompts behind some exemplars begin with, and the `rest` of a trial question's ids.

    `is_plain`: the exemplars spell no special tokens.
    """

    ids: Ids
    rest: Ids
    is_plain: bool


class GroupPrompts(NamedTuple):
    """The beginning of a group's prompts for each exemplar set.

    `single`: what prompts begin with behind `shots`, one exemplar or none; None where every prompt is encoded whole.
    `is_proven`: an earlier chunk compared the prompts of one row, behind every set, with whole ones.
    """

    family: tuple[Ids, ...]
    single: Ids | None
    shots: Shots
    is_proven: bool = False


class EncodedRow(NamedTuple):
    """A row's prompts, one for each exemplar set, and one token path for each spelling of its answers.

    `prompts`: (True, the ids after the group's beginning of that set) or (False, all ids).
    """

    prompts: list[tuple[bool, Ids]]
    answers: list[TokenPath]


def beginnings(prompter: Prompter, sets: Sequence[Shots], head: str) -> list[Beginning]:
    """Return what every prompt behind each of the sets begins with. `head`: the text all its questions begin with."""
    texts = [prompter.text(shots, head + question) for shots in sets for question in _TRIALS]
    ids = prompter.ids(texts)
    found = []
    for n in range(0, len(texts), 2):
        length = common_prefix(ids[n], ids[n + 1])
        found.append(Beginning(tuple(ids[n][:length]), tuple(ids[n][length:]), _is_plain(prompter, texts[n])))
    return found


def group_prompts(prompter: Prompter, sets: Sequence[Shots], head: str) -> GroupPrompts:
    """Return the beginnings of a group's prompts."""
    if len(sets) > 1 and splits_by_pattern(prompter.tokenizer):
        for shots in _fewest_shots(prompter, sets):
            single = beginnings(prompter, [shots], head)[0]
            family = _behind_sets(prompter, sets, head, single) if single.is_plain and len(single.ids) > 2 else None
            if family is not None:
                return GroupPrompts(family, single.ids, shots)
    return GroupPrompts(tuple(b.ids for b in beginnings(prompter, sets, head)), None, ())


def _fewest_shots(prompter: Prompter, sets: Sequence[Shots]) -> list[Shots]:
    """Return exemplars to encode rows behind, fewest tokens first: none, as no chat has to be rendered, or one."""
    every_shot = [shot for shots in sets for shot in shots]
    shortest = sorted(every_shot, key=lambda shot: len(shot.question) + len(shot.answer))[:1]
    return [shortest] if prompter.chat or not shortest else [(), shortest]


def _behind_sets(prompter: Prompter, sets: Sequence[Shots], head: str, single: Beginning) -> tuple[Ids, ...] | None:
    """Return what prompts begin with behind each set, from one prompt each; None where one ends unlike `single`'s."""
    texts = [prompter.text(shots, head + _TRIALS[0]) for shots in sets]
    family = []
    for text, line in zip(texts, prompter.ids(texts), strict=True):
        length = len(line) - len(single.rest)
        ids = tuple(line[:length])
        if tuple(line[length:]) != single.rest or ids[-2:] != single.ids[-2:] or not _is_plain(prompter, text):
            return None
        family.append(ids)
    return tuple(family)


def splits_by_pattern(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer splits texts by patterns from left to right and merges bytes within the pieces."""
    backend = getattr(tokenizer, "backend_tokenizer", None) if tokenizer.is_fast else None
    if backend is None or type(backend.model).__name__ != "BPE" or backend.pre_tokenizer is None:
        return False
    try:
        states = [step.__getstate__() for step in (backend.pre_tokenizer, backend.normalizer) if step is not None]
        splitter, *normalizer = [json.loads(state) for state in states]
    except Exception:  # a step written in Python has no state
        return False
    patterns_look_back = any("(?<" in str(state) for state in states)
    types_known = _step_types(splitter) <= _SPLITTERS and all(_step_types(n) <= _NORMALIZERS for n in normalizer)
    return types_known and not patterns_look_back


def _step_types(step: dict[str, Any]) -> set[str]:
    inner = [*step.get("pretokenizers", ()), *step.get("normalizers", ())]
    return {step["type"]}.union(*map(_step_types, inner))


class PromptEncoder:
    """Encodes the prompts of a chunk of rows in a few calls of the tokenizer.

    `groups`: those of its rows. `proven`: after `encode`, the groups of which it checked a row.
    """

    def __init__(self, prompter: Prompter, groups: Mapping[str, GroupPrompts]):
        self.prompter = prompter
        self.groups = groups
        self.proven: set[str] = set()

    def encode(
        self, records: Sequence[Record], sets: Sequence[Sequence[Shots]], replaced: Sequence[Collection[int]]
    ) -> list[EncodedRow]:
        """Encode rows (`question`, `context`, `answers`, `group`), each behind its own exemplar sets.

        `replaced`: the numbers of each row's sets that are not the group's.
        """
        rows: list[EncodedRow | None] = [None] * len(records)
        by_end = [i for i, r in enumerate(records) if self.groups[r["group"]].single is not None]
        for i, row in zip(by_end, self._by_end([records[i] for i in by_end]), strict=True):
            rows[i] = row
        self._check_one_of_each_group(records, sets, replaced, rows)
        whole = [i for i, row in enumerate(rows) if row is None]
        for i, row in zip(whole, self._whole([records[i] for i in whole], [sets[i] for i in whole]), strict=True):
            rows[i] = row
        self._encode_replaced(records, sets, replaced, rows)
        return [row for row in rows if row is not None]

    def _by_end(self, records: Sequence[Record]) -> list[EncodedRow | None]:
        """Encode rows behind the single exemplar of their group; None where a row's ids do not begin with its ids."""
        texts = [self._text(self.groups[r["group"]].shots, r) for r in records]
        rows: list[EncodedRow | None] = []
        encoded = self._ids_apart(texts, records) if self.prompter.gap == " " else self._ids(texts, records)
        for record, text, (ids, answers) in zip(records, texts, encoded, strict=True):
            group = self.groups[record["group"]]
            single = group.single or ()
            end = ids[len(single) :]
            fits = ids[: len(single)] == single and len(end) > 0 and _is_plain(self.prompter, text)
            rows.append(EncodedRow([(True, end)] * len(group.family), answers) if fits else None)
        return rows

    def _whole(self, records: Sequence[Record], sets: Sequence[Sequence[Shots]]) -> list[EncodedRow]:
        """Encode whole prompts, and the answers behind the first of them."""
        texts = [self._text(own[0], r) for r, own in zip(records, sets, strict=True)]
        others = [self._text(shots, r) for r, own in zip(records, sets, strict=True) for shots in own[1:]]
        ids = iter(self.prompter.ids(others) if others else ())
        return [
            EncodedRow([(False, first), *((False, tuple(next(ids))) for _ in own[1:])], answers)
            for (first, answers), own in zip(self._ids(texts, records), sets, strict=True)
        ]

    def _check_one_of_each_group(
        self,
        records: Sequence[Record],
        sets: Sequence[Sequence[Shots]],
        replaced: Sequence[Collection[int]],
        rows: list[EncodedRow | None],
    ) -> None:
        """Encode prompts of one row of each group whole; drop all rows of a group where they differ.

        They are the row's prompts behind all sets until a chunk has proved the group, and then one of them.
        """
        first: dict[str, int] = {}
        for i, row in enumerate(rows):
            if row is not None and not replaced[i]:
                first.setdefault(records[i]["group"], i)
        numbers = list(first.values())
        checked = [self._sets_to_check(records[i]) for i in numbers]
        sets_of = [[sets[i][j] for j in some] for i, some in zip(numbers, checked, strict=True)]
        whole_rows = self._whole([records[i] for i in numbers], sets_of)
        differing = set()
        for i, some, whole in zip(numbers, checked, whole_rows, strict=True):
            row, family = rows[i], self.groups[records[i]["group"]].family
            assert row is not None
            prompts = [(*family[j], *row.prompts[j][1]) for j in some]
            if prompts != [ids for _, ids in whole.prompts] or row.answers != whole.answers:
                differing.add(records[i]["group"])
        self.proven = {name for name in first if name not in differing}
        for i, record in enumerate(records):
            # without a row to prove it on, a group's prompts are encoded whole
            if record["group"] in differing or record["group"] not in first:
                rows[i] = None

    def _sets_to_check(self, record: Record) -> Sequence[int]:
        group = self.groups[record["group"]]
        count = len(group.family)
        return [record["row"] % count] if group.is_proven else range(count)

    def _encode_replaced(
        self,
        records: Sequence[Record],
        sets: Sequence[Sequence[Shots]],
        replaced: Sequence[Collection[int]],
        rows: Sequence[EncodedRow | None],
    ) -> None:
        """Encode whole the prompts whose exemplars are not the group's."""
        pairs = [(i, j) for i, row in enumerate(rows) if row is not None for j in replaced[i] if row.prompts[j][0]]
        ids = self.prompter.ids([self._text(sets[i][j], records[i]) for i, j in pairs]) if pairs else []
        for (i, j), line in zip(pairs, ids, strict=True):
            row = rows[i]
            assert row is not None
            row.prompts[j] = (False, tuple(line))

    def _ids(self, texts: Sequence[PromptText], records: Sequence[Record]) -> list[tuple[Ids, list[TokenPath]]]:
        """Return each prompt's ids, and a token path for each spelling of its row's answers."""
        if not texts:
            return []
        spellings = _spellings(records)
        gap = self.prompter.gap
        with_answers = [text + gap + s for text, own in zip(texts, spellings, strict=True) for s in own]
        ids = [tuple(line) for line in self.prompter.ids([*texts, *with_answers])]
        bases, after = ids[: len(texts)], iter(ids[len(texts) :])
        return [
            (base, [self.prompter.answer_path(base, next(after), s) for s in own])
            for base, own in zip(bases, spellings, strict=True)
        ]

    def _ids_apart(self, texts: Sequence[PromptText], records: Sequence[Record]) -> list[tuple[Ids, list[TokenPath]]]:
        """Return what `_ids` returns, but encode each answer on its own, once for all rows that have it."""
        if not texts:
            return []
        spellings = _spellings(records)
        distinct = list(dict.fromkeys(s for own in spellings for s in own))
        encoded = self.prompter.special.encode([self.prompter.gap + s for s in distinct], around=False)
        paths = {s: tuple(line.ids) for s, line in zip(distinct, encoded, strict=True)}
        ids = self.prompter.ids(texts)
        return [(tuple(base), [paths[s] for s in own]) for base, own in zip(ids, spellings, strict=True)]

    def _text(self, shots: Shots, record: Record) -> PromptText:
        return self.prompter.text(shots, record["question"], record["context"])


def _spellings(records: Sequence[Record]) -> list[list[str]]:
    """Return the spellings of each row's answers."""
    return [[s for a in r["answers"] if a.strip() for s in spellings_of(a)] for r in records]


def _is_plain(prompter: Prompter, text: PromptText) -> bool:
    """Return whether the text spells no special tokens but its template's."""
    return tuple(prompter.special.spans(text)) == text.acting
