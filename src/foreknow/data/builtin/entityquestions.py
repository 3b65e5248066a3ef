"""ENTITYQUESTIONS as the paper split it (paper, section 2): the published tree -> train, dev, test, test_ood.

`read_tree` reads the published files, and `paper_splits` applies the rules: every row is either in one of the four sets
or dropped for one of the reasons in `REASONS`. The rules compare subjects. A row's subject is its question without its
relation's template, and the template is derived from the relation's questions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.data.layouts.relation_templates import SLOT, derive_template, subject_of
from foreknow.errors import InputError
from foreknow.io.data_file import DataFile
from foreknow.io.json_text import loads
from foreknow.io.quoting import quoted
from foreknow.io.sources import source_of

IN_DISTRIBUTION: Final = ("P17", "P19", "P26", "P36", "P40", "P69", "P131", "P136", "P264", "P495", "P740", "P800")
OUT_OF_DISTRIBUTION: Final = ("P50", "P112", "P127", "P170", "P175", "P176", "P407")
NOT_USED: Final = ("P20", "P106", "P159", "P276", "P413")
"""Relations the paper leaves out, as too close to the others."""
RELATIONS: Final = (*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION, *NOT_USED)
PUBLISHED: Final = ("train", "dev", "test")

TOTALS: Final[dict[str, dict[str, int]]] = {
    "train": {
        "P131": 7646, "P136": 7516, "P17": 7890, "P19": 7921, "P26": 7456, "P264": 7324,
        "P36": 6815, "P40": 6110, "P495": 7674, "P69": 6721, "P740": 7271, "P800": 1356,
    },
    "test": {
        "P131": 965, "P136": 967, "P17": 996, "P19": 999, "P26": 951, "P264": 958,
        "P36": 880, "P40": 801, "P495": 993, "P69": 840, "P740": 942, "P800": 189,
    },
    "test_ood": {"P127": 990, "P50": 967, "P407": 623, "P176": 972, "P170": 850, "P175": 980, "P112": 466},
}  # fmt: skip
"""Rows of each relation as the paper prints them: Gekhman et al. 2024, arXiv 2405.05904, Tables 3-5."""
DEV_ROWS: Final = 10_329
"""Not in the paper: counted on the published release, 10,461 rows less the 132 that stand in train."""

REASONS: Final[dict[str, str]] = {
    "relation_not_used": "of a relation that the paper leaves out",
    "split_not_used": "train or dev row of an out-of-distribution relation, which only tests",
    "not_one_answer": "has not exactly one answer",
    "subject_in_test": "train row whose subject, capitals included, is asked about in the published test files",
    "question_in_train": "dev row whose question stands in train",
}
"""Why a row is in none of the sets. If several reasons hold, the first in this order counts."""

TREE: Final[dict[str, pl.DataType]] = {
    "relation": pl.String(),
    "split": pl.String(),  # as published: train, dev or test
    "question": pl.String(),
    "answers": pl.List(pl.String()),
}
ROWS: Final[dict[str, pl.DataType]] = {
    "question": pl.String(),
    "answer": pl.String(),
    "subject": pl.String(),
    "relation": pl.String(),
    "split": pl.String(),  # as the paper uses it: train, dev, test or test_ood
}
SETS: Final = ("train", "dev", "test", "test_ood")

MEMBER_BYTES: Final = 64 << 20
_MEMBER = re.compile(r"(?:^|/)(?P<split>train|dev|test)/(?P<relation>P\d{1,9})\.(?P=split)\.json$")


class RelationFiles(NamedTuple):
    """The published rows (`TREE`), and a hash of the files' content, the same for a folder and a zip of it."""

    rows: pl.DataFrame
    content: str


@dataclass(frozen=True)
class Splits:
    """The paper's sets.

    `sets`: name -> frame (`ROWS`), in the published order, relations by number. `account`: relation,
    published split, fate (a set or a reason), rows. `templates`: relation -> template. `overlaps`: what the
    sets share; these rows are reported but stay in the sets.
    """

    sets: Mapping[str, pl.DataFrame]
    account: pl.DataFrame
    templates: Mapping[str, str]
    overlaps: Mapping[str, Any]


