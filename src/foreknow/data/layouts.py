"""Layouts: which columns of a file hold the question, the answers and the rest; pure.

A layout is found from the columns and the first records (`detect`), or named. `layout_rows.py` reads records by it,
`layout_edits.py` writes other answers into them:

    messages            a chat under `messages`: every turn of the assistant that answers a user's is a row
    sharegpt            the same under `conversations`, turns as {from, value}
    alpaca              instruction, input and output (system where it stands; the answers in `history` are rows too)
    prompt-completion   prompt and completion, as text or as turns
    popqa               PopQA's table
    question            a question and its answer(s) under their usual names, or under `--map` names
    triples             subject, relation and object; the question is the row's own, or the relation's template
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from foreknow.data.chats import looks_like_turns
from foreknow.errors import ConfigError, InputError
from foreknow.files.jsontext import loads
from foreknow.files.quoting import quoted

Record = Mapping[str, object]
# our name -> the names it goes by, the first one that the file has is taken
USUAL: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "query", "q", "prompt", "input"),
    "answer": ("answer", "gold", "gold_answer", "target", "completion", "output", "response", "label"),
    "answers": ("answers", "possible_answers", "accepted_answers", "gold_answers", "targets", "golds"),
    "subject": ("subject", "subj"),
    "relation": ("relation", "rel", "prop", "predicate", "property"),
    "object": ("object", "obj"),
    "split": ("split",),
    "popularity": ("popularity", "s_pop", "pop"),
    "facts": ("facts",),
    "messages": ("messages", "conversation", "dialog", "dialogue"),
    "conversations": ("conversations",),
    "instruction": ("instruction",),
    "context": ("input", "context"),
    "system": ("system",),
    "history": ("history",),
    "prompt": ("prompt",),
    "completion": ("completion",),
}
BESIDE = ("subject", "relation", "split", "popularity", "facts")
"""What any layout may have beside its question and answer."""
GOLDS = ("answer", "answers", "object", "completion")
"""Where answers stand that may be numbers."""
SPLITS: Mapping[str, str] = {"validation": "dev", "valid": "dev", "val": "dev"}


@dataclass(frozen=True)
class Layout:
    """A layout's name, the columns taken (our name -> theirs), and the reason, for the user to read.

    `split` and `relation` are what the file's name tells, for rows that do not say it themselves. `of_floats`: whether
    the answers are texts of floats, so that 1912.0 says 1912.
    """

    name: str
    columns: Mapping[str, str]
    reason: str
    split: str | None = None
    relation: str | None = None
    of_floats: bool = False


class _Kind(NamedTuple):
    """How a layout is known and read. `needs`: columns by our names; `fits`: what their values must be."""

    needs: tuple[str, ...]
    also: tuple[str, ...]
    fits: Callable[[Mapping[str, str], Sequence[Record]], bool]
    what: str


def _always(_taken: Mapping[str, str], _sample: Sequence[Record]) -> bool:
    return True


def _turns_in(name: str) -> Callable[[Mapping[str, str], Sequence[Record]], bool]:
    def fits(taken: Mapping[str, str], sample: Sequence[Record]) -> bool:
        values = [record.get(taken[name]) for record in sample]
        # a file whose every chat is broken is still a file of chats
        return any(looks_like_turns(v) for v in values) or not any(isinstance(v, str) and v for v in values)

    return fits


_KINDS: Mapping[str, _Kind] = {
    "messages": _Kind(("messages",), (), _turns_in("messages"), "chats; each answer of the assistant is a row"),
    "sharegpt": _Kind(
        ("conversations",), ("system",), _turns_in("conversations"), "chats; each answer of the assistant is a row"
    ),
    "alpaca": _Kind(("instruction", "answer"), ("context", "system", "history"), _always, "instruction and output"),
    "popqa": _Kind(("question", "answers", "subject", "object"), (), _always, "PopQA's columns"),
    "prompt-completion": _Kind(("prompt", "completion"), ("system",), _always, "prompt and completion"),
    "question": _Kind(("question",), ("answer", "answers"), _always, "question and answer"),
    "triples": _Kind(("object",), ("subject", "relation", "question"), _always, "subject, relation, object"),
}
LAYOUTS = tuple(_KINDS)


def detect(
    columns: Sequence[str], mapped: Mapping[str, str], where: str, sample: Sequence[Record] = (), named: str = "auto"
) -> Layout:
    """The layout of a file with these columns and first records; InputError if none fits.

    `mapped` (`--map`) and `named` (`--layout`) win over what the file looks like. `where` opens the messages.
    """
    _check_map(columns, mapped, where)
    if named != "auto" and named not in _KINDS:
        raise ConfigError(f"--layout {named}: no such layout; known are {', '.join(_KINDS)}.")
    found = {ours: _first(columns, names) for ours, names in USUAL.items()} | dict(mapped)
    taken = {ours: theirs for ours, theirs in found.items() if theirs is not None}
    tried = [named] if named != "auto" else _order(columns, mapped)
    for name in tried:
        kind = _KINDS[name]
        if _complete(name, taken) and kind.fits(taken, sample):
            mine = {ours: taken[ours] for ours in (*kind.needs, *kind.also, *BESIDE) if ours in taken}
            mine = _without_repeats(name, mine, mapped)
            return Layout(name, mine, _reason(name, kind.what, mine))
    if named != "auto":
        raise InputError(
            f"{where}: --layout {named}: expected the columns {', '.join(_KINDS[named].needs)}; "
            f"found {name_list(columns)}."
        )
    raise InputError(
        f"{where}: no known layout in the columns {name_list(columns)}. Expected a question and an answer, "
        "messages, conversations, instruction and output, or subject, relation and object.\n"
        "Name yours: --map question=COLUMN --map answer=COLUMN."
    )


def check_column(columns: Sequence[str], column: str, flag: str, where: str) -> None:
    """InputError unless the file has this column."""
    if column not in columns:
        raise InputError(f"{where}: {flag}: there is no column {quoted(column)}. Columns found: {name_list(columns)}.")


def _order(columns: Sequence[str], mapped: Mapping[str, str]) -> list[str]:
    """Which layouts to try, the first first."""
    if mapped:
        for ours, name in (("messages", "messages"), ("conversations", "sharegpt"), ("instruction", "alpaca")):
            if ours in mapped:
                return [name]
        return ["question", "triples", *_KINDS]
    lowered = {column.lower() for column in columns}
    plain = "question" in lowered and lowered & {"answer", "answers", "possible_answers"}
    popqa = {"subj", "prop", "obj", "possible_answers"} <= lowered
    first = ["popqa"] if popqa else ["question"] if plain else []
    return [*first, *(name for name in _KINDS if name not in (*first, "popqa"))]


def _complete(name: str, taken: Mapping[str, str]) -> bool:
    """Whether the columns are enough for a layout."""
    if name == "question":
        return "question" in taken and ("answer" in taken or "answers" in taken)
    if name == "triples":
        return {"subject", "relation", "object"} <= set(taken) or {"question", "object"} <= set(taken)
    return all(ours in taken for ours in _KINDS[name].needs)


def _without_repeats(name: str, taken: dict[str, str], mapped: Mapping[str, str]) -> dict[str, str]:
    """One column is taken once: alpaca's `input` is its context, not a question."""
    mine = dict(taken)
    if name == "alpaca" and mine.get("context") == mine.get("answer"):
        mine.pop("context", None)
    if name == "question" and mine.get("answer") == mine["question"] and "answer" not in mapped:
        mine.pop("answer")
    return mine


