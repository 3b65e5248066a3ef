"""Known data sets as folders that every other verb reads: ENTITYQUESTIONS, PopQA, the packaged facts.

Each folder holds one JSONL file a split and, written last, `manifest.json`: counts, what was dropped and why,
what the splits share, the source's hash and each file's. The same source gives the same bytes; a finished
folder of the same source is left as it is; a folder of anything else is refused.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import polars as pl

from foreknow.data.builtin import entityquestions, popqa
from foreknow.data.builtin.entityquestions import REASONS, SETS, Splits
from foreknow.data.layouts.relation_templates import read_templates
from foreknow.errors import InputError
from foreknow.io.download import download_url
from foreknow.io.run_dir import fingerprint, lock_run_dir, write_whole
from foreknow.version import __version__

logger = logging.getLogger(__name__)

ENTITYQUESTIONS_URL: Final = "https://nlp.cs.princeton.edu/projects/entity-questions/dataset.zip"
POPQA_HUB: Final = "hub:akariasai/PopQA@098765c79ea10a2cb19c828324e33281b8336ec0"
RULES: Final = 1
"""Raise when what is written changes: folders of another number are not taken for the same."""


@dataclass(frozen=True)
class ExportResult:
    """A finished data folder.

    `counts`: rows for each relation and split, the line of all first, for a table. `notes`: what a reader
    should know, a line each. `was_complete`: it stood there already and nothing was written.
    """

    folder: Path
    counts: pl.DataFrame
    notes: tuple[str, ...]
    was_complete: bool


def write_entityquestions(source: str, out: Path, *, templates: Path | None = None, check: bool = True) -> ExportResult:
    """Write ENTITYQUESTIONS in the paper's splits: train, dev, test, test_ood.

    `source`: a folder or zip of the published tree, "hub" (fetch the published zip), an https address of it,
    or `hub:owner/name`, a data set of the hub that holds the tree. `templates`: a template file; its
    templates win over those derived from the questions. Without `check`, relations may be missing and their
    totals differ from the paper's. Raises InputError, RunFolderError, ResourceError.
    """
    given_templates = None if templates is None else read_templates(templates)
    path, origin = _locate(source, ENTITYQUESTIONS_URL)
    tree = entityquestions.read_tree(path, complete=check)
    splits = entityquestions.paper_splits(tree.rows, given_templates, check=check)
    identity = {"templates": fingerprint(dict(splits.templates)), "content": tree.content}
    differ = entityquestions.differences_from_paper(splits.sets)
    fates = dict(splits.account.group_by("fate").agg(pl.col("rows").sum()).iter_rows())
    manifest = {
        "licence": "MIT; facts of Wikidata, CC0",
        "source": {**origin, "content": tree.content},
        "rows_read": tree.rows.height,
        "counts": {name: _by_relation(frame) for name, frame in splits.sets.items()},
        "dropped": {
            reason: {
                "rows": int(fates.get(reason, 0)),
                "why": why,
                "by_relation": _rows_by_relation(splits, reason),
            }
            for reason, why in REASONS.items()
        },
        "differs_from_paper": differ,
        "overlaps": dict(splits.overlaps),
        "templates": dict(splits.templates),
    }
    config = {"source": origin, "templates": None if templates is None else templates.name, "check": check}
    was_complete = _write_folder(out, "entityquestions", identity, config, splits.sets, manifest)
    dropped = splits.account.filter(~pl.col("fate").is_in(SETS)).group_by("relation").agg(pl.col("rows").sum())
    counts = _counts_table(splits.sets, dict(dropped.iter_rows()))
    return ExportResult(out, counts, _split_notes(splits, fates, differ), was_complete)


def write_popqa(source: str, out: Path) -> ExportResult:
    """Write PopQA as one file, popqa.jsonl.

    `source`: the published test.tsv, "hub" (akariasai/PopQA), `hub:owner/name`, or an https address. The gold
    is `obj`; every text of `possible_answers` is accepted too. Raises InputError naming file and line.
    """
    path, origin = _locate(source, POPQA_HUB)
    rows, content = popqa.read_popqa(path)
    golds = rows.group_by("relation", "question").agg(pl.col("answer").n_unique().alias("golds"))
    overlaps: dict[str, Any] = {
        "questions_with_conflicting_golds": golds.filter(pl.col("golds") > 1).height,
        "majority_floor": entityquestions.floors(rows, rows),
    }
    manifest = {
        "licence": "not stated on the hub's page; the authors' repository is under the MIT licence",
        "source": {**origin, "content": content},
        "rows_read": rows.height,
        "counts": {"popqa": _by_relation(rows)},
        "overlaps": overlaps,
    }
    sets = {"popqa": rows}
    was_complete = _write_folder(out, "popqa", {"content": content}, {"source": origin}, sets, manifest)
    notes = (
        f"{rows.height:,} rows read, all written; {overlaps['questions_with_conflicting_golds']:,} questions have "
        "more than one gold",
        _floor_note(overlaps["majority_floor"], "gold", "all rows"),
    )
    return ExportResult(out, _counts_table(sets), notes, was_complete)


def write_facts(out: Path) -> ExportResult:
    """Write the packaged facts in their splits: train, dev, test. Raises MissingExtra without foreknow[facts]."""
    from foreknow.data.builtin.default_facts import RELATIONS, licences, load_facts  # keeps rapidfuzz out

    facts = load_facts().with_columns(answer=pl.col("answers").list.first())
    order = ("question", "answer", "answers", "subject", "relation", "split", "popularity", "source")
    facts = facts.select(*order)
    sets = {name: facts.filter(pl.col("split") == name) for name in ("train", "dev", "test")}
    packages = sorted({package for relation in RELATIONS for package in relation.package.split(", ")})
    content = fingerprint(facts)
    origin = {"packages": {package: importlib.metadata.version(package) for package in packages}}
    manifest: dict[str, Any] = {
        "licence": licences(),
        "source": {**origin, "content": content},
        "rows_read": facts.height,
        "counts": {name: _by_relation(frame) for name, frame in sets.items()},
        "overlaps": {"majority_floor": entityquestions.floors(sets["train"], sets["test"])},
        "relations": {
            relation.name: {
                "template": relation.template,
                "packages": relation.package,
                "licence": relation.licence,
                "popularity": relation.popularity,
            }
            for relation in RELATIONS
        },
    }
    was_complete = _write_folder(out, "facts", {"content": content}, {"source": origin}, sets, manifest)
    notes = (
        _floor_note(manifest["overlaps"]["majority_floor"], "train gold", "test"),
        f"licences: {licences()}",
    )
    return ExportResult(out, _counts_table(sets), notes, was_complete)


def _write_folder(
    out: Path,
    name: str,
    identity: Mapping[str, Any],
    config: Mapping[str, Any],
    sets: Mapping[str, pl.DataFrame],
    manifest: Mapping[str, Any],
) -> bool:
    """Write the folder, manifest last; True if it was complete already."""
    identity = {"data": name, "rules": RULES, **identity}
    with lock_run_dir(out) as folder:
        if folder.open_run(identity, {"data": name, **config}):
            logger.info(f"{out}: complete already, from the same source; nothing to do")
            return True
        rows = {}
        for split, frame in sets.items():
            content = "".join(_json_line(row) for row in frame.iter_rows(named=True)).encode()
            write_whole(out / f"{split}.jsonl", partial(_write_bytes, content))
            rows[f"{split}.jsonl"] = frame.height
        header = {"foreknow": __version__, "stage": "data", "identity": identity, "rows": rows}
        folder.finish({**header, **manifest}, outputs=rows)
    return False


def _write_bytes(content: bytes, part: Path) -> None:
    part.write_bytes(content)


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _locate(source: str, published: str) -> tuple[str, dict[str, Any]]:
    """What to read, and what the manifest says of where it came from; fetched where it is not here."""
    if source == "hub":
        source = published
    if source.startswith(("https://", "http://")):
        path = download_url(source)
        return str(path), {"address": source, "sha256": _sha256(path)}
    if source.startswith("hub:"):
        return source, {"address": source}
    path = Path(source)
    return source, {"name": path.name, **({"sha256": _sha256(path)} if path.is_file() else {})}


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _by_relation(frame: pl.DataFrame) -> dict[str, Any]:
    counts = dict(frame.group_by("relation", maintain_order=True).len().iter_rows())
    return {"rows": frame.height, "by_relation": counts}


def _rows_by_relation(splits: Splits, reason: str) -> dict[str, int]:
    rows = splits.account.filter(pl.col("fate") == reason)
    return dict(rows.group_by("relation", maintain_order=True).agg(pl.col("rows").sum()).iter_rows())


def _counts_table(sets: Mapping[str, pl.DataFrame], dropped: Mapping[str, int] | None = None) -> pl.DataFrame:
    """Rows for each relation and split, and of those dropped where given; the line of all first."""
    columns = {name: dict(frame.group_by("relation").len().iter_rows()) for name, frame in sets.items()}
    if dropped is not None:
        columns["dropped"] = dict(dropped)
    relations = sorted({key for counts in columns.values() for key in counts}, key=_by_number)
    lines = [{"relation": key, **{name: counts.get(key, 0) for name, counts in columns.items()}} for key in relations]
    every = {"relation": "all", **{name: sum(counts.values()) for name, counts in columns.items()}}
    return pl.DataFrame([every, *lines], schema={"relation": pl.String(), **dict.fromkeys(columns, pl.Int64())})


def _by_number(relation: str) -> tuple[int, str]:
    """P19 before P106, other names by their text."""
    return (int(relation[1:]) if relation[:1] == "P" and relation[1:].isdecimal() else 0, relation)


def _split_notes(splits: Splits, fates: Mapping[str, int], differ: Sequence[str]) -> tuple[str, ...]:
    """What a reader of the counts should know."""
    overlaps = splits.overlaps
    dropped = [f"{fates[reason]:,} {reason}" for reason in REASONS if fates.get(reason)]
    read, written = sum(fates.values()), sum(frame.height for frame in splits.sets.values())
    return (
        f"not the paper's rows: {differ[0]}; {len(differ)} such differences, all in the manifest"
        if differ
        else "each relation has as many rows as in the paper's Tables 3-5",
        f"{read:,} rows read = {written:,} written + {read - written:,} dropped ({', '.join(dropped) or 'none'})",
        f"{overlaps['share_of_test_rows_with_a_train_gold']:.1%} of the test golds are also a train gold of their "
        "relation",
        f"{overlaps['train_questions_with_conflicting_golds']:,} train questions "
        f"({overlaps['train_rows_with_conflicting_golds']:,} rows) have conflicting golds",
        f"{overlaps['dev_rows_asking_a_published_test_question']:,} dev rows, kept, ask a published test question",
        _floor_note(overlaps["majority_floor"], "train gold", "test"),
    )


def _floor_note(floor: Mapping[str, Any], gold: str, where: str) -> str:
    by_relation: Sequence[tuple[str, Any]] = list(floor["by_relation"].items())
    name, top = max(by_relation, key=lambda pair: pair[1]["floor"], default=("none", {"floor": 0.0}))
    return (
        f"always answering the relation's most frequent {gold} scores {floor['overall']:.1%} on {where} "
        f"(most: {name}, {top['floor']:.1%})"
    )
