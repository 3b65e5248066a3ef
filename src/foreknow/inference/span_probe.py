"""Labels fact spans in place: does the model go on with the span, after the question and the answer's text before it?

One forward pass for each row and exemplar set gives the model's distribution in front of every token of every span
(`span_tree.py`). From it come, without sampling:

    greedy        the arg max is the span's token at each place, and does not go on with the word behind it
    P(sample)     the product of the tokens' probabilities at the audit's temperature and top-k, times the probability
                  that the next token does not go on with the word
    recognised    of the span and its alternatives, the span has the largest log p (temperature 1, all tokens), summed
                  over its tokens and its end; behind the first set only (COMPARED_SETS)

The category is SliCK's rule on the first two (`slick.py`). The paper names long text as its limit; the rule for a
place in a text is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import polars as pl
import torch
from torch import Tensor

from foreknow.data.schema import GOLD
from foreknow.data.spans.finder import Words
from foreknow.data.spans.schema import CUT, FEW_ALTERNATIVES, NO_ALTERNATIVES
from foreknow.inference.answer_tokens import Text, tokenize_answers
from foreknow.inference.engine import Sampling
from foreknow.inference.span_categories import recognition, with_categories
from foreknow.inference.span_distributions import SpanDistributions, SpanScore, SpanStates
from foreknow.inference.span_engine import SpanJob, TreeEngine
from foreknow.inference.span_tree import SpanPaths, SpanText, SpanTree, span_paths
from foreknow.models.positions import UNLIMITED
from foreknow.prompts.chat_templates import TemplateRefusal
from foreknow.prompts.few_shot import Exemplar
from foreknow.prompts.long_exemplars import LongExemplars
from foreknow.prompts.prompt_template import Context, Prompter, common_prefix

ZERO_SHOT: Final = "zero_shot"
"""Flag of a span that was probed behind no exemplar."""
FEW_EXEMPLARS: Final = "few_exemplars"
"""Flag of a span that was probed behind fewer sets or shots than the settings ask for."""
IN_EXEMPLARS: Final = "in_exemplars"
"""Flag of a span whose text stands in an exemplar before it: the model may have copied it."""
NOT_FINITE: Final = "not_finite"
"""Flag of a span at which the model's logits were not finite; it has no category."""
COMPARED_SETS: Final = 1
"""Exemplar sets behind which spans are compared with alternatives. In the lab, four tell known facts from others no
better than one (area under the ROC curve 0.965 for both), and each costs as much as all else behind it."""


@dataclass(frozen=True)
class SpanSettings:
    """How spans are probed. `sets`, `shots`, `alternatives`: what the audit asks for.

    `samples`: draws for each set, as for short rows. `max_tokens`: the most tokens of an answer that are scored.
    `positions`: the most tokens the model takes in.
    """

    sampling: Sampling
    samples: int
    sets: int
    shots: int
    alternatives: int
    max_tokens: int = 1024
    positions: int = UNLIMITED


class _PreparedRow(NamedTuple):
    """A row and its prompts, one for each exemplar set: the set, the text's tokens, and the paths of each span.

    A span without paths is not scored.
    """

    record: dict[str, Any]
    sets: list[tuple[Exemplar, ...]]
    texts: list[Text]
    paths: list[list[SpanPaths | None]]


