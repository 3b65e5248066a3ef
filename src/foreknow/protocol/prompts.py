"""Prompt texts and their token ids (paper, section 2: `Q: ...` newline `A: ...`, no instruction line).

Ids are what the tokenizer gives for the whole prompt (design, section 8): a prompt is never glued together
from pieces. That prompts share a beginning is found out afterwards, by comparing ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foreknow.errors import ConfigError
from foreknow.files.yamltext import loads
from foreknow.protocol.special_tokens import Encoded, PromptText, SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foreknow.protocol.exemplars import Exemplar

Bos = Literal["auto", "yes", "no"]
Context = Sequence[Mapping[str, str]]
"""Turns of a chat before its question: role and content, in order (`rows.ROWS`)."""

_SLOT = re.compile(r"\{question\}|\{answer\}")


@dataclass(frozen=True)
class Template:
    """How a prompt is written: `instruction`, then `shot` for each exemplar, then `target`.

    `{question}` and `{answer}` stand for the texts. The answer follows `target` after one blank, unless
    `target` ends in white space.
    """

    instruction: str = ""
    shot: str = "Q: {question}\nA: {answer}\n"
    target: str = "Q: {question}\nA:"

    def render(self, shots: Sequence[Exemplar], question: str, context: Context = ()) -> str:
        """The whole prompt. Earlier turns of the row's own chat stand before its question, written as shots."""
        parts = [self.instruction, *(_fill(self.shot, s.question, s.answer) for s in shots)]
        asked: str | None = None
        for turn in context:
            if turn["role"] == "assistant" and asked is not None:
                parts.append(_fill(self.shot, asked, turn["content"]))
                asked = None
                continue
            parts += [] if asked is None else [f"{asked}\n"]
            asked = turn["content"] if turn["role"] == "user" else None
            parts += [] if turn["role"] == "user" else [f"{turn['content']}\n"]
        parts += [] if asked is None else [f"{asked}\n"]
        parts.append(_fill(self.target, question, ""))
        return "".join(parts)

    @property
    def gap(self) -> str:
        """What stands between the prompt and the answer."""
        return "" if not self.target or self.target[-1].isspace() else " "


PAPER = Template()


def _fill(text: str, question: str, answer: str) -> str:
    # one pass, so that braces inside a question are left alone
    texts = {"{question}": question, "{answer}": answer}
    return _SLOT.sub(lambda slot: texts[slot.group()], text)


