"""Chooses the layout of a file from its columns and first records, and says why. Pure.

`registry.py` lists the layouts. A file that fits none of them is refused, and the error names what it resembles
(`hints.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from foreknow.data.chat.formats import verdict
from foreknow.data.chat.text_markup import find_markup
from foreknow.data.layouts.choice_columns import find_scheme
from foreknow.data.layouts.column_paths import field_of, has_field
from foreknow.data.layouts.hints import refusal
from foreknow.data.layouts.layout import BESIDE, USUAL, Layout, Record, check_column, name_list
from foreknow.data.layouts.registry import LAYOUT_KINDS, Sample, Taken
from foreknow.data.layouts.rows import extract
from foreknow.data.values import text_of
from foreknow.errors import ConfigError, InputError

_PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "input", "messages", "conversations", "history")
"""Names of the column that holds the prompt of a preference row."""
_VERDICT_COLUMNS = ("kto_tag", "label", "desirable", "is_desirable", "is_chosen")
"""Columns that say whether an answer is good or bad."""
_NAMED_IF_UNUSED = ("question", "answer")
"""If a file has other columns that could hold one of these, the reason names them as unused."""
_BEFORE = ("system", "system_prompt", "history")
"""Columns of the turns before a question. Some layouts read them; the reason names them if the layout does not."""


def detect(
    columns: Sequence[str], mapped: Mapping[str, str], where: str, sample: Sequence[Record] = (), named: str = "auto"
) -> Layout:
    """Choose the layout of a file by its columns and first records.

    `mapped` (`--map`: our name -> the file's column) and `named` (`--layout`) take precedence over what the file looks
    like. Raises InputError if no layout fits, ConfigError for an unknown layout or name; messages begin with `where`.
    """
    _check_map(columns, mapped, where, sample)
    if named != "auto" and named not in LAYOUT_KINDS:
        raise ConfigError(f"--layout {named}: no such layout; known are {', '.join(LAYOUT_KINDS)}.")
    columns_by_name = {ours: _first_column(columns, names) for ours, names in USUAL.items()} | dict(mapped)
    taken = {ours: theirs for ours, theirs in columns_by_name.items() if theirs is not None}
    if "chosen" in taken and "prompt" not in mapped:
        prompt_column = _first_column([column for column in columns if column != taken["chosen"]], _PROMPT_COLUMNS)
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
        # the rows are of several layouts: take the one that reads most of them
        return max(candidates, key=lambda candidate: candidate[0])[1]
    if named != "auto":
        raise InputError(
            f"{where}: --layout {named}: expected the columns {', '.join(LAYOUT_KINDS[named].needs)}; "
            f"found {name_list(columns)}."
        )
    raise InputError(refusal(columns, taken, where, sample))


def _shares_columns(one: Layout, other: Layout) -> bool:
    """Whether two layouts read the same rows in two ways: both read a column that is not one of `BESIDE`."""
    main = [{theirs for ours, theirs in each.columns.items() if ours not in BESIDE} for each in (one, other)]
    return not main[0].isdisjoint(main[1])


def _count_read(layout: Layout, sample: Sample) -> int:
    """The number of records that a layout reads: each has a usable row, or a row with a reason why it is left out."""
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
    """The layout of this name if the columns and records fit it, else None. `forced`: the user named it."""
    kind = LAYOUT_KINDS[name]
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
"""The column whose texts may contain chat markup, by layout."""


def _marks_in(column: str, sample: Sample) -> list[str]:
    texts = [field_of(record, column) for record in sample]
    matches = [find_markup(text) for text in texts if isinstance(text, str)]
    return list(dict.fromkeys(each.marks for each in matches if each is not None))


def _with_verdict(layout: Layout, columns: Sequence[str], sample: Sample) -> Layout:
    """The layout with the column that says whether an answer is good, if the file has one."""
    if layout.name in ("preference", "popqa", "triples", "trees", "instances"):
        return layout
    for name in _VERDICT_COLUMNS:
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
    """The layout with a reason that also names the unused columns which could hold a question, an answer, a passage or
    the turns before a question."""
    used_columns = set(layout.columns.values())
    names = [name for ours in _NAMED_IF_UNUSED if ours in layout.columns for name in USUAL[ours]]
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
    """The names of the layouts to try, in order."""
    if mapped:
        pairs = (
            *(("messages", "messages"), ("conversations", "sharegpt"), ("chosen", "preference"), ("text", "text")),
            *(("instances", "instances"), ("instruction", "alpaca"), ("passage", "reading"), ("tree", "trees")),
        )
        for ours, name in pairs:
            if ours in mapped:
                return [name]
        return ["question", "triples", *LAYOUT_KINDS]
    lowered = {column.lower() for column in columns}
    plain = "question" in lowered and lowered & {"answer", "answers", "possible_answers"}
    popqa = {"subj", "prop", "obj", "possible_answers"} <= lowered
    first = ["popqa"] if popqa else ["preference", "choices", "reading", *(["question"] if plain else [])]
    return [*first, *(name for name in LAYOUT_KINDS if name not in (*first, "popqa"))]


def _has_needed_columns(name: str, taken: Taken) -> bool:
    """Whether the file has the columns that a layout needs."""
    if name == "question":
        return "question" in taken and ("answer" in taken or "answers" in taken)
    if name == "triples":
        return {"subject", "relation", "object"} <= set(taken) or {"question", "object"} <= set(taken)
    return all(ours in taken for ours in LAYOUT_KINDS[name].needs)


def _without_repeats(name: str, taken: dict[str, str], mapped: Mapping[str, str]) -> dict[str, str]:
    """Remove columns that are taken twice: alpaca's `input` is its context, not a question."""
    mine = dict(taken)
    if name == "alpaca" and mine.get("context") == mine.get("answer"):
        mine.pop("context", None)
    if name in ("question", "reading") and mine.get("answer") == mine["question"] and "answer" not in mapped:
        mine.pop("answer")
    if "answers" in mine and mine.get("answer", "").lower() == "label" and "answer" not in mapped:
        mine.pop("answer")  # a label beside `answers` is no answer
    return mine


def _first_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column with the first of `names`, ignoring case; a column with exactly that spelling takes precedence."""
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
