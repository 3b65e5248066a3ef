"""Write prompts as text and token ids (paper, section 2: `Q: ...` newline `A: ...`, no instruction line).

The whole prompt is tokenized at once (design, section 8), never piece by piece. Comparing ids afterwards finds the
prefixes that prompts share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foreknow.errors import ConfigError
from foreknow.io.yaml_text import read
from foreknow.prompts.chat_templates import ChatTemplate, TemplateRefusal
from foreknow.prompts.special_tokens import Encoded, PromptText, SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foreknow.prompts.few_shot import Exemplar
    from foreknow.prompts.vocabulary import Vocabulary

Bos = Literal["auto", "yes", "no"]
Context = Sequence[Mapping[str, str]]
"""Turns of a chat before its question: role and content, in order (`rows.ROWS`)."""

_SLOT = re.compile(r"\{question\}|\{answer\}")


@dataclass(frozen=True)
class Template:
    """The parts of a prompt, in order: `instruction`, then `shot` for each exemplar, then `target`.

    `{question}` and `{answer}` stand for the texts. The answer follows `target` after one blank, unless
    `target` ends in white space.
    """

    instruction: str = ""
    shot: str = "Q: {question}\nA: {answer}\n"
    target: str = "Q: {question}\nA:"

    def render(self, shots: Sequence[Exemplar], question: str, context: Context = ()) -> str:
        """Return the whole prompt. Earlier turns of the row's own chat stand before its question, written as shots."""
        parts = [self.instruction, *(_fill(self.shot, s.question, s.answer) for s in shots)]
        pending_question: str | None = None
        for turn in context:
            if turn["role"] == "assistant" and pending_question is not None:
                parts.append(_fill(self.shot, pending_question, turn["content"]))
                pending_question = None
                continue
            parts += [] if pending_question is None else [f"{pending_question}\n"]
            pending_question = turn["content"] if turn["role"] == "user" else None
            parts += [] if turn["role"] == "user" else [f"{turn['content']}\n"]
        parts += [] if pending_question is None else [f"{pending_question}\n"]
        parts.append(_fill(self.target, question, ""))
        return "".join(parts)

    @property
    def gap(self) -> str:
        """Return the blank between the prompt and the answer, if any."""
        return "" if not self.target or self.target[-1].isspace() else " "


PAPER = Template()


def _fill(text: str, question: str, answer: str) -> str:
    # one pass, so that braces inside a question are left alone
    texts = {"{question}": question, "{answer}": answer}
    return _SLOT.sub(lambda slot: texts[slot.group()], text)


