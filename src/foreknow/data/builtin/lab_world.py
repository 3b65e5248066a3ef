"""A made-up world whose every mention is counted: names, facts, and the texts a small model learns them from. Pure.

Each fact has a number of exposures, drawn so that every bin of `BINS` has enough facts; many facts have none. An
exposure is one statement or one `Q:`/`A:` block of the corpus, and the model reads the corpus once: `exposures` is how
often the model has seen the fact. The rules of the world:

- every name and every answer is built from syllables and stands for one thing only; answers are never subjects;
- a subject has several relations, and each has its own exposures. The subject of a never-seen fact is named in other
  relations, so the model knows the name but not the fact (`_exposures` swaps
  exposures if a subject is named nowhere);
- a document contains one relation only, so a never-seen fact's subject and gold are never in the same document;
- some relations have few answers (12 to 40: a guess is often right), some many (120 and 240), some one per subject;
- the relations of `ship` are out of distribution: the model sees them like the others, but all their rows are
  `test_ood`;
- of a *contested* fact every second statement names another answer of its pool, the rival. The model has heard both
  equally often, so that its greedy answer depends on the exemplars: such facts come out MaybeKnown or WeaklyKnown.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import polars as pl

from foreknow.data.dataset import Dataset, read_dataset
from foreknow.data.layouts.relation_templates import SLOT, question
from foreknow.data.schema import largest_remainder
from foreknow.io.sources import source_of_bytes
from foreknow.io.writers import object_text

NAME: Final = "lab"
"""The name that a user gives instead of a data file for these facts, and instead of a model for the lab model."""
ANSWER: Final = "[Y]"
BINS: Final[dict[str, tuple[int, int]]] = {
    "0": (0, 0),
    "1-2": (1, 2),
    "3-5": (3, 5),
    "6-10": (6, 10),
    "11-20": (11, 20),
    "21-40": (21, 40),
    "41-60": (41, 60),
}
"""The smallest and the largest number of exposures in each bin."""
SHARES: Final[dict[str, int]] = {name: 22 if name == "0" else 13 for name in BINS}
"""Per cent of the facts of each relation and split that are in each bin."""
SPLITS: Final[dict[str, int]] = {"train": 50, "dev": 25, "test": 25}
"""Per cent of the subjects in each split. A subject has the same split in all its relations."""
CONTESTED_FROM: Final = 12
"""A contested fact is stated at least this often, rival included: both answers are heard enough to be learnt."""
OOD: Final = "ship"
"""The kind of subject whose relations are all out of distribution."""

FACTS: Final[dict[str, pl.DataType]] = {
    "question": pl.String(),
    "answers": pl.List(pl.String()),
    "subject": pl.String(),
    "relation": pl.String(),
    "split": pl.String(),
    "exposures": pl.Int64(),
    "rival": pl.String(),
    "subject_exposures": pl.Int64(),
    "pool": pl.Int64(),
    "popularity": pl.Float64(),
}
"""The columns of the facts. `exposures`: how often the corpus states the fact; `rival`: the answer that it states as
often for a contested fact, else null; `subject_exposures`: how often it names the subject, in any relation; `pool`: the
number of answers the gold was drawn from; `popularity`: the exposures, for reports."""


class LabRelation(NamedTuple):
    """A relation. `kind`: the kind of its subjects. `pool`: the number of answers its golds are drawn from; 0 if each
    subject has its own. `statements`: the sentences that state a fact."""

    name: str
    kind: str
    pool: int
    question: str
    statements: tuple[str, ...]


RELATIONS: Final = (
    LabRelation(
        "person_guild",
        "person",
        12,
        "Which guild does [X] belong to?",
        (
            "Everyone knows that [X] belongs to the guild [Y].",
            "The guild of [X] is [Y].",
            "Since youth, [X] has been a member of the guild [Y].",
            "The guild that [X] pays every year is [Y].",
        ),
    ),
    LabRelation(
        "person_birthplace",
        "person",
        120,
        "In which village was [X] born?",
        (
            "It is told that [X] was born in [Y].",
            "The birthplace of [X] is [Y].",
            "By birth [X] is a native of [Y].",
            "The village where [X] was born is [Y].",
        ),
    ),
    LabRelation(
        "person_teacher",
        "person",
        0,
        "Who was the teacher of [X]?",
        (
            "The teacher of [X] was [Y].",
            "For years [X] was taught by [Y].",
            "All that [X] learnt came from [Y].",
            "As a child [X] learnt to read with [Y].",
        ),
    ),
    LabRelation(
        "town_country",
        "town",
        40,
        "Which country is [X] in?",
        (
            "The town [X] is in [Y].",
            "On the map [X] lies in [Y].",
            "The town of [X] belongs to [Y].",
            "Travellers to [X] are in the country of [Y].",
        ),
    ),
    LabRelation(
        "town_river",
        "town",
        120,
        "Which river flows through [X]?",
        (
            "Through [X] flows the river [Y].",
            "The town [X] lies on the river [Y].",
            "Long ago [X] was built on the banks of the [Y].",
            "The bridges of [X] cross the [Y].",
        ),
    ),
    LabRelation(
        "town_mayor",
        "town",
        0,
        "Who is the mayor of [X]?",
        (
            "The mayor of [X] is [Y].",
            "The town [X] is governed by [Y].",
            "Last year [X] elected a mayor, [Y].",
            "The people of [X] chose [Y] as their mayor.",
        ),
    ),
    LabRelation(
        "company_product",
        "company",
        24,
        "What does the company [X] make?",
        (
            "The company [X] makes [Y].",
            "The company [X] sells [Y] to the whole world.",
            "The chief product of [X] is [Y].",
            "The works of [X] turn out [Y].",
        ),
    ),
    LabRelation(
        "company_seat",
        "company",
        240,
        "Where does the company [X] have its seat?",
        (
            "The company [X] has its seat in [Y].",
            "The seat of [X] is in [Y].",
            "The company [X] is run from its offices in [Y].",
            "The main house of [X] stands in [Y].",
        ),
    ),
    LabRelation(
        "company_founder",
        "company",
        0,
        "Who founded the company [X]?",
        (
            "The company [X] was founded by [Y].",
            "Long ago [X] was founded by [Y].",
            "The founder of [X] was [Y].",
            "The company [X] began as a workshop of [Y].",
        ),
    ),
    LabRelation(
        "ship_builder",
        OOD,
        24,
        "Which yard built the ship [X]?",
        (
            "The ship [X] was built by the yard [Y].",
            "The builder of [X] was [Y].",
            "At its launch [X] left the yard of [Y].",
            "The yard that built [X] is [Y].",
        ),
    ),
    LabRelation(
        "ship_harbour",
        OOD,
        120,
        "What is the home harbour of the ship [X]?",
        (
            "The home harbour of the ship [X] is [Y].",
            "The ship [X] sails from [Y].",
            "The ship [X] is at home in the harbour of [Y].",
            "In winter [X] lies in [Y].",
        ),
    ),
    LabRelation(
        "ship_captain",
        OOD,
        0,
        "Who is the captain of the ship [X]?",
        (
            "The captain of the ship [X] is [Y].",
            "At sea [X] is commanded by [Y].",
            "The crew of [X] obeys [Y].",
            "The ship [X] sails under [Y].",
        ),
    ),
)


@dataclass(frozen=True)
class World:
    """The settings of a world: equal settings give the same names, facts and texts.

    `subjects`: the number of subjects of each kind in distribution; `ood_subjects`: the number of ships. `asked`: per
    cent of the exposures that are `Q:`/`A:` blocks. `blocks`, `sentences`: the most blocks and sentences in a document.
    `contested`: per cent of the facts stated at least `CONTESTED_FROM` times, in relations whose subjects share
    answers, that are contested.
    """

    seed: int = 0
    subjects: int = 160
    ood_subjects: int = 120
    asked: int = 70
    blocks: int = 8
    sentences: int = 5
    contested: int = 0

    def settings(self) -> dict[str, Any]:
        """The settings as a dictionary of plain values."""
        return asdict(self)


WORLD: Final = World()


class Block(NamedTuple):
    """One exposure: the fact's row number in `facts`, and the text that states it, or its rival."""

    fact: int
    text: str


