"""Extract the rows of a record by its layout: questions and answers; pure.

A record gives one row; a chat gives one for each answer of the assistant. A row that cannot be used carries the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from foreknow.data.chat.exchanges import Exchange, Turn, exchanges, looks_like_turns, turns_of
from foreknow.data.chat.formats import verdict, view_of
from foreknow.data.chat.loss_masks import is_masked_record, listed_marks
from foreknow.data.chat.reasoning import answer_parts
from foreknow.data.chat.reply_trees import questions_in
from foreknow.data.layouts.answer_objects import says_none, texts_of
from foreknow.data.layouts.column_paths import field_of
from foreknow.data.layouts.layout import SPLITS, Layout, Record, name_list
from foreknow.data.layouts.multiple_choice import gold_of
from foreknow.data.layouts.python_reprs import decode_list, decode_object
from foreknow.data.layouts.relation_templates import question as fill
from foreknow.data.layouts.relation_templates import subject_of
from foreknow.data.values import encodes, in_order, is_null_word, quantity_of, spellings, text_of
from foreknow.errors import InputError
from foreknow.io.json_text import dumps
from foreknow.io.quoting import quoted


class Extracted(NamedTuple):
    """One row of the frame, of the one or several that a record gives; question and answers are None where it has none.

    `turn`: the index of the answer's turn in the record's list of turns; None where the record is no chat.
    `left_out`: why the row cannot serve (`exchanges.LEFT_OUT`); it has no answers then. `thought`: a thought stood
    before the answer. `spans`: the row's own entry for fact spans, as JSON text (`spans_of`).
    """

    question: str | None
    answers: list[str] | None
    subject: str | None = None
    relation: str | None = None
    split: str | None = None
    popularity: float | None = None
    context: list[dict[str, str]] | None = None
    facts: list[dict[str, str]] | None = None
    turn: int | None = None
    left_out: str | None = None
    thought: bool = False
    spans: str | None = None


TURNS = "labelled_turns"
"""The column that says which turns the lists in our other columns speak of, where a record has several rows."""


def labelled_turns(record: Record, name: str = TURNS) -> list[int] | None:
    """The turns that a record's lists of labels speak of, in their order; None where it has no such lists."""
    listed = decode_list(record.get(name))
    if not isinstance(listed, list | tuple) or not all(type(turn) is int for turn in listed):
        return None
    return list(listed)


def at_turn(value: object, places: Sequence[int], turn: int) -> object:
    """Of a list of labels, that of a turn; None where it has none."""
    listed = decode_list(value)
    if not isinstance(listed, list | tuple) or len(listed) != len(places) or turn not in places:
        return None
    return listed[places.index(turn)]


def are_by_turn(facts: object, places: Sequence[int] | None) -> bool:
    """Whether facts are lists for each of the labelled turns; others are told of the whole record."""
    each = facts if isinstance(facts, list) else []
    return places is not None and len(each) == len(places) and all(isinstance(own, list | None) for own in each)