def read_tree(name: str, *, complete: bool = True) -> RelationFiles:
    """Read `{train,dev,test}/P*.{split}.json` in a folder, a zip or a data set of the hub, at any depth.

    Members are read one by one and nothing is unpacked to disk. With `complete`, all 24 relations must be there
    in all three splits. Every fault is an InputError that names the member and the row, counted from 0.
    """
    columns: dict[str, list[Any]] = {column: [] for column in TREE}
    content = hashlib.sha256()
    for (relation, split), part in _members(name, complete):
        with part.open() as stream:
            raw = stream.read(MEMBER_BYTES + 1)
        if len(raw) > MEMBER_BYTES:
            raise InputError(f"{part.where}: over {MEMBER_BYTES >> 20} MiB, expected about 1 MiB.")
        content.update(f"{split}/{relation} {len(raw)}\n".encode() + raw)
        questions, answers = _parse(raw, part.where)
        columns["relation"] += [relation] * len(questions)
        columns["split"] += [split] * len(questions)
        columns["question"] += questions
        columns["answers"] += answers
    return RelationFiles(pl.DataFrame(columns, schema=TREE), f"sha256:{content.hexdigest()}")


def paper_splits(rows: pl.DataFrame, templates: Mapping[str, str] | None = None, *, check: bool = True) -> Splits:
    """The paper's sets from all published rows (`TREE`) (paper, section 2).

    test, test_ood: the test rows with one answer, of the in- and out-of-distribution relations. train: the
    in-distribution train rows with one answer whose subject is not the subject of any published test row of the 24
    relations, however many answers that row has. dev: the dev rows with one answer whose question is not in train.
    `templates` replace derived ones. With `check`, the totals must be those of the paper.
    Raises InputError where a question fits no template, or a total differs.
    """
    paper = rows.filter(pl.col("relation").is_in(RELATIONS))
    template_of = {
        relation: (templates or {}).get(relation) or _derive_or_fail(relation, part["question"])
        for (relation,), part in sorted(paper.group_by("relation"), key=lambda pair: int(str(pair[0][0])[1:]))
        if isinstance(relation, str)
    }
    annotated = rows.with_columns(subject=pl.Series(_subjects(rows, template_of), dtype=pl.String)).with_columns(
        answer=pl.col("answers").list.first()
    )
    annotated = _with_fates(annotated)
    sets = {
        name: annotated.filter(pl.col("fate") == name).with_columns(split=pl.lit(name)).select(*ROWS) for name in SETS
    }
    differ = differences_from_paper(sets) if check else []
    if differ:
        more = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise InputError(
            f"not the release that the paper used: {'; '.join(differ[:4])}{more} (paper, Tables 3-5).\n"
            "Give the published release whole, or allow different counts."
        )
    account = annotated.group_by("relation", "split", "fate", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("rows")
    )
    return Splits(sets, account, template_of, _overlaps(annotated, sets))


def differences_from_paper(sets: Mapping[str, pl.DataFrame]) -> list[str]:
    """The relations and sets whose row counts differ from the paper's Tables 3-5, each as a line: found, expected."""
    differ = []
    for name, expected in TOTALS.items():
        counts = dict(sets[name].group_by("relation").len().iter_rows())
        differ += [
            f"{relation} {name}: found {counts.get(relation, 0):,} rows, expected {rows:,}"
            for relation, rows in expected.items()
            if counts.get(relation, 0) != rows
        ]
    if sets["dev"].height != DEV_ROWS:
        differ.append(f"dev: found {sets['dev'].height:,} rows, expected {DEV_ROWS:,}")
    return differ


