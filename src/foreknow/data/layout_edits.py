"""Records with other answers, under their layout's own columns; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from foreknow.data.chats import edited, last_answer, looks_like_turns
from foreknow.data.layouts import Layout, Record, decoded_list
from foreknow.data.loss_marks import MARKS
from foreknow.data.thinking import answer_parts
from foreknow.files.jsontext import dumps


def with_answers(
    layout: Layout,
    record: Record,
    answers: Mapping[int | None, str],
    kept: Collection[int] | None = None,
) -> Record:
    """The record with the answers of some turns replaced, under the layout's own columns; other accepted answers go.

    A thought before an answer stays. `answers`: by `Extracted.turn`. `kept`: of a chat, the turns that may be learnt
    from: the others are cut off or marked (`chats.edited`; beside a `history` stands a list of marks). None: all.
    """
    changed = dict(record)
    name = layout.name
    if name == "alpaca" and (kept is not None or any(turn is not None for turn in answers)):
        return _with_history(layout, record, answers, kept)
    column = layout.columns.get({"messages": "messages", "sharegpt": "conversations"}.get(name, "completion"))
    if name in ("messages", "sharegpt", "prompt-completion") and column is not None:
        old = record.get(column)
        if looks_like_turns(old):
            own = {last_answer(old) if turn is None else turn: text for turn, text in answers.items()}
            changed[column] = edited(old, own, kept)
        elif answers:
            changed[column] = _in_place(str(old), next(iter(answers.values())))
        return changed
    for answer in answers.values():
        for ours in ("answer", "answers", "object"):
            if (theirs := layout.columns.get(ours)) is None or theirs not in record:
                continue
            old = record[theirs]
            # only `answers` is read as a list where a cell spells one
            spelled = ours == "answers" and isinstance(old, str) and isinstance(decoded_list(old), list)
            changed[theirs] = dumps(_replaced(decoded_list(old), answer)) if spelled else _replaced(old, answer)
    return changed


def _with_history(
    layout: Layout, record: Record, answers: Mapping[int | None, str], kept: Collection[int] | None
) -> Record:
    """An alpaca record with answers of its history replaced; with `kept`, it ends with the last pair that is kept."""
    changed = dict(record)
    column = layout.columns["history"]
    old = decoded_list(record[column])
    pairs = [list(pair) if isinstance(pair, list | tuple) else pair for pair in old]  # type: ignore[attr-defined]
    output = layout.columns["answer"]
    for turn, answer in answers.items():
        if turn is None or turn >= len(pairs):
            changed[output] = _replaced(record.get(output), answer)
        else:
            pairs[turn][1] = _replaced(pairs[turn][1], answer)
    if kept is not None and (end := max(kept)) < len(pairs):
        changed[layout.columns["instruction"]], changed[output] = pairs[end]
        if (context := layout.columns.get("context")) is not None and context in record:
            changed[context] = ""
        pairs = pairs[:end]
    if kept is not None and set(range(len(pairs) + 1)) - set(kept):
        # a mark for every message, as verl and LLaMA-Factory's users write it
        changed[MARKS] = [mark for place in range(len(pairs) + 1) for mark in (0, int(place in kept))]
    changed[column] = dumps(pairs) if isinstance(record[column], str) else pairs
    return changed


def _replaced(old: object, answer: str) -> object:
    """The answer in the place of another one, or of a list of them; a thought before it stays."""
    if isinstance(old, list):
        return [_replaced(next((text for text in old if isinstance(text, str)), None), answer)]
    return answer_parts(old).replaced(answer) if isinstance(old, str) else answer


def _in_place(old: str, answer: str) -> str:
    """The answer with the blanks around the old text: a completion is joined to its prompt as it stands."""
    parts = answer_parts(old)
    text = parts.answer.strip()
    before, _, after = parts.answer.partition(text) if text else ("", "", "")
    return parts.replaced(f"{before}{answer}{after}")
