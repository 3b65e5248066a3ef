"""A forecast from a study whose truth is known: right where the study looked, and honest elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foreknow.errors import ConfigError, InputError, ModelError
from foreknow.io.run_dir import FORMAT, write_json
from foreknow.stages.audit.result import open_audit
from foreknow.stages.study.forecast import (
    FORECAST,
    _possible,
    check,
    forecast,
    forecast_audit,
    forecast_table,
    usual_fits,
)
from foreknow.stages.study.measurements import RESULTS
from foreknow.stages.study.result import open_study

B0, B_KNOWN, B_UNKNOWN = 0.40, 0.08, -0.10


def study(
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0), seeds: int = 3, noise: float = 0.004
) -> pl.DataFrame:
    """Results of a study in which the paper's line is the truth."""
    rng = np.random.default_rng(0)
    lines, size, rows = [], 400, 4000
    for share in shares:
        for seed in range(seeds):
            drift = rng.normal(0, noise)
            for epoch in range(1, 9):
                known, unknown = 1 - 0.5**epoch, max(0.0, min(1.0, (epoch - 2) / 5))
                fits = {"MaybeKnown": (round((1 - share) * size), known), "Unknown": (round(share * size), unknown)}
                place = {
                    **{
                        "variant": f"unknown-{share:g}",
                        "kind": "shares",
                        "share": share,
                        "trained": None,
                        "seed": seed,
                    },
                    **{
                        "size": size,
                        "epoch": epoch,
                        "step": epoch,
                        "early_stop": epoch == 3,
                        "convergence": epoch == 8,
                    },
                }
                counts = {name: (n, round(n * fit)) for name, (n, fit) in fits.items() if n}
                at = {name: right / size for name, (_, right) in counts.items()}
                em = B0 + B_KNOWN * at.get("MaybeKnown", 0) + B_UNKNOWN * at.get("Unknown", 0) + drift
                em += rng.normal(0, noise)
                lines += [
                    {**place, "set": "train", "category": name, "rows": n, "correct": right}
                    for name, (n, right) in counts.items()
                ]
                lines.append({**place, "set": "test", "category": "all", "rows": rows, "correct": round(em * rows)})
    return pl.DataFrame(lines, schema=RESULTS)


def test_a_forecast_finds_the_truth_it_was_made_from() -> None:
    results = study()
    found = forecast(results, 0.4, usual_fits(results, 0.4))
    assert found.schema == FORECAST
    assert found["when"].to_list() == ["EARLY_STOP", "CONVERGENCE"]
    for line in found.iter_rows(named=True):
        truth = B0 + B_KNOWN * 0.6 * line["known_fitted"] + B_UNKNOWN * 0.4 * line["unknown_fitted"]
        assert line["em"] == pytest.approx(truth, abs=0.01)
        assert line["ci_low"] < truth < line["ci_high"]
        assert line["inside"]


def test_an_interval_holds_only_what_exact_match_can_be() -> None:
    wide = forecast(study(seeds=2, noise=0.3), 0.5, {"asked": (1.0, 1.0)}).row(0, named=True)
    assert (wide["ci_low"], wide["ci_high"]) == (0.0, 1.0)
    assert _possible(-0.3, -0.1) == (None, None)


def test_a_mix_between_two_shares_is_fitted_as_they_are() -> None:
    results = study()
    fits = usual_fits(results, 0.4)
    assert fits["CONVERGENCE"] == pytest.approx((1 - 0.5**8, 1.0), abs=0.01)
    assert fits["EARLY_STOP"] == pytest.approx((1 - 0.5**3, 0.2), abs=0.01)


def test_outside_the_studys_range_it_says_so() -> None:
    results = study(shares=(0.5, 0.6, 0.75))
    inside = forecast(results, 0.6, {"asked": (0.9, 0.5)})["inside"]
    outside = forecast(results, 0.0, {"asked": (1.0, 0.0)})["inside"]
    assert (inside.item(), outside.item()) == (True, False)


def test_variants_left_out_are_told_within_their_intervals() -> None:
    left = check(study())["test"]
    assert left["rmse"] < 0.02
    assert left["coverage"] >= 0.85


def test_a_study_with_one_share_determines_no_line() -> None:
    results = study(shares=(0.0,), seeds=2)
    with pytest.raises(ConfigError, match=r"^--study: its runs determine no linear model"):
        forecast(results, 0.0, {"asked": (1.0, 0.0)})


def folders(tmp_path: Path, other: bool = False) -> tuple[Path, Path]:
    audit, done = tmp_path / "audit", tmp_path / "study"
    for folder in (audit, done):
        folder.mkdir()
    model = {"name": "m", "fingerprint": "sha256:" + "a" * 64}
    overall = {"HighlyKnown": 0.2, "MaybeKnown": 0.3, "WeaklyKnown": 0.1, "Unknown": 0.4}
    write_json(audit / "manifest.json", {"format": FORMAT, "stage": "audit"})
    write_json(audit / "summary.json", {"model": model, "categories": {"overall": overall}})
    pl.DataFrame({"row": [0], "earlier_turns": [None]}).write_parquet(audit / "rows.parquet")
    theirs = {"name": "n", "fingerprint": "sha256:" + "b" * 64} if other else model
    write_json(done / "manifest.json", {"format": FORMAT, "stage": "study", "model": theirs, "results": "sha256:c"})
    study().write_parquet(done / "results.parquet")
    return audit, done


def test_an_audits_own_share_is_told_of(tmp_path: Path) -> None:
    audit, done = folders(tmp_path)
    found = forecast_audit(open_audit(audit), open_study(done), unknown=None)
    assert found["unknown"] == 0.4
    json.dumps(found, allow_nan=False)
    assert forecast_table(found).height == 2


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    audit, done = folders(tmp_path, other=True)
    with pytest.raises(ModelError, match=r"^--study .*: of n .* but .* asked m"):
        forecast_audit(open_audit(audit), open_study(done), unknown=None)
    assert forecast_audit(open_audit(audit), open_study(done), unknown=0.5, force=True)["unknown"] == 0.5
    with pytest.raises(ConfigError, match=r"^--unknown 50"):
        forecast_audit(open_audit(audit), open_study(done), unknown=50, force=True)
    with pytest.raises(ConfigError, match=r"^--fitted: found \[2, 0.5\], expected two shares"):
        forecast_audit(open_audit(audit), open_study(done), unknown=0.5, fitted=(2, 0.5), force=True)
    with pytest.raises(InputError, match="not a finished study run"):
        forecast_audit(open_audit(audit), open_study(audit), unknown=None)