def read_template(path: Path) -> Template:
    """Read a YAML file with the keys `instruction`, `shot` and `target` (all optional). Raises ConfigError."""
    try:
        found: Any = loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--prompt-template {path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # what is no UTF-8 too
        raise ConfigError(f"--prompt-template {path}: not YAML: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ConfigError(f"--prompt-template {path}: expected the keys instruction, shot, target with texts")
    unknown = sorted(set(found) - {"instruction", "shot", "target"}, key=str)
    if unknown:
        raise ConfigError(f"--prompt-template {path}: unknown key {unknown[0]!r}; known are instruction, shot, target")
    template = Template(**found)
    if "{question}" not in template.target or "{answer}" in template.target:
        raise ConfigError(f"--prompt-template {path}: target must hold {{question}} and must not hold {{answer}}")
    if "{question}" not in template.shot or "{answer}" not in template.shot:
        raise ConfigError(f"--prompt-template {path}: shot must hold {{question}} and {{answer}}")
    return template


@dataclass(frozen=True)
class Prompter:
    """Turns exemplars and a question into token ids for one tokenizer.

    `chat`: write the prompt through the tokenizer's chat template, exemplars as turns.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template = PAPER
    chat: bool = False
    bos: Bos = "auto"

    def __post_init__(self) -> None:
        if self.chat and not self.tokenizer.chat_template:
            raise ConfigError("--chat-template: this model's tokenizer has no chat template; leave the flag out")
        if self.bos == "yes" and self.tokenizer.bos_token_id is None:
            raise ConfigError("--bos yes: this model's tokenizer has no beginning-of-sequence token")

    @cached_property
    def special(self) -> SpecialTokens:
        """The tokenizer's special tokens."""
        also = self.tokenizer.chat_template if self.chat else ""
        return SpecialTokens(self.tokenizer, also if isinstance(also, str) else "")

    def text(self, shots: Sequence[Exemplar], question: str, context: Context | None = None) -> PromptText:
        """The whole prompt as text, with the turns that come before the question in its own chat, if any.

        Special tokens that the template writes act; those that question, exemplars or turns spell do not.
        """
        turns = context or ()

        def render(said: Callable[[str], str]) -> str:
            shown = [shot._replace(question=said(shot.question), answer=said(shot.answer)) for shot in shots]
            before = [{"role": turn["role"], "content": said(turn["content"])} for turn in turns]
            if self.chat:
                return self._chat(shown, said(question), before)
            return self.template.render(shown, said(question), before)

        return self.special.rendered(render)

    def _chat(self, shots: Sequence[Exemplar], question: str, context: Context) -> str:
        system = [t["content"] for t in context if t["role"] == "system"]
        if self.template.instruction:
            system.insert(0, self.template.instruction)
        turns = [{"role": "system", "content": "\n".join(system)}] if system else []
        for s in shots:
            turns.append({"role": "user", "content": s.question})
            turns.append({"role": "assistant", "content": s.answer})
        turns += [{"role": t["role"], "content": t["content"]} for t in context if t["role"] != "system"]
        turns.append({"role": "user", "content": question})
        from jinja2 import TemplateError

        try:
            rendered = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            # a template is a program of the model's: it may refuse a system turn, or be broken
            roles = ", ".join(dict.fromkeys(turn["role"] for turn in turns))
            why = " ".join(str(error).split())[:160]
            raise ConfigError(
                f"--chat-template: the model's chat template refuses a chat of the roles {roles}: {why}"
            ) from None
        return str(rendered)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole prompts, with or without a beginning-of-sequence token as `bos` says.

        What the tokenizer puts behind every text (an end-of-sequence token) is left off: the answer comes there.
        """
        return [encoded.ids for encoded in self.encoded(texts, offsets=False)]

    def encoded(self, texts: Sequence[str], *, offsets: bool = True) -> list[Encoded]:
        """As `ids`, with the characters each id stands for (none where the tokenizer cannot tell)."""
        bos = self.tokenizer.bos_token_id
        behind = () if self.chat else self.special.around[1]
        found: list[Encoded] = []
        for ids, places in self.special.encode(texts, around=not self.chat, offsets=offsets):
            end = len(ids) - len(behind) if behind and tuple(ids[-len(behind) :]) == behind else len(ids)
            starts = bool(end) and ids[0] == bos
            if self.bos == "yes" and not starts:
                found.append(Encoded([bos, *ids[:end]], [(0, 0), *places[:end]] if places else []))
            else:
                begin = int(self.bos == "no" and starts)
                found.append(Encoded(ids[begin:end], places[begin:end]))
        return found

    def answer_ids(self, prompt_text: str, prompt_ids: Sequence[int], answer: str) -> tuple[int, ...]:
        """One way to spell `answer` behind a prompt: a place for the search to begin, not the only one."""
        gap = "" if self.chat else self.template.gap
        whole = self.ids([prompt_text + gap + answer])[0]
        if whole[: len(prompt_ids)] == list(prompt_ids) and len(whole) > len(prompt_ids):
            return tuple(whole[len(prompt_ids) :])
        return tuple(self.special.encode([gap + answer], around=False)[0].ids)

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen and what it comes to, for `summary.protocol`."""
        first = self.ids(["x"])[0]
        return {
            "prompt": "the tokenizer's chat template" if self.chat else self.template.shot + self.template.target,
            "instruction": self.template.instruction,
            "chat_template": self.chat,
            "bos": self.bos,
            "bos_in_prompt": bool(first) and first[0] == self.tokenizer.bos_token_id,
        }


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading ids two prompts share."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
