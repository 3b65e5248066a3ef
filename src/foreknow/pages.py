"""Writes the page of a finished run of any stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from foreknow.errors import ConfigError, InputError
from foreknow.io.remote import download
from foreknow.io.run_dir import read_checked
from foreknow.report import vega_process
from foreknow.report.model_card import model_card
from foreknow.stages.audit import page as audit_page
from foreknow.stages.audit.result import open_audit
from foreknow.stages.evaluate import page as evaluation_page
from foreknow.stages.evaluate.result import open_evaluation
from foreknow.stages.finished_run import read_by_stage
from foreknow.stages.remedies import page as remedies_page
from foreknow.stages.remedies.result import STAGE as REMEDIES
from foreknow.stages.remedies.result import open_remedies
from foreknow.stages.study import long_page
from foreknow.stages.study import page as study_page
from foreknow.stages.study.long_result import STAGE as LONG_STUDY
from foreknow.stages.study.long_result import open_long_study
from foreknow.stages.study.result import open_study
from foreknow.stages.train import page as training_page
from foreknow.stages.train.result import open_train


def write_report(folder: str | Path, *, show_rows: bool = True, control: Path | None = None) -> Path:
    """Write `report.html` of a finished run again and return its path.

    `control`: for a tune run, another tune run to compare it with; by default its control run in the same parent
    folder, if there is one. Raises InputError for a folder that no finished run wrote.
    """
    folder = download(folder)
    stage = (read_checked(folder / "manifest.json") or {}).get("stage")
    if control is not None and stage != "tune":
        raise ConfigError(f"--control: {folder} is not a tune run, which alone has one")
    vega_process.start()  # which takes as long as the imports that follow
    writers: dict[str, Callable[[Path], Path]] = {
        "audit": lambda run: audit_page.write_page(open_audit(run), show_rows=show_rows),
        "tune": lambda run: training_page.write_page(open_train(run), control=control, show_rows=show_rows),
        "evaluate": lambda run: evaluation_page.write_page(open_evaluation(run), show_rows=show_rows),
        "study": lambda run: study_page.write_page(open_study(run)),
        LONG_STUDY: lambda run: long_page.write_long_page(open_long_study(run)),
        REMEDIES: lambda run: remedies_page.write_page(open_remedies(run)),
    }
    return read_by_stage(folder, writers)


def card_text(folder: str | Path, evaluation: str | Path | None = None) -> str:
    """Return a model card's section on a finished tune run, as Markdown behind a metadata block.

    `evaluation`: the folder of an evaluation of the run's model. Raises InputError for other folders, and for an
    evaluation of another model.
    """
    run = open_train(folder)
    if evaluation is None:
        return model_card(run.results)
    summary = open_evaluation(evaluation).summary
    base, trained = (summary["model"].get("base") or {}).get("fingerprint"), run.results["model"]["fingerprint"]
    if base is not None and base != trained:
        raise InputError(
            f"--evaluation {evaluation}: of a model tuned from {base[:23]}, expected one tuned from {trained[:23]}, "
            f"as {folder} did"
        )
    return model_card(run.results, summary)
