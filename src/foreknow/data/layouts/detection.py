"""Detection: a file's columns and first records -> its layout, with the reason; pure.

    messages            a chat under `messages`: every turn of the assistant that answers a user's is a row
    sharegpt            the same under `conversations`, turns as {from, value}
    preference          chosen and rejected: the chosen answer counts (`formats.py`)
    alpaca              instruction, input and output (system where it stands; the answers in `history` are rows too)
    prompt-completion   prompt and completion, as text or as turns
    popqa               PopQA's table
    choices             multiple choice: the right choice's text is the answer (`choice_columns.py`)
    reading             a question about a passage, which is asked with it, as alpaca's input is (SQuAD, BoolQ)
    question            a question and its answer(s) under their usual names, or under `--map` names
    triples             subject, relation and object; the question is the row's own, or the relation's template
    trees, instances    OpenAssistant's trees of messages, Self-Instruct's instances (`reply_trees.py`)
    text                one text with the marks of a chat (`text_markup.py`)

What fits none is refused with what it resembles (`hints.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from foreknow.data.chat.exchanges import looks_like_turns
from foreknow.data.chat.formats import codec_of, verdict, view_of
from foreknow.data.chat.text_markup import find_markup
from foreknow.data.layouts.answer_objects import is_extractive, texts_of
from foreknow.data.layouts.choice_columns import find_scheme
from foreknow.data.layouts.column_paths import field_of, has_field
from foreknow.data.layouts.hints import is_rated, refusal
from foreknow.data.layouts.layout import BESIDE, USUAL, Layout, Record, check_column, name_list
from foreknow.data.layouts.python_reprs import decode_object
from foreknow.data.layouts.rows import extract
from foreknow.data.values import text_of
from foreknow.errors import ConfigError, InputError

Taken = Mapping[str, str]
Sample = Sequence[Record]


class _Kind(NamedTuple):
    """How a layout is known and read. `needs`: columns by our names; `fits`: what their values must be."""

    needs: tuple[str, ...]
    also: tuple[str, ...]
    fits: Callable[[Taken, Sample], bool]
    what: str


def _always(_taken: Taken, _sample: Sample) -> bool:
    return True


def _has_turns(name: str) -> Callable[[Taken, Sample], bool]:
    def fits(taken: Taken, sample: Sample) -> bool:
        values = [field_of(record, taken[name]) for record in sample]
        if taken[name].lower() == "turns" and any(values) and all(_is_texts(value) for value in values if value):
            return False  # MT-Bench keeps what the user says there, and no answers
        lists = [v for v in values if not isinstance(v, str) or v.lstrip().startswith("[")]
        if any(looks_like_turns(v) or codec_of(v) is not None for v in lists):
            return True
        # a file whose every chat is broken is still a file of chats
        sure = taken[name].lower() in _CHAT_NAMES or not values
        return sure and not any(isinstance(v, str | Mapping) and v for v in values)

    return fits


def _is_texts(value: object) -> bool:
    """Whether a value is a list of texts, or a cell that spells one: it does not say who speaks."""
    listed = decode_object(value)
    return isinstance(listed, list | tuple) and all(isinstance(item, str) for item in listed)


_CHAT_NAMES = ("messages", "conversations", "conversation", "dialog", "dialogue")


def _has_view(name: str) -> Callable[[Taken, Sample], bool]:
    def fits(taken: Taken, sample: Sample) -> bool:
        return any(view_of(name, taken, record) is not None for record in sample)

    return fits


def _has_answer_values(taken: Taken, sample: Sample) -> bool:
    """Whether the columns of question and answer hold what may be some: no classes under `label`, no rated answers."""
    columns = [taken[ours] for ours in ("answer", "answers") if ours in taken]
    values = [value for record in sample for column in columns if (value := field_of(record, column)) is not None]
    if any(is_rated(value) for value in values):
        return False
    if columns == [taken.get("answer")] and columns[0].lower() == "label":
        return any(isinstance(value, str) and not value.strip().lstrip("-").isdecimal() for value in values)
    return True


def _is_reading(taken: Taken, sample: Sample) -> bool:
    """Whether the questions are about a passage: their answers stand in it, or are marked there, or are yes and no."""
    if not ({"answer", "answers"} & set(taken)) or not _has_answer_values(taken, sample):
        return False
    known = inside = 0
    for record in sample:
        passage = field_of(record, taken["passage"])
        if not isinstance(passage, str) or not passage.strip():
            continue
        values = [field_of(record, taken[ours]) for ours in ("answer", "answers") if ours in taken]
        golds = [text for value in values for text in texts_of(value) if text not in (None, "", [])]
        if not golds:
            continue
        known += 1
        stands = any((text := text_of(gold)) is not None and text.casefold() in passage.casefold() for gold in golds)
        inside += stands or any(map(is_extractive, values)) or any(isinstance(gold, bool) for gold in golds)
    return inside * 2 > known > 0


def _is_tree(taken: Taken, sample: Sample) -> bool:
    values = [decode_object(field_of(record, taken["tree"])) for record in sample]
    return any(isinstance(value, Mapping) and isinstance(value.get("replies"), list) for value in values)


def _has_instances(taken: Taken, sample: Sample) -> bool:
    values = [decode_object(field_of(record, taken["instances"])) for record in sample]
    listed = [item for value in values if isinstance(value, list | tuple) for item in value]
    return any(isinstance(item, Mapping) and "output" in item for item in listed)


_CHATS = "chats; each answer of the assistant is a row"
_KINDS: Mapping[str, _Kind] = {
    "messages": _Kind(("messages",), (), _has_turns("messages"), _CHATS),
    "sharegpt": _Kind(("conversations",), ("system",), _has_turns("conversations"), _CHATS),
    "preference": _Kind(
        ("chosen", "rejected"), ("system",), _has_view("preference"), "the chosen answer is the answer"
    ),
    "alpaca": _Kind(
        ("instruction", "answer"), ("context", "system", "history"), _has_answer_values, "instruction and output"
    ),
    "popqa": _Kind(("question", "answers", "subject", "object"), (), _always, "PopQA's columns"),
    "prompt-completion": _Kind(("prompt", "completion"), ("system",), _always, "prompt and completion"),
    "choices": _Kind(("choices",), (), _always, "multiple choice"),
    "reading": _Kind(
        ("question", "passage"),
        ("answer", "answers"),
        _is_reading,
        "questions about a passage, which is part of the question (--layout question asks without it)",
    ),
    "question": _Kind(("question",), ("answer", "answers"), _has_answer_values, "question and answer"),
    "triples": _Kind(("object",), ("subject", "relation", "question"), _always, "subject, relation, object"),
    "trees": _Kind(("tree",), (), _is_tree, "trees of messages; of several replies the best ranked is the answer"),
    "instances": _Kind(("instruction", "instances"), (), _has_instances, "an instruction and its instances"),
    "text": _Kind(("text",), (), _has_view("text"), "chats as texts with marks"),
}
LAYOUTS = tuple(_KINDS)
_ASKED = ("prompt", "question", "instruction", "query", "input", "messages", "conversations", "history")
"""Names of a preference row's prompt."""
_LABELS = ("kto_tag", "label", "desirable", "is_desirable", "is_chosen")
"""Columns that tell good answers from bad ones."""
_TWINS = ("question", "answer")
"""Of these, other columns that could have been taken are named."""

