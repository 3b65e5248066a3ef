"""Find out what a tokenizer's chat template does, by rendering chats of marker texts, and check each row's prompt.

    variants    if a template refuses or drops a turn (a system turn, a tool's role), the chat is written in other
                ways: roles renamed, the system text in the first user turn, contents as lists of parts
    thinking    thinking is turned off if the template reads a variable for it. The variable is found by its effect on
                the end of the prompt, never by the model's name
    answers     text that the template writes between its generation prompt and an answer belongs to the prompt

A template can drop a text without an error, so every prompt is searched for the texts that must be in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from foreknow.errors import ConfigError
from foreknow.prompts.template_source import DAY, read_source, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, str]
"""A turn's `role` and `content`."""
REFUSES: Final = "template_refuses"
DROPS: Final = "template_drops"
CHANGES: Final = "template_changes"
"""Flags of rows: the template raises an error; it drops a text; it changes the question."""
_RENAMED: Final = {
    "developer": "system",
    **dict.fromkeys(("function", "observation", "ipython", "environment", "tool_response", "tool_result"), "tool"),
    **dict.fromkeys(("function_response", "tool_output"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "assistant"),
}
"""Role -> the role name to try if a template does not know the first."""
_THOUGHT_MARK: Final = re.compile(
    r"(?P<channel><\|channel\|?>(?P<named>\w+))|(?P<unused><unused9[45]>)|(?P<closing><channel\|>)|"
    r"[<\[\u25c1]\|?(?P<mark>[\w:/\- ]{0,24}?(?:think|thought|reason|analysis|scratchpad|reflection)[\w\- ]{0,16})"
    r"\|?[>\]\u25b7]|<\|inner_(?P<inner>prefix|suffix)\|>",
    re.IGNORECASE,
)
_CLOSING_MARK: Final = re.compile(r"/|(?:^|[_\- ])end(?:$|[_\- ])", re.IGNORECASE)
_NO_THINKING_MARK: Final = re.compile(r"(?:^|[/_\- ])no(?:[_\- ]|think|thought|reason)", re.IGNORECASE)
_THINKING: Final = re.compile(r"think|thought|reason|(?:^|_)cot(?:$|_)", re.IGNORECASE)
_NEGATIVE: Final = re.compile(
    r"(?:^|_)(?:no|not|non|disable|disabled|skip|without|hide|suppress)(?:_|$)|^nothink", re.I
)
_OFF: Final = ("none", "off", "no", "disabled", "disable", "never", "no_think", "nothink", "false", "0", "zero")
_THINKING_OFF_WORD: Final = re.compile(r"/?no[_\- ]?think(?:ing)?|(?:detailed )?thinking off", re.IGNORECASE)
_FAULTS: Final = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)

State = Literal["none", "open", "closed"]
_WANTED_STATES: Final[dict[State, tuple[State, ...]]] = {"open": ("closed", "none"), "none": ("closed",), "closed": ()}
"""State of thoughts at the prompt's end -> the states that a thinking switch must lead to, best first."""


def choose_template(tokenizer: PreTrainedTokenizerBase, *, chats: bool) -> tuple[Literal["yes", "no"], str | None]:
    """Resolve `--chat-template auto`: chats go through the tokenizer's template, if it has one; other rows do not.

    `chats`: whether the rows come from chats. Returns the choice, and a sentence where rows are chats.
    """
    if not chats:
        return "no", None
    if not getattr(tokenizer, "chat_template", None):
        return "no", "the rows are chats, but the tokenizer has no chat template: they are written as plain text"
    return (
        "yes",
        "the rows are chats: they go through the tokenizer's chat template (--chat-template no for plain text)",
    )


class TemplateRefusal(ConfigError):
    """Raised if the template refuses a chat or drops a text of it. `flag` says which."""

    def __init__(self, message: str, flag: str = REFUSES):
        super().__init__(message)
        self.flag = flag


class TemplateVariant(NamedTuple):
    """One way to put a chat to a template."""

    renamed: bool = False
    folded: bool = False
    parts: bool = False

    def turns(self, chat: Sequence[Turn]) -> list[dict[str, Any]]:
        """Return the chat's turns, written this way."""
        turns = [{"role": self.role(turn["role"]), "content": turn["content"]} for turn in chat]
        if self.folded:
            system = [turn["content"] for turn in turns if turn["role"] == "system"]
            turns = [turn for turn in turns if turn["role"] != "system"]
            first = next((turn for turn in turns if turn["role"] == "user"), None)
            if first is not None:
                first["content"] = "\n\n".join([*system, first["content"]])
        if self.parts:
            return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        return [dict(turn) for turn in turns]

    def role(self, role: str) -> str:
        """Return the name under which a role is passed."""
        return _RENAMED.get(role, role) if self.renamed else role


