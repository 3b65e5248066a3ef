"""foreknow: know what your language model knows before you fine-tune it.

    import foreknow
    audit = foreknow.audit("train.jsonl", model="smollm2-135m", out="runs/train")
    audit.rows        # a Polars frame: category, P_Correct, flags for every row
    audit.summary     # shares, protocol, model, cost
    foreknow.write_report(audit.folder)    # report.html again, as `foreknow report` writes it

Nothing heavy is imported until it is called. The packages of the verbs stand under `foreknow.stages`: importing a
package `foreknow.audit` would bind that name here, and hide the function `audit`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foreknow.version import __version__ as __version__

if TYPE_CHECKING:
    from foreknow.config import AuditConfig as AuditConfig
    from foreknow.config import EvaluateConfig as EvaluateConfig
    from foreknow.config import MixConfig as MixConfig
    from foreknow.config import RemediesConfig as RemediesConfig
    from foreknow.config import TuneConfig as TuneConfig
    from foreknow.data.validation_result import CheckResult as CheckResult
    from foreknow.errors import ForeknowError as ForeknowError
    from foreknow.pages import write_report as write_report
    from foreknow.stages.audit.compare import Comparison as Comparison
    from foreknow.stages.audit.result import AuditResult as AuditResult
    from foreknow.stages.audit.result import open_audit as open_audit
    from foreknow.stages.evaluate.result import EvaluateResult as EvaluateResult
    from foreknow.stages.evaluate.result import open_evaluation as open_evaluation
    from foreknow.stages.mix.sampling import Mix as Mix
    from foreknow.stages.remedies.result import RemediesResult as RemediesResult
    from foreknow.stages.remedies.result import open_remedies as open_remedies
    from foreknow.stages.study.long_result import LongStudyResult as LongStudyResult
    from foreknow.stages.study.result import StudyResult as StudyResult
    from foreknow.stages.study.result import open_study as open_study
    from foreknow.stages.study.settings import StudyConfig as StudyConfig
    from foreknow.stages.train.callback import KnowledgeCallback as KnowledgeCallback
    from foreknow.stages.train.result import TrainResult as TrainResult
    from foreknow.stages.train.result import open_train as open_train

_LAZY = {
    "AuditResult": "foreknow.stages.audit.result",
    "AuditConfig": "foreknow.config",
    "CheckResult": "foreknow.data.validation_result",
    "Comparison": "foreknow.stages.audit.compare",
    "EvaluateConfig": "foreknow.config",
    "EvaluateResult": "foreknow.stages.evaluate.result",
    "ForeknowError": "foreknow.errors",
    "KnowledgeCallback": "foreknow.stages.train.callback",
    "LongStudyResult": "foreknow.stages.study.long_result",
    "Mix": "foreknow.stages.mix.sampling",
    "MixConfig": "foreknow.config",
    "RemediesConfig": "foreknow.config",
    "RemediesResult": "foreknow.stages.remedies.result",
    "StudyResult": "foreknow.stages.study.result",
    "StudyConfig": "foreknow.stages.study.settings",
    "TuneConfig": "foreknow.config",
    "TrainResult": "foreknow.stages.train.result",
    "open_audit": "foreknow.stages.audit.result",
    "open_evaluation": "foreknow.stages.evaluate.result",
    "open_remedies": "foreknow.stages.remedies.result",
    "open_study": "foreknow.stages.study.result",
    "open_train": "foreknow.stages.train.result",
    "write_report": "foreknow.pages",
}
"""Where each public name is defined; a name is imported when it is first used."""

__all__ = ["audit", "check", "compare", "evaluate", "mix", "remedies", "study", "tune", *_LAZY]  # noqa: PLE0604 - ruff reads no table


def audit(data: str, *, out: str, **settings: Any) -> AuditResult:
    """Label each row of `data` by what the model knows and write the run folder `out`.

    `settings` are the fields of `AuditConfig`. The same call on a finished folder computes nothing. Raises
    the errors of `foreknow.errors`.
    """
    from foreknow.config import AuditConfig  # keeps pydantic out
    from foreknow.settings import settings_of  # keeps pydantic out
    from foreknow.stages.audit.run import run  # keeps pydantic out

    return run(settings_of(AuditConfig, {"data": str(data), "out": out, **settings}))


def check(*data: str, **settings: Any) -> CheckResult:
    """Tell what is wrong with `data`, without a model; several files are splits. Fields of `CheckConfig`."""
    from foreknow.config import CheckConfig  # keeps pydantic out
    from foreknow.data.validation import check_files  # keeps pydantic out
    from foreknow.settings import settings_of  # keeps pydantic out

    return check_files([settings_of(CheckConfig, {"data": str(one), **settings}) for one in data])


def mix(audit: str, *, out: str, **settings: Any) -> Mix:
    """Write a training set from a finished audit's folder to the file `out`. Fields of `MixConfig`.

    With `mask`, the tokens of the set are written beside it for other trainers (`pretokenized.py`).
    """
    from foreknow.config import MixConfig  # keeps pydantic out
    from foreknow.settings import settings_of  # keeps pydantic out
    from foreknow.stages.mix.run import write_mix  # keeps pydantic out

    config = settings_of(MixConfig, {"audit": audit, "out": out, **settings})
    written = write_mix(config).mix
    if config.mask:
        from foreknow.stages.train.pretokenized import write_tokens  # keeps torch out

        write_tokens(config)
    return written


def tune(train: str, *, dev: str, out: str, **settings: Any) -> TrainResult:
    """Fine-tune a model while watching each category; writes the run folder `out`. Fields of `TuneConfig`."""
    from foreknow.config import TuneConfig  # keeps pydantic out
    from foreknow.settings import settings_of  # keeps pydantic out
    from foreknow.stages.train.run import run  # keeps pydantic out

    return run(settings_of(TuneConfig, {"train": train, "dev": dev, "out": out, **settings}))


def evaluate(model: str, data: str, *, out: str, **settings: Any) -> EvaluateResult:
    """Ask a tuned `model` every question of `data`; writes the run folder `out`. Fields of `EvaluateConfig`."""
    from foreknow.config import EvaluateConfig  # keeps pydantic out
    from foreknow.settings import settings_of  # keeps pydantic out
    from foreknow.stages.evaluate.run import run  # keeps pydantic out

    return run(settings_of(EvaluateConfig, {"model": model, "data": data, "out": out, **settings}))


def study(which: str, *, out: str, **settings: Any) -> StudyResult | LongStudyResult:
    """The paper's whole experiment: `which` is a preset or a YAML file; `settings` are fields of `StudyConfig`.

    A study with `spans: true` (the presets long and lab-long) is one of long answers.
    """
    from foreknow.stages.study.long_run import run_long  # keeps pydantic out
    from foreknow.stages.study.run import run  # keeps pydantic out
    from foreknow.stages.study.settings import study_settings  # keeps pydantic out

    config = study_settings(which, {"out": out, **settings})
    return run_long(config) if config.spans else run(config)


def remedies(data: str, *, out: str, **settings: Any) -> RemediesResult:
    """Compare recipes for teaching the new facts of `data`; `settings` are fields of `RemediesConfig`."""
    from foreknow.config import RemediesConfig  # keeps pydantic out
    from foreknow.settings import settings_of  # keeps pydantic out
    from foreknow.stages.remedies.run import run  # keeps pydantic out

    return run(settings_of(RemediesConfig, {"data": data, "out": out, **settings}))


def compare(first: str, second: str) -> Comparison:
    """How categories move, row by row, from one finished audit to another (two models, before and after)."""
    from pathlib import Path

    from foreknow.stages.audit.compare import compare_audits  # keeps polars out
    from foreknow.stages.audit.result import open_audit  # keeps polars out

    return compare_audits(open_audit(Path(first)), open_audit(Path(second)))


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'foreknow' has no attribute {name!r}")
