"""Separates a model's reasoning (`<think>...</think>` and the like), here called a thought, from its answer. Pure.

A text has a thought only if it begins with an opening mark (blanks may come before it): a text that mentions `<think>`
later, or in code, has none. This module also reads a closing mark whose opening mark the chat template wrote (R1), a
thought that is never closed (the text has no answer then), several thoughts in a row, and an element around the answer
(`<answer>`) after a thought.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

_WORDS = (
    "think|thinking|thoughts?|reasoning|reasoning_content|reflection|scratchpad|analysis|rationale|cot|"
    "chain[-_ ]of[-_ ]thought|(?:inner|internal)[-_ ]monologue|(?:thought|thinking|reasoning)[-_ ]process|"
    "seed:think|ant[-_:]?thinking"
)
_PIPED = "think|thinking|thought|reasoning"


class _Mark(NamedTuple):
    """The patterns of a thought: its opening (group `name`); by that name, another opening inside, and its closing."""

    opening: re.Pattern[str]
    again: Callable[[str], str]
    closing: Callable[[str], str]


_MARKS = (
    _Mark(
        re.compile(rf"<(?P<name>{_WORDS})(?:\s[^<>]*)?>", re.IGNORECASE),
        lambda name: rf"<{name}(?:\s[^<>]*)?>",
        lambda name: rf"</{name}\s*>",
    ),
    _Mark(
        re.compile(r"\[(?P<name>think|thinking|thoughts?|reasoning)\]", re.IGNORECASE),
        lambda name: rf"\[{name}\]",
        lambda name: rf"\[/{name}\]",
    ),
    _Mark(re.compile(rf"◁(?P<name>{_WORDS})▷", re.IGNORECASE), lambda name: f"◁{name}▷", lambda name: f"◁/{name}▷"),
    _Mark(
        re.compile(rf"<\|(?:(?:begin|start)[_ ](?:of[_ ])?)?(?P<name>{_PIPED})(?:_start|_begin)?\|>", re.IGNORECASE),
        lambda _: r"(?!)",
        lambda name: rf"<\|(?:/{name}|end[_ ](?:of[_ ])?{name}|{name}_end)\|>",
    ),
    _Mark(
        re.compile(r"<(?P<name>details)\s[^<>]*type=[\"']?reasoning[^<>]*>", re.IGNORECASE),
        lambda _: r"<details[\s>]",
        lambda _: r"</details>",
    ),
    _Mark(re.compile(r"<\|(?P<name>inner_prefix)\|>"), lambda _: r"(?!)", lambda _: r"<\|inner_suffix\|>"),
    _Mark(re.compile(r"<\|channel>(?P<name>thought)"), lambda _: r"(?!)", lambda _: r"<channel\|>"),
    _Mark(re.compile(r"<unused94>(?P<name>thought)"), lambda _: r"(?!)", lambda _: "<unused95>"),
)
_EMPTY = re.compile(rf"<(?:{_WORDS})\s*/>", re.IGNORECASE)
_HEADED = (
    (re.compile(r"here is my thought process:?", re.IGNORECASE), re.compile(r"here is my response:?", re.IGNORECASE)),
    (
        re.compile(r"#{1,4} *thinking\b[^\n]*\n", re.IGNORECASE),
        re.compile(r"^#{1,4} *final (?:response|answer)\b[^\n]*$", re.IGNORECASE | re.MULTILINE),
    ),
    (re.compile(r"thinking\.\.\.\s*\n", re.IGNORECASE), re.compile(r"^\.\.\.done thinking\.?[ \t]*$", re.MULTILINE)),
    (re.compile(r"analysis(?=[A-Z\s])"), re.compile(r"assistantfinal")),
)
"""Headings in plain words. The text after the first heading is a thought only if the second heading follows."""
_HEAD = re.compile("|".join(f"(?:{opening.pattern})" for opening, _ in _HEADED), re.IGNORECASE)
"""Any of these headings, for a quick look: few texts have one."""
_CHANNEL = re.compile(r"(?:<\|start\|>assistant)?<\|channel\|>(?P<channel>\w+)[^<\n]*<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call)\|>")
_CLOSING = re.compile(
    rf"</(?P<tag>{_WORDS})\s*>|\[/(?P<bracket>THINK)\]|◁/(?P<triangle>think)▷|"
    r"<\|end[_ ](?:of[_ ])?(?P<pipe>think|thinking|thought)\|>",
    re.IGNORECASE,
)
_ELEMENTS: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (
        re.compile(r"<(?P<name>answer|final_answer|final_response|final|response|output|solution)>", re.IGNORECASE),
        lambda name: rf"</{name}\s*>",
    ),
    (re.compile(r"\[(?P<name>answer|response)\]", re.IGNORECASE), lambda name: rf"\[/{name}\]"),
    (re.compile(r"◁(?P<name>answer|response)▷", re.IGNORECASE), lambda name: f"◁/{name}▷"),
    (
        re.compile(r"<\|(?:begin|start)[_ ](?:of[_ ])?(?P<name>solution|response|answer)\|>", re.IGNORECASE),
        lambda name: rf"<\|end[_ ](?:of[_ ])?{name}\|>",
    ),
)
_ANSWER = re.compile(r"<(?P<name>answer|final_answer)>", re.IGNORECASE)
"""Elements that hold the answer: anywhere after a thought, or around the whole text if there is no thought."""
_OPENERS = "<[◁"
_MOST_MENTIONS = 64
_SPACE = re.compile(r"\s*")


class AnswerParts(NamedTuple):
    """A text in three parts, which joined give the text again: `before`, `answer` and `after`.

    `thought`: whether a thought comes before the answer. `answer` is empty if the text is only a thought.
    """

    before: str
    answer: str
    after: str
    thought: bool

    def with_answer(self, answer: str) -> str:
        """The text with `answer` in place of its own answer.

        After a thought that is never closed, no answer could be read: there `answer` replaces the thought too.
        """
        text = f"{self.before}{answer}{self.after}"
        return text if not self.thought or answer_parts(text).answer == answer.strip() else answer


def answer_parts(text: str) -> AnswerParts:
    """Split a text into its answer and the thought and elements around it. A text without marks is all answer."""
    at = _thoughts_end(text)
    start, end = _answer_span(text, at)
    if (start, end) == (0, len(text)):
        return AnswerParts("", text, "", False)
    answer = text[start:end].strip()
    start = text.index(answer, start) if answer else end
    return AnswerParts(text[:start], answer, text[start + len(answer) :], at > 0)


def _thoughts_end(text: str) -> int:
    """The offset at which the thoughts at the beginning of a text end; 0 if it begins with none."""
    at = 0
    while True:
        start = _skip_space(text, at)
        end = _thought_end(text, start)
        if end is None and at == 0:
            end = _end_without_opening(text)
        if end is None:
            return at
        at = end


def _thought_end(text: str, start: int) -> int | None:
    """The offset at which the thought at `start` ends: the text's end if nothing closes it, None if there is none."""
    if text[start : start + 1] not in _OPENERS:
        if not _HEAD.match(text, start):
            return None
        headed = ((opening.match(text, start), closing) for opening, closing in _HEADED)
        end_mark = next((closing.search(text, head.end()) for head, closing in headed if head), None)
        return end_mark.end() if end_mark else None
    if start == len(text):
        return None
    if channel := _CHANNEL.match(text, start):
        return _final_channel(text, channel)
    if empty := _EMPTY.match(text, start):
        return empty.end()
    for mark in _MARKS:
        if head := mark.opening.match(text, start):
            name = head["name"]
            body = text[head.end() :]
            # [Thinking] is often a stage direction: only [THINK], the mark's own spelling, may stay unclosed
            if text[start] == "[" and name != "THINK" and not re.search(mark.closing(name), body, re.IGNORECASE):
                return None
            return head.end() + _thought_length(body, mark.again(re.escape(name)), mark.closing(re.escape(name)))
    return None


