"""A study that adds seeds stops when its claims are decided and keeps to its plan; a dry run says what it could see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import yaml

from conftest import Cli
from foreknow.errors import ConfigError, InputError
from foreknow.settings import settings_of
from foreknow.stages.study import until_decided
from foreknow.stages.study.pilot import power_of, power_table
from foreknow.stages.study.result import StudyResult, open_study
from foreknow.stages.study.settings import StudyConfig
from foreknow.stages.study.stopping_rule import level_of, looks
from foreknow.stages.study.until_decided import run_until_decided
from test_study import finished, make  # noqa: F401  the same tiny study

Make = Callable[..., StudyConfig]


def deciding_after(seeds: int, asked: list[int]) -> Callable[[StudyConfig], SimpleNamespace]:
    """A study whose second claim is decided once it has so many seeds; the third cannot be tested."""

    def run(config: StudyConfig) -> SimpleNamespace:
        asked.append(config.seeds)
        second = "holds" if config.seeds >= seeds else "not decided"
        return SimpleNamespace(
            tables={"claims": pl.DataFrame({"claim": [1, 2, 3], "verdict": ["fails", second, "not tested"]})}
        )

    return run


@pytest.mark.parametrize(("decided", "taken"), [(3, [3]), (5, [3, 4, 5]), (9, [3, 4, 5, 6])])
def test_seeds_are_added_until_every_tested_claim_is_decided_or_there_are_the_most(
    decided: int, taken: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(until_decided, "run", deciding_after(decided, asked))
    config = settings_of(StudyConfig, {"data": "x", "out": tmp_path / "s", "until": "decided", "most_seeds": 6})
    run_until_decided(config)
    assert asked == taken
    last = caplog.messages[-1]
    level = {look.seeds: look.level for look in looks(3, 6)}[taken[-1]]
    assert last.startswith(f"after {taken[-1]} seeds, with intervals at {100 * level:.2f} %")
    said = "every claim that is tested is decided" if decided <= 6 else "claim 2 not decided; these were the most seeds"
    assert last.endswith(said)


def test_the_plan_of_looks_cannot_change(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    config = settings_of(StudyConfig, {"data": "x", "out": folder, "until": "decided", "most_seeds": 8})
    (folder / "config.yaml").write_text(yaml.safe_dump({"until": "decided", "most_seeds": 6, "seeds": 3}))
    with pytest.raises(ConfigError, match=r"--most-seeds 8: .* was planned with 6"):
        run_until_decided(config)
    (folder / "config.yaml").write_text(yaml.safe_dump({"until": None, "most_seeds": 10, "seeds": 5}))
    with pytest.raises(ConfigError, match="has 5 seeds that were not looked at by the rule"):
        run_until_decided(config)


def test_intervals_have_the_level_of_the_look() -> None:
    assert level_of({}) == level_of({"until": None, "seeds": 4, "most_seeds": 10}) == 0.95
    plan = looks(3, 10)
    for look in plan:
        assert level_of({"until": "decided", "seeds": look.seeds, "most_seeds": 10}) == look.level
    assert plan[0].level > plan[-1].level > 0.95


def test_a_dry_run_says_what_more_seeds_could_decide(finished: StudyResult, make: Make, tmp_path: Path) -> None:  # noqa: F811
    assert power_of(make(tmp_path / "none")) is None
    with pytest.raises(InputError, match=r"--pilot .*: no study with results"):
        power_of(make(tmp_path / "none", pilot=tmp_path / "nothing"))
    found = power_of(make(tmp_path / "none", pilot=finished.folder, seeds=5))
    assert found is not None
    assert found["claim"].unique().sort().to_list() == list(range(1, 10))
    told = dict(found.group_by("claim").agg(pl.col("decided_by").first()).iter_rows())
    assert told[6].startswith("not tested: needs single-category variants")
    assert told[1] == "a pilot of one seed shows nothing of the seeds: run two"  # the tiny study has one
    assert power_table(found).height == found.height


@pytest.mark.slow
def test_a_real_study_stops_by_the_rule(make: Make, tmp_path: Path) -> None:  # noqa: F811
    more = {"unknown": [0, 1], "known": False, "idk": [], "until": "decided", "most_seeds": 4}
    done = run_until_decided(make(tmp_path / "s", **more))
    seeds = done.results["seed"].n_unique()
    assert seeds == 4 or not until_decided.undecided(done.tables["claims"])
    assert open_study(done.folder).settings["seeds"] == seeds
    found = power_of(make(tmp_path / "s", **more, seeds=8))
    assert found is not None
    assert found.filter(pl.col("claim") == 1)["detectable"][0] > 0


def test_the_command_line_names_what_until_takes(run: Cli) -> None:
    code, _, err = run("study", "quick", "--until", "bored", "--out", "x")
    assert code == 2
    assert "--until" in err


@pytest.mark.parametrize("more", [{"until": "decided"}, {"pilot": "other"}])
def test_a_study_of_long_answers_does_not_pass_over_them(more: dict[str, str]) -> None:
    rows = {"known": False, "only": [], "natural": False, "idk": [], "p_true": False}
    with pytest.raises(ConfigError, match=f"{next(iter(more))}: found with spans: true"):
        settings_of(StudyConfig, {"data": "x", "spans": True, **rows, **more})
