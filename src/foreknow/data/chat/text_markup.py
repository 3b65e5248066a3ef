"""Chats written as one text, with the marks of a chat template or of a known data set -> their turns, and back. Pure.

    chatml      <|im_start|>user\\n...<|im_end|>            (Qwen, OpenHermes, SmolLM)
    llama-3     <|start_header_id|>user<|end_header_id|>\\n\\n...<|eot_id|>
    llama-2     <s>[INST] <<SYS>>\\n...\\n<</SYS>>\\n\\n... [/INST] ...</s>   (Mistral too)
    gemma       <start_of_turn>user\\n...<end_of_turn>
    phi         <|user|>\\n...<|end|>                       (Zephyr, TinyLlama, Granite, Falcon 3)
    harmony     <|start|>user<|message|>...<|end|>          (gpt-oss)
    cohere      <|START_OF_TURN_TOKEN|><|USER_TOKEN|>...<|END_OF_TURN_TOKEN|>
    deepseek    <｜User｜>...<｜Assistant｜>...
    alpaca      ### Instruction:\\n...\\n\\n### Response:\\n...
    hash-human  ### Human: ...\\n### Assistant: ...         (Guanaco)
    vicuna      USER: ... ASSISTANT: ...</s>
    human       \\n\\nHuman: ...\\n\\nAssistant: ...          (Anthropic's HH)
    q-a         Question: ...\\nAnswer: ...; also Q and A, Input and Output, Prompt and Response

A text without such marks is never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

_S, _U, _A = "system", "user", "assistant"


class MarkupSpan(NamedTuple):
    """One turn of a text: who speaks, and where the content stands, the blanks at its ends left out."""

    role: str
    start: int
    end: int
    stop: int
    """Where the turn ends, its closing mark taken in."""


class Marked(NamedTuple):
    """A text's turns, and the name of its marks."""

    marks: str
    spans: tuple[MarkupSpan, ...]


class _Marks(NamedTuple):
    """One way to mark turns. `head`: what opens a turn, its group says who speaks. `ends`: what closes one."""

    name: str
    head: re.Pattern[str]
    ends: re.Pattern[str]
    plain: bool = False
    """Words that any text may hold: such a text begins with one."""


