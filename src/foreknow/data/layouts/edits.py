"""Replaces the answers in records, in the columns of their layout. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from foreknow.data.chat.exchanges import last_answer, looks_like_turns, replace_answers, turns_of
from foreknow.data.chat.formats import view_of
from foreknow.data.chat.loss_masks import MARKS
from foreknow.data.chat.reasoning import answer_parts
from foreknow.data.chat.reply_trees import with_answer_at
from foreknow.data.layouts.answer_objects import is_struct, with_text
from foreknow.data.layouts.column_paths import field_of, has_field, with_field
from foreknow.data.layouts.layout import Layout, Record
from foreknow.data.layouts.multiple_choice import with_gold, with_text_answer
from foreknow.data.layouts.python_reprs import decode_list
from foreknow.data.layouts.rows import are_by_turn, labelled_turns, spans_in_file
from foreknow.data.values import text_of
from foreknow.io.json_text import dumps


def with_answers(
    layout: Layout,
    record: Record,
    answers: Mapping[int | None, str],
    learnable: Collection[int] | None = None,
) -> Record:
    """Return the record with the answers of some turns replaced. Other accepted answers are removed.

    A thought before an answer stays. `answers`: new answers by `Extracted.turn`. `learnable`: the turns of a chat that
    a trainer may learn from; the others are cut off or masked (`exchanges.replace_answers`; a list of masks is written
    beside a `history`). If `learnable` is None, all turns stay.
    """
    paths = [name for name in layout.columns.values() if name not in record and has_field(record, name)]
    if paths:
        flat = {**record, **{path: field_of(record, path) for path in paths}}
        edited_flat = with_answers(layout, flat, answers, learnable)
        changed = {key: value for key, value in edited_flat.items() if key not in paths}
        for path in paths:
            changed = with_field(changed, path, edited_flat[path])
        return changed
    changed = dict(record)
    name = layout.name
    if layout.choices is not None:
        for answer in answers.values():
            changed = dict(with_gold(changed, layout.choices, answer))
        return changed if answers else with_text_answer(record, layout.choices)
    if name in ("trees", "instances"):
        column_name = layout.columns["tree" if name == "trees" else "instances"]
        return {**changed, column_name: with_answer_at(name, record.get(column_name), answers, learnable)}
    if (view := view_of(name, layout.columns, record)) is not None:
        final = last_answer(view.turns)
        by_place = {final if turn is None else turn: text for turn, text in answers.items()}
        return _with_mask_list(layout, view.put(replace_answers(view.turns, by_place, learnable)), learnable)  # type: ignore[arg-type]
    if name == "alpaca" and (learnable is not None or any(turn is not None for turn in answers)):
        return _with_history(layout, record, answers, learnable)
    column = layout.columns.get({"messages": "messages", "sharegpt": "conversations"}.get(name, "completion"))
    if name in ("messages", "sharegpt", "prompt-completion") and column is not None:
        old = record.get(column)
        if looks_like_turns(old):
            by_turn = {last_answer(old) if turn is None else turn: text for turn, text in answers.items()}
            changed[column] = replace_answers(old, by_turn, learnable)
        elif answers:
            answer = next(iter(answers.values()))
            changed[column] = (
                _replace_answer(old, answer) if isinstance(old, list) else _replace_completion(str(old), answer)
            )
        return changed
    for answer in answers.values():
        for ours in ("answer", "answers", "object"):
            if (theirs := layout.columns.get(ours)) is None or theirs not in record:
                continue
            old = record[theirs]
            if is_struct(old):
                changed[theirs] = with_text(old, answer)
                continue
            # a cell that spells a list is read as one only in the column `answers`
            spelled = ours == "answers" and isinstance(old, str) and isinstance(decode_list(old), list)
            changed[theirs] = (
                dumps(_replace_answer(decode_list(old), answer)) if spelled else _replace_answer(old, answer)
            )
    return changed


def without_last_facts(layout: Layout, record: Record) -> Record:
    """The record without facts and spans of its last answer, for one whose last answer is cut off or masked."""
    for name in ("facts", "spans"):
        column = layout.columns.get(name)
        if column is not None and not are_by_turn(decode_list(field_of(record, column)), labelled_turns(record)):
            record = {**record, column: None} if column in record else with_field(record, column, None)
    return record


def with_spans(
    layout: Layout, record: Record, entries: Sequence[object], turn: int | None, answer: str, *, is_last: bool
) -> Record:
    """The record with the fact spans of an answer replaced. `is_last`: it is the record's last answer.

    A list that is not by turn is told of the last answer. `answer`: the record's, in which the places of `entries` are
    counted.
    """
    column = layout.columns.get("spans")
    if column is None or column not in record:
        return record
    old, places = decode_list(record[column]), labelled_turns(record)
    new = own = spans_in_file(layout, record, turn, answer, entries)
    if are_by_turn(old, places) and isinstance(old, list) and places is not None and turn is not None:
        new = [own if place == turn else one for place, one in zip(places, old, strict=True)]
    elif not is_last:
        return record
    return {**record, column: dumps(new) if isinstance(record[column], str) else new}


def _with_mask_list(layout: Layout, record: Record, learnable: Collection[int] | None) -> Record:
    """The record with a list of masks beside its chat, if the chat itself cannot mask answers."""
    view = None if learnable is None else view_of(layout.name, layout.columns, record)
    if view is None or learnable is None:
        return record
    turns = turns_of(view.turns, record) or []
    if all(
        turn.fault is not None or place in learnable for place, turn in enumerate(turns) if turn.role == "assistant"
    ):
        return record
    return {**record, MARKS: [int(place in learnable) for place in range(len(turns))]}


def _with_history(
    layout: Layout, record: Record, answers: Mapping[int | None, str], learnable: Collection[int] | None
) -> Record:
    """An alpaca record with answers in its history replaced; with `learnable`, it ends with its last learnable pair."""
    changed = dict(record)
    column = layout.columns["history"]
    old = decode_list(record[column])
    pairs = [list(pair) if isinstance(pair, list | tuple) else pair for pair in old]  # type: ignore[attr-defined]
    output = layout.columns["answer"]
    for turn, answer in answers.items():
        if turn is None or turn >= len(pairs):
            changed[output] = _replace_answer(record.get(output), answer)
        else:
            pairs[turn][1] = _replace_answer(pairs[turn][1], answer)
    if learnable is not None and (end := max(learnable)) < len(pairs):
        changed[layout.columns["instruction"]], changed[output] = pairs[end]
        if (context := layout.columns.get("context")) is not None and context in record:
            changed[context] = ""
        pairs = pairs[:end]
    if learnable is not None and set(range(len(pairs) + 1)) - set(learnable):
        # one mark per message, as verl reads it and users of LLaMA-Factory write it
        changed[MARKS] = [mark for place in range(len(pairs) + 1) for mark in (0, int(place in learnable))]
    changed[column] = dumps(pairs) if isinstance(record[column], str) else pairs
    return changed


def _replace_answer(old: object, answer: str) -> object:
    """Replace an answer, or a list of answers, by `answer`; a thought before the old answer stays.

    In a list, the first text that has an answer is replaced (a text that is only a thought has none), the others go.
    """
    if isinstance(old, list):
        texts = [text for text in old if isinstance(text, str)]
        answered = (text for text in texts if text_of(answer_parts(text).answer) is not None)
        return [_replace_answer(next(answered, None), answer)]
    return answer_parts(old).with_answer(answer) if isinstance(old, str) else answer


def _replace_completion(old: str, answer: str) -> str:
    """Replace a completion but keep the blanks around it, because prompt and completion are joined unchanged."""
    parts = answer_parts(old)
    text = parts.answer.strip()
    before, _, after = parts.answer.partition(text) if text else ("", "", "")
    return parts.with_answer(f"{before}{answer}{after}")