_BEFORE = ("system", "system_prompt", "history")
"""Columns of what is said before a question: some layouts read them."""


def detect(
    columns: Sequence[str], mapped: Mapping[str, str], where: str, sample: Sequence[Record] = (), named: str = "auto"
) -> Layout:
    """The layout of a file with these columns and first records; InputError if none fits.

    `mapped` (`--map`) and `named` (`--layout`) win over what the file looks like. `where` opens the messages.
    """
    _check_map(columns, mapped, where, sample)
    if named != "auto" and named not in _KINDS:
        raise ConfigError(f"--layout {named}: no such layout; known are {', '.join(_KINDS)}.")
    columns_by_name = {ours: _first_column(columns, names) for ours, names in USUAL.items()} | dict(mapped)
    taken = {ours: theirs for ours, theirs in columns_by_name.items() if theirs is not None}
    if "chosen" in taken and "prompt" not in mapped:
        prompt_column = _first_column([column for column in columns if column != taken["chosen"]], _ASKED)
        taken = {**taken, "prompt": prompt_column} if prompt_column else taken
    layout_names = [named] if named != "auto" else _layout_order(columns, mapped)
    candidates: list[tuple[int, Layout]] = []
    subsample = sample[:: max(len(sample) // 200, 1)]
    for name in layout_names:
        layout = _try_layout(name, taken, columns, mapped, where, sample, forced=name == named)
        if layout is None or (candidates and _shares_columns(layout, candidates[0][1])):
            continue
        count = len(subsample) if mapped or named != "auto" else _count_read(layout, subsample)
        if count * 2 >= len(subsample):
            return layout
        candidates.append((count, layout))
    if candidates:
        # rows of several layouts: the one that most of them are of
        return max(candidates, key=lambda candidate: candidate[0])[1]
    if named != "auto":
        raise InputError(
            f"{where}: --layout {named}: expected the columns {', '.join(_KINDS[named].needs)}; "
            f"found {name_list(columns)}."
        )
    raise InputError(refusal(columns, taken, where, sample))


def _shares_columns(one: Layout, other: Layout) -> bool:
    """Whether two layouts read the same rows in two ways: they have a column in common that is not beside any row."""
    main = [{theirs for ours, theirs in each.columns.items() if ours not in BESIDE} for each in (one, other)]
    return not main[0].isdisjoint(main[1])


def _count_read(layout: Layout, sample: Sample) -> int:
    """How many records a layout reads: those that have a usable row, or one that tells why it cannot be used."""
    count = 0
    for record in sample:
        try:
            rows = extract(layout, record, {})
        except InputError:  # a relation without a template
            count += 1
            continue
        reasons = {row.left_out for row in rows if row.left_out}
        count += any(row.question and row.answers for row in rows) or bool(reasons - {"no_marks"})
    return count


def _try_layout(
    name: str,
    taken: Taken,
    columns: Sequence[str],
    mapped: Mapping[str, str],
    where: str,
    sample: Sample,
    *,
    forced: bool,
) -> Layout | None:
    """The layout of this name, where the columns and records are of it. `forced`: the user named it."""
    kind = _KINDS[name]
    if name == "choices":
        scheme = find_scheme(columns, sample, where)
        if scheme is None:
            return None
        beside = {ours: taken[ours] for ours in BESIDE if ours in taken and ours != "subject"}
        mine = {"question": scheme.question, "answer": scheme.answer, **beside}
        return Layout(name, mine, f"layout choices: {scheme.reason}", choices=scheme)
    if not _has_needed_columns(name, taken) or not ((forced and name == "reading") or kind.fits(taken, sample)):
        return None
    own = ("prompt",) if name == "preference" else ()
    mine = {ours: taken[ours] for ours in (*own, *kind.needs, *kind.also, *BESIDE) if ours in taken}
    mine = _without_repeats(name, mine, mapped)
    reason = _reason(name, kind.what, mine)
    if name in _MARKED and (marks := _marks_in(mine[_MARKED[name]], sample)):
        reason += f", with the marks of {', '.join(marks)}"
    layout = Layout(name, mine, reason)
    return _with_unused_columns_named(_with_verdict(layout, columns, sample), columns, sample)


_MARKED: Mapping[str, str] = {"text": "text", "prompt-completion": "prompt", "preference": "chosen"}
"""Where marks of a chat stand in texts, by layout."""


def _marks_in(column: str, sample: Sample) -> list[str]:
    texts = [field_of(record, column) for record in sample]
    matches = [find_markup(text) for text in texts if isinstance(text, str)]
    return list(dict.fromkeys(each.marks for each in matches if each is not None))


def _with_verdict(layout: Layout, columns: Sequence[str], sample: Sample) -> Layout:
    """The layout with the column that tells good answers from bad ones, if there is one."""
    if layout.name in ("preference", "popqa", "triples", "trees", "instances"):
        return layout
    for name in _LABELS:
        column = _first_column(columns, (name,))
        if column is None or column in layout.columns.values():
            continue
        values = [record[column] for record in sample if record.get(column) is not None]
        verdicts = {verdict(value) for value in values}
        plain = all(isinstance(value, bool) or name == "kto_tag" for value in values)
        chat = layout.name in ("messages", "sharegpt", "text")
        if not values or None in verdicts or (not plain and (chat or verdicts != {True, False})):
            continue
        reason = f"{layout.reason}; a row whose {column} calls its answer a bad one is left out"
        return replace(layout, columns={**layout.columns, "accepted": column}, reason=reason)
    return layout


def _with_unused_columns_named(layout: Layout, columns: Sequence[str], sample: Sample) -> Layout:
    """The layout with a reason that names the columns which could have been taken, or that stand before a question."""
    used_columns = set(layout.columns.values())
    names = [name for ours in _TWINS if ours in layout.columns for name in USUAL[ours]]
    names += USUAL["passage"] if "question" in layout.columns else ()
    known = {*names, *_BEFORE}
    others = [
        column
        for column in columns
        if column.lower() in known
        and column not in used_columns
        and any(map(_is_filled, (r.get(column) for r in sample)))
    ]
    return replace(layout, reason=f"{layout.reason}; not used: {name_list(others, 6)}") if others else layout


def _is_filled(value: object) -> bool:
    return text_of(value) is not None or (isinstance(value, list | tuple) and bool(value))


def _layout_order(columns: Sequence[str], mapped: Mapping[str, str]) -> list[str]:
    """Which layouts to try, the first first."""
    if mapped:
        pairs = (
            *(("messages", "messages"), ("conversations", "sharegpt"), ("chosen", "preference"), ("text", "text")),
            *(("instances", "instances"), ("instruction", "alpaca"), ("passage", "reading"), ("tree", "trees")),
        )
        for ours, name in pairs:
            if ours in mapped:
                return [name]
        return ["question", "triples", *_KINDS]
    lowered = {column.lower() for column in columns}
    plain = "question" in lowered and lowered & {"answer", "answers", "possible_answers"}
    popqa = {"subj", "prop", "obj", "possible_answers"} <= lowered
    first = ["popqa"] if popqa else ["preference", "choices", "reading", *(["question"] if plain else [])]
    return [*first, *(name for name in _KINDS if name not in (*first, "popqa"))]


def _has_needed_columns(name: str, taken: Taken) -> bool:
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
    if name in ("question", "reading") and mine.get("answer") == mine["question"] and "answer" not in mapped:
        mine.pop("answer")
    if "answers" in mine and mine.get("answer", "").lower() == "label" and "answer" not in mapped:
        mine.pop("answer")  # a label beside answers is something else
    return mine


def _first_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of `names` among the columns, capitals aside; a column spelled alike wins."""
    lowered = {column.lower(): column for column in reversed(columns)} | {column: column for column in columns}
    return next((lowered[name] for name in names if name in lowered), None)


def _check_map(columns: Sequence[str], mapped: Mapping[str, str], where: str, sample: Sample) -> None:
    for ours, theirs in mapped.items():
        if ours not in USUAL:
            raise ConfigError(f"--map {ours}={theirs}: {ours!r} is not one of our names: {name_list(list(USUAL))}.")
        if not any(has_field(record, theirs) for record in sample):
            check_column(columns, theirs, f"--map {ours}={theirs}", where)


def _reason(name: str, what: str, taken: Mapping[str, str]) -> str:
    pairs = ", ".join(ours if ours == theirs else f"{ours}={theirs}" for ours, theirs in taken.items())
    return f"layout {name}: {what}, from the columns {pairs}"
