"""What a user may type after a step has ended: one command with the real paths, which the terminal shows.

A command says how to go on, and recommends nothing: the page of the step does that.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from foreknow.config.tune import held_out_share
from foreknow.settings import Settings, read_settings

READING: Final = ("map", "templates", "group_by", "turns", "trust_remote_code")
"""The settings without which another step would read a user's file in another way."""
AUDITING: Final = ("model", "base", *READING)
MIXED_KEEPS: Final = ("model", "base", "trust_remote_code")
"""What a step on a file that `foreknow mix` wrote has to repeat of its audit."""


def after_check(settings: Settings) -> str:
    """The command that labels the file that was checked."""
    data = settings.resolved()["data"]
    return _line("audit", data, {**_changed(settings, READING), "out": _stem(data) + "-audit"})


def after_audit(settings: Settings) -> str:
    """The command that trains on the audited rows as they are."""
    own = settings.resolved()
    more = {**_changed(settings, AUDITING), "audit": own["out"], "out": f"{own['out']}-tuned"}
    return _line("tune", own["data"], more)


def after_mix(settings: Settings, *, skip: bool = False) -> str:
    """The command that trains on the set that was written. `skip`: without its rows that cannot be trained on."""
    own = settings.resolved()
    audit = read_settings(Path(own["audit"]))
    more = {name: audit[name] for name in MIXED_KEEPS if audit.get(name)}
    skipping = {"bad_rows": "skip"} if skip else {}
    out = _stem(own["out"]) + "-tuned"
    return _line("tune", own["out"], {**more, "audit": own["audit"], **skipping, "out": out})


def after_tune(settings: Settings, weights: str, audited: Collection[str] = ()) -> str:
    """The command that asks the tuned model: the first test file, else the dev file, else the rows of the audit.

    `weights`: the name of a folder of weights inside the run's. `audited`: the sets of which the run's audit labels
    rows; `evaluate` refuses an audit that knows no row of its data.
    """
    own = settings.resolved()
    audit = read_settings(Path(own["audit"])) if own["audit"] else {}
    dev = {"dev": own["dev"]} if isinstance(own["dev"], str) and held_out_share(own["dev"]) is None else {}
    files = {**own["test"], **dev}
    name, data = next(iter(files.items()), ("", audit.get("data") or own["train"]))
    labelled = own["audit"] and (not name or name in audited)
    more = {**_changed(settings, READING), **({"audit": own["audit"]} if labelled else {})}
    return _line("evaluate", f"{own['out']}/{weights}", more | {"out": f"{own['out']}-evaluation"}, data)


def _line(verb: str, first: object, flags: Mapping[str, object], *more: object) -> str:
    words = ["foreknow", verb, str(first), *map(str, more)]
    for name, value in flags.items():
        words += [word for one in _values(value) for word in (f"--{name.replace('_', '-')}", *one)]
    return shlex.join(words)


def _values(value: object) -> Iterable[tuple[str, ...]]:
    """The words behind each appearance of a flag."""
    if isinstance(value, Mapping):
        return [(",".join(f"{key}={column}" for key, column in value.items()),)]
    return [()] if value is True else [(str(value),)]


def _changed(settings: Settings, names: Iterable[str]) -> dict[str, Any]:
    """The named settings that do not have their default."""
    fields, own = type(settings).model_fields, settings.resolved()
    return {name: own[name] for name in names if name in fields and getattr(settings, name) != fields[name].default}


def _stem(path: str) -> str:
    """A file's name without its folder and endings: a run beside where the user stands."""
    return Path(str(path).rstrip("/")).name.split(".")[0] or "run"
