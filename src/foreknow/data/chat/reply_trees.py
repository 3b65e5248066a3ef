"""Records that hold several questions and answers and are no chat. Pure.

    trees      OpenAssistant's message trees: {"prompt": {"text": ..., "replies": [{"text": ..., "replies": [...]}]}}
    instances  Self-Instruct's: {"instruction": ..., "instances": [{"input": ..., "output": ...}]}

Of several replies to one message only the best ranked is an answer; the others are left out as `rejected`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from foreknow.data.chat.exchanges import ROLES
from foreknow.data.chat.loss_masks import WEIGHT, is_masked
from foreknow.data.layouts.python_reprs import decode_object
from foreknow.io.json_text import dumps

Record = Mapping[str, object]


class TreeQuestion(NamedTuple):
    """One question of a record and its answer. `number`: its place among the record's, the same after an edit."""

    question: str | None
    answer: str | None
    context: tuple[tuple[str, str], ...]
    number: int
    left_out: str | None = None
    """Why it cannot serve: `rejected` or `masked`."""


def questions_in(name: str, column: object, instruction: object) -> list[TreeQuestion]:
    """The questions of a record of the layout `trees` or `instances`, in order; `column`: its tree or its instances."""
    if name == "instances":
        listed = column if isinstance(column, list | tuple) else []
        return [_question_of_instance(item, instruction, at) for at, item in enumerate(listed)]
    return list(_questions_of_tree(column)) if isinstance(column, Mapping) else []


def _question_of_instance(item: object, instruction: object, number: int) -> TreeQuestion:
    instance = item if isinstance(item, Mapping) else {}
    texts = [text.strip() for text in (instruction, instance.get("input")) if isinstance(text, str) and text.strip()]
    output = instance.get("output")
    answer = output if isinstance(output, str) else None
    return TreeQuestion("\n".join(texts) or None, answer, (), number, "masked" if is_masked(instance) else None)


def _questions_of_tree(root: Mapping[str, object]) -> Iterator[TreeQuestion]:
    numbers = {id(node): number for number, node in enumerate(_nodes(root))}

    def walk(
        node: Mapping[str, object], before: tuple[tuple[str, str], ...], question: str | None
    ) -> Iterator[TreeQuestion]:
        text = node.get("text")
        content = text if isinstance(text, str) else ""
        role = _role(node)
        replies = [each for each in _replies(node) if each.get("deleted") is not True]
        if role == "assistant":
            yield TreeQuestion(
                question, content or None, before, numbers[id(node)], "masked" if is_masked(node) else None
            )
            before = (*before, *((("user", question),) if question else ()), ("assistant", content))
            question = None
        else:
            before = (*before, ("user", question)) if question else before
            question = content
        best = min(replies, key=_rank, default=None) if role != "assistant" else None
        for each in replies:
            if best is not None and each is not best and _role(each) == "assistant":
                yield TreeQuestion(question, None, before, numbers[id(each)], "rejected")
            else:
                yield from walk(each, before, question)

    yield from walk(root, (), None)


def _role(node: Mapping[str, object]) -> str:
    return ROLES.get(str(node.get("role") or "").strip().lower(), "user")


def _replies(node: Mapping[str, object]) -> list[Mapping[str, object]]:
    replies = node.get("replies")
    return [each for each in replies if isinstance(each, Mapping)] if isinstance(replies, list | tuple) else []


def _rank(node: Mapping[str, object]) -> float:
    rank = node.get("rank")
    return float(rank) if isinstance(rank, int | float) and not isinstance(rank, bool) else float("inf")


def _nodes(node: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """All messages of a tree, each before its replies."""
    yield node
    for each in _replies(node):
        yield from _nodes(each)


def with_answer_at(
    name: str, column: object, answers: Mapping[int | None, str], learnable: Collection[int] | None = None
) -> object:
    """The tree, or the instances, with the answers of these numbers replaced.

    `learnable`: the answers that may be learnt from. Others are marked, and what stands behind the last of them is left
    away. None: all.
    """
    value: Any = decode_object(column)
    changed: object
    if name == "instances":
        listed = [dict(item) if isinstance(item, Mapping) else item for item in value]
        for number, answer in answers.items():
            listed[number or 0]["output"] = answer
        changed = (
            listed
            if learnable is None
            else [_with_mark(item, at in learnable) for at, item in enumerate(listed[: max(learnable) + 1])]
        )
    else:
        numbers = iter(range(1 << 60))
        changed = _copy_node(value, lambda: next(numbers), answers, learnable)
    return dumps(changed) if isinstance(column, str) else changed


def _with_mark(item: object, learnable: bool) -> object:
    return item if learnable or not isinstance(item, dict) else {**item, WEIGHT: 0}


def _copy_node(
    node: Mapping[str, object],
    number: Callable[[], int],
    answers: Mapping[int | None, str],
    learnable: Collection[int] | None,
) -> dict[str, object] | None:
    """A node with other answers in it and below; None where it stands behind the last of `learnable`."""
    own = number()
    changed = dict(node)
    if own in answers:
        changed["text"] = answers[own]
    replies = [_copy_node(each, number, answers, learnable) for each in _replies(node)]
    if "replies" in node:
        changed["replies"] = [each for each in replies if each is not None]
    if learnable is None or own in learnable:
        return changed
    if own > max(learnable):
        return None
    return {**changed, WEIGHT: 0} if _role(node) == "assistant" else changed