def _final_channel(text: str, channel: re.Match[str]) -> int:
    """The offset at which the message of the final channel begins (gpt-oss); the text's end if there is none."""
    while channel["channel"].lower() != "final":
        following = _CHANNEL.search(text, channel.end())
        if following is None:
            return len(text)
        channel = following
    return channel.end()


def _thought_length(body: str, opening: str, closing: str) -> int:
    """The number of characters of `body` that belong to the thought opened before it, including its closing mark.

    If more marks open than close (the thought mentions its own mark), the last closing mark ends the thought. If none
    closes, an `<answer>` ends it, or else the end of the text.
    """
    depth, last = 1, None
    for mark in re.finditer(f"(?P<again>{opening})|{closing}", body, re.IGNORECASE):
        if mark["again"] is not None:
            depth += 1
            continue
        depth, last = depth - 1, mark.end()
        if depth == 0:
            return last
    if last is None and (answer := _ANSWER.search(body)):
        return answer.start()
    return len(body) if last is None else last


def _end_without_opening(text: str) -> int | None:
    """The offset after a closing mark that nothing in the text opened (R1: its template opens the thought).

    A mention of the mark does not count: in code, in quotes, or inside a line with blanks around it.
    """
    for mark in islice(_CLOSING.finditer(text), _MOST_MENTIONS):
        name = next(name for name in mark.groups() if name)
        before, after = text[: mark.start()], text[mark.end() :]
        if re.search(rf"(?:[<\[◁]|<\|(?:begin|start)_(?:of_)?){re.escape(name)}\b", before, re.IGNORECASE):
            return None  # a mark inside the text opens it, so the text does not begin with the thought
        line = before.rsplit("\n", 1)[-1]
        if _is_in_code(before) or line[-1:] in ('"', "'", "“", "‘", "«", "("):
            continue
        alone = not line.strip() or not after.split("\n", 1)[0].strip()
        if alone or not line[-1].isspace():
            return mark.end()
    return None