class ChatTemplate:
    """A tokenizer's chat template. Raises ConfigError if there is none, or if it cannot render any chat.

    `settings`: the template variables that we set. `thinking`: `off`, `open` (the prompt ends inside a thought),
    `possible` (the model may begin a thought), or None (the template knows no thoughts). `before_answer`: text appended
    to the generation prompt, because the template writes it before every answer. `gap`: the blanks that the template
    writes between prompt and answer. `after_answer`: the text that it writes after an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.source = read_source(template_of(tokenizer))
        self.settings: dict[str, Any] = dict(self.source.dates)
        self.system = ""
        self.before_answer = ""
        self.gap = ""
        self.after_answer = ""
        self._variants: dict[tuple[str, ...], TemplateVariant | TemplateRefusal] = {}
        self._question = (_sentinel(0),)
        self._question_roles = ("user",)
        self.variant(self._question_roles)
        self._switch_off()
        self._find_answer()
        self.thinking = self._thinking()

    # rendering

    def render(self, chat: Sequence[Turn]) -> str:
        """Return the prompt of a chat that ends in the question. Raises TemplateRefusal."""
        if self.system:
            chat = _with_system(chat, self.system)
        variant = self.variant(tuple(turn["role"] for turn in chat))
        return self._prompt(variant.turns(chat)) + self.before_answer

    def variant(self, roles: tuple[str, ...]) -> TemplateVariant:
        """Return a way to write a chat of these roles that loses no turn. Raises TemplateRefusal if there is none."""
        if roles not in self._variants:
            self._variants[roles] = self._try_variants(roles)
        outcome = self._variants[roles]
        if isinstance(outcome, TemplateRefusal):
            raise TemplateRefusal(str(outcome), outcome.flag)
        return outcome

    def _try_variants(self, roles: tuple[str, ...]) -> TemplateVariant | TemplateRefusal:
        chat = [{"role": role, "content": _sentinel(n)} for n, role in enumerate(roles)]
        first: TemplateRefusal | None = None
        renamed = any(role in _RENAMED for role in roles)
        folded = any(_RENAMED.get(role, role) == "system" for role in roles)
        for variant in _variants(renamed, folded):
            try:
                text = self._prompt(variant.turns(chat))
            except TemplateRefusal as refusal:
                first = first or refusal
                continue
            missing_roles = [turn["role"] for turn in chat if turn["content"].casefold() not in text.casefold()]
            if not missing_roles:
                return variant
            first = first or TemplateRefusal(
                "--chat-template: the model's chat template leaves out the text of "
                f"{_join_names(f'the {role} turn' for role in dict.fromkeys(missing_roles))} in a chat of the roles "
                f"{', '.join(dict.fromkeys(roles))}, without an error",
                DROPS,
            )
        assert first is not None
        return first

    def _prompt(self, turns: Sequence[Mapping[str, Any]], *, asking: bool = True, **settings: Any) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(turn) for turn in turns],
                    chat_template=self.source.text,
                    tokenize=False,
                    add_generation_prompt=asking,
                    **{**self.settings, **settings},
                )
            )
        except (TemplateError, *_FAULTS) as error:
            # a template is a program of the model's: it may refuse a system turn, or be broken
            roles = ", ".join(dict.fromkeys(str(turn["role"]) for turn in turns))
            why = " ".join(str(error).split())[:160]
            raise TemplateRefusal(
                f"--chat-template: the model's chat template refuses a chat of the roles {roles}: {why}"
            ) from None

    # checks of a row's own texts

    def fault(self, chat: Sequence[Turn]) -> TemplateRefusal | None:
        """Check a row's chat: return an error if the template refuses it, drops a text or changes the question."""
        try:
            text = self.render(chat)
        except TemplateRefusal as refusal:
            return refusal
        question = chat[-1]["content"].strip()
        if question in text:
            return None
        chat_with_marks = [*chat[:-1], {**chat[-1], "content": f"{_sentinel(0)} {question} {_sentinel(1)}"}]
        try:
            text_with_marks = self.render(chat_with_marks)
        except TemplateRefusal as refusal:
            return refusal
        if all(_sentinel(n).casefold() in text_with_marks.casefold() for n in (0, 1)):
            return TemplateRefusal("the model's chat template writes the question otherwise than the row", CHANGES)
        return TemplateRefusal("the model's chat template leaves out a part of the question, without an error", DROPS)

    def marked_answer(self, chat: Sequence[Turn], answer: str) -> bool | None:
        """Return whether `{% generation %}` marks anything of an answer; None where the template has no such block."""
        if not self.source.generation or not self.tokenizer.is_fast:
            return None
        variant = self.variant(tuple(turn["role"] for turn in chat))
        turns = variant.turns([*chat, {"role": "assistant", "content": answer}])
        from jinja2 import TemplateError

        try:
            encoded: Any = self.tokenizer.apply_chat_template(
                turns,
                chat_template=self.source.text,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
                **self.settings,
            )
        except (TemplateError, *_FAULTS):
            return None  # the row needs only the prompt, which the template renders
        return any(encoded["assistant_masks"])

    def keeps_answer(self, chat: Sequence[Turn], answer: str) -> bool:
        """Return whether the template would write an answer unchanged, neither trimmed nor cut."""
        variant = self.variant(tuple(turn["role"] for turn in chat))
        try:
            return answer in self._prompt(
                variant.turns([*chat, {"role": "assistant", "content": answer}]), asking=False
            )
        except TemplateRefusal:
            return False

    # thinking

    def _switch_off(self) -> None:
        """Turn thinking off: by variables, or else by a word in the system text that the template looks for."""
        for name in self.source.variables:
            if name in self.settings or name in self.tokenizer.special_tokens_map:
                continue
            value = self._off_value(name)
            if value is not None:
                self.settings[name] = value[0]
        if self._thought_state() != "open":
            return
        for word in self.source.literals:
            if _THINKING_OFF_WORD.fullmatch(word.strip()):
                end = self._text_after_question(_with_system([{"role": "user", "content": _sentinel(0)}], word.strip()))
                if end is not None and _thought_state(end) != "open":
                    self.system = word.strip()
                    return

    def _off_value(self, name: str) -> tuple[Any] | None:
        """Return the value that makes a variable turn thinking off, as a 1-tuple; None if it is no such switch."""
        default_prompt = self._prompt_of_question()
        consts = [value for value in self.source.constants.get(name, ()) if not isinstance(value, bool)]
        off = [value for value in consts if str(value).strip().casefold() in _OFF]
        texts = [value for value in consts if isinstance(value, str) and value not in off][:8]
        state, values = self._thought_state(), [False, *off, True, *texts]
        for wanted in _WANTED_STATES[state]:
            for value in values:
                end = self._text_after_question(**{name: value})
                if end is not None and _thought_state(end) == wanted:
                    return (value,)
        if not _THINKING.search(name):
            return None
        on_off = (True, False) if not _NEGATIVE.search(name) else (False, True)
        on, without = (self._prompt_of_question(**{name: value}) for value in on_off)
        is_echoed = _sentinel(1) in (self._prompt_of_question(**{name: _sentinel(1)}) or "")  # it is written, not asked
        if without is not None and on != without and not is_echoed:
            return (on_off[1],)
        changed = [
            value
            for value in off
            if (text := self._prompt_of_question(**{name: value})) is not None and text != default_prompt
        ]
        return (changed[0],) if changed else None

    def _prompt_of_question(self, **settings: Any) -> str | None:
        """Return the prompt of one question; None if the template refuses these settings, or drops the question."""
        try:
            turns = self.variant(self._question_roles).turns(self._question_chat())
            text = self._prompt(turns, **settings)
        except TemplateRefusal:
            return None
        return text if _sentinel(0).casefold() in text.casefold() else None

    def _question_chat(self) -> list[Turn]:
        return [{"role": "user", "content": _sentinel(0)}]

    def _text_after_question(self, chat: Sequence[Turn] | None = None, **settings: Any) -> str | None:
        """Return the text of a prompt after its question."""
        try:
            turns = chat or self._question_chat()
            text = self._prompt(self.variant(tuple(turn["role"] for turn in turns)).turns(turns), **settings)
        except TemplateRefusal:
            return None
        _, separator, end = text.rpartition(_sentinel(0))
        return end if separator else None

    def _thought_state(self) -> State:
        end = self._text_after_question(_with_system(self._question_chat(), self.system) if self.system else None)
        return _thought_state((end or "") + self.before_answer)

    def _find_answer(self) -> None:
        """Compare the generation prompt with what the template writes before an answer."""
        chat = _with_system(self._question_chat(), self.system) if self.system else self._question_chat()
        variant = self.variant(tuple(turn["role"] for turn in chat))
        answered = [*chat, {"role": "assistant", "content": _sentinel(1)}]
        try:
            prompt = self._prompt(variant.turns(chat))
            text = self._prompt(variant.turns(answered), asking=False)
        except TemplateRefusal:
            return
        head, separator, self.after_answer = text.partition(_sentinel(1))
        if not separator or not head.startswith(prompt):
            return
        between = head[len(prompt) :]
        self.before_answer = between.rstrip(" ")
        self.gap = between[len(self.before_answer) :]

    def _thinking(self) -> str | None:
        state = self._thought_state()
        if state == "open":
            return "open"
        if state == "closed" or self.system or any(_is_thinking(name) for name in self.settings):
            return "off"
        return "possible" if any(_thought_state(text) != "none" for text in self.source.literals) else None

    # summary and notes

    @property
    def choices(self) -> dict[str, Any]:
        """Return the non-empty settings and their effects, for `summary.protocol`."""
        choices = {
            "thinking": self.thinking,
            "chat_template_settings": self.settings,
            "system_switch": self.system,
            "before_answer": self.before_answer,
        }
        return {name: value for name, value in choices.items() if value}

    @property
    def notes(self) -> tuple[str, ...]:
        """Return notes for the user about settings and prompts."""
        lines = []
        switches = {name: value for name, value in self.settings.items() if name not in self.source.dates}
        if switches or self.system:
            settings_as_text = [f"{name}={value!r}" for name, value in switches.items()]
            settings_as_text += [f"{self.system!r} in the system text"] if self.system else []
            lines.append(f"thinking is off: the chat template is given {', '.join(settings_as_text)}")
        if self.before_answer:
            lines.append(
                f"{self.before_answer!r} stands behind the generation prompt: the chat template writes it before every "
                "answer"
            )
        if self.thinking == "open":
            end = " ".join((self._text_after_question() or "").split())[-40:]
            lines.append(
                f"warning: prompts end inside an open thought ({end!r}), and the chat template has no variable that "
                "turns it off: the model is asked for the first words of its thought, so that rows may be called "
                "Unknown whose answers it would give after thinking; ask with --chat-template no, or audit the base "
                "model"
            )
        if self.thinking == "possible":
            lines.append(
                "the chat template knows thoughts and has no variable that turns them off: a model that begins its "
                "answer with a thought is right nowhere"
            )
        if self.source.day:
            lines.append(f"the chat template tells the day: it is told {DAY:%Y-%m-%d}, so that prompts stay the same")
        return tuple(lines)