def majority_floor(train: pl.DataFrame, test: pl.DataFrame) -> pl.DataFrame:
    """Exact match on `test` if every answer is the relation's most frequent gold in `train`.

    Returns relation, majority_answer, rows, hits; one line for each relation of `train`, ties broken by the
    order of the texts. (Paper, section 2: 11.2 % overall, P495 71.9 %.)
    """
    majority = (
        train.group_by("relation", pl.col("answer").alias("majority_answer"))
        .len("count")
        .sort(["relation", "count", "majority_answer"], descending=[False, True, False])
        .group_by("relation", maintain_order=True)
        .agg(pl.col("majority_answer").first())
    )
    hit = (pl.col("answer") == pl.col("majority_answer")).fill_null(False)
    return (
        majority.join(test, on="relation", how="left", maintain_order="left")
        .group_by("relation", "majority_answer", maintain_order=True)
        .agg(pl.col("answer").count().cast(pl.Int64).alias("rows"), hit.sum().cast(pl.Int64).alias("hits"))
    )


def floors(train: pl.DataFrame, test: pl.DataFrame) -> dict[str, Any]:
    """`majority_floor` in the form of the manifest: overall (over all rows of `test`), and by relation."""
    by_relation = majority_floor(train, test)
    return {
        "overall": _share(int(by_relation["hits"].sum()), test.height),
        "by_relation": {
            relation: {"floor": _share(hits, rows), "answer": answer, "rows": rows}
            for relation, answer, rows, hits in by_relation.iter_rows()
        },
    }


def _with_fates(annotated: pl.DataFrame) -> pl.DataFrame:
    """The rows with `fate`: the set each belongs to, or the first reason why it belongs to none."""
    published, relation = pl.col("split"), pl.col("relation")
    ood = relation.is_in(OUT_OF_DISTRIBUTION)
    asked_about = annotated.filter(relation.is_in(RELATIONS), published == "test")["subject"].unique()
    fate = (
        pl.when(~(ood | relation.is_in(IN_DISTRIBUTION)))
        .then(pl.lit("relation_not_used"))
        .when(ood & (published != "test"))
        .then(pl.lit("split_not_used"))
        .when(pl.col("answers").list.len() != 1)
        .then(pl.lit("not_one_answer"))
        .when(ood)
        .then(pl.lit("test_ood"))
        .when((published == "train") & pl.col("subject").is_in(asked_about.implode()))
        .then(pl.lit("subject_in_test"))
        .otherwise(published)
    )
    annotated = annotated.with_columns(fate=fate)
    in_train = annotated.filter(pl.col("fate") == "train")["question"].unique()
    is_repeated = (pl.col("fate") == "dev") & pl.col("question").is_in(in_train.implode())
    return annotated.with_columns(fate=pl.when(is_repeated).then(pl.lit("question_in_train")).otherwise(pl.col("fate")))


