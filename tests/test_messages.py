"""Messages that name things: models and files instead of hashes, what an unfinished folder is, real paths, rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreknow.console import print_audit
from foreknow.errors import InputError, RunFolderError
from foreknow.format.numbers import format_rate
from foreknow.format.text import fill_placeholders, shown_path
from foreknow.io.run_dir import lock_run_dir
from foreknow.pages import write_report
from foreknow.report.page import date_of_writing


def identity(model: str, data: str = "sha256:a", **more: object) -> dict[str, object]:
    return {"model": model, "data": data, **more}


def refusal(folder: Path, new: dict[str, object], config: dict[str, object]) -> str:
    with lock_run_dir(folder) as run, pytest.raises(RunFolderError) as caught:
        run.open_run(new, config)
    return str(caught.value)


def test_another_model_or_file_is_named_and_not_hashed(tmp_path: Path) -> None:
    config = {"model": "smollm2-135m", "data": "a.jsonl"}
    with lock_run_dir(tmp_path / "run") as run:
        run.open_run(identity("sha256:1"), config)
    other = refusal(tmp_path / "run", identity("sha256:2", "sha256:b"), {"model": "gemma-3-270m", "data": "a.jsonl"})
    assert 'model: "smollm2-135m" -> "gemma-3-270m"' in other
    assert 'data: "a.jsonl" -> "a.jsonl (its content has changed)"' in other
    assert "sha256" not in other
    setting = refusal(tmp_path / "run", identity("sha256:1", match="lenient"), config)
    assert 'match: null -> "lenient"' in setting


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no such folder; check the path"),
        ("empty", "it has no manifest.json; name the --out of a foreknow"),
        ("begun", "it was begun and has not ended; give the command that began it again"),
    ],
)
def test_report_says_what_a_folder_is_that_has_no_finished_run(kind: str, message: str, tmp_path: Path) -> None:
    if kind == "empty":
        (tmp_path / "run").mkdir()
    elif kind == "begun":
        with lock_run_dir(tmp_path / "run") as run:
            run.open_run(identity("sha256:1"), {})
    with pytest.raises(InputError, match=message):
        write_report(tmp_path / "run")


def test_commands_name_the_files_that_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"AUDIT": shown_path(tmp_path / "runs" / "my audit"), "MODEL": shown_path("org/model"), "DIR": None}
    text = fill_placeholders("foreknow tune TRAIN --audit AUDIT --model MODEL --out DIR", paths)
    assert text == "foreknow tune TRAIN --audit 'runs/my audit' --model org/model --out DIR"
    assert shown_path(tmp_path.parent / "secret") is None
    assert shown_path("../secret") is None
    assert shown_path(None) is None


def test_rates_are_written_out() -> None:
    assert [format_rate(rate) for rate in (130.4, 12345.0, 2.34, 0.123, 0.04)] == [
        "130 rows/s",
        "12,345 rows/s",
        "2.3 rows/s",
        "0.12 rows/s",
        "25 s a row",
    ]


@pytest.mark.parametrize("groups", [1, 2])
def test_the_audit_says_how_many_rows_a_share_is_of_and_says_one_group_once(
    groups: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = {"HighlyKnown": 0.5, "MaybeKnown": 0.0, "WeaklyKnown": 0.0, "Unknown": 0.5}
    names = [f"relation {n}" for n in range(groups)]
    print_audit({
        "rows": 1234 * groups, "labelled": 1234 * groups, "rows_per_second": 130.0, "model": {"name": "a model"},
        "categories": {
            "overall": shares, "by_relation": dict.fromkeys(names, shares),
            "rows_by_relation": dict.fromkeys(names, 1234),
        },
        "majority_floor": {}, "greedy": {}, "flags": {},
    })  # fmt: skip
    out = capsys.readouterr().out
    lines = [line.split()[: 2 if line.startswith("all") else 3] for line in out.splitlines() if "%" in line]
    whole, each = ["all", f"{1234 * groups:,}"], [["relation", str(n), "1,234"] for n in range(groups)]
    assert lines == [whole, *(each if groups > 1 else [])]
    assert "130 rows/s" in out


def test_a_page_says_when_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1764460800")
    assert date_of_writing() == "30 November 2025"
