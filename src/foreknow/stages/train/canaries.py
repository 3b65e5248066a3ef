"""Watches facts that have nothing to do with the user's rows, to see what training costs elsewhere (`--canaries`).

auto   packaged facts that the base model knows (`known_default_facts.py`). A fact is not watched if its question, or
       its subject, stands in a row of train, dev or a test set. If the model knows fewer than `FEW`, HighlyKnown rows
       of `--audit` that are in none of these sets are watched instead.
FILE   all usable rows of a data file, whether the base model knows them or not.
none   nothing is watched.

The rows to watch are asked in the same way before training and after every epoch (`canary_check.py`), so that like is
compared with like: without exemplars, as the rows that are trained on, or, where the model has fewer than `FEW` right
so, behind a few. Those that it has right before training are watched (`canary_watch.py`).

Rows are never trained on, and at most `WATCHED` are watched, fewer if measuring them would cost more than a third of an
epoch (counted in tokens, so that the same run always watches the same rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import polars as pl

from foreknow.stats import mcnemar, wilson

WATCHED: Final = 200
"""The most rows that are watched."""
FEW: Final = 30
"""If the model knows fewer packaged facts than this, rows of the audit are watched instead, if it has more."""
SHARE_OF_EPOCH: Final = 1 / 3
"""The largest share of an epoch's own cost that measuring the watched rows may cost."""
BACKWARD: Final = 3
"""A token costs this many times as much to train on as to measure: one pass forward, and two backward."""


def affordable(costs: pl.DataFrame, trained_tokens: int, measured_tokens: int, most: int = WATCHED) -> int:
    """Return how many of the first rows can be watched at `SHARE_OF_EPOCH` of an epoch's cost or less; at most `most`.

    `costs`: row and tokens, in the order in which rows are taken. `trained_tokens`, `measured_tokens`: the tokens that
    an epoch trains on, and those that it measures in the other sets.
    """
    budget = SHARE_OF_EPOCH * (BACKWARD * trained_tokens + measured_tokens)
    within = costs.head(most).select((pl.col("tokens").cum_sum() <= budget).sum()).item()
    return int(within)


def summary(before: Sequence[bool], now: Sequence[bool]) -> dict[str, Any]:
    """Compare the same rows before training and now.

    Returns `rows`, `before` (right before training), `kept`, `lost` and `gained` (rows); `lost_low` and `lost_high`:
    Wilson's 95 % interval of the share lost of those right before; `p`: McNemar's exact test of lost against gained.
    """
    lost = sum(was and not is_now for was, is_now in zip(before, now, strict=True))
    gained = sum(is_now and not was for was, is_now in zip(before, now, strict=True))
    known = sum(before)
    interval = wilson(lost, known)
    return {
        "rows": len(before),
        "before": known,
        "kept": known - lost,
        "lost": lost,
        "gained": gained,
        "lost_low": round(interval.low, 4),
        "lost_high": round(interval.high, 4),
        "p": mcnemar(lost, gained),
    }
