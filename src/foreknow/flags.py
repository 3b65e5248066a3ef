"""The flags of a verb, made from its settings model, so that each setting and its help are written once.

`--help` shows the settings marked `COMMON`, `--help-all` shows every one, both under the settings' groups.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Optional, get_origin

import cyclopts
from cyclopts import Parameter, Token

from foreknow.settings import COMMON, FILE_ONLY, Group, Settings, group_of

HELP: Final = ("--help", "-h")
HELP_ALL: Final = "--help-all"
PANELS: Final = {group: cyclopts.Group(group.value, sort_key=at) for at, group in enumerate(Group)}
"""The panels of the help, in the order of the groups."""

ConfigFile = Annotated[
    Optional[Path],  # noqa: UP045
    Parameter(help="Read settings from this YAML file; flags overrule it.", group=PANELS[Group.OUTPUT]),
]


def whole(_: type, tokens: Sequence[Token]) -> int:
    """A whole number: the parser's own reading rounds 2.5."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"found {tokens[0].value!r}, expected a whole number") from None


def with_flags(function: Callable[..., None], model: type[Settings], *, every: bool) -> Callable[..., None]:
    """A function that takes `**given`, with the fields of `model` as flags; it gets those that the user typed.

    Unless `every` is set, help leaves out the flags that are not marked `COMMON`.
    """
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]
    named = {p.name for p in own}
    flags = [
        _flag(name, field, shown=every or COMMON in field.metadata)
        for name, field in model.model_fields.items()
        if name not in named and FILE_ONLY not in field.metadata
    ]

    def call(*args: Any, **given: Any) -> None:
        mine = {k: v for k, v in given.items() if k in named}
        function(*args, **mine, **{k: v for k, v in given.items() if k not in named and v is not None})

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    at = next((i for i, p in enumerate(own) if p.kind == p.KEYWORD_ONLY), len(own))
    call.__signature__ = inspect.Signature([*own[:at], *flags, *own[at:]])  # type: ignore[attr-defined]
    return call


def positional(model: type[Settings], name: str) -> Parameter:
    """How help shows a field of `model` that is typed without a flag."""
    field = model.model_fields[name]
    return Parameter(help=field.description, group=PANELS[group_of(field)])


def epilogue(verb: str, model: type[Settings], *, every: bool, command: str | None = None) -> str:
    """The last line of a verb's help. `command`: what is typed to run it, where that is not the verb alone."""
    file = f"Write all settings to a file, with their defaults: foreknow config {verb}"
    return (
        file if every else f"Show all {len(model.model_fields)} settings: foreknow {command or verb} {HELP_ALL}\n{file}"
    )


def _flag(name: str, field: Any, *, shown: bool) -> inspect.Parameter:
    default = (
        " [required]" if field.is_required() else f" [default: {_spelled(field.default)}]" if field.default else ""
    )
    is_int = field.annotation in (int, int | None)
    about = Parameter(
        help=f"{field.description}{default}",
        show_default=False,
        negative=None if field.default is True else "",
        converter=whole if is_int and name != "rows" else None,
        group=PANELS[group_of(field)],
        show=shown,
    )
    kind: Any = field.annotation
    if name == "rows":
        kind = str  # 1e9 is a number of rows: the settings read it
    elif get_origin(kind) is dict:
        kind = list[str]  # texts such as question=q: the settings read them
    elif kind == tuple[float, ...]:
        kind = list[str]  # numbers with commas between them: the settings read them
    kind = Optional[kind]  # noqa: UP045
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, about])


def _spelled(default: object) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