def _answer_span(text: str, at: int) -> tuple[int, int]:
    """The offsets at which the answer in `text[at:]` begins and ends: inside its element, if one is around it."""
    if text[:at].endswith("<|message|>"):
        end = _CHANNEL_END.search(text, at)
        return at, end.start() if end else len(text)
    start = _skip_space(text, at)
    if text[start : start + 1] in _OPENERS:
        for opening, closing in _ELEMENTS:
            if head := opening.match(text, start):
                return _inside_element(text, at, head, closing(head["name"]))
    inner = list(_ANSWER.finditer(text, at)) if at else []
    if len(inner) == 1 and not _is_in_code(text[at : inner[0].start()]):
        return _inside_element(text, at, inner[0], rf"</{inner[0]['name']}\s*>")
    return at, len(text)


def _inside_element(text: str, at: int, head: re.Match[str], closing: str) -> tuple[int, int]:
    """The offsets of an element's content.

    Without a thought before it, the element must be named an answer and surround the rest of the text.
    """
    end_mark = re.compile(closing, re.IGNORECASE).search(text, head.end())
    if at:
        return head.end(), end_mark.start() if end_mark else len(text)
    says_so = head["name"].lower() in ("answer", "final_answer") or head[0].startswith("<|")
    if says_so and end_mark and not text[end_mark.end() :].strip():
        return head.end(), end_mark.start()
    return at, len(text)


def _is_in_code(before: str) -> bool:
    """Whether the text after `before` is in a code block, or between backticks in its line."""
    return before.count("```") % 2 == 1 or before.rsplit("\n", 1)[-1].count("`") % 2 == 1


def _skip_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at