def extract(
    layout: Layout,
    record: Record,
    templates: Mapping[str, str],
    turns: str = "all",
    null_words: str = "leave-out",
) -> list[Extracted]:
    """The rows of one record, read by its layout: at least one. A subject's `aliases` are never taken for answers.

    `turns`: whether `all` answers of a chat are rows, or only its `last`. `null_words`: whether to `keep` an answer
    that may stand for a missing value (None, N/A), or `leave-out` its row.
    """

    def value(ours: str) -> object:
        theirs = layout.columns.get(ours)
        return None if theirs is None else field_of(record, theirs)

    rejected = "rejected" if "accepted" in layout.columns and verdict(value("accepted")) is False else None
    relation = _name_or_none(value("relation")) or layout.relation
    own_subject = _name_or_none(value("subject"))
    template = templates.get(relation) if relation is not None else None
    split = text_of(value("split")) or layout.split
    places, facts = labelled_turns(record), decode_list(value("facts"))
    by_turn = are_by_turn(facts, places)
    spans = decode_list(value("spans"))
    rows = []
    exchanges_and_golds = _exchanges_and_golds(layout, value, record, last=turns == "last")
    for number, (exchange, golds) in enumerate(exchanges_and_golds, 1):
        question, subject = exchange.question, own_subject
        if layout.name == "triples" and question is None and subject is not None and relation is not None:
            if template is None:
                known_relations = name_list(sorted(templates))
                raise InputError(
                    f"relation {quoted(relation)} has no template (templates given for {known_relations}).\n"
                    "Give --templates FILE with a line such as "
                    f'"{relation if len(relation) <= 80 else "RELATION"}": "Which country is [X] in?".'
                )
            question = fill(template, subject)
        if subject is None and template is not None and question is not None:
            subject = subject_of(template, question)
        answers, thought = _clean_answers(golds, layout.of_floats)
        left_out = exchange.left_out or rejected or ("only_thought" if thought and not answers else None)
        unknown = bool(answers) and is_null_word(answers[0]) and null_words != "keep"
        if left_out is None and (unknown or (question is not None and is_null_word(question))):
            left_out = "missing_value"
        # facts that are told of the whole record belong to its last answer
        own_facts = facts if number == len(exchanges_and_golds) else None
        if by_turn and places is not None and exchange.turn is not None:
            own_facts = at_turn(facts, places, exchange.turn)
        own_spans = spans if number == len(exchanges_and_golds) else None
        if are_by_turn(spans, places) and places is not None and exchange.turn is not None:
            own_spans = at_turn(spans, places, exchange.turn)
        rows.append(
            Extracted(
                question,
                None if left_out else answers or None,
                subject,
                relation,
                None if split is None else SPLITS.get(split.lower(), split),
                quantity_of(value("popularity")),
                _context(exchange.context),
                facts_of(own_facts),
                exchange.turn,
                left_out,
                exchange.thought or thought,
                spans_of(own_spans, golds, answers),
            )
        )
    return rows


def _context(turns: Sequence[Turn]) -> list[dict[str, str]] | None:
    pairs = [{"role": turn.role, "content": turn.content} for turn in turns if encodes(turn.role + turn.content)]
    return pairs or None


def facts_of(value: object) -> list[dict[str, str]] | None:
    """The short facts in a row's `facts` column (or its JSON text): those with a question and an answer."""
    listed = decode_list(value)
    if not isinstance(listed, list | tuple):
        return None
    return [
        {"question": question, "answer": answer}
        for item in listed
        if isinstance(item, Mapping)
        and (question := text_of(item.get("question"))) is not None
        and (answer := text_of(item.get("answer"))) is not None
    ]


def spans_of(value: object, golds: Sequence[object], answers: Sequence[str]) -> str | None:
    """The row's entry in a `spans` column as JSON text, its places counted in the answer as we read it.

    `golds`: the answers as the file has them; the first of `answers` may lack blanks or a thought in front. An entry
    is checked where spans are taken from it (`spans/column.py`).
    """
    if value is None or not answers:
        return None
    entries = value if isinstance(value, list | tuple) else [value]
    return dumps([_shifted(entry, _offset(golds, answers[0])) for entry in entries])


def spans_in_file(
    layout: Layout, record: Record, turn: int | None, answer: str, entries: Sequence[object]
) -> list[object]:
    """Entries of a row's spans with their places counted in the answer as the record has it: undoes `spans_of`.

    `turn`: as `Extracted.turn`. `answer`: the row's answer as we read it, in which the places of `entries` are counted.
    """

    def value(ours: str) -> object:
        theirs = layout.columns.get(ours)
        return None if theirs is None else field_of(record, theirs)

    rows = _exchanges_and_golds(layout, value, record, last=False)
    offset = next((_offset(golds, answer) for exchange, golds in rows if exchange.turn == turn), 0)
    return [_shifted(entry, -offset) for entry in entries]


def _offset(golds: Sequence[object], answer: str) -> int:
    """Where an answer, as we read it, begins in the first of the answers as the file has them."""
    first = golds[0] if golds else None
    first = first[0] if isinstance(first, list | tuple) and first else first
    return max(first.find(answer), 0) if isinstance(first, str) else 0


def _shifted(entry: object, offset: int) -> object:
    if isinstance(entry, Mapping):
        return {
            key: item - offset if key in ("start", "end") and type(item) is int else item for key, item in entry.items()
        }
    if isinstance(entry, list | tuple):
        return [item - offset if type(item) is int else item for item in entry]
    return entry


