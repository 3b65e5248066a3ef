"""What a study that is planned could decide, from one that has results: its own folder's, or another's (`--pilot`)."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from foreknow.errors import InputError
from foreknow.stages.study import claims
from foreknow.stages.study.contrasts import StudyData
from foreknow.stages.study.power import power
from foreknow.stages.study.settings import StudyConfig
from foreknow.stages.study.stored_runs import measured


def power_of(config: StudyConfig) -> pl.DataFrame | None:
    """Return `power.POWER` for the settings' seeds; None if there is no pilot yet.

    Raises InputError if `--pilot` names a folder without a study's results, or they are damaged.
    """
    folder = config.pilot or config.out
    results, outcomes = (None, None) if folder is None else measured(folder)
    if results is None or outcomes is None or results.is_empty():
        if config.pilot is not None:
            raise InputError(f"--pilot {config.pilot}: no study with results; name the folder of one, or leave it out")
        return None
    asked = [replace(claim, margin=config.margin) for claim in claims.CLAIMS]
    found = claims.evidence(StudyData.of(results, outcomes), asked)
    per = results.group_by("variant").agg(pl.col("seed").n_unique())["seed"]
    return power(found, int(str(per.min())), config.seeds)


def power_table(found: pl.DataFrame) -> pl.DataFrame:
    """Return `POWER` for the terminal, in points of exact match."""

    def points(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{100 * value:{sign}.1f}"

    return pl.DataFrame(
        [
            {
                "claim": str(line["claim"]),
                "part": line["part"],
                "pilot, from its reference": points(line["away"], "+"),
                "detectable": points(line["detectable"]),
                "decided by": line["decided_by"],
            }
            for line in found.iter_rows(named=True)
        ]
    )
