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
from transformers import PreTrainedTokenizerBase

from foreknow.data.schema import GOLD
from foreknow.data.spans.finder import Words
from foreknow.data.spans.schema import CUT, FEW_ALTERNATIVES, NO_ALTERNATIVES, SPANS
from foreknow.inference import slick
from foreknow.inference.answer_tokens import Text, tokenize_answers
from foreknow.inference.engine import Sampling
from foreknow.inference.span_engine import SpanJob, TreeEngine
from foreknow.inference.span_tree import PathStates, SpanPaths, SpanText, SpanTree, span_paths, word_ends
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
_FLOATS: Final = 2**23
"""Numbers in one block of logits (32 MB). Blocks of 128 MB leave the processor's cache and take a third longer."""


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
    positions: int = 2**31


class SpanScore(NamedTuple):
    """A span behind one set: whether the greedy path says it, P(sample), and log p of it and of each alternative."""

    greedy: bool
    p: float
    logp: float
    alternatives: list[float]


class _PreparedRow(NamedTuple):
    """A row and its prompts, one for each exemplar set: the set, the text's tokens, and the paths of each span.

    A span without paths is not scored.
    """

    record: dict[str, Any]
    sets: list[tuple[Exemplar, ...]]
    texts: list[Text]
    paths: list[list[SpanPaths | None]]


class _SpanStates(NamedTuple):
    """Where a span's paths stand in the tree of one job."""

    paths: SpanPaths
    spellings: list[PathStates]
    alternatives: list[PathStates]


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
        places: list[tuple[int, int, dict[int, _SpanStates]]] = []
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

    def _job(self, row: _PreparedRow, j: int) -> tuple[SpanJob, dict[int, _SpanStates]]:
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
            spans[n] = _SpanStates(paths, added[:count], added[count:])
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
    def _scores(self, states: Tensor, wanted: Sequence[int], spans: Sequence[_SpanStates]) -> list[SpanScore]:
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
        table = _Distributions(self, states, wanted, spelled, pairs)
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


def with_categories(lines: Sequence[dict[str, Any]], samples: int) -> pl.DataFrame:
    """Return lines as a frame `SPANS`, with the figures and the category of those that have `probes`."""
    probes = pl.DataFrame(
        [(n, greedy, p) for n, line in enumerate(lines) for greedy, p in line.get("probes", ())],
        schema={"line": pl.Int64, "greedy": pl.Boolean, "p": pl.Float64},
        orient="row",
    )
    figures = (
        probes.group_by("line")
        .agg(p_greedy=pl.col("greedy").mean(), p_sampled=pl.col("p").mean(), p_hit=slick.p_hit(pl.col("p"), samples))
        .with_columns(category=slick.category(pl.col("p_greedy"), pl.col("p_hit")))
    )
    labelled = {name: kind for name, kind in SPANS.items() if name not in figures.columns}
    frame = pl.DataFrame([{name: line.get(name) for name in labelled} for line in lines], schema=labelled)
    numbered = frame.with_columns(line=pl.int_range(pl.len(), dtype=pl.Int64))
    return numbered.join(figures, on="line", how="left").select(list(SPANS)).sort("row", "start")


@lru_cache(maxsize=256)
def _words_of(exemplar: Exemplar) -> Words:
    return Words(f"{exemplar.question} {exemplar.answer}")