def _exchanges_and_golds(
    layout: Layout, value: Callable[[str], object], record: Record, *, last: bool
) -> list[tuple[Exchange, list[object]]]:
    """The questions of a record and their gold answers before cleaning: one pair for each row."""
    system, name = _system_turns(value), layout.name
    if (view := view_of(name, layout.columns, record)) is not None:
        turns = turns_of(view.turns, record) or []
        return _rows_of_chat([*system, *turns], record, len(system) + view.first, last=last)
    if name in ("text", "preference"):
        content = value("text" if name == "text" else "chosen")
        return [(Exchange(None, None, [], left_out="no_marks" if isinstance(content, str) and content else None), [])]
    if name in ("trees", "instances"):
        return _rows_of_tree_or_instances(name, value, last=last)
    if name in ("messages", "sharegpt"):
        turns = turns_of(value("messages" if name == "messages" else "conversations"), record) or []
        return _rows_of_chat([*system, *turns], record, len(system), last=last)
    if name == "alpaca":
        context = text_of(value("context"))
        instruction = text_of(value("instruction"))
        question = "\n".join(text for text in (instruction, context) if text) if instruction else context
        return _rows_of_alpaca(value, record, question, last=last)
    if name == "prompt-completion":
        listed_prompt, listed_completion = turns_of(value("prompt")), turns_of(value("completion"), record)
        if listed_prompt is None and listed_completion is None:
            exchange = Exchange(text_of(value("prompt")), None, system, left_out=_media_reason(record))
            return [(exchange, [value("completion")])]
        prompt_turns = [Turn("user", text_of(value("prompt")) or "")] if listed_prompt is None else listed_prompt
        # an assistant's turn in the prompt is no answer
        if listed_completion is not None:
            return _rows_of_chat(
                [*system, *prompt_turns, *listed_completion], record, len(system) + len(prompt_turns), last=last
            )
        exchange = _rows_of_chat([*system, *prompt_turns], record, len(system) + len(prompt_turns), last=last)[0][0]
        return [(exchange, [value("completion")])]
    question = text_of(value("question"))
    if layout.choices is not None:
        gold, amiss = gold_of(record, layout.choices)
        passage = text_of(field_of(record, layout.choices.passage)) if layout.choices.passage else None
        question = "\n".join(text for text in (question, passage) if text) or None
        exchange = Exchange(question, None, [], left_out=_media_reason(record) or ("no_such_choice" if amiss else None))
        return [(exchange, [gold])]
    if name == "reading" and question is not None:
        question = "\n".join(text for text in (question, text_of(value("passage"))) if text)
    listed = decode_list(value("answers"))
    if isinstance(listed, str) and _CUT_LIST.match(listed):
        listed = None  # a list that was cut while it was printed: [1 2 ... 9]
    answer_values = [value("answer"), value("object") if name in ("triples", "popqa") else None, listed]
    golds = [text for item in answer_values for text in texts_of(item)]
    # a text under such a name may be no more than an address
    has_media = any(isinstance(value, Mapping | bytes | list) and value for value in map(record.get, _MEDIA))
    left_out = "not_text" if has_media else "unanswerable" if _has_no_answer(record, answer_values) else None
    if question is None and looks_like_turns(value("question")):
        turns = [*system, *(turns_of(value("question")) or [])]
        exchange = _rows_of_chat(turns, record, len(turns), last=last)[0][0]
        return [(exchange._replace(left_out=exchange.left_out or left_out), golds)]
    return [(Exchange(question, None, [], left_out=left_out), golds)]


_CUT_LIST = re.compile(r"\s*(?:\[\s*['\"]|array\()")


def _has_no_answer(record: Record, answers: Sequence[object]) -> bool:
    """Whether a row says that its question has no answer: SQuAD 2."""
    return record.get("is_impossible") is True or any(map(says_none, answers))


def _rows_of_tree_or_instances(
    name: str, value: Callable[[str], object], *, last: bool
) -> list[tuple[Exchange, list[object]]]:
    """The rows of a tree of messages, or of an instruction with instances: at least one."""
    column = decode_object(value("tree" if name == "trees" else "instances"))
    questions = questions_in(name, column, value("instruction"))
    rows: list[tuple[Exchange, list[object]]] = []
    for item in questions[-1:] if last else questions:
        context = [Turn(role, text) for role, text in item.context if text.strip()]
        exchange = Exchange(text_of(item.question), None, context, item.number, item.left_out)
        rows.append((exchange, [item.answer]))
    return rows or [(Exchange(None, None, []), [])]