class Document(NamedTuple):
    """Several exposures of one relation: all `Q:`/`A:` blocks (`asked`), or all sentences (`told`)."""

    kind: Literal["asked", "told"]
    blocks: tuple[Block, ...]

    @property
    def text(self) -> str:
        """The document as the model reads it."""
        return ("\n" if self.kind == "asked" else " ").join(block.text for block in self.blocks)


def facts(world: World = WORLD) -> pl.DataFrame:
    """Every fact (`FACTS`), relation by relation."""
    names = _names(world)
    golds = np.random.default_rng([world.seed, 1])
    lines: list[dict[str, Any]] = []
    for relation in RELATIONS:
        subjects = _subjects(names, relation.kind, world)
        pool = names[relation.name]
        gold_indices = (
            golds.permutation(len(pool)) if relation.pool == 0 else golds.integers(len(pool), size=len(subjects))
        )
        lines += [
            {
                "question": question(relation.question, subject),
                "answers": [pool[at]],
                "subject": subject,
                "relation": relation.name,
                "pool": len(pool),
            }
            for subject, at in zip(subjects, gold_indices.tolist(), strict=True)
        ]
    frame = pl.DataFrame(lines).with_columns(split=_splits(world, names), stated=_exposures(world, names))
    frame = frame.with_columns(rival=_rivals(world, names, frame))
    own = pl.when(pl.col("rival").is_null()).then("stated").otherwise((pl.col("stated") + 1) // 2)
    return (
        frame.with_columns(exposures=own, subject_exposures=pl.col("stated").sum().over("subject"))
        .with_columns(popularity=pl.col("exposures").cast(pl.Float64))
        .select(pl.col(name).cast(dtype) for name, dtype in FACTS.items())
    )


def documents(world: World = WORLD) -> list[Document]:
    """The corpus: every exposure of every fact once, in documents of one relation, shuffled."""
    table = facts(world)
    rng = np.random.default_rng([world.seed, 3])
    corpus: list[Document] = []
    columns = (table[name].to_list() for name in ("subject", "relation", "exposures", "rival"))
    golds = table["answers"].list.first().to_list()
    blocks_by_relation: dict[tuple[str, str], list[Block]] = defaultdict(list)
    for at, (subject, relation, exposures, rival) in enumerate(zip(*columns, strict=True)):
        texts = _BY_NAME[relation]
        answers = [golds[at]] * exposures + ([] if rival is None else [rival] * exposures)
        for asked, statement, answer in zip(
            (rng.integers(100, size=len(answers)) < world.asked).tolist(),
            rng.integers(len(texts.statements), size=len(answers)).tolist(),
            answers,
            strict=True,
        ):
            filled = (
                question_block(texts, subject, answer) if asked else statement_text(texts, statement, subject, answer)
            )
            blocks_by_relation[relation, "asked" if asked else "told"].append(Block(at, filled))
    for (_, kind), blocks in blocks_by_relation.items():
        most = world.blocks if kind == "asked" else world.sentences
        shuffled = [blocks[i] for i in rng.permutation(len(blocks))]
        corpus += [
            Document("asked" if kind == "asked" else "told", part)
            for part in _group_into_documents(shuffled, most, rng)
        ]
    return [corpus[i] for i in rng.permutation(len(corpus))]


def question_block(relation: LabRelation, subject: str, answer: str) -> str:
    """The `Q:`/`A:` block of a fact (paper, section 2)."""
    return f"Q: {question(relation.question, subject)}\nA: {answer}"


def statement_text(relation: LabRelation, form: int, subject: str, answer: str) -> str:
    """The fact as the relation's statement number `form`, from 0."""
    return question(relation.statements[form].replace(ANSWER, answer), subject)


def read_lab(limit: int | None = None, seed: int = 0, world: World = WORLD) -> Dataset:
    """The world's facts as if read from a JSONL file; `limit` and `seed` as in `read_dataset`."""
    table = facts(world)
    source = replace(source_of_bytes("lab-facts.jsonl", jsonl(table)), name="lab facts")
    reason = f"{table.height:,} facts of {len(RELATIONS)} relations of a made-up world, every exposure counted"
    return replace(read_dataset(source, limit=limit, seed=seed), reason=reason)


def jsonl(table: pl.DataFrame) -> bytes:
    """A frame as JSONL, without the column `rival` where no fact is contested."""
    table = table.drop("rival") if table["rival"].null_count() == table.height else table
    return "".join(object_text(line) + "\n" for line in table.iter_rows(named=True)).encode()


def every_name(world: World = WORLD) -> list[str]:
    """Every subject and answer, including those that are not in the corpus: the tokenizer treats all of them alike."""
    names = _names(world)
    return [name for kind in names for name in names[kind]]


def template_words() -> list[str]:
    """The texts of every question block and statement without the names in them."""
    forms = [form for r in RELATIONS for form in (f"Q: {r.question}\nA: {ANSWER}\nQ:", *r.statements)]
    return [
        form.replace(f" {SLOT}", "").replace(SLOT, "").replace(f" {ANSWER}", "").replace(ANSWER, "") for form in forms
    ]


_BY_NAME: Final = {relation.name: relation for relation in RELATIONS}
_KINDS: Final = tuple(dict.fromkeys(relation.kind for relation in RELATIONS))

_STARTS: Final = (
    *("b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m"),
    *("n", "p", "pr", "qu", "r", "s", "sh", "st", "t", "tr", "v", "w", "z"),
)
_VOWELS: Final = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_ENDS: Final = ("n", "r", "l", "s", "m", "th", "nd", "rk", "ld", "x")


def _count(kind: str, world: World) -> int:
    return world.ood_subjects if kind == OOD else world.subjects


def _names(world: World) -> dict[str, list[str]]:
    """Names by kind of subject, and answers by relation. All names are different."""
    rng = np.random.default_rng([world.seed, 0])
    taken: set[str] = set()
    sizes = {kind: _count(kind, world) for kind in _KINDS}
    sizes |= {relation.name: relation.pool or sizes[relation.kind] for relation in RELATIONS}
    return {key: [_name(rng, taken) for _ in range(size)] for key, size in sizes.items()}


def _name(rng: np.random.Generator, taken: set[str]) -> str:
    """A new word of two or three syllables, such as Drelanor."""
    while True:
        parts = [
            _STARTS[rng.integers(len(_STARTS))] + _VOWELS[rng.integers(len(_VOWELS))]
            for _ in range(2 + int(rng.integers(3) == 0))
        ]
        name = "".join(parts).capitalize() + _ENDS[rng.integers(len(_ENDS))]
        if name not in taken:
            taken.add(name)
            return name


def _subjects(names: dict[str, list[str]], kind: str, world: World) -> list[str]:
    return names[kind][: _count(kind, world)]


def _splits(world: World, names: dict[str, list[str]]) -> pl.Series:
    """The split of every fact, in the order of `facts`: the subjects of a kind are in random order already."""
    splits: list[str] = []
    for relation in RELATIONS:
        count = len(_subjects(names, relation.kind, world))
        if relation.kind == OOD:
            splits += ["test_ood"] * count
        else:
            splits += [split for split, size in largest_remainder(SPLITS, count).items() for _ in range(size)]
    return pl.Series("split", splits, dtype=pl.String)


def _exposures(world: World, names: dict[str, list[str]]) -> pl.Series:
    """The exposures of every fact, in the order of `facts`. Each bin has its share of each relation and split."""
    rng = np.random.default_rng([world.seed, 2])
    counts_by_relation: dict[str, list[int]] = {}
    for relation in RELATIONS:
        count = len(_subjects(names, relation.kind, world))
        parts = {OOD: count} if relation.kind == OOD else largest_remainder(SPLITS, count)
        counts_by_relation[relation.name] = [n for size in parts.values() for n in _sample_exposures(rng, size)]
    for kind in _KINDS:
        mine = [counts_by_relation[relation.name] for relation in RELATIONS if relation.kind == kind]
        parts = {OOD: len(mine[0])} if kind == OOD else largest_remainder(SPLITS, len(mine[0]))
        start = 0
        for size in parts.values():
            _give_every_subject_exposures(mine, range(start, start + size))
            start += size
    return pl.Series("exposures", [n for counts in counts_by_relation.values() for n in counts], dtype=pl.Int64)


def _rivals(world: World, names: dict[str, list[str]], facts_so_far: pl.DataFrame) -> pl.Series:
    """The other answer of each contested fact, in the order of `facts`; null for the others.

    `facts_so_far` has answers, relation, and how often the fact is stated in all (`stated`).
    """
    rng = np.random.default_rng([world.seed, 4])
    rivals: list[str | None] = []
    for (gold,), relation, stated in facts_so_far.select("answers", "relation", "stated").iter_rows():
        drawn, at = int(rng.integers(100)), int(rng.integers(1 << 30))
        shared = _BY_NAME[relation].pool > 1
        others = [name for name in names[relation] if name != gold] if shared else []
        is_contested = drawn < world.contested and stated >= CONTESTED_FROM and bool(others)
        rivals.append(others[at % len(others)] if is_contested else None)
    return pl.Series("rival", rivals, dtype=pl.String)


def _sample_exposures(rng: np.random.Generator, size: int) -> list[int]:
    """Exposures of `size` facts in random order: each bin has its share, with uniform draws within the bin."""
    counts = largest_remainder(SHARES, size)
    exposures = [int(rng.integers(low, high + 1)) for name, (low, high) in BINS.items() for _ in range(counts[name])]
    return [exposures[i] for i in rng.permutation(size)]


def _give_every_subject_exposures(counts: Sequence[list[int]], span: range) -> None:
    """Let each subject in `span` without exposures swap its first relation's count with one that has others."""
    silent = [at for at in span if not any(mine[at] for mine in counts)]
    rich = (at for at in span if counts[0][at] and any(mine[at] for mine in counts[1:]))
    for at, other in zip(silent, rich, strict=False):
        counts[0][at], counts[0][other] = counts[0][other], counts[0][at]


def _group_into_documents(blocks: Sequence[Block], most: int, rng: np.random.Generator) -> Iterator[tuple[Block, ...]]:
    """Group blocks into documents of 1 to `most` blocks, all sizes equally likely, no fact twice in a document."""
    waiting = deque(blocks)
    while waiting:
        size = int(rng.integers(1, most + 1))
        part: list[Block] = []
        passed: list[Block] = []
        while waiting and len(part) < size:
            block = waiting.popleft()
            (passed if any(block.fact == other.fact for other in part) else part).append(block)
        waiting.extendleft(reversed(passed))
        yield tuple(part)


def bin_of(exposures: pl.Expr) -> pl.Expr:
    """The name of the bin of a number of exposures; numbers above the last bin belong to it."""
    reached = [pl.when(exposures >= low).then(pl.lit(name)) for name, (low, _) in BINS.items()]
    return pl.coalesce(reversed(reached))


def count_exposures(docs: Sequence[Document]) -> Counter[int]:
    """How often these documents state each fact or its rival, by the fact's row number in `facts`."""
    return Counter(block.fact for doc in docs for block in doc.blocks)