def _overlaps(annotated: pl.DataFrame, sets: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """How many rows and questions the sets share, by the names that the figures have in the manifest."""
    train, dev, test = sets["train"], sets["dev"], sets["test"]
    shared = test.join(train.select("relation", "answer").unique(), on=["relation", "answer"], how="semi").height
    golds = train.group_by("relation", "question").agg(pl.col("answer").n_unique().alias("golds"), pl.len())
    conflicting = golds.filter(pl.col("golds") > 1)
    published = annotated.filter(pl.col("split") == "test", pl.col("relation").is_in(RELATIONS))["question"].unique()
    written = pl.concat([test["question"], sets["test_ood"]["question"]]).unique()
    removed = annotated.filter(pl.col("fate") == "question_in_train")["question"]
    return {
        "test_rows_with_a_train_gold": shared,
        "share_of_test_rows_with_a_train_gold": _share(shared, test.height),
        "train_questions_with_conflicting_golds": conflicting.height,
        "train_rows_with_conflicting_golds": int(conflicting["len"].sum()),
        "train_rows_repeated": train.height - train.select("relation", "question", "answer").unique().height,
        "dev_rows_dropped_as_in_train": removed.len(),
        "dev_questions_dropped_as_in_train": removed.n_unique(),
        "dev_rows_asking_a_published_test_question": dev.filter(pl.col("question").is_in(published.implode())).height,
        "dev_rows_asking_a_written_test_question": dev.filter(pl.col("question").is_in(written.implode())).height,
        "majority_floor": floors(train, test),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _derive_or_fail(relation: str, questions: pl.Series) -> str:
    template = derive_template(questions)
    if template is None:
        raise InputError(
            f"{relation}: no template can be derived from its {questions.n_unique():,} distinct questions.\n"
            f'Give one in a template file: {{"{relation}": "Where is {SLOT} located?"}}.'
        )
    return template


def _subjects(rows: pl.DataFrame, templates: Mapping[str, str]) -> list[str | None]:
    """The subject of every row; None for relations that the paper does not use. Raises InputError for a question that
    does not fit its template."""
    subjects: list[str | None] = []
    for row, (relation, question) in enumerate(rows.select("relation", "question").iter_rows()):
        template = templates.get(relation)
        subject = None if template is None else subject_of(template, question)
        if subject is None and template is not None:
            raise InputError(
                f"{relation}, {rows['split'][row]}: the question {quoted(question)} does not fit the template "
                f"{quoted(template)}. "
                "Give the template that fits all of the relation's questions."
            )
        subjects.append(subject)
    return subjects


def _members(name: str, complete: bool) -> list[tuple[tuple[str, str], DataFile]]:
    """The tree's files as ((relation, split), file), sorted by the relation's number, then by split."""
    parts: dict[tuple[str, str], DataFile] = {}
    for part in source_of(name).parts:
        if match := _MEMBER.search(part.name):
            key = (match["relation"], match["split"])
            if key in parts:
                raise InputError(
                    f"{name}: {key[0]} {key[1]} is there twice: {parts[key].name} and {part.name}. Keep one."
                )
            parts[key] = part
    if not parts:
        raise InputError(
            f"{name}: no ENTITYQUESTIONS files found; expected train/P17.train.json and the like, "
            "at the top or below a folder such as dataset/."
        )
    expected = [(relation, split) for relation in RELATIONS for split in PUBLISHED]
    missing = [f"{split}/{relation}.{split}.json" for relation, split in expected if (relation, split) not in parts]
    if missing and complete:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{name}: {', '.join(missing[:3])}{more} missing; expected {len(RELATIONS)} relations in "
            f"{len(PUBLISHED)} splits. Give the published release whole."
        )
    order = {split: at for at, split in enumerate(PUBLISHED)}
    return sorted(parts.items(), key=lambda item: (int(item[0][0][1:]), item[0][0], order[item[0][1]]))


def _parse(raw: bytes, where: str) -> tuple[list[str], list[list[str]]]:
    """The questions and answers of one file. Raises InputError; its messages begin with `where`."""
    try:
        rows = loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start + 1} is not UTF-8.") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}.") from error
    except ValueError as error:
        raise InputError(f"{where}: nested too deeply, or not readable as JSON ({type(error).__name__}).") from error
    if not isinstance(rows, list):
        raise InputError(f"{where}: found {type(rows).__name__}, expected an array of rows.")
    for number, row in enumerate(rows):
        fault = _fault(row)
        if fault is not None:
            raise InputError(
                f"{where}: row {number}: {fault}; "
                'expected {"question": "Where is Lyon located?", "answers": ["France"]}.'
            )
    return [row["question"] for row in rows], [row["answers"] for row in rows]


def _fault(row: object) -> str | None:
    """What is wrong with a row, as part of an error message; None if nothing is."""
    if not isinstance(row, dict):
        return f"found {type(row).__name__}"
    if not _is_text(row.get("question")):
        return f"question: found {json.dumps(row.get('question'))[:60]}"
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(map(_is_text, answers)):
        return f"answers: found {json.dumps(answers)[:60]}"
    return None


def _is_text(value: object) -> bool:
    """Whether a value is a non-blank text that UTF-8 can encode (JSON can spell half a surrogate pair)."""
    if not isinstance(value, str) or not value.strip():
        return False
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