class SpanProber:
    """Labels the fact spans of rows with one model, prompt and set of exemplars.

    `ends`: for each token of the vocabulary, whether it ends a word (`word_ending_tokens`).
    """

    def __init__(
        self,
        engine: TreeEngine,
        prompter: Prompter,
        exemplars: LongExemplars,
        settings: SpanSettings,
        ends: Tensor,
    ):
        self.engine = engine
        self.prompter = prompter
        self.exemplars = exemplars
        self.settings = settings
        self.ends = ends
        self._prefixes: dict[tuple[tuple[Exemplar, ...], tuple[str, ...]], tuple[int, ...]] = {}

    def probe(self, rows: pl.DataFrame, finder: str) -> pl.DataFrame:
        """Label the spans of rows (`schema.ROWS` and `fact_spans`, a list of `SpanText`); return a frame `SPANS`."""
        self._prefixes.clear()  # rows may bring system texts of their own, one each
        columns = ("row", "group", "record", "question", "subject", "context", "fact_spans")
        records = rows.sort("row").select(*columns, GOLD.alias("gold")).to_dicts()
        prepared = [self._prepare(record) for record in records if record["fact_spans"]]
        jobs: list[SpanJob] = []
        places: list[tuple[int, int, dict[int, SpanStates]]] = []
        for r, row in enumerate(prepared):
            for j in range(len(row.texts)):
                if any(row.paths[j]):
                    job, spans = self._job(row, j)
                    jobs.append(job)
                    places.append((r, j, spans))
        scores: dict[tuple[int, int], dict[int, SpanScore]] = {}
        for number, states in self.engine.run(jobs):
            r, j, spans = places[number]
            own = self._scores(states, jobs[number].wanted, list(spans.values()))
            scores[r, j] = dict(zip(spans, own, strict=True))
        lines = [
            self._line(row, n, [scores.get((r, j), {}).get(n) for j in range(len(row.texts))], finder)
            for r, row in enumerate(prepared)
            for n in range(len(row.record["fact_spans"]))
        ]
        return with_categories(lines, self.settings.samples)

    def _prepare(self, record: dict[str, Any]) -> _PreparedRow:
        """Tokenise a row behind each of its exemplar sets, and find the tokens of its spans."""
        gold, context = record["gold"], record["context"]
        sets = self.exemplars.for_row(record["group"], record["question"], gold, record["subject"], record["record"])
        try:
            prompts = [self._prompt_text(shots, record["question"], context) for shots in sets]
        except TemplateRefusal:  # the chat template takes the row, but not behind exemplars
            sets = [()]
            prompts = [self._prompt_text((), record["question"], context)]
        texts = tokenize_answers(self.prompter, [(prompt, gold) for prompt in prompts])
        spans = [SpanText(s["start"], s["end"], s["type"], s["alternatives"]) for s in record["fact_spans"]]
        by_tokens: dict[tuple[int, ...], list[SpanPaths | None]] = {}
        paths = []
        for prompt, text in zip(prompts, texts, strict=True):
            tokens = tuple(text.ids[text.first : text.last])  # nearly always the same behind every set
            if tokens not in by_tokens:
                by_tokens[tokens] = [span_paths(self.prompter, prompt, gold, text, span) for span in spans]
            room = min(self.settings.positions - text.first, self.settings.max_tokens)
            # the first token of a text has no distribution, so an answer that begins with it is not scored
            paths.append([p if p and text.first and self._fits(p, room) else None for p in by_tokens[tokens]])
        return _PreparedRow(record, sets, texts, paths)

    def _prompt_text(self, shots: Sequence[Exemplar], question: str, context: Context | None) -> str:
        return self.prompter.text(shots, question, context) + self.prompter.gap

    @staticmethod
    def _fits(paths: SpanPaths, room: int) -> bool:
        return paths.first + max(map(len, (*paths.spellings, *paths.alternatives))) <= room

    def _job(self, row: _PreparedRow, j: int) -> tuple[SpanJob, dict[int, SpanStates]]:
        """Build the tree of one row behind one set."""
        text, scored = row.texts[j], {n: paths for n, paths in enumerate(row.paths[j]) if paths is not None}
        if j >= COMPARED_SETS:
            scored = {n: paths._replace(alternatives=[]) for n, paths in scored.items()}
        prefix = self._prefix(row.sets[j], row.record["context"])
        shared = min(common_prefix(prefix, text.ids), text.first - 1)
        tree = SpanTree(text.ids[shared : text.first + max(paths.last for paths in scored.values())])
        spans = {}
        for n, paths in scored.items():
            at = text.first + paths.first - 1 - shared
            added = [tree.add(at, path) for path in (*paths.spellings, *paths.alternatives)]
            count = len(paths.spellings)
            spans[n] = SpanStates(paths, added[:count], added[count:])
        wanted = {node for s in spans.values() for path in (*s.spellings, *s.alternatives) for node in path.before}
        wanted |= {p.last for s in spans.values() if s.paths.asks_end for p in (*s.spellings, *s.alternatives)}
        return SpanJob(prefix, shared, tree, sorted(wanted)), spans

    def _prefix(self, shots: tuple[Exemplar, ...], context: Context | None) -> tuple[int, ...]:
        """Return the ids that every prompt begins with, given these exemplars and the row's system text."""
        system = tuple(turn["content"] for turn in context or () if turn["role"] == "system")
        if (shots, system) not in self._prefixes:
            turns = [{"role": "system", "content": content} for content in system]
            first, second = self.prompter.ids([self.prompter.text(shots, q, turns) for q in ("\u00a7", "0")])
            self._prefixes[shots, system] = tuple(first[: common_prefix(first, second)])
        return self._prefixes[shots, system]

    @torch.inference_mode()
    def _scores(self, states: Tensor, wanted: Sequence[int], spans: Sequence[SpanStates]) -> list[SpanScore]:
        """Score the spans of one job. `states`: those of the tree's tokens `wanted`."""
        spelled = {node for s in spans for path in s.spellings for node in (*path.before, path.last)}
        pairs = sorted(
            {
                (node, token)
                for s in spans
                for path in (*s.spellings, *s.alternatives)
                for node, token in (
                    *zip(path.before, path.tokens, strict=True),
                    *([(path.last, s.paths.after)] if s.paths.asks_end and s.paths.after is not None else []),
                )
            }
        )
        table = SpanDistributions(self.engine.logits, self.settings.sampling, self.ends, states, wanted, spelled, pairs)
        return [table.score(span) for span in spans]

    def _line(self, row: _PreparedRow, n: int, scores: Sequence[SpanScore | None], finder: str) -> dict[str, Any]:
        """Put a span's scores behind all sets together, as a line of `SPANS`.

        Its `probes` are pairs (greedy, P(sample)), one for each set; `with_categories` makes figures of them.
        """
        record, span = row.record, row.record["fact_spans"][n]
        text = record["gold"][span["start"] : span["end"]]
        complete = [score for score in scores if score is not None]
        is_complete = len(complete) == len(scores)
        flags = {flag for paths in row.paths if (own := paths[n]) is not None for flag in own.flags}
        flags |= self._exemplar_flags(row, text)
        line: dict[str, Any] = {
            **{"row": record["row"], "span": n, "start": span["start"], "end": span["end"], "text": text},
            **{"type": span["type"], "finder": finder, "alternatives": 0},
        }
        if not is_complete or not all(math.isfinite(x) for s in complete for x in (s.p, s.logp, *s.alternatives)):
            flags.add(NOT_FINITE if is_complete else CUT)
            return {**line, "flags": sorted(flags)}
        line["probes"] = [(score.greedy, score.p) for score in complete]
        compared = complete[:COMPARED_SETS]
        if compared[0].alternatives:
            line |= recognition([score.logp for score in compared], [score.alternatives for score in compared])
            if 2 * line["alternatives"] < self.settings.alternatives:
                line["recognised"] = None
                flags.add(FEW_ALTERNATIVES)
        else:
            flags.add(NO_ALTERNATIVES)
        return {**line, "flags": sorted(flags)}

    def _exemplar_flags(self, row: _PreparedRow, text: str) -> set[str]:
        flags = set()
        if not any(row.sets):
            flags.add(ZERO_SHOT)
        elif len(row.sets) < self.settings.sets or any(len(shots) < self.settings.shots for shots in row.sets):
            flags.add(FEW_EXEMPLARS)
        own = Words(text)
        if any(_words_of(exemplar).mentions(own) for exemplar in {e for shots in row.sets for e in shots}):
            flags.add(IN_EXEMPLARS)
        return flags


@lru_cache(maxsize=256)
def _words_of(exemplar: Exemplar) -> Words:
    return Words(f"{exemplar.question} {exemplar.answer}")
