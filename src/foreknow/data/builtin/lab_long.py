"""Long answers of the lab's made-up world: all facts of one subject, one sentence each. Pure.

The sentences are statements that the lab's corpus is made of, in another order and together, so no text of this file
stands in the corpus. Each fact's place is known, and how often the lab's model was told it (`lab_world`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl

from foreknow.data.builtin import lab_world
from foreknow.data.builtin.lab_world import WORLD, World
from foreknow.data.dataset import Dataset, read_dataset
from foreknow.io.sources import source_of_bytes
from foreknow.io.writers import object_text

NAME: Final = "lab-long"
"""The name that a user gives instead of a data file for these rows."""
PLACES: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "start": pl.Int64(),
    "exposures": pl.Int64(),
    "pool": pl.Int64(),
}
"""One line per fact: its row, the first character of its gold in the answer, its exposures, and the number of answers
that its gold was drawn from."""


def long_answers(seed: int = 0, world: World = WORLD) -> tuple[list[dict[str, Any]], pl.DataFrame]:
    """Return the rows (question, answer, subject, split, and the places of the facts in `spans`) and `PLACES`.

    The subjects of the relations that are out of distribution are left out.
    """
    rng = np.random.default_rng(seed)
    by_name = {relation.name: relation for relation in lab_world.RELATIONS}
    table = lab_world.facts(world).filter(~pl.col("relation").str.starts_with(lab_world.OOD))
    records: list[dict[str, Any]] = []
    places = []
    for (subject,), facts in table.group_by("subject", maintain_order=True):
        answer, spans = "", []
        for n in rng.permutation(facts.height).tolist():
            fact = facts.row(n, named=True)
            form = int(rng.integers(len(by_name[fact["relation"]].statements)))
            gold = fact["answers"][0]
            sentence = lab_world.statement_text(by_name[fact["relation"]], form, str(subject), gold)
            start = len(answer) + bool(answer) + sentence.rindex(gold)
            answer = f"{answer} {sentence}".strip()
            spans.append({"start": start, "end": start + len(gold), "type": "name"})
            places.append((len(records), start, fact["exposures"], fact["pool"]))
        question, split = f"What is told of {subject}?", facts["split"][0]
        records.append({"question": question, "answer": answer, "subject": subject, "split": split, "spans": spans})
    return records, pl.DataFrame(places, schema=PLACES, orient="row")


def read_lab_long(limit: int | None = None, seed: int = 0) -> Dataset:
    """Read the rows, as `dataset.read_dataset` reads a file of them."""
    records, _ = long_answers()
    body = "".join(object_text(record) + "\n" for record in records).encode()
    return read_dataset(source_of_bytes(f"{NAME}.jsonl", body), limit=limit, seed=seed)
