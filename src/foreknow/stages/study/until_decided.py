"""A study that adds seeds until its claims are decided, or until it has the most seeds that were planned."""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl

from foreknow.errors import ConfigError
from foreknow.settings import read_settings
from foreknow.stages.skeleton import required_out
from foreknow.stages.study.result import StudyResult
from foreknow.stages.study.run import run
from foreknow.stages.study.settings import StudyConfig
from foreknow.stages.study.stopping_rule import FEWEST_SEEDS, Look, looks

logger = logging.getLogger(__name__)


def run_until_decided(config: StudyConfig) -> StudyResult:
    """Run the study with three seeds, then with one more at a time, until every claim that it tests is decided.

    The number of looks is fixed when the study begins, as the levels of their intervals depend on it. An interrupted
    study goes on where it stopped. Raises ConfigError if the folder's study was planned otherwise, and the errors of
    `foreknow.errors`.
    """
    _check_plan(required_out(config.out), config)
    done: StudyResult | None = None
    for look in looks(FEWEST_SEEDS, config.most_seeds):
        done = run(config.model_copy(update={"seeds": look.seeds}))
        open_claims = undecided(done.tables["claims"])
        logger.info(_sentence(look, open_claims, look.seeds == config.most_seeds))
        if not open_claims:
            break
    assert done is not None
    return done


def undecided(scorecard: pl.DataFrame) -> list[int]:
    """Return the numbers of the claims that are tested and not decided."""
    return scorecard.filter(pl.col("verdict") == "not decided")["claim"].to_list()


def _sentence(look: Look, open_claims: list[int], last: bool) -> str:
    where = f"after {look.seeds} seeds, with intervals at {100 * look.level:.2f} %"
    if not open_claims:
        return f"{where}: every claim that is tested is decided"
    names = ", ".join(map(str, open_claims))
    claims = f"claim{'s' if len(open_claims) > 1 else ''} {names}"
    return f"{where}: {claims} not decided; {'these were the most seeds' if last else 'another seed is added'}"


def _check_plan(folder: Path, config: StudyConfig) -> None:
    """Raise ConfigError if the folder's study looks at other times than `config` plans."""
    before = read_settings(folder)
    if not before:
        return
    if before.get("until") is None and int(before.get("seeds", 0)) > FEWEST_SEEDS:
        raise ConfigError(
            f"--until decided: {folder} has {before['seeds']} seeds that were not looked at by the rule; choose "
            "another --out"
        )
    if before.get("until") is not None and before.get("most_seeds") != config.most_seeds:
        raise ConfigError(
            f"--most-seeds {config.most_seeds}: {folder} was planned with {before['most_seeds']}, and its looks so far "
            f"had the levels of that plan; repeat --most-seeds {before['most_seeds']}, or choose another --out"
        )
