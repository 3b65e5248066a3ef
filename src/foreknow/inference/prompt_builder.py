"""Makes the prompts of rows, one for each exemplar set, and the token paths of their accepted answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import polars as pl

from foreknow.inference.engine import Family, Prompt
from foreknow.prompts.few_shot import Exemplar, Exemplars, Substitution
from foreknow.prompts.prompt_batch import GroupPrompts, PromptEncoder, beginnings, group_prompts
from foreknow.prompts.prompt_template import Prompter, common_prefix
from foreknow.prompts.vocabulary import TokenPath

EXTRA_TOKENS: Final = 4
"""An answer and its end may take the longest accepted answer's tokens plus these."""

_GROUPS: Final = 64
"""How many groups' prompts a builder keeps, so that memory does not grow with the rows."""


@dataclass(frozen=True)
class PreparedRow:
    """A row ready to probe: its answers and their token paths, and the most tokens of an answer."""

    number: int
    answers: tuple[str, ...]
    tree: list[TokenPath]
    max_new: int
    replaced_shots: list[list[Substitution]]


PreparedPrompts: TypeAlias = tuple[list[PreparedRow], list[list[Prompt]]]
"""Rows ready to probe, and the prompts of each, one for each exemplar set."""


@dataclass(frozen=True)
class PromptBuilder:
    """Makes the prompts of rows with one prompter and set of exemplars.

    `heads`: the text that all of a group's questions begin with (`common_heads`), cached with the exemplars.
    `max_answer_tokens`: longer accepted answers get no path. `extra_tokens`: see `EXTRA_TOKENS`.
    """

    prompter: Prompter
    exemplars: Exemplars
    heads: Mapping[str, str] = field(default_factory=dict)
    max_answer_tokens: int = 32
    extra_tokens: int = EXTRA_TOKENS
    _groups: dict[str, GroupPrompts] = field(default_factory=dict, repr=False, compare=False)

    def build(self, rows: pl.DataFrame) -> PreparedPrompts:
        """Prepare each row (columns as in `schema.ROWS`), and its prompts, one for each exemplar set."""
        columns = ("row", "record", "group", "question", "answers", "subject", "context")
        records = rows.select(name for name in columns if name in rows.columns).to_dicts()
        groups = self.exemplars.groups
        exemplar_sets = [groups[r["group"]].for_row(r["question"], r["subject"], r.get("record")) for r in records]
        encoder = PromptEncoder(self.prompter, {name: self._group(name) for name in {r["group"] for r in records}})
        replaced_sets = [[j for j, (_, swapped) in enumerate(sets) if swapped] for sets in exemplar_sets]
        shots = [[shots for shots, _ in sets] for sets in exemplar_sets]
        encoded_rows = encoder.encode(records, shots, replaced_sets)
        for name in encoder.proven & self._groups.keys():
            self._groups[name] = self._groups[name]._replace(is_proven=True)
        replaced = [(i, j) for i, numbers in enumerate(replaced_sets) for j in numbers]
        own_family: Family = tuple(self._prefix_ids(exemplar_sets[i][j][0], records[i]["group"]) for i, j in replaced)
        own_member = {pair: n for n, pair in enumerate(replaced)}
        prompts, prepared = [], []
        for i, (record, encoded) in enumerate(zip(records, encoded_rows, strict=True)):
            family = self._group(record["group"]).family
            row_prompts = []
            for j, (is_shared, ids) in enumerate(encoded.prompts):
                if is_shared:
                    row_prompts.append(Prompt(family, j, len(family[j]), ids))
                    continue
                n = own_member.get((i, j))
                of, member = (family, j) if n is None else (own_family, n)
                shared = min(common_prefix(of[member], ids), len(ids) - 1)
                row_prompts.append(Prompt(of, member, shared, ids[shared:]))
            prompts.append(row_prompts)
            prepared.append(self._prepare_row(record, encoded.answers, [swapped for _, swapped in exemplar_sets[i]]))
        return prepared, prompts

    def _prepare_row(
        self, record: dict[str, Any], paths: Sequence[TokenPath], replaced_shots: list[list[Substitution]]
    ) -> PreparedRow:
        usable = [p for p in paths if 0 < len(p) <= self.max_answer_tokens]
        tree = sorted({p[: n + 1] for p in usable for n in range(len(p))})
        longest = max((len(p) for p in usable), default=1)
        answers, max_new = tuple(record["answers"]), longest + self.extra_tokens
        return PreparedRow(record["row"], answers, tree, max_new, replaced_shots)

    def _group(self, name: str) -> GroupPrompts:
        """Return what all prompts of a group begin with; the last groups used are kept."""
        group = self._groups.pop(name, None)
        if group is None:
            group = group_prompts(self.prompter, self.exemplars.groups[name].sets, self.heads.get(name, ""))
            if len(self._groups) >= _GROUPS:
                del self._groups[next(iter(self._groups))]
        self._groups[name] = group
        return group

    def _prefix_ids(self, shots: Sequence[Exemplar], group: str) -> tuple[int, ...]:
        """Return the ids that every prompt of the group begins with, given these exemplars."""
        return beginnings(self.prompter, [shots], self.heads.get(group, ""))[0].ids