def recognition(golds: Sequence[float], alternatives: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Compare a span with its alternatives: `rank`, `recognised`, `p_recognised` and the number of `alternatives`.

    `golds`: the span's log p behind each set; `alternatives`: those of each alternative, in the same order.
    """
    gold = math.fsum(golds) / len(golds)
    others = [math.fsum(values) / len(golds) for values in zip(*alternatives, strict=True)]
    largest = max(gold, *others)
    weights = [math.exp(value - largest) for value in (gold, *others)]
    rank = 1 + sum(other >= gold for other in others)
    return {
        "recognised": rank == 1,
        "p_recognised": weights[0] / math.fsum(weights),
        "rank": rank,
        "alternatives": len(others),
    }


class _Distributions:
    """The figures of one job's next-token distributions that its spans need, computed block by block.

    `spelled`: nodes of which the sampling distribution and the arg max are needed. `pairs`: (node, token) whose
    probabilities are needed.
    """

    def __init__(
        self,
        prober: SpanProber,
        states: Tensor,
        wanted: Sequence[int],
        spelled: set[int],
        pairs: Sequence[tuple[int, int]],
    ):
        self.logp: dict[tuple[int, int], float] = {}
        self.p: dict[tuple[int, int], float] = {}
        self.end_logp: dict[int, float] = {}
        self.end_p: dict[int, float] = {}
        self.greedy: dict[int, int] = {}
        self.is_end = prober.ends
        of_node: dict[int, list[int]] = {}
        for node, token in pairs:
            of_node.setdefault(node, []).append(token)
        size = max(1, _FLOATS // len(prober.ends))
        for start in range(0, len(wanted), size):
            nodes = wanted[start : start + size]
            self._add_block(prober, states[start : start + size], nodes, spelled, of_node)

    def _add_block(
        self,
        prober: SpanProber,
        states: Tensor,
        nodes: Sequence[int],
        spelled: set[int],
        of_node: dict[int, list[int]],
    ) -> None:
        logits = prober.engine.logits(states)
        ends = prober.ends.to(logits.device)
        lines = torch.tensor([n for n, node in enumerate(nodes) for _ in of_node.get(node, ())], dtype=torch.long)
        tokens = torch.tensor([token for node in nodes for token in of_node.get(node, ())], dtype=torch.long)
        keys = [(node, token) for node in nodes for token in of_node.get(node, ())]
        lines, tokens = lines.to(logits.device), tokens.to(logits.device)
        total = logits.logsumexp(-1)
        self.logp |= zip(keys, (logits[lines, tokens] - total[lines]).double().tolist(), strict=True)
        ending = logits.masked_fill(~ends, -torch.inf).logsumexp(-1) - total
        self.end_logp |= zip(nodes, ending.double().tolist(), strict=True)
        sampled = [n for n, node in enumerate(nodes) if node in spelled]
        if not sampled:
            return
        logits = logits[sampled]
        top = logits.amax(-1, keepdim=True)
        ids = torch.arange(logits.shape[1], device=logits.device)
        # of equal logits the lowest id wins, as in torch.argmax over the vocabulary
        greedy = torch.where(logits == top, ids, logits.shape[1] - 1).amin(-1)
        self.greedy |= zip([nodes[n] for n in sampled], greedy.tolist(), strict=True)
        sampling = prober.settings.sampling
        if sampling.top_k:
            kth = logits.topk(min(sampling.top_k, logits.shape[1]), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        p = (logits / sampling.temperature).softmax(-1)
        self.end_p |= zip([nodes[n] for n in sampled], (p * ends).sum(-1).double().tolist(), strict=True)
        line_of = {nodes[n]: at for at, n in enumerate(sampled)}
        own = [key for key in keys if key[0] in line_of]
        values = p[[line_of[node] for node, _ in own], [token for _, token in own]] if own else p.new_zeros(0)
        self.p |= zip(own, values.double().tolist(), strict=True)

    def score(self, span: _SpanStates) -> SpanScore:
        """Score a span behind this job's set."""
        paths = span.paths
        greedy, p = False, 0.0
        for path in span.spellings:
            says = all(self.greedy[node] == token for node, token in zip(path.before, path.tokens, strict=True))
            greedy = greedy or (says and (not paths.asks_end or self._ends(self.greedy[path.last], paths.after)))
            share = math.prod(self.p[pair] for pair in zip(path.before, path.tokens, strict=True))
            p += share * self._end_p(path, paths)
        return SpanScore(
            greedy,
            min(p, 1.0) if math.isfinite(p) else math.nan,
            self._path_logp(span.spellings[0], paths),
            [self._path_logp(path, paths) for path in span.alternatives],
        )

    def _ends(self, token: int, after: int | None) -> bool:
        return token == after or bool(self.is_end[token])

    def _end_p(self, path: PathStates, paths: SpanPaths) -> float:
        if not paths.asks_end:
            return 1.0
        after = paths.after
        more = 0.0 if after is None or self.is_end[after] else self.p[path.last, after]
        return min(self.end_p[path.last] + more, 1.0)

    def _path_logp(self, path: PathStates, paths: SpanPaths) -> float:
        total = math.fsum(self.logp[pair] for pair in zip(path.before, path.tokens, strict=True))
        if not paths.asks_end:
            return total
        end, after = self.end_logp[path.last], paths.after
        if after is not None and not self.is_end[after]:
            more = self.logp[path.last, after]
            end = max(end, more) + math.log1p(math.exp(-abs(end - more)))
        return total + end


def word_ending_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """Return for each of the `size` tokens of a model's vocabulary whether it ends a word that stands before it.

    A token is judged by the text that it adds behind a letter. Ids that the tokenizer does not know end nothing.
    """
    letter = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    known = min(size, len(tokenizer))
    alone = str(tokenizer.decode([letter], clean_up_tokenization_spaces=False))
    pairs = tokenizer.batch_decode([[letter, n] for n in range(known)], clean_up_tokenization_spaces=False)
    ends = word_ends(text[len(alone) :] if text.startswith(alone) else text for text in pairs)
    return torch.tensor([*ends, *[False] * (size - known)])
