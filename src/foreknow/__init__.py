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
    from foreknow.auditing import Audit, open_audit
    from foreknow.comparing import Comparison
    from foreknow.config import AuditConfig
    from foreknow.errors import ForeknowError

__all__ = [
    "Audit",
    "AuditConfig",
    "Comparison",
    "ForeknowError",
    "audit",
    "compare",
    "open_audit",
]

_HOME = {
    "Audit": "foreknow.auditing",
    "open_audit": "foreknow.auditing",
    "AuditConfig": "foreknow.config",
    "Comparison": "foreknow.comparing",
    "ForeknowError": "foreknow.errors",
}


def audit(data: str, *, out: str, **settings: Any) -> Audit:
    """Label each row of `data` by what the model knows and write the run folder `out`.

    `settings` are the fields of `AuditConfig`. The same call on a finished folder computes nothing. Raises
    the errors of `foreknow.errors`.
    """
    from foreknow.auditing import run
    from foreknow.config import AuditConfig, settings_of

    return run(settings_of(AuditConfig, {"data": str(data), "out": out, **settings}))


def compare(first: str, second: str) -> Comparison:
    """How categories move, row by row, from one finished audit to another (two models, before and after)."""
    from pathlib import Path

    from foreknow.auditing import open_audit
    from foreknow.comparing import compare_audits

    return compare_audits(open_audit(Path(first)), open_audit(Path(second)))


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'foreknow' has no attribute {name!r}")