def decoded_list(value: object) -> object:
    """A list that a cell holds as JSON text (`["Paris", "paris"]`), decoded; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        decoded = loads(value)
    except ValueError:
        return value
    return decoded if isinstance(decoded, list) else value


def _first(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of `names` among the columns, capitals aside; a column spelled alike wins."""
    lowered = {column.lower(): column for column in reversed(columns)} | {column: column for column in columns}
    return next((lowered[name] for name in names if name in lowered), None)


def _check_map(columns: Sequence[str], mapped: Mapping[str, str], where: str) -> None:
    for ours, theirs in mapped.items():
        if ours not in USUAL:
            raise ConfigError(f"--map {ours}={theirs}: {ours!r} is not one of our names: {name_list(list(USUAL))}.")
        check_column(columns, theirs, f"--map {ours}={theirs}", where)


def _reason(name: str, what: str, taken: Mapping[str, str]) -> str:
    pairs = ", ".join(ours if ours == theirs else f"{ours}={theirs}" for ours, theirs in taken.items())
    return f"layout {name}: {what}, from the columns {pairs}"


def name_list(names: Sequence[str], most: int = 20) -> str:
    """Names for a message: quoted only where needed, cut after `most`."""
    shown = ", ".join(name if name.isidentifier() and len(name) <= 40 else quoted(name, 40) for name in names[:most])
    rest = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return shown + rest if names else "none"