_NAMES: Final = {
    **dict.fromkeys(("system", "developer"), _S),
    **dict.fromkeys(("user", "human", "prompter", "instruction", "question", "q", "prompt"), _U),
    **dict.fromkeys(("assistant", "model", "gpt", "bot", "response", "answer", "a", "output", "ai", "chatbot"), _A),
    **dict.fromkeys(("input", "context"), "input"),
}
_STOP: Final = r"</s>|<\|endoftext\|>|<\|end_of_text\|>|<eos>|<\|end\|>|<\|eot_id\|>|<\|im_end\|>|<｜end▁of▁sentence｜>"
_MARKS: Final = (
    _Marks(
        "chatml",
        re.compile(r"<\|im_start\|>[ \t]*([A-Za-z_]+)(?:[ \t][^\n]*)?\n"),
        re.compile(r"<\|im_end\|>"),
    ),
    _Marks(
        "llama-3",
        re.compile(r"<\|start_header_id\|>[ \t]*([A-Za-z_]+)[ \t]*<\|end_header_id\|>\n{0,2}"),
        re.compile(r"<\|eot_id\|>|<\|eom_id\|>|<\|end_of_text\|>"),
    ),
    _Marks(
        "llama-4",
        re.compile(r"<\|header_start\|>[ \t]*([A-Za-z_]+)[ \t]*<\|header_end\|>\n{0,2}"),
        re.compile(r"<\|eot\|>|<\|eom\|>|<\|end_of_text\|>"),
    ),
    _Marks(
        "gemma",
        re.compile(r"<start_of_turn>[ \t]*([A-Za-z_]+)[ \t]*\n"),
        re.compile(r"<end_of_turn>"),
    ),
    _Marks(
        "granite",
        re.compile(r"<\|start_of_role\|>[ \t]*([A-Za-z_]+)[ \t]*<\|end_of_role\|>"),
        re.compile(r"<\|end_of_text\|>"),
    ),
    _Marks(
        "harmony",
        re.compile(r"<\|start\|>(system|developer|user|assistant)(?:<\|channel\|>(\w+)[^<]*)?<\|message\|>"),
        re.compile(r"<\|end\|>|<\|return\|>|<\|call\|>"),
    ),
    _Marks(
        "cohere",
        re.compile(r"<\|START_OF_TURN_TOKEN\|><\|(USER|CHATBOT|SYSTEM)_TOKEN\|>"),
        re.compile(r"<\|END_OF_TURN_TOKEN\|>"),
    ),
    _Marks(
        "deepseek",
        re.compile(r"<｜(User|Assistant)｜>"),
        re.compile(r"<｜end▁of▁sentence｜>"),
    ),
    _Marks(
        "oasst",
        re.compile(r"<\|(system|prompter|assistant)\|>(?!\n)"),
        re.compile(r"<\|endoftext\|>|</s>"),
    ),
    _Marks(
        "phi",
        re.compile(r"<\|(system|user|assistant)\|>[ \t]*\n?"),
        re.compile(r"<\|end\|>|</s>|<\|endoftext\|>"),
    ),
    _Marks(
        "alpaca",
        re.compile(r"(?m)^###[ \t]*(Instruction|Input|Response|System|Question|Context|Answer|Output)[ \t]*:[ \t]*\n?"),
        re.compile(rf"{_STOP}|\n###[ \t]*End\b"),
    ),
    _Marks(
        "hash-human",
        re.compile(r"###[ \t]*(Human|User|Assistant|System|Bot|AI)[ \t]*:[ \t]?"),
        re.compile(_STOP),
    ),
    _Marks(
        "vicuna",
        re.compile(r"(?:(?<=\s)|(?<=</s>)|(?<=^))(USER|ASSISTANT|SYSTEM):[ \t]?"),
        re.compile(_STOP),
    ),
    _Marks("human", re.compile(r"(?:^|\n)<(human|bot)>:[ \t]?"), re.compile(_STOP)),
    _Marks("human", re.compile(r"(?:^|\n{1,2})(Human|User|Assistant|System|AI):[ \t]?"), re.compile(_STOP), plain=True),
    *(
        _Marks("q-a", re.compile(rf"(?:^|\n)({pair}):[ \t]*"), re.compile(_STOP), plain=True)
        for pair in ("Question|Answer", "Q|A", "Input|Output", "Instruction|Input|Response", "Prompt|Response")
    ),
)
_INST_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_OUTER_SYSTEM = re.compile(r"\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]", re.DOTALL)
_OPENS_NEXT = re.compile(r"(?:\s*>s<)+")
"""`<s>` before the next instruction, read backwards: it opens that one."""
_OPENING = re.compile(r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|<\|startoftext\|>|<BOS_TOKEN>)?\s*")
MARKS: Final = tuple(
    dict.fromkeys([*(marks.name for marks in _MARKS[:2]), "llama-2", *(marks.name for marks in _MARKS[2:])])
)
"""The names of the marks that are known."""


def find_markup(text: str) -> Marked | None:
    """The turns that the marks in a text tell: at least one of the user, and one of the assistant after it."""
    if "[INST]" in text and (markup := _find_inst_markup(text)) is not None:
        return markup
    for marks in _MARKS:
        spans = _spans(text, marks)
        if spans and _has_assistant_answer(spans):
            return Marked(marks.name, tuple(spans))
    return None


def _has_assistant_answer(spans: Sequence[MarkupSpan]) -> bool:
    """Whether the assistant has a turn, empty or not, after one of the user."""
    user = next((at for at, span in enumerate(spans) if span.role == _U), None)
    return user is not None and any(span.role == _A for span in spans[user:])


