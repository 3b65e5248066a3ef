"""Parse the content of a chat turn: its text, and whether it has images, tool calls, refusals or thoughts. Pure.

A content is a text, or a list of parts as OpenAI, Anthropic and Hugging Face write them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from foreknow.data.chat.reasoning import answer_parts
from foreknow.io.json_text import dumps

_THOUGHTS: Final = ("thinking", "redacted_thinking", "reasoning", "thought", "reasoning_content", "thinking_text")
_CALLS: Final = ("tool_use", "tool_call", "function_call", "server_tool_use", "mcp_tool_use")
_RESULTS: Final = ("tool_result", "function_call_output", "tool_response", "mcp_tool_result", "tool_output")
_TEXTS: Final = ("text", "input_text", "output_text", "content", "value")
_CALL_KEYS: Final = ("tool_calls", "function_call", "tool_call")
_CALL_TEXT = re.compile(
    r"^[^\S\n]*(?:<tool_calls?>|<function_?calls?>|<function=\w|<invoke\s|\[TOOL_CALLS\]|<\|python_tag\|>|<\|tool_calls?\|>|"
    r"<\|tool_calls_section_begin\|>|<｜tool▁calls▁begin｜>)",
    re.IGNORECASE | re.MULTILINE,
)
"""Calls that are spelled in the text of a turn, by the marks of chat templates."""
_RESULT_TEXT = re.compile(r"\s*(?:<tool_response>|<tool_result>|<function_(?:response|results?)>|FUNCTION RESPONSE:)")
_THOUGHT_KEYS: Final = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "reasoning_text")


class Content(NamedTuple):
    """The `text` of a content, and whether it holds what is no text: `others` are pictures, sounds and files."""

    text: str
    others: bool = False
    calls: bool = False
    result: bool = False
    refusal: bool = False
    thought: bool = False


def content_of(value: object) -> Content:
    """What a content holds; nothing where it is null."""
    if isinstance(value, str):
        return Content(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Content(str(value) if math.isfinite(value) else "")
    if isinstance(value, Mapping):
        parts = value.get("parts")
        return content_of(parts if isinstance(parts, list | tuple) else [value])
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        return Content("", others=isinstance(value, bytes))
    parts = [_parse_part(part) for part in value]
    return Content(
        "\n".join(part.text for part in parts if part.text),
        others=any(part.others for part in parts),
        calls=any(part.calls for part in parts),
        result=any(part.result for part in parts),
        refusal=any(part.refusal for part in parts),
        thought=any(part.thought for part in parts),
    )


def parse_turn_content(turn: Mapping[str, object], content: object) -> Content:
    """As `content_of`, with what stands beside the content: tool calls, a refusal, a thought under a key of its own."""
    parsed = content_of(content)
    refusal = turn.get("refusal")
    return parsed._replace(
        calls=parsed.calls or any(turn.get(key) for key in _CALL_KEYS) or _CALL_TEXT.search(parsed.text) is not None,
        result=parsed.result or _RESULT_TEXT.match(parsed.text) is not None,
        refusal=parsed.refusal or (isinstance(refusal, str) and bool(refusal.strip())),
        thought=parsed.thought or any(turn.get(key) for key in _THOUGHT_KEYS),
    )


def with_answer_text(content: object, answer: str) -> object:
    """The content with its answer replaced: a thought stays before it, and parts that are no text beside it."""
    if isinstance(content, str):
        return answer_parts(content).with_answer(answer)
    if isinstance(content, Mapping) and isinstance(content.get("parts"), list | tuple):
        return {**content, "parts": with_answer_text(content["parts"], answer)}
    if isinstance(content, Mapping):
        return with_answer_text([content], answer)[0]  # type: ignore[index]
    if not isinstance(content, Sequence):
        return answer
    parts, answer_is_written = [], False
    for part in content:
        text = _parse_part(part).text
        if not text:
            parts.append(part)
        elif not answer_is_written:
            answer_is_written = True
            # a thought may fill a part of its own, with the answer in the next one
            joined = "\n".join(piece for piece in (_parse_part(other).text for other in content) if piece)
            parts.append(_with_own_text(part, answer_parts(joined).with_answer(answer)))
    return parts if answer_is_written else [*parts, {"type": "text", "text": answer}]


def _with_own_text(part: object, text: str) -> object:
    if not isinstance(part, Mapping):
        return text
    key = next(key for key in _TEXTS if isinstance(part.get(key), str) and part[key])
    return {**part, key: text}


def _parse_part(part: object) -> Content:
    if isinstance(part, str):
        return Content(part)
    if not isinstance(part, Mapping):
        return Content("", others=part is not None and not isinstance(part, bool | int | float))
    type_name = part.get("type")
    kind = type_name.strip().lower() if isinstance(type_name, str) else ""
    if kind in _THOUGHTS or part.get("thought") is True:
        return Content("", thought=True)
    if kind in _CALLS:
        return Content("", calls=True)
    if kind in _RESULTS:
        output = part.get("content", part.get("output"))
        text = output if isinstance(output, str) else content_of(output).text
        return Content(text or ("" if output is None else dumps(output)), result=True)
    if kind == "refusal":
        return Content("", refusal=True)
    text = next((value for key in _TEXTS if isinstance(value := part.get(key), str) and value), "")
    filled = any(value not in (None, "", [], {}) for key, value in part.items() if key != "type")
    others = not text and (filled or kind not in ("", *_TEXTS))
    return Content(text, others=others)
