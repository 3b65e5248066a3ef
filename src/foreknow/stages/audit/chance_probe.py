"""Measure the chance baseline (`chance_baseline.py`): how often the model gives a row's answers to its references.

All rows of a group share its references and exemplar sets, so every reference question is asked once behind each
set, and one pass searches for all accepted answers of the group. From the question on, the search follows the token
paths that can still spell one of them, likeliest first, until the remaining probability is negligible.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.data.exact_match import canonical, spellings_of
from foreknow.data.schema import ROWS, common_heads
from foreknow.errors import ConfigError
from foreknow.inference import slick
from foreknow.inference.engine import Prompt, Sampling
from foreknow.inference.exact_probe import Prober, ProbeSettings
from foreknow.inference.malloc import release_memory
from foreknow.inference.multi_target_search import MultiTargetSearch, Spellings, canonical_texts
from foreknow.inference.prompt_builder import PromptBuilder
from foreknow.io.run_dir import RunDir, fingerprint, read_json, with_checksum, write_frame, write_json
from foreknow.models import loading
from foreknow.models.in_memory import ModelInMemory
from foreknow.progress import meter
from foreknow.prompts.few_shot import Exemplars
from foreknow.prompts.vocabulary import TokenPath as Tokens
from foreknow.stages.audit import reload
from foreknow.stages.audit.chance_baseline import (
    CHANCE,
    CONTEXT,
    MADE_UP,
    ChanceRow,
    Chosen,
    Reference,
    ReferenceQuestion,
    Rules,
    blank,
    chance_line,
    choose,
    corrected_shares,
)
from foreknow.stages.audit.chunks import with_less_memory
from foreknow.stages.audit.result import AuditResult
from foreknow.version import __version__

logger = logging.getLogger(__name__)

COST: Final[dict[str, pl.DataType]] = {
    "seconds": pl.Float64(),
    "prompts": pl.Int64(),
    "paths": pl.Int64(),
    "halved": pl.Int64(),
}
"""A finished part's cost: time, reference prompts opened, token paths followed behind them, and how often batches were
halved for want of memory."""


@dataclass(frozen=True)
class Search:
    """Limits of the search.

    `negligible`: less likely token paths are not followed but counted as unsearched; usually equal to the floor, below
    which all probabilities count alike. `max_paths`: the most paths followed for one prompt. `texts`: the number of
    accepted answers searched for in one pass. `references`: the number of references asked in one pass.
    """

    rules: Rules = field(default_factory=Rules)
    negligible: float = 1e-6
    max_paths: int = 2048
    texts: int = 512
    references: int = 32

    def identity(self) -> dict[str, Any]:
        """The settings as plain values."""
        own = {name: getattr(self, name) for name in ("negligible", "max_paths", "texts")}
        return {**self.rules._asdict(), **own}


class ChancePart(NamedTuple):
    """Rows of one group that are computed and saved together, with the references of the whole group."""

    group: str
    rows: pl.DataFrame
    chosen: Chosen


def compute(
    prober: Prober,
    rows: pl.DataFrame,
    probes: pl.DataFrame,
    search: Search | None = None,
    folder: RunDir | None = None,
) -> pl.DataFrame:
    """Compute the null of every probed row (`chance_baseline.CHANCE`), sorted by row.

    `rows`: row, group, question, answers, subject, flags; only rows in `probes` (`slick.PROBES`) are used. Both must
    belong to the prober's exemplars. All figures use strict matching, whatever matching labels the rows. With a
    `folder`, finished parts are stored there and not computed again. If memory runs out, batches are halved as in the
    audit; raises ResourceError if small batches are too large as well.
    """
    search = search or Search()
    labels = slick.label(probes, samples=prober.settings.samples)
    labelled_rows = rows.join(labels.select("row", "p_greedy", "p_greedy_lenient", "p_sampled"), on="row").sort("row")
    plain = labelled_rows.filter(~pl.col("flags").list.contains(CONTEXT))
    heads = common_heads(labelled_rows) if labelled_rows.height else {}
    swapped = reload.swapped_sets(probes)
    parts = list(_parts(plain, search))
    frames = [pl.DataFrame([blank(row, CONTEXT) for row in _rest(labelled_rows, plain)], schema=CHANCE)]
    unfinished = []
    for n, part in enumerate(parts):
        saved = folder.chunk(n, "chance") if folder else None
        if saved is None or (folder and folder.chunk(n, "cost") is None):
            unfinished.append((n, part))
        else:
            frames.append(saved)
    if len(unfinished) < len(parts):
        logger.info(f"chance: {len(parts) - len(unfinished)} of {len(parts)} parts are finished; going on")
    with meter("chance", sum(part.rows.height for _, part in unfinished)) as done:
        for n, part in unfinished:
            began = time.monotonic()
            (lines, prompts, paths), halved = with_less_memory(
                partial(_work, prober, part, heads[part.group], swapped, search),
                prober,
                "chance: out of memory; finished groups are kept. Free some memory and run the same command again",
            )
            frames.append(lines)
            if folder:
                cost = [{"seconds": time.monotonic() - began, "prompts": prompts, "paths": paths, "halved": halved}]
                folder.save_chunk(n, "chance", lines)
                folder.save_chunk(n, "cost", pl.DataFrame(cost, schema=COST))
            done.advance(part.rows.height)
            release_memory()
    return pl.concat(frames).sort("row")


def _rest(labelled_rows: pl.DataFrame, plain: pl.DataFrame) -> list[int]:
    return labelled_rows.join(plain, on="row", how="anti")["row"].to_list()


def _parts(rows: pl.DataFrame, search: Search) -> Iterator[ChancePart]:
    """Yield the groups in order, each cut into parts of one row or at most `search.texts` accepted answers."""
    for (group,), own in sorted(rows.group_by("group"), key=lambda pair: str(pair[0][0])):
        by_answer = own.sort(pl.col("answers").list.first(), "row")
        chosen = choose(by_answer, search.rules)
        start = 0
        texts: set[str] = set()
        for i, answers in enumerate(by_answer["answers"].to_list()):
            more = texts | set(answers)
            if len(more) > search.texts and i > start:
                yield ChancePart(str(group), by_answer[start:i], Chosen(chosen.references, chosen.serves[start:i]))
                start, more = i, set(answers)
            texts = more
        yield ChancePart(str(group), by_answer[start:], Chosen(chosen.references, chosen.serves[start:]))


def _work(
    prober: Prober, part: ChancePart, head: str, swapped: Mapping[int, list[list[dict[str, Any]]]], search: Search
) -> tuple[pl.DataFrame, int, int]:
    """Compute a part; return its lines (`CHANCE`), the number of prompts opened and the number of paths followed."""
    chosen = part.chosen
    enough = chosen.serves.sum(axis=1) >= search.rules.least
    references = chosen.references if enough.any() else []
    sets = len(prober.prompts.exemplars.groups[part.group].sets)
    texts = canonical_texts(a for answers in part.rows["answers"].to_list() for a in answers)
    place = {text: i for i, text in enumerate(texts)}
    p, high = (np.zeros((len(references), sets, len(texts))) for _ in range(2))
    greedy = np.full((len(references), sets), -1, dtype=np.int64)
    paths = 0
    if references:
        builder, reference_rows = _reference_prompts(prober.prompts, part.group, references, head, swapped)
        limits = _limits(builder, reference_rows, part.rows, texts)
        for start in range(0, len(references), search.references):
            spellings = Spellings(prober.vocabulary, texts, limits)
            prompts = builder.build(reference_rows[start : start + search.references])[1]
            for r, line in enumerate(_search_prompts(prober, prompts, spellings, search), start):
                for j, search_result in enumerate(line):
                    p[r, j], high[r, j], greedy[r, j] = (
                        search_result.p,
                        search_result.p + search_result.lost,
                        search_result.greedy_text,
                    )
                    paths += search_result.paths
    reference_answers = ReferenceQuestion(p, high, greedy)
    invented = np.array([r.row is None for r in chosen.references], dtype=np.bool_)
    lines = []
    columns = part.rows.select("row", "p_sampled", "answers").iter_rows()
    for (number, p_sampled, answers), serving in zip(columns, chosen.serves, strict=True):
        own = swapped.get(number)
        counts = np.array([not replaced for replaced in own]) if own else np.ones(sets, dtype=np.bool_)
        of = sorted({place[canonical(a)] for a in answers if a.strip()})
        row = ChanceRow(number, p_sampled, of, serving, counts, bool((serving & invented).any()))
        lines.append(chance_line(row, reference_answers, prober.settings.samples, search.rules))
    return pl.DataFrame(lines, schema=CHANCE), len(references) * sets, paths


def _reference_prompts(
    prompts: PromptBuilder,
    group: str,
    references: Sequence[Reference],
    head: str,
    swapped: Mapping[int, list[list[dict[str, Any]]]],
) -> tuple[PromptBuilder, pl.DataFrame]:
    """Return what makes the references' prompts as those of their own rows were made, and the references as rows.

    A reference whose own fact is an exemplar keeps the sets that it was probed with, under a group of its own.
    """
    shared = prompts.exemplars.groups[group]
    groups = {group: replace(shared, reserve=())}
    lines: list[dict[str, Any]] = []
    for n, reference in enumerate(references):
        own = swapped.get(reference.row) if reference.row is not None else None
        name = f"{group}\x1f{n}" if own else group
        if own:
            groups[name] = reload.own_sets(shared, own)
        more: dict[str, Any] = {"question": reference.question, "answers": [], "subject": None, "context": []}
        lines.append({"row": n, "group": name, **more})
    frame = pl.DataFrame(lines, schema={k: ROWS[k] for k in lines[0]})
    exemplars = Exemplars(groups, prompts.exemplars.reason)
    return replace(prompts, exemplars=exemplars, heads=dict.fromkeys(groups, head)), frame


def _limits(
    prompts: PromptBuilder, reference_rows: pl.DataFrame, rows: pl.DataFrame, texts: Sequence[str]
) -> list[int]:
    """Return how many tokens each text and its end may take: those of the row's longest answer and some more, as in the
    probe."""
    first = reference_rows.row(0, named=True)
    prompter = prompts.prompter
    text = prompter.text(prompts.exemplars.groups[first["group"]].sets[0], first["question"])
    ids = prompter.ids([text])[0]
    written = {a.strip() for answers in rows["answers"].to_list() for a in answers if a.strip()}
    length = {t: len(prompter.answer_ids(text, ids, t)) for t in {*texts, *written}}
    longest = dict.fromkeys(texts, 0)
    for answers in rows["answers"].to_list():
        own = [spelled for a in answers if a.strip() for spelled in spellings_of(a)]
        most = max((length[a] for a in own if length[a] <= prompts.max_answer_tokens), default=1)
        for a in own:
            longest[canonical(a)] = max(longest[canonical(a)], most)
    return [longest[t] + prompts.extra_tokens for t in texts]


def _search_prompts(
    prober: Prober, prompts: Sequence[Sequence[Prompt]], spellings: Spellings, search: Search
) -> list[list[MultiTargetSearch]]:
    """Search behind every prompt; return the finished searches, [reference][set].

    Prompts with the same prefix are opened together.
    """
    count = len(spellings.texts)
    searches = [
        [
            MultiTargetSearch(spellings, search.negligible, search.max_paths, np.zeros(count), np.zeros(count))
            for _ in line
        ]
        for line in prompts
    ]
    order = [(r, j) for j in range(len(prompts[0])) for r in range(len(prompts))]
    session, nodes = prober.engine.open([prompts[r][j] for r, j in order], [[] for _ in order])
    flat = [searches[r][j] for r, j in order]
    for search_of_prompt, root in zip(flat, nodes, strict=True):
        search_of_prompt.feed((), root)
    while True:
        open_paths = [
            (i, path) for i, search_of_prompt in enumerate(flat) for path in search_of_prompt.paths_to_expand()
        ]
        if not open_paths:
            return searches
        for some in _slices(open_paths, 4096):
            for (i, path), node in zip(some, session.extend(some), strict=True):
                flat[i].feed(path, node)


def _slices(asked: Sequence[tuple[int, Tokens]], size: int) -> Iterable[Sequence[tuple[int, Tokens]]]:
    return (asked[start : start + size] for start in range(0, len(asked), size))


def compute_chance(audit: AuditResult, search: Search | None = None, memory: ModelInMemory | None = None) -> Path:
    """Write DIR/chance.parquet and DIR/chance.json for a finished audit; return the former's path.

    Everything comes from the audit's folder, and its model from `memory` if it lies there; the input is not read again.
    If both files exist and were written with the same settings, nothing is done. An interrupted run continues with the
    next group. Raises ConfigError for an audit by generation, because its shares of samples cannot be compared with
    probabilities.
    """
    search = search or Search()
    out, summary_path = audit.folder / "chance.parquet", audit.folder / "chance.json"
    config = reload.audit_config(audit)
    if config.protocol != "exact":
        raise ConfigError(f"{audit.folder}: audited with --protocol {config.protocol}; chance needs --protocol exact")
    manifest = json.loads((audit.folder / "manifest.json").read_text(encoding="utf-8"))
    identity = {
        "rows": manifest["rows"],
        "probes": fingerprint(audit.probes.select("row", "exemplar_set", "p_correct", "greedy_correct")),
        "model": manifest["identity"]["model"],
        "settings": search.identity(),
        "version": __version__,
    }
    if out.is_file() and (read_json(summary_path) or {}).get("identity") == identity:
        logger.info(f"{out}: complete; nothing to do")
        return out
    with reload.work_folder(audit, "chance", identity) as folder, reload.reload_audit(audit, memory) as reloaded:
        engine = reloaded.engine(Sampling(config.temperature, config.top_k))
        vocabulary = reloaded.prompter.ended(loading.vocabulary_of(reloaded.loaded))
        prompts = PromptBuilder(reloaded.prompter, reloaded.exemplars, max_answer_tokens=config.max_answer_tokens)
        prober = Prober(engine, prompts, vocabulary, ProbeSettings(samples=config.samples))
        rows = reload.probed_rows(audit)
        chance = compute(prober, rows, audit.probes, search, folder)
        summary = summarise_chance(rows, audit.probes, chance, config.samples)
        cost = folder.load_chunks("cost", COST).sum().row(0, named=True)
        spent = {**cost, "audit_seconds": audit.summary["seconds"]}
        write_frame(out, chance)
        more = {"cost": spent, "settings": identity["settings"], "identity": identity}
        write_json(summary_path, with_checksum({**summary, **more}))
        reload.drop(folder)
    return out


def summarise_chance(
    rows: pl.DataFrame, probes: pl.DataFrame, chance_frame: pl.DataFrame, samples: int
) -> dict[str, Any]:
    """Return the contents of `chance.json`: corrected shares overall and by relation, and how many rows may be guesses.

    `hit`: shares of `p_hit`, near the share of Known rows; `greedy`: shares of P(T=0). Only rows with a null count.
    """
    labels = slick.label(probes, samples=samples).select("row", "p_greedy", "p_hit", strict="category")
    every = rows.select("row", "group").join(labels, on="row").join(chance_frame, on="row")
    some = every.filter(pl.col("p_chance").is_not_null())
    shares: dict[str, Any] = {}
    for name, observed, chance in (("hit", "p_hit", "p_chance"), ("greedy", "p_greedy", "p_chance_greedy")):
        by_group = corrected_shares(some.select("group", observed=observed, chance=chance))
        shares[name] = {"overall": by_group.pop(""), "by_relation": by_group}
    guesses = some.group_by("strict").agg(rows=pl.len(), guessable=pl.col("guessable").sum())
    counted = {category: {"rows": n, "guessable": g} for category, n, g in guesses.sort("strict").iter_rows()}
    widest = (some["p_chance_upper"] - some["p_chance"]).max()
    return {
        "rows": every.height,
        "with_null": some.height,
        "matching": "strict",
        "corrected": shares,
        "guessable": {category: counted[category] for category in CATEGORIES if category in counted},
        "flags": dict(chance_frame["flag"].drop_nulls().value_counts().sort("flag").iter_rows()),
        "widest_p_chance": widest,
        "made_up": chance_frame.filter(pl.col("flag") == MADE_UP).height,
        "note": "clues in a subject's own name are not seen by the null: they count as knowledge",
    }