def _spans(text: str, marks: _Marks) -> list[MarkupSpan]:
    heads = list(marks.head.finditer(text))
    if not heads:
        return []
    spans: list[MarkupSpan] = []
    before = _OPENING.match(text)
    opening = _trim_span(_S, text, before.end() if before else 0, heads[0].start(), heads[0].start())
    if opening.start < opening.end and marks.plain:
        return []
    # Alpaca's own opening says nothing
    if opening.start < opening.end and not text.startswith("Below is an instruction", opening.start):
        spans.append(opening)
    for at, head in enumerate(heads):
        limit = heads[at + 1].start() if at + 1 < len(heads) else len(text)
        closing = marks.ends.search(text, head.end(), limit)
        end, stop = (closing.start(), closing.end()) if closing else (limit, limit)
        name = head.group(1).lower()
        if marks.head.groups > 1 and name == "assistant":
            name = {"analysis": "thought", "commentary": "call"}.get(head.group(2), name)
        span = _trim_span(_NAMES.get(name, name), text, head.end(), end, stop)
        if span.role == "input" and spans and spans[-1].role == _U:
            # an instruction and its input are one question
            spans[-1] = spans[-1]._replace(end=span.end, stop=span.stop) if span.start < span.end else spans[-1]
        else:
            spans.append(span._replace(role=_U) if span.role == "input" else span)
    return spans


def _trim_span(role: str, text: str, start: int, end: int, stop: int) -> MarkupSpan:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return MarkupSpan(role, start, end, stop)


def _find_inst_markup(text: str) -> Marked | None:
    """Llama 2's and Mistral's turns: an instruction in brackets, and the answer behind it."""
    spans: list[MarkupSpan] = []
    heads = list(_inst_places(text))
    for at, (head, begin, end, behind) in enumerate(heads):
        start = begin
        outer = _OUTER_SYSTEM.search(text, 0, head) if at == 0 else None
        if outer is not None:
            spans.append(_trim_span(_S, text, outer.start(1), outer.end(1), outer.end()))
        if system := _INST_SYSTEM.match(text, begin, end):
            spans.append(_trim_span(_S, text, system.start(1), system.end(1), system.end()))
            start = system.end()
        spans.append(_trim_span(_U, text, start, end, behind))
        limit = heads[at + 1][0] if at + 1 < len(heads) else len(text)
        closing = text.find("</s>", behind, limit)
        answer_end, stop = (closing, closing + len("</s>")) if closing >= 0 else (limit, limit)
        if opening := _OPENS_NEXT.match(text[behind:answer_end][::-1]):
            answer_end -= opening.end()
        spans.append(_trim_span(_A, text, behind, answer_end, stop))
    return Marked("llama-2", tuple(spans)) if spans else None


def _inst_places(text: str) -> Iterator[tuple[int, int, int, int]]:
    """For each `[INST] ... [/INST]`: where it opens, where its content begins and ends, and where it has closed."""
    opening, closing, behind = "[INST]", "[/INST]", 0
    while (head := text.find(opening, behind)) >= 0:
        end = text.find(closing, head)
        if end < 0:
            return
        behind = end + len(closing)
        yield head, head + len(opening), end, behind


_INPUT = re.compile(r"(?<!\n)\n*(?:###[ \t]*(?:Input|Context)[ \t]*:[ \t]*\n?|(?<=\n)Input:[ \t]*)")


def _turn_text(text: str, markup: Marked, span: MarkupSpan) -> str:
    """What a turn says; of an instruction with an input, both, without the mark between them."""
    content = text[span.start : span.end]
    return _INPUT.sub("\n", content) if markup.marks in ("alpaca", "q-a") and span.role == _U else content


def turns_in(text: str) -> list[dict[str, str]] | None:
    """The turns of a text as `{role, content}`; None where no marks are known."""
    markup = find_markup(text)
    if markup is None:
        return None
    return [{"role": span.role, "content": _turn_text(text, markup, span)} for span in markup.spans]


def with_turns(text: str, turns: Sequence[Mapping[str, object]]) -> str:
    """The text with the contents of other turns; where there are fewer, it ends with the last of them."""
    markup = find_markup(text)
    if markup is None:
        return text
    pieces, at = [], 0
    for span, turn in zip(markup.spans, turns, strict=False):
        if turn["content"] == _turn_text(text, markup, span):
            continue
        pieces += [text[at : span.start], str(turn["content"])]
        at = span.end
    end = len(text) if len(turns) >= len(markup.spans) else markup.spans[len(turns) - 1].stop
    return "".join([*pieces, text[at:end]])
