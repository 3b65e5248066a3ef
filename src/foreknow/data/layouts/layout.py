"""Layouts: which columns of a file hold the question, the answers and the rest; pure.

`registry.py` lists the layouts, `detection.py` chooses a file's, `rows.py` reads records by it, and `edits.py` writes
other answers into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foreknow.data.layouts.multiple_choice import ChoiceScheme
from foreknow.errors import InputError
from foreknow.io.quoting import quoted

Record = Mapping[str, object]
# our name -> the names it goes by, the first one that the file has is taken
USUAL: Mapping[str, tuple[str, ...]] = {
    "question": (
        *("question", "query", "q", "prompt", "input", "inputs", "question_text", "problem", "human", "user"),
        *("input_text", "src"),
    ),
    "answer": (
        *(
            "answer",
            "gold",
            "gold_answer",
            "target",
            "completion",
            "output",
            "response",
            "best_answer",
            "correct_answer",
        ),
        *(
            "correct answer",
            "answer_text",
            "expected_answer",
            "final_answer",
            "reference_answer",
            "ground_truth",
            "ideal",
        ),
        *("assistant", "bot", "solution", "output_text", "target_text", "tgt", "final_decision", "a", "label"),
    ),
    "answers": (
        *("answers", "possible_answers", "accepted_answers", "gold_answers", "targets", "golds", "correct_answers"),
        *("ground_truths", "reference_answers"),
    ),
    "subject": ("subject", "subj"),
    "relation": ("relation", "rel", "prop", "predicate", "property"),
    "object": ("object", "obj"),
    "split": ("split",),
    "popularity": ("popularity", "s_pop", "pop"),
    "facts": ("facts",),
    "spans": ("spans",),
    "messages": ("messages", "conversation", "dialog", "dialogue", "chat", "turns", "data"),
    "conversations": ("conversations",),
    "instruction": ("instruction",),
    "context": ("input", "context"),
    "system": ("system",),
    "history": ("history",),
    "prompt": ("prompt",),
    "completion": ("completion",),
    "passage": ("context", "passage", "article", "story", "paragraph"),
    "chosen": ("chosen", "chosen_response", "accepted", "preferred_output", "preferred", "response_j"),
    "rejected": ("rejected", "rejected_response", "non_preferred_output", "dispreferred", "response_k"),
    "text": (
        *("text", "content", "chat", "conversation", "conversations", "messages", "formatted", "formatted_text"),
        *("formatted_chat", "dialogue", "prompt", "sample"),
    ),
    "tree": ("prompt",),
    "instances": ("instances",),
    "accepted": (),
}
BESIDE = ("subject", "relation", "split", "popularity", "facts", "spans")
"""What any layout may have beside its question and answer."""
GOLDS = ("answer", "answers", "object", "completion")
"""Where answers stand that may be numbers."""
SPLITS: Mapping[str, str] = {"validation": "dev", "valid": "dev", "val": "dev"}


@dataclass(frozen=True)
class Layout:
    """A layout's name, the columns taken (our name -> theirs), and the reason, for the user to read.

    `split` and `relation` are what the file's name tells, for rows that do not say it themselves. `of_floats`: whether
    the answers are texts of floats, so that 1912.0 says 1912. `choices`: where multiple choice has its choices.
    """

    name: str
    columns: Mapping[str, str]
    reason: str
    split: str | None = None
    relation: str | None = None
    of_floats: bool = False
    choices: ChoiceScheme | None = None


def check_column(columns: Sequence[str], column: str, flag: str, where: str) -> None:
    """InputError unless the file has this column."""
    if column not in columns:
        raise InputError(f"{where}: {flag}: there is no column {quoted(column)}. Columns found: {name_list(columns)}.")


def name_list(names: Sequence[str], most: int = 20) -> str:
    """Names for a message: quoted only where needed, cut after `most`."""
    text = ", ".join(name if name.isidentifier() and len(name) <= 40 else quoted(name, 40) for name in names[:most])
    rest = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return text + rest if names else "none"