def read_template(path: Path) -> Template:
    """Read a YAML file with the keys `instruction`, `shot` and `target` (all optional). Raises ConfigError."""
    fields = read(path, "--prompt-template")
    if not isinstance(fields, dict) or not all(isinstance(v, str) for v in fields.values()):
        raise ConfigError(f"--prompt-template {path}: expected the keys instruction, shot, target with texts")
    unknown = sorted(set(fields) - {"instruction", "shot", "target"}, key=str)
    if unknown:
        raise ConfigError(f"--prompt-template {path}: unknown key {unknown[0]!r}; known are instruction, shot, target")
    template = Template(**fields)
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
        if self.chat:
            self.chat_template  # noqa: B018  raises here for a template that can render no chat
        if self.bos == "yes" and self.tokenizer.bos_token_id is None:
            raise ConfigError("--bos yes: this model's tokenizer has no beginning-of-sequence token")

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """Return the tokenizer's chat template, where prompts are written through it."""
        return ChatTemplate(self.tokenizer) if self.chat else None

    @cached_property
    def special(self) -> SpecialTokens:
        """Return the tokenizer's special tokens."""
        return SpecialTokens(self.tokenizer, self.chat_template.source.text if self.chat_template else "")

    @property
    def gap(self) -> str:
        """Return the blanks between a prompt and its answer, if any."""
        return self.chat_template.gap if self.chat_template else self.template.gap

    @cached_property
    def answer_end(self) -> int | None:
        """Return the special token with which the chat template ends an answer; None without one."""
        after = self.chat_template.after_answer if self.chat_template else ""
        begin, end = next(iter(self.special.spans(after)), (0, 0))
        return self.special.ids[after[begin:end]] if end and not after[:begin].strip() else None

    def ended(self, vocabulary: Vocabulary) -> Vocabulary:
        """Return the vocabulary, with the token that ends an answer in the chat template among those that end one."""
        if self.answer_end is None or self.answer_end in vocabulary.ends:
            return vocabulary
        ends, breaks = vocabulary.ends | {self.answer_end}, vocabulary.breaks - {self.answer_end}
        return replace(vocabulary, ends=ends, breaks=breaks)

    def text(self, shots: Sequence[Exemplar], question: str, context: Context | None = None) -> PromptText:
        """Return the whole prompt as text, with the turns that come before the question in its own chat, if any.

        Special tokens in the template keep their meaning; those spelled in a question, exemplar or turn are plain text.
        Raises TemplateRefusal (a ConfigError) if the chat template refuses the chat or drops a turn.
        """
        turns = context or ()

        def render(hide: Callable[[str], str]) -> str:
            shots_shown = [shot._replace(question=hide(shot.question), answer=hide(shot.answer)) for shot in shots]
            turns_shown = [{"role": turn["role"], "content": hide(turn["content"])} for turn in turns]
            if self.chat_template:
                return self.chat_template.render(self._chat(shots_shown, hide(question), turns_shown))
            return self.template.render(shots_shown, hide(question), turns_shown)

        return self.special.render_prompt(render)

    def fault(self, shots: Sequence[Exemplar], question: str, context: Context | None = None) -> TemplateRefusal | None:
        """Return the error in the chat template's version of this prompt; None without one, or for plain prompts."""
        return self.chat_template.fault(self._chat(shots, question, context or ())) if self.chat_template else None

    def unmarked(self, question: str, context: Context | None, answer: str) -> bool:
        """Return whether the chat template has `{% generation %}` blocks, none of which marks any of this answer."""
        chat = self.chat_template
        return chat is not None and chat.marked_answer(self._chat((), question, context or ()), answer) is False

    def keeps_answer(self, question: str, context: Context | None, answer: str) -> bool:
        """Return whether the chat template, if prompts are written through it, would write this answer as it is."""
        chat = self.chat_template
        return chat is None or chat.keeps_answer(self._chat((), question, context or ()), answer)

    def _chat(self, shots: Sequence[Exemplar], question: str, context: Context) -> list[dict[str, str]]:
        """Return the prompt as the turns of a chat, the question last."""
        system = [t["content"] for t in context if t["role"] == "system"]
        if self.template.instruction:
            system.insert(0, self.template.instruction)
        turns = [{"role": "system", "content": "\n".join(system)}] if system else []
        for s in shots:
            turns.append({"role": "user", "content": s.question})
            turns.append({"role": "assistant", "content": s.answer})
        turns += [{"role": t["role"], "content": t["content"]} for t in context if t["role"] != "system"]
        turns.append({"role": "user", "content": question})
        return turns

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of whole prompts, with or without a beginning-of-sequence token as `bos` says.

        Tokens that the tokenizer appends to every text (end-of-sequence) are removed, because the answer follows.
        Tokens that it prepends occur once, even if the template writes them too.
        """
        return [encoded.ids for encoded in self.encoded(texts, offsets=False)]

    def encoded(self, texts: Sequence[str], *, offsets: bool = True) -> list[Encoded]:
        """Encode like `ids`, and add the characters each id stands for (none if the tokenizer does not give them)."""
        bos = self.tokenizer.bos_token_id
        before, after = ((), ()) if self.chat else self.special.around
        encoded_texts: list[Encoded] = []
        for ids, places in self.special.encode(texts, around=not self.chat, offsets=offsets):
            end = len(ids) - len(after) if after and tuple(ids[-len(after) :]) == after else len(ids)
            begin = len(before) if before and tuple(ids[: 2 * len(before)]) == before * 2 else 0
            indices, at = list(range(begin, end)), self._starts(ids[begin:end])
            if self.bos == "yes" and not at:
                assert isinstance(bos, int)
                encoded_texts.append(Encoded([bos, *ids[begin:end]], [(0, 0), *places[begin:end]] if places else []))
                continue
            extras = at if self.bos == "no" else at[1:]
            if not extras and len(indices) == len(ids):
                encoded_texts.append(Encoded(ids, places))
                continue
            for extra in reversed(extras):
                del indices[extra]
            encoded_texts.append(Encoded([ids[n] for n in indices], [places[n] for n in indices] if places else []))
        return encoded_texts

    def _starts(self, ids: Sequence[int]) -> list[int]:
        """Return the places of beginning-of-sequence tokens among the special tokens that a text begins with."""
        bos, special = self.tokenizer.bos_token_id, self._special_ids
        length = next((n for n, token in enumerate(ids) if token not in special), len(ids))
        return [n for n in range(length) if ids[n] == bos] if bos is not None else []

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset([*self.special.ids.values(), *self.special.around[0]])

    def answer_ids(self, prompt_text: str, prompt_ids: Sequence[int], answer: str) -> tuple[int, ...]:
        """Return one tokenization of `answer` after a prompt. The search starts from it, and finds others."""
        return self.answer_path(prompt_ids, self.ids([prompt_text + self.gap + answer])[0], answer)

    def answer_path(self, prompt_ids: Sequence[int], ids: Sequence[int], answer: str) -> tuple[int, ...]:
        """Return what `answer_ids` returns. `ids`: those of the prompt, its gap and the answer, encoded as one text."""
        if tuple(ids[: len(prompt_ids)]) == tuple(prompt_ids) and len(ids) > len(prompt_ids):
            return tuple(ids[len(prompt_ids) :])
        return tuple(self.special.encode([self.gap + answer], around=False)[0].ids)

    @cached_property
    def _sample(self) -> list[int]:
        return self.ids([self.text((), "x")])[0]

    @property
    def choices(self) -> dict[str, Any]:
        """Return the chosen settings and their effects, for `summary.protocol`."""
        chat = self.chat_template
        return {
            "prompt": "the tokenizer's chat template" if chat else self.template.shot + self.template.target,
            "instruction": self.template.instruction,
            "chat_template": self.chat,
            "bos": self.bos,
            "bos_in_prompt": bool(self._starts(self._sample)),
            **(chat.choices if chat else {}),
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """Return notes for the user about prompts: thinking, and special tokens at their start and end."""
        return (*(self.chat_template.notes if self.chat_template else ()), *self._special_notes())

    def _special_notes(self) -> Iterator[str]:
        tokenizer, bos = self.tokenizer, self.tokenizer.bos_token_id
        before, starts = self.special.around[0], bool(self._starts(self._sample))
        text = self.text((), "x")
        own = self.special.encode([text], around=False)[0].ids
        if before and not self.chat and tuple(own[: len(before)]) == before:
            yield (
                f"the prompt's text begins with {tokenizer.decode(list(before))!r}, which the tokenizer writes there "
                "too: it is sent once"
            )
        if bos is not None and not starts and self.bos == "auto":
            if self.chat and bos in before:
                yield (
                    f"the tokenizer puts {tokenizer.bos_token!r} before plain text, the chat template writes none: "
                    "prompts are sent without it, as transformers does it; --bos yes puts it there"
                )
            elif not self.chat and getattr(tokenizer, "init_kwargs", {}).get("add_bos_token"):
                yield (
                    "warning: tokenizer_config.json says add_bos_token: true, but the tokenizer puts no "
                    f"{tokenizer.bos_token!r} before a text: prompts are sent without it; --bos yes puts it there"
                )
        if self.answer_end not in (None, tokenizer.eos_token_id):
            yield (
                f"an answer ends with {tokenizer.convert_ids_to_tokens(self.answer_end)!r} too, as the chat template "
                f"writes it; the tokenizer's own end is {tokenizer.eos_token!r}"
            )
        if before and bos not in before and not self.chat:
            yield f"the tokenizer puts {tokenizer.decode(list(before))!r} before every prompt"
        if self._sample and self._sample[-1] == tokenizer.eos_token_id:
            yield (
                f"warning: prompts end with {tokenizer.eos_token!r}, which ends a text: the model is asked for what "
                "comes after it; take it out of the template"
            )


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading ids two prompts share."""
    length = min(len(a), len(b))
    if tuple(a[:length]) == tuple(b[:length]):
        return length
    return next(n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
