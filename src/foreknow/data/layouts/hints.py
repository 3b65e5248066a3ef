"""Error messages for a file that fits no layout: the closest layout, what is missing, and a `--map` to try. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from rapidfuzz import fuzz

from foreknow.data.chat.text_markup import MARKS
from foreknow.data.layouts.layout import USUAL, Record, name_list
from foreknow.data.values import text_of
from foreknow.io.csv_escape import number_of

_KNOWN: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"input_ids"}),
        "The rows are tokens already, and their texts are needed: give the file they were made from.",
    ),
    (
        frozenset({"annotations", "long_answer_candidates"}),
        "These are the full Natural Questions, whose answers are places in a page: give nq_open, or rows of question "
        "and answer.",
    ),
    (
        frozenset({"message_id", "parent_id", "role"}),
        'Each row is one message of a tree: give OpenAssistant\'s file of trees, or chats as {"messages": [...]}.',
    ),
    (frozenset({"custom_id", "body"}), "These are requests to OpenAI's batch API, which hold no answers."),
    (
        frozenset({"custom_id", "response"}),
        "These are replies of OpenAI's batch API, which hold no questions: join them by custom_id.",
    ),
    (
        frozenset({"completions"}),
        "Each row has several completions with ratings: choose one, and write rows of prompt, chosen and rejected.",
    ),
    (
        frozenset({"role", "content"}),
        'Each row is one turn: write each chat as one row, {"messages": [{"role": ..., "content": ...}, ...]}.',
    ),
    (
        frozenset({"from", "value"}),
        'Each row is one turn: write each chat as one row, {"conversations": [{"from": ..., "value": ...}, ...]}.',
    ),
    (
        frozenset({"turns", "category"}),
        "These are MT-Bench's questions, which hold no answers: write chats of questions and answers, "
        '{"messages": [{"role": ..., "content": ...}, ...]}.',
    ),
    (
        frozenset({"indices"}),
        "This is a mapping of indices that datasets keeps beside data: give the folder of the data set.",
    ),
)
_LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "question": ("question", "answer"),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "answer"),
    "preference": ("chosen", "rejected"),
    "triples": ("subject", "relation", "object"),
    "messages": ("messages",),
}


def refusal(columns: Sequence[str], taken: Mapping[str, str], where: str, sample: Sequence[Record]) -> str:
    """The message for a file of these columns and records; `taken`: the columns of usual names, by ours."""
    taken = {ours: theirs for ours, theirs in taken.items() if theirs.lower() not in ("label", "data")}
    opening = f"{where}: no known layout in the columns {name_list(columns)}."
    lowered = {column.lower() for column in columns}
    for names, advice in _KNOWN:
        if names <= lowered:
            return f"{opening}\n{advice}"
    rated = next((c for c in columns if any(is_rated(record.get(c)) for record in sample)), None)
    if rated is not None:
        return (
            f"{opening}\n{rated} holds several answers with ratings: choose one, and write rows of prompt, chosen and "
            "rejected."
        )
    if "text" in taken and not _guesses(sample, taken):
        return (
            f"{opening}\nIts texts in {taken['text']} have none of the known marks of a chat ({', '.join(MARKS)}): "
            "give rows of question and answer."
        )
    if any(column.rstrip().endswith("?") or number_of(column) is not None for column in columns):
        return (
            f"{opening}\nThese look like a row and not like names: put a line of names (question,answer) first, or "
            "write rows of question and answer."
        )
    name, lacks = _closest(taken)
    has = ", ".join(f"{ours}={taken[ours]}" for ours in _LAYOUTS[name] if ours in taken)
    resembles = f"It resembles the layout {name}{f' ({has})' if has else ''} and lacks {' and '.join(lacks)}."
    return f"{opening} {resembles}\n{_advice(taken, sample, name)}"


def is_rated(value: object) -> bool:
    """Whether a value is a list of answers with ratings or ranks: some of them are bad ones."""
    rated = {"rank", "score", "rating", "ratings", "annotations", "overall_score"}
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) and rated & set(item) for item in value)


def _closest(taken: Mapping[str, str]) -> tuple[str, list[str]]:
    """The layout that lacks the least of what it needs, and what it lacks."""
    lacking = {name: [ours for ours in needs if ours not in taken] for name, needs in _LAYOUTS.items()}
    name = min(lacking, key=lambda each: (len(lacking[each]) / len(_LAYOUTS[each]), list(_LAYOUTS).index(each)))
    return name, lacking[name] or [f"values of the expected kind in {taken[_LAYOUTS[name][0]]}"]


def _advice(taken: Mapping[str, str], sample: Sequence[Record], name: str) -> str:
    """The `--map` that would read the file: the likeliest columns, or words in their place."""
    needs = _LAYOUTS[name] if name in ("triples", "preference") else ("question", "answer")
    used: set[str] = set()
    pairs = []
    for ours in needs:
        theirs = taken.get(ours) or taken.get({"question": "instruction", "answer": "completion"}.get(ours, ""))
        if theirs is None or theirs in used:
            theirs = _likeliest(ours, [column for column in _guesses(sample, taken) if column not in used])
        pairs.append((ours, theirs or "COLUMN"))
        used.add(theirs or "")
    flags = " ".join(f"--map {shlex.quote(f'{ours}={theirs}')}" for ours, theirs in pairs)
    if broken := next((theirs for _, theirs in pairs if "," in theirs and "=" in theirs), None):
        return f"Rename the column {broken!r}; then {flags}"
    unsure = all(theirs == "COLUMN" for _, theirs in pairs)
    return f"{'Name yours' if unsure else 'If these are the right columns'}: {flags}"


def _guesses(sample: Sequence[Record], taken: Mapping[str, str]) -> list[str]:
    """Columns, and paths into objects, that hold short or long texts in most records."""
    counts: dict[str, int] = {}
    for record in sample:
        for name, value in _text_fields(record):
            counts[name] = counts.get(name, 0) + (text_of(value) is not None)
    own = {taken[name] for name in ("split", "relation", "subject", "system", "text") if name in taken}
    plain = (name for name in counts if name.isprintable() and len(name) <= 80 and name not in own)
    return [name for name in plain if counts[name] * 2 > len(sample)]


def _text_fields(record: Record, above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in record.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and above.count(".") < 3:
            yield from _text_fields(value, f"{name}.")
        elif isinstance(value, str):
            yield name, value
        elif isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
            yield name, value[0]


def _likeliest(ours: str, names: Sequence[str]) -> str | None:
    """The name that is most like one that is usual for `ours`; else the first one."""
    usual = USUAL.get(ours, (ours,))

    def likeness(name: str) -> float:
        last = name.rpartition(".")[2].lower()
        return max(fuzz.ratio(last, each) if len(each) > 2 else 100.0 * (last == each) for each in usual)

    best = max(names, key=likeness, default=None)
    if best is not None and likeness(best) >= 70:
        return best
    return names[0] if names else None
