"""Asks the base model the new facts with each fact's own sentence in the prompt: the alternative to training.

The sentence is the question and its gold, and stands before the question; two other facts of the same relation, each
with its own sentence, show the form. A row is right if the answer begins with an accepted one, as for canaries. This
assumes that the right sentence is found: a search that misses it answers as the base model does.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from foreknow.config import TuneConfig
from foreknow.data.schema import GOLD
from foreknow.stages.train.asking_model import AskingModel
from foreknow.stages.train.canary_check import SHOTS, CanaryCheck
from foreknow.stages.train.loop import open_asking


def retrieval(config: TuneConfig, new: pl.DataFrame, reworded: pl.DataFrame | None) -> dict[str, Any]:
    """Return how many rows of `new`, and of `reworded`, the model answers with the fact in the prompt.

    `config`: a run's settings; nothing is trained. Returns `new` and `reworded` (right, rows); the latter is None where
    there are none.
    """
    with open_asking(config) as (asking, _):
        return {
            "new": _right(asking, with_sentence(new, new)),
            "reworded": _right(asking, with_sentence(reworded, new)) if reworded is not None else None,
        }


def with_sentence(rows: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """Put before each question the sentence of its fact: the question of `new` with the same subject and gold.

    A row without such a fact gets its own question and gold.
    """
    facts = new.select("subject", gold=GOLD, fact="question").unique(["subject", "gold"], keep="first")
    own = rows.with_columns(gold=GOLD).join(facts, on=["subject", "gold"], how="left", maintain_order="left")
    asked = pl.coalesce("fact", "question")
    return own.with_columns(question=pl.concat_str(asked, pl.lit(" "), "gold", pl.lit("\n"), "question")).select(
        "question", "answers", "subject", "relation", row=pl.int_range(pl.len())
    )


def _right(asking: AskingModel, rows: pl.DataFrame) -> list[int]:
    return [len(CanaryCheck(rows, asking, shots=SHOTS).spellings(asking)), rows.height]