def _variants(renamed: bool, folded: bool) -> list[TemplateVariant]:
    """Return the variants to try, the plainest first."""
    plain = [
        TemplateVariant(),
        *([TemplateVariant(renamed=True)] if renamed else []),
        *([TemplateVariant(folded=True)] if folded else []),
    ]
    plain += [TemplateVariant(renamed=True, folded=True)] if renamed and folded else []
    return [*plain, *(way._replace(parts=True) for way in plain)]


def _thought_state(text: str) -> State:
    """Return whether thoughts are opened in a text, and whether the last of them is closed."""
    state: State = "none"
    for mark in _THOUGHT_MARK.finditer(text):
        if mark["named"]:
            opens = mark["named"].casefold() not in ("final", "commentary", "response")
        elif mark["unused"] or mark["closing"] or mark["inner"]:
            opens = mark["unused"] == "<unused94>" or (mark["inner"] or "").casefold() == "prefix"
        elif _NO_THINKING_MARK.search(mark["mark"]):
            continue
        else:
            opens = not _CLOSING_MARK.search(mark["mark"])
        state = "open" if opens else "closed"
    return state


def _is_thinking(name: str) -> bool:
    return _THINKING.search(name) is not None


def _sentinel(n: int) -> str:
    """Return a marker text that no template contains: letters and digits only, so that no template interprets it."""
    return f"Zq{n}vxk{n}w"


def _with_system(chat: Sequence[Turn], text: str) -> list[Turn]:
    """Return the chat with a text at the beginning of its system turn."""
    if chat and chat[0]["role"] == "system":
        return [{"role": "system", "content": f"{text}\n{chat[0]['content']}"}, *chat[1:]]
    return [{"role": "system", "content": text}, *chat]


def _join_names(names: Any) -> str:
    return ", ".join(names)
