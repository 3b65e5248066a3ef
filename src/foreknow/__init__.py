"""foreknow: know what your language model knows before you fine-tune it.

    import foreknow
    audit = foreknow.audit("train.jsonl", model="smollm2-135m", out="runs/train")
    audit.rows        # a Polars frame: category, probabilities, flags of every row
    audit.summary     # shares, protocol, model, cost
    foreknow.write_report(audit.folder)    # report.html again, as `foreknow report` writes it

Nothing heavy is imported until it is called. The packages of the verbs stand under `foreknow.stages`: importing a
package `foreknow.audit` would bind that name here, and hide the function `audit`. For the same reason the function of
`foreknow report` is called `write_report`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foreknow.api import audit as audit
from foreknow.api import check as check
from foreknow.api import compare as compare
from foreknow.api import compare_runs as compare_runs
from foreknow.api import evaluate as evaluate
from foreknow.api import explore as explore
from foreknow.api import export_lm_eval as export_lm_eval
from foreknow.api import extract as extract
from foreknow.api import forecast as forecast
from foreknow.api import mix as mix
from foreknow.api import model_card as model_card
from foreknow.api import remedies as remedies
from foreknow.api import study as study
from foreknow.api import tune as tune
from foreknow.version import __version__ as __version__

if TYPE_CHECKING:
    from foreknow.config import AuditConfig as AuditConfig
    from foreknow.config import CheckConfig as CheckConfig
    from foreknow.config import EvaluateConfig as EvaluateConfig
    from foreknow.config import ExtractConfig as ExtractConfig
    from foreknow.config import MixConfig as MixConfig
    from foreknow.config import RemediesConfig as RemediesConfig
    from foreknow.config import TuneConfig as TuneConfig
    from foreknow.data.validation_result import CheckResult as CheckResult
    from foreknow.errors import ForeknowError as ForeknowError
    from foreknow.pages import write_report as write_report
    from foreknow.prompts.prompt_template import Template as Template
    from foreknow.stages.audit.compare import Comparison as Comparison
    from foreknow.stages.audit.result import AuditResult as AuditResult
    from foreknow.stages.audit.result import open_audit as open_audit
    from foreknow.stages.compare.comparison import RunComparison as RunComparison
    from foreknow.stages.evaluate.result import EvaluateResult as EvaluateResult
    from foreknow.stages.evaluate.result import open_evaluation as open_evaluation
    from foreknow.stages.explore.server import Explorer as Explorer
    from foreknow.stages.export.run import LmEvalExport as LmEvalExport
    from foreknow.stages.mix.result import MixResult as MixResult
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
    "CheckConfig": "foreknow.config",
    "CheckResult": "foreknow.data.validation_result",
    "Comparison": "foreknow.stages.audit.compare",
    "EvaluateConfig": "foreknow.config",
    "EvaluateResult": "foreknow.stages.evaluate.result",
    "Explorer": "foreknow.stages.explore.server",
    "ExtractConfig": "foreknow.config",
    "ForeknowError": "foreknow.errors",
    "KnowledgeCallback": "foreknow.stages.train.callback",
    "LmEvalExport": "foreknow.stages.export.run",
    "LongStudyResult": "foreknow.stages.study.long_result",
    "MixConfig": "foreknow.config",
    "MixResult": "foreknow.stages.mix.result",
    "RemediesConfig": "foreknow.config",
    "RemediesResult": "foreknow.stages.remedies.result",
    "RunComparison": "foreknow.stages.compare.comparison",
    "StudyResult": "foreknow.stages.study.result",
    "StudyConfig": "foreknow.stages.study.settings",
    "Template": "foreknow.prompts.prompt_template",
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

__all__ = [  # noqa: PLE0604 - ruff reads no table
    *("audit", "check", "compare", "compare_runs", "evaluate", "explore", "export_lm_eval", "extract", "forecast"),
    *("mix", "model_card", "remedies", "study", "tune"),
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'foreknow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