def _rows_of_chat(
    turns: Sequence[Turn], record: Record, first: int, *, last: bool
) -> list[tuple[Exchange, list[object]]]:
    """The rows of a chat whose answers stand from the turn `first` on."""
    if _media_reason(record) and not any(turn.others for turn in turns):
        with_media = [turn._replace(others=_PLACE.search(turn.content) is not None) for turn in turns]
        # where no turn says where the pictures belong, they belong to all
        everywhere = not any(turn.others for turn in with_media)
        turns = [turn._replace(others=True) for turn in turns] if everywhere else with_media
    all_masked = is_masked_record(record)
    pairs: list[tuple[Exchange, list[object]]] = []
    for exchange in exchanges(turns, first=first, last=last):
        with_question = exchange._replace(question=text_of(exchange.question))
        if all_masked and exchange.turn is not None:
            with_question = with_question._replace(answer=None, left_out="masked")
        pairs.append((with_question, [with_question.answer]))
    return pairs


def _rows_of_alpaca(
    value: Callable[[str], object], record: Record, question: str | None, *, last: bool
) -> list[tuple[Exchange, list[object]]]:
    """The output, and the answers of a history of pairs, from which LLaMA-Factory learns as well."""
    system, history = _system_turns(value), decode_list(value("history"))
    pictured = _media_reason(record)
    if looks_like_turns(history):
        before = [*system, *(turns_of(history) or [])]
        return [(Exchange(question, None, before, left_out=pictured), [value("answer")])]
    if not isinstance(history, list | tuple):
        return [(Exchange(question, None, system, left_out=pictured), [value("answer")])]
    pairs = history
    turns = list(system)
    for place, pair in enumerate(pairs):
        if isinstance(pair, list | tuple) and len(pair) == 2:
            user_text, assistant_text = map(text_of, pair)
            parts = answer_parts(assistant_text or "")
            text = parts.answer.strip()
            turns.append(Turn("user", user_text or "", place))
            fault = "only_thought" if parts.thought and not text else None
            turns.append(Turn("assistant", text, place, fault, answers=bool(text), thought=parts.thought))
    has_rows_in_history = len(turns) > len(system) and not last
    rows = _rows_of_chat(turns, record, len(system), last=False) if has_rows_in_history else []
    context = [turn for turn in turns if turn.content.strip()]
    rows.append((Exchange(question, None, context, len(pairs), pictured), [value("answer")]))
    marks = listed_marks(record, ["user", "assistant"] * (len(pairs) + 1)) or []
    masked = {place for place, mark in enumerate(marks[1::2]) if mark}
    return [
        (exchange._replace(answer=None, left_out="masked") if exchange.turn in masked else exchange, golds)
        for exchange, golds in rows
    ]


_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_PLACE = re.compile(r"<\|?(?:image|video|audio|img)[^<>]{0,20}>")


def _media_reason(record: Record) -> str | None:
    """`not_text` where pictures, sounds or films stand beside a record's texts."""
    return "not_text" if any(record.get(key) not in (None, "", [], {}, "[]") for key in _MEDIA) else None


def _clean_answers(golds: Sequence[object], of_floats: bool) -> tuple[list[str], bool]:
    """The answers among golds, their thoughts taken off, each once; whether there were thoughts."""
    parts_list = [answer_parts(text) for text in _answer_texts(golds, of_floats)]
    answers = (text_of(parts.answer) for parts in parts_list)
    return in_order([text for text in answers if text is not None]), any(parts.thought for parts in parts_list)


def _name_or_none(value: object) -> str | None:
    """A text that names something; None for a word that stands for a missing value, but for those that are names."""
    text = text_of(value)
    return None if text in ("nan", "NaN", "null", "NULL", "None", "<NA>", "NaT", "#N/A") else text


def _system_turns(value: Callable[[str], object]) -> list[Turn]:
    system = text_of(value("system"))
    return [Turn("system", system)] if system else []


def _answer_texts(values: Sequence[object], of_floats: bool) -> list[str]:
    """The texts among values and lists of values: stripped, the empty ones dropped, each once, in order."""
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    return list(dict.fromkeys(text for item in flat for text in spellings(item, of_floats=of_floats)))
