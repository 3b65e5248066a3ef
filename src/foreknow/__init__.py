"""foreknow: know what your language model knows before you fine-tune it.

    import foreknow
    audit = foreknow.audit("train.jsonl", model="smollm2-135m", out="runs/train")
    audit.rows        # a Polars frame: category, P_Correct, flags for every row
    audit.summary     # shares, protocol, model, cost
    audit.report()    # report.html

Nothing heavy is imported until it is called. A verb and its file have different names (`audit` is in
auditing.py): importing a file binds its name here, and would hide a function of that name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from foreknow.audits.auditing import Audit, open_audit
    from foreknow.audits.comparing import Comparison
    from foreknow.checks.checking import Checked
    from foreknow.config import AuditConfig, EvaluateConfig, MixConfig, TuneConfig
    from foreknow.errors import ForeknowError
    from foreknow.evaluation.evaluating import Evaluation, open_evaluation
    from foreknow.mixes.mixing import Mix
    from foreknow.studies.settings import StudyConfig
    from foreknow.studies.studying import Study, open_study
    from foreknow.training.callback import KnowledgeCallback
    from foreknow.training.tuning import Tuned, open_tuned

__all__ = [
    "Audit",
    "AuditConfig",
    "Checked",
    "Comparison",
    "EvaluateConfig",
    "Evaluation",
    "ForeknowError",
    "KnowledgeCallback",
    "Mix",
    "MixConfig",
    "Study",
    "StudyConfig",
    "TuneConfig",
    "Tuned",
    "audit",
    "check",
    "compare",
    "evaluate",
    "mix",
    "open_audit",
    "open_evaluation",
    "open_study",
    "open_tuned",
    "study",
    "tune",
]

_HOME = {
    "Audit": "foreknow.audits.auditing",
    "open_audit": "foreknow.audits.auditing",
    "AuditConfig": "foreknow.config",
    "Checked": "foreknow.checks.checking",
    "Mix": "foreknow.mixes.mixing",
    "MixConfig": "foreknow.config",
    "TuneConfig": "foreknow.config",
    "Tuned": "foreknow.training.tuning",
    "open_tuned": "foreknow.training.tuning",
    "Comparison": "foreknow.audits.comparing",
    "ForeknowError": "foreknow.errors",
    "KnowledgeCallback": "foreknow.training.callback",
    "Evaluation": "foreknow.evaluation.evaluating",
    "EvaluateConfig": "foreknow.config",
    "open_evaluation": "foreknow.evaluation.evaluating",
    "Study": "foreknow.studies.studying",
    "StudyConfig": "foreknow.studies.settings",
    "open_study": "foreknow.studies.studying",
}


def audit(data: str, *, out: str, **settings: Any) -> Audit:
    """Label each row of `data` by what the model knows and write the run folder `out`.

    `settings` are the fields of `AuditConfig`. The same call on a finished folder computes nothing. Raises
    the errors of `foreknow.errors`.
    """
    from foreknow.audits.auditing import run
    from foreknow.config import AuditConfig
    from foreknow.settings import settings_of

    return run(settings_of(AuditConfig, {"data": str(data), "out": out, **settings}))


def check(*data: str, **settings: Any) -> Checked:
    """Tell what is wrong with `data`, without a model; several files are splits. Fields of `CheckConfig`."""
    from foreknow.checks.checking import check_files
    from foreknow.config import CheckConfig
    from foreknow.settings import settings_of

    return check_files([settings_of(CheckConfig, {"data": str(one), **settings}) for one in data])


def mix(audit: str, *, out: str, **settings: Any) -> Mix:
    """Write a training set from a finished audit's folder to the file `out`. Fields of `MixConfig`."""
    from foreknow.config import MixConfig
    from foreknow.mixes.mixed import write_mix
    from foreknow.settings import settings_of

    return write_mix(settings_of(MixConfig, {"audit": audit, "out": out, **settings})).mix


def tune(train: str, *, dev: str, out: str, **settings: Any) -> Tuned:
    """Fine-tune a model while watching each category; writes the run folder `out`. Fields of `TuneConfig`."""
    from foreknow.config import TuneConfig
    from foreknow.settings import settings_of
    from foreknow.training.tuning import run

    return run(settings_of(TuneConfig, {"train": train, "dev": dev, "out": out, **settings}))


def evaluate(model: str, data: str, *, out: str, **settings: Any) -> Evaluation:
    """Ask a tuned `model` every question of `data`; writes the run folder `out`. Fields of `EvaluateConfig`."""
    from foreknow.config import EvaluateConfig
    from foreknow.evaluation.evaluating import run
    from foreknow.settings import settings_of

    return run(settings_of(EvaluateConfig, {"model": model, "data": data, "out": out, **settings}))


def study(which: str, *, out: str, **settings: Any) -> Study:
    """The paper's whole experiment: `which` is a preset or a YAML file; `settings` are fields of `StudyConfig`."""
    from foreknow.studies.settings import study_settings
    from foreknow.studies.studying import run

    return run(study_settings(which, {"out": out, **settings}))


def compare(first: str, second: str) -> Comparison:
    """How categories move, row by row, from one finished audit to another (two models, before and after)."""
    from pathlib import Path

    from foreknow.audits.auditing import open_audit
    from foreknow.audits.comparing import compare_audits

    return compare_audits(open_audit(Path(first)), open_audit(Path(second)))


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'foreknow' has no attribute {name!r}")
