"""Chat templates in the manner of many model families, written here: what is asked through them, and what is said."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from builders import write_jsonl
from conftest import fact_rows, tiny_model, tiny_tokenizer
from foreknow.config import AuditConfig, EvaluateConfig, TuneConfig
from foreknow.data.schema import add_flag, has_flag
from foreknow.errors import ConfigError, InputError
from foreknow.models.loading import Loaded, vocabulary_of
from foreknow.prompts.chat_templates import CHANGES, DROPS, REFUSES, ChatTemplate, TemplateRefusal
from foreknow.prompts.few_shot import Exemplar, Exemplars, GroupExemplars
from foreknow.prompts.prompt_template import Prompter, Template
from foreknow.prompts.template_source import DAY
from foreknow.stages.audit.filters import check_some_rows_usable, flag_template_faults

SHOT = Exemplar("What is the capital of Arland?", "Avens", None)
TURNS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
"""Every turn, whatever its role."""
HEAD = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def tokenizer(template: str | dict[str, str] | None = None, *, before: str = "", behind: str = "") -> Any:
    """A byte-level tokenizer with `<s>`; `before` and `behind`: what its post-processor puts around a text."""
    made = tiny_tokenizer(["What is the capital of Arland? Avens"] * 3)
    made.add_special_tokens({"bos_token": "<s>"})
    made.add_tokens([AddedToken(t, special=True) for t in ("<g>", "<think>", "</think>")])
    if before or behind:
        ids = made.get_vocab()
        tokens = [*before.split(), *behind.split()]
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*before.split(), "$A", *behind.split()]),
            pair=None,
            special_tokens=[(token, ids[token]) for token in tokens],
        )
    if template is not None:
        made.chat_template = template
    return made


def asked(template: str, **given_: Any) -> str:
    """The prompt of one question."""
    return str(Prompter(tokenizer(template), chat=True, **given_).text((), "Where?"))


# thinking

OPEN = "<|assistant|><think>\n"
CLOSED = "<|assistant|><think>\n\n</think>\n\n"


def head(condition: str, off: str = CLOSED, on: str = OPEN) -> str:
    """Turns, then one of two generation prompts."""
    return (
        TURNS
        + "{% if add_generation_prompt %}{% if "
        + condition
        + " %}"
        + json.dumps(off).join(["{{ ", " }}"])
        + "{% else %}"
        + json.dumps(on).join(["{{ ", " }}"])
        + "{% endif %}{% endif %}"
    )


@pytest.mark.parametrize(
    ("template", "expected", "end"),
    [
        (head("enable_thinking is defined and enable_thinking is false"), {"enable_thinking": False}, CLOSED),
        (head("enable_thinking is defined and not enable_thinking", on="<|assistant|>"),
         {"enable_thinking": False}, CLOSED),
        (head("not thinking", off="<|assistant|></think>"), {"thinking": False}, "<|assistant|></think>"),
        (head("(thinking | default(true)) == false"), {"thinking": False}, CLOSED),
        (head("reasoning_effort == 'none'"), {"reasoning_effort": "none"}, CLOSED),
        (head("reasoning_effort | default('high') | lower in ['off', 'none']"), {"reasoning_effort": "off"}, CLOSED),
        (head("{'off': true}[effort] | default(false)"), {"effort": "off"}, CLOSED),
        (head("thinking_budget is defined and thinking_budget == 0"), {"thinking_budget": False}, CLOSED),
        (head("disable_thinking"), {"disable_thinking": True}, CLOSED),
        (head("no_think is defined and no_think"), {"no_think": True}, CLOSED),
        (head("skip_reasoning"), {"skip_reasoning": True}, CLOSED),
        (head("mode == 'chat'"), {"mode": "chat"}, CLOSED),
        ("{% set on = enable_cot | default(true) %}" + head("not on"), {"enable_cot": False}, CLOSED),
        (head("enable_thinking is false", off="<|assistant|>[THINK][/THINK]", on="<|assistant|>[THINK]"),
         {"enable_thinking": False}, "<|assistant|>[THINK][/THINK]"),
        (head("reasoning is false", off="<|assistant|><|START_THINKING|><|END_THINKING|>",
              on="<|assistant|><|START_THINKING|>"), {"reasoning": False}, "<|END_THINKING|>"),
        (head("enable_thinking is false", off="<|assistant|>\u25c1think\u25b7\u25c1/think\u25b7",
              on="<|assistant|>\u25c1think\u25b7"), {"enable_thinking": False}, "\u25c1/think\u25b7"),
        (head("enable_thinking is false", off="<|assistant|>", on="<|assistant|><seed:think>"),
         {"enable_thinking": False}, "<|assistant|>"),
        ("{% if enable_thinking is not defined or enable_thinking %}<|system|>detailed thinking on<|end|>"
         "{% else %}<|system|>detailed thinking off<|end|>{% endif %}" + TURNS + HEAD,
         {"enable_thinking": False}, "<|assistant|>"),
    ],
)  # fmt: skip
def test_thinking_is_turned_off_by_whatever_variable_does_it(template: str, expected: dict[str, Any], end: str) -> None:
    prompter = Prompter(tokenizer(template), chat=True)
    text = prompter.text([SHOT], "Where?")
    assert text.endswith(end)
    assert "detailed thinking on" not in text
    assert prompter.choices.get("chat_template_settings", {}) == expected
    assert prompter.choices["thinking"] == "off"
    assert any("thinking is off" in note for note in prompter.notes) is bool(expected)


@pytest.mark.parametrize(
    "variable", ["preserve_thinking", "clear_thinking", "keep_past_reasoning", "truncate_history_thinking"]
)
def test_a_variable_about_earlier_thoughts_is_no_switch(variable: str) -> None:
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' and not " + variable + " %}"
        "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|end|>{% endfor %}" + HEAD
    )
    assert "chat_template_settings" not in Prompter(tokenizer(template), chat=True).choices


def test_a_strength_that_is_only_written_into_the_prompt_is_left_alone() -> None:
    template = "<|system|>Reasoning: {{ reasoning_strength | default('medium') }}<|end|>" + TURNS + HEAD
    assert asked(template).startswith("<|system|>Reasoning: medium<|end|>")


def test_a_word_in_the_system_text_turns_thinking_off_where_the_template_looks_for_it() -> None:
    template = (
        "{% set ns = namespace(on=true) %}{% for m in messages %}"
        "{% if '/no_think' in m['content'] %}{% set ns.on = false %}{% endif %}"
        "<|{{ m['role'] }}|>{{ m['content'].replace('/no_think', '') }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{{ '<think>' if ns.on else '<think></think>' }}{% endif %}"
    )
    prompter = Prompter(tokenizer(template), chat=True)
    assert prompter.text((), "Where?").endswith("<|assistant|><think></think>")
    assert prompter.text((), "Where?", [{"role": "system", "content": "Be brief."}]).startswith("<|system|>\nBe brief.")
    assert prompter.choices["system_switch"] == "/no_think"


def test_an_open_thought_without_a_switch_is_a_warning() -> None:
    prompter = Prompter(tokenizer(TURNS + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"), chat=True)
    assert prompter.text((), "Where?").endswith("<|assistant|><think>\n"), "the template's own words are kept"
    assert prompter.choices["thinking"] == "open"
    (note,) = prompter.notes
    assert note.startswith("warning: prompts end inside an open thought ('<|end|><|assistant|><think>')")


def test_a_thought_that_the_template_closes_before_answers_is_closed_in_prompts() -> None:
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    )
    prompter = Prompter(tokenizer(template), chat=True)
    assert prompter.text([SHOT], "Where?").endswith("Where?<|end|><|assistant|><think>\n\n</think>\n\n")
    assert prompter.choices["thinking"] == "off"


def test_an_answer_is_asked_for_in_the_channel_that_answers_are_written_in() -> None:
    template = (
        "{% for m in messages %}<|start|>{{ m['role'] }}{% if m['role'] == 'assistant' %}<|channel|>final{% endif %}"
        "<|message|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    prompter = Prompter(tokenizer(template), chat=True)
    assert prompter.text((), "Where?").endswith("<|start|>assistant<|channel|>final<|message|>")
    assert prompter.choices["before_answer"] == "<|channel|>final<|message|>"
    assert "stands behind the generation prompt" in prompter.notes[0]


def test_a_template_that_knows_thoughts_and_has_no_switch_is_said() -> None:
    template = TURNS.replace("m['content']", "m['content'].split('</think>')[-1]") + HEAD
    prompter = Prompter(tokenizer(template), chat=True)
    assert prompter.choices["thinking"] == "possible"
    assert "knows thoughts" in prompter.notes[0]
    assert "thinking" not in Prompter(tokenizer(TURNS + HEAD), chat=True).choices


# what stands before an answer


def test_a_template_without_a_generation_prompt_is_given_the_one_it_writes_before_answers() -> None:
    assert asked(TURNS).endswith("Where?<|end|><|assistant|>")


@pytest.mark.parametrize(("answer", "gap"), [("{{ m['content'] }}", ""), (" {{ m['content'] | trim }} </s>", " ")])
def test_the_blank_before_an_answer_is_the_templates_own(answer: str, gap: str) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
        + answer
        + "{% endif %}{% endfor %}"
    )
    prompter = Prompter(tokenizer(template), chat=True)
    text = prompter.text((), "Where?")
    ids = prompter.ids([text])[0]
    assert (text, prompter.gap) == ("[INST] Where? [/INST]", gap)
    assert prompter.tokenizer.decode(prompter.answer_ids(text, ids, "Avens")) == f"{gap}Avens"


def test_an_answer_ends_as_the_template_ends_it(tiny_folder: Path) -> None:
    made = tokenizer(TURNS.replace("<|end|>", "<g>") + HEAD)
    prompter = Prompter(made, chat=True)
    end = made.convert_tokens_to_ids("<g>")
    assert (prompter.answer_end, made.eos_token) == (end, "<|end|>")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    model.resize_token_embeddings(len(made))
    loaded = Loaded("", model, made, "", "", None, "", "", ())
    plain, chat = (one.ended(vocabulary_of(loaded)) for one in (Prompter(made), prompter))
    assert chat.ends == plain.ends | {end, made.eos_token_id}
    spelled = (*made("Avens", add_special_tokens=False)["input_ids"], end)
    assert (chat.said(spelled), plain.said(spelled)) == ("Avens", "Avens<g>\u2026")
    assert any("an answer ends with '<g>' too" in note for note in prompter.notes)
    assert Prompter(tokenizer(TURNS + HEAD), chat=True).answer_end == made.eos_token_id
    assert Prompter(tokenizer("<|user|>{{ messages[-1]['content'] }}"), chat=True).answer_end is None


# the day


@pytest.mark.parametrize(
    ("clock", "day"),
    [
        ("{{ strftime_now('%Y-%m-%d') }}", f"{DAY:%Y-%m-%d}"),
        ("{% if strftime_now is defined %}{{ strftime_now(\"%d %b %Y\") }}{% endif %}", f"{DAY:%d %b %Y}"),
        ("{% if date_string is not defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}",
         f"{DAY:%d %b %Y}"),
    ],
)  # fmt: skip
def test_prompts_are_the_same_on_every_day(clock: str, day: str) -> None:
    prompter = Prompter(tokenizer("\n<|system|>" + clock + "<|end|>" + TURNS + HEAD), chat=True)
    assert prompter.text((), "Where?").lstrip("\n").startswith(f"<|system|>{day}<|end|>")
    assert any("tells the day" in note for note in prompter.notes)
    assert f"{datetime.now(UTC):%Y}" not in prompter.text((), "Where?")


# which template


def test_templates_by_name(tmp_path: Path) -> None:
    named = {"default": TURNS + HEAD, "tool_use": "{{ raise_exception('tools') }}"}
    assert Prompter(tokenizer(named), chat=True).text((), "Where?") == "<|user|>Where?<|end|><|assistant|>"
    assert Prompter(tokenizer({"rag": TURNS + HEAD}), chat=True).text((), "a")
    with pytest.raises(ConfigError, match=r"has the chat templates rag, tool_use and none named 'default'"):
        Prompter(tokenizer({"rag": TURNS, "tool_use": TURNS}), chat=True)
    tokenizer(named).save_pretrained(tmp_path)
    assert (tmp_path / "additional_chat_templates" / "tool_use.jinja").is_file()
    assert Prompter(AutoTokenizer.from_pretrained(tmp_path), chat=True).text((), "Where?").endswith("<|assistant|>")
    (tmp_path / "chat_template.jinja").write_text(TURNS + "{% if add_generation_prompt %}<|bot|>{% endif %}")
    assert Prompter(AutoTokenizer.from_pretrained(tmp_path), chat=True).text((), "Where?").endswith("<|bot|>")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", r"not valid Jinja, line 1: Unexpected end of template"),
        ("{{ messages | nosuchfilter }}", r"not valid Jinja, line 1: No filter named 'nosuchfilter'"),
        ("{{ raise_exception('tools are needed') }}", r"refuses a chat of the roles user: tools are needed"),
        ("{{ documents[0]['text'] }}" + TURNS, r"refuses a chat of the roles user"),
        ("Hello.", r"leaves out the text of the user turn in a chat of the roles user, without an error"),
        ("{% for m in messages %}{% if m['role'] == 'human' %}{{ m['content'] }}{% endif %}{% endfor %}",
         r"leaves out the text of the user turn"),
    ],
)  # fmt: skip
def test_a_template_that_nothing_can_be_asked_through_is_refused(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^--chat-template: .*{message}") as caught:
        Prompter(tokenizer(template), chat=True)
    assert "\n" not in str(caught.value)


# roles

STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}" + HEAD
)
ONLY_TWO = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}{% endif %}{% endfor %}" + HEAD
)


@pytest.mark.parametrize("template", [STRICT, ONLY_TWO], ids=["refuses", "drops"])
def test_a_system_text_stands_in_the_first_user_turn_where_no_system_turn_is_taken(template: str) -> None:
    prompter = Prompter(tokenizer(template), Template(instruction="Be brief."), chat=True)
    text = prompter.text([SHOT], "Where?", [{"role": "system", "content": "In English."}])
    assert text.startswith(f"<|user|>Be brief.\nIn English.\n\n{SHOT.question}")
    assert asked(TURNS + HEAD) == "<|user|>Where?<|end|><|assistant|>"
    kept = Prompter(tokenizer(TURNS + HEAD), Template(instruction="Be brief."), chat=True).text((), "Where?")
    assert kept == "<|system|>Be brief.<|end|><|user|>Where?<|end|><|assistant|>"


def context(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"text {n}"} for n, role in enumerate(roles)]


def test_a_tools_turn_goes_under_the_role_that_the_template_knows() -> None:
    template = (
        "{% for m in messages %}{% if m['role'] not in ['user', 'assistant', 'tool'] %}{{ raise_exception('role') }}"
        "{% endif %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}" + HEAD
    )
    prompter = Prompter(tokenizer(template), chat=True)
    for role in ("tool", "function", "observation", "ipython", "tool_response"):
        assert "<|tool|>text 1" in prompter.text((), "Where?", context("user", role, "assistant")), role
    assert "<|user|>text 0\n\ntext 1" in prompter.text((), "Where?", context("developer", "user", "assistant"))
    with pytest.raises(TemplateRefusal, match="roles user, weather_service: role"):
        prompter.text((), "Where?", context("user", "weather_service"))


@pytest.mark.parametrize(
    ("template", "roles", "flag", "message"),
    [
        (STRICT, ("user",), REFUSES, "roles must alternate"),
        (STRICT, ("assistant",), REFUSES, "roles must alternate"),
        (STRICT, ("tool",), REFUSES, "roles must alternate"),
        (ONLY_TWO, ("user", "tool", "assistant"), DROPS, "leaves out the text of the tool turn"),
        ("{% for m in messages if m['role'] != 'assistant' %}<|user|>{{ m['content'] }}{% endfor %}" + HEAD,
         ("user", "assistant"), DROPS, "leaves out the text of the assistant turn"),
        ("<|user|>{{ messages[-1]['content'] }}" + HEAD, ("user", "assistant"), DROPS, "the user turn, the assistant"),
        ("<|user|>{{ messages[0]['content'] }}" + HEAD, ("user", "assistant"), DROPS, "the assistant turn, the user"),
    ],
)  # fmt: skip
def test_a_chat_that_is_refused_or_loses_a_turn(template: str, roles: tuple[str, ...], flag: str, message: str) -> None:
    prompter = Prompter(tokenizer(template), chat=True)
    fault = prompter.fault((), "Where?", context(*roles))
    assert fault is not None
    assert (fault.flag, message in str(fault)) == (flag, True), fault
    assert prompter.fault((), "Where?") is None
    with pytest.raises(ConfigError):
        prompter.text((), "Where?", context(*roles))


def test_a_template_that_wants_contents_in_parts_gets_them() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] | capitalize }}: {% for part in m['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    prompter = Prompter(tokenizer(template), chat=True)
    assert prompter.text([SHOT], "Where?") == (
        f"User: {SHOT.question}<|end|>Assistant: Avens<|end|>User: Where?<|end|>Assistant:"
    )
    assert prompter.gap == " "


@pytest.mark.parametrize(
    ("content", "question", "flag"),
    [
        ("m['content'].split('/think')[-1]", "Is /think a word?", DROPS),
        ("m['content'][:40]", "A question of more than forty characters, so that its end is lost", DROPS),
        ("m['content'] | lower", "Where is Arland?", CHANGES),
        ("m['content'] | tojson", 'Who said "no"?', CHANGES),
        ("m['content'] | trim", " Where is it? ", None),
        ("m['content']", "{{ messages }} {% raw %}", None),
    ],
)
def test_a_question_that_is_cut_or_changed_is_found(content: str, question: str, flag: str | None) -> None:
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ " + content + " }}<|end|>{% endfor %}" + HEAD
    fault = Prompter(tokenizer(template), chat=True).fault((), question)
    assert (fault and fault.flag) == flag


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["system", "user", "assistant", "tool", "function", "critic"]), max_size=5),
    st.sampled_from([STRICT, ONLY_TWO, TURNS + HEAD, "<|user|>{{ messages[-1]['content'] }}" + HEAD]),
)
def test_no_text_is_lost_without_a_word(roles: list[str], template: str) -> None:
    prompter = Prompter(_made(template), chat=True)
    turns = context(*roles)
    try:
        text = prompter.text([SHOT], "Where is it?", turns)
    except TemplateRefusal:
        return
    for part in ("Where is it?", SHOT.question, SHOT.answer, *(turn["content"] for turn in turns)):
        assert part in text


_MADE: dict[str, PreTrainedTokenizerFast] = {}


def _made(template: str) -> PreTrainedTokenizerFast:
    return _MADE.setdefault(template, tokenizer(template))


# special tokens around a prompt


@pytest.mark.parametrize("behind", ["", "<|end|>"])
@pytest.mark.parametrize(
    ("before", "template", "chat", "starts"),
    [
        ("", "", False, {"auto": "", "yes": "<s>", "no": ""}),
        ("<s>", "", False, {"auto": "<s>", "yes": "<s>", "no": ""}),
        ("", "<s>", False, {"auto": "<s>", "yes": "<s>", "no": ""}),
        ("<s>", "<s>", False, {"auto": "<s>", "yes": "<s>", "no": ""}),
        ("<s>", "<s><s>", False, {"auto": "<s>", "yes": "<s>", "no": ""}),
        ("<g> <s>", "", False, {"auto": "<g><s>", "yes": "<g><s>", "no": "<g>"}),
        ("<g> <s>", "<g><s>", False, {"auto": "<g><s>", "yes": "<g><s>", "no": "<g>"}),
        ("<g> <s>", "<s>", False, {"auto": "<g><s>", "yes": "<g><s>", "no": "<g>"}),
        ("<s>", "<s>", True, {"auto": "<s>", "yes": "<s>", "no": ""}),
        ("<s>", "<s><s>", True, {"auto": "<s>", "yes": "<s>", "no": ""}),
        ("<s>", "", True, {"auto": "", "yes": "<s>", "no": ""}),
        ("", "<s>", True, {"auto": "<s>", "yes": "<s>", "no": ""}),
        ("<g> <s>", "<g><s>", True, {"auto": "<g><s>", "yes": "<g><s>", "no": "<g>"}),
    ],
)
def test_no_prompt_begins_twice_or_ends_before_its_answer(
    before: str, template: str, chat: bool, starts: dict[str, str], behind: str
) -> None:
    made = tokenizer(template + TURNS + HEAD if chat else None, before=before, behind=behind)
    for bos in ("auto", "yes", "no"):
        written_ = Template() if chat else Template(instruction=template, target="{question}\nA:")
        prompter = Prompter(made, written_, chat, bos)  # type: ignore[arg-type]
        text = prompter.text((), "Where is <s> or <|end|>?")
        (ids,) = prompter.ids([text])
        own = "<|user|>Where is <s> or <|end|>?<|end|><|assistant|>" if chat else "Where is <s> or <|end|>?\nA:"
        assert made.decode(ids) == starts[bos] + own, bos
        assert ids.count(made.bos_token_id) == starts[bos].count("<s>"), "what the question spells is plain text"
        assert (ids.count(made.eos_token_id), ids[-1] == made.eos_token_id) == (int(chat), False)
        (whole,) = prompter.ids([text + prompter.gap + "Avens"])
        assert whole[: len(ids)] == ids, "the answer comes behind the same prompt"
        assert made.decode(prompter.answer_ids(text, ids, "Avens")) == f"{prompter.gap}Avens"
        located = prompter.encoded([text])[0]
        assert (located.ids, len(located.offsets)) == (ids, len(ids))
        assert prompter.choices["bos_in_prompt"] is ("<s>" in starts[bos])


def test_what_is_sent_is_said() -> None:
    twice = Prompter(tokenizer(before="<s>"), Template(instruction="<s>"))
    assert "the prompt's text begins with '<s>', which the tokenizer writes there too: it is sent once" in twice.notes
    bare = Prompter(tokenizer(TURNS + HEAD, before="<s>"), chat=True)
    assert any("the chat template writes none: prompts are sent without it" in note for note in bare.notes)
    lacking = tokenizer()
    lacking.init_kwargs["add_bos_token"] = True
    assert any("says add_bos_token: true, but the tokenizer puts no '<s>'" in note for note in Prompter(lacking).notes)
    assert not Prompter(tokenizer(before="<s>")).notes
    ended = Prompter(tokenizer(), Template(target="{question}<|end|>"))
    assert any("prompts end with '<|end|>'" in note for note in ended.notes)
    assert not Prompter(tokenizer()).notes
    other = Prompter(tokenizer(before="<g>"))
    assert other.notes == ("the tokenizer puts '<g>' before every prompt",)


# whole runs


def folder_with(tiny_folder: Path, folder: Path, template: str) -> Path:
    """The tiny model with a chat template."""
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def chats(count: int = 24) -> list[dict[str, Any]]:
    """Facts as chats; some begin with a system turn, some ask twice, one has a tool's turn."""
    found = []
    for n, row in enumerate(fact_rows()[:count]):
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        if n % 6 == 1:
            turns.insert(0, {"role": "system", "content": f"Be brief {n}."})
        if n % 6 == 2:
            turns.insert(0, {"role": "user", "content": "Are you there?"})
        if n % 6 == 3:
            turns.insert(1, {"role": "weather", "content": "Sunny."})
        found.append({"messages": turns})
    return found


def test_a_long_answer_is_not_refused_for_exemplars_that_it_is_asked_without(frame: pl.DataFrame) -> None:
    once = "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0]['content'] }}"
    prompter = Prompter(tokenizer(once), chat=True)
    shots = (Exemplar("What is the capital of Arland?", "Avens", None),)
    groups = {group: GroupExemplars((shots,), ()) for group in frame["group"].unique()}
    rows = add_flag(frame, "long_answer", frame["row"] == 5)
    found = flag_template_faults(rows, prompter, Exemplars(groups, ""))
    refused = found.rows.filter(has_flag(REFUSES))["row"].to_list()
    assert refused == [row for row in frame["row"] if row != 5]
    check_some_rows_usable(found.rows, found.first)
    with pytest.raises(InputError, match="rows are refused by the chat template; row 0: "):
        check_some_rows_usable(found.rows.filter(pl.col("row") != 5), found.first)


def test_rows_that_the_template_refuses_are_counted_and_the_others_labelled(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from foreknow.stages.audit.run import run

    model = folder_with(tiny_folder, tmp_path / "model", STRICT)
    file = str(write_jsonl(tmp_path / "chats.jsonl", chats()))
    given_ = {"model": str(model), "chat_template": True, "exemplar_sets": 2, "shots": 2, "dtype": "float32"}
    audit = run(AuditConfig(data=file, out=tmp_path / "run", **given_))
    refused = [n for n in range(24) if n % 6 in (2, 3)]
    flagged = audit.rows.filter(pl.col("flags").list.contains(REFUSES))
    assert flagged["row"].to_list() == refused
    assert flagged["category"].null_count() == len(refused)
    assert audit.summary["flags"][REFUSES] == len(refused)
    assert audit.summary["labelled"] == 24 - len(refused)
    said = capsys.readouterr().err
    assert f"{len(refused)} rows are left without a category (template_refuses; first row 2, counted from 0)" in said
    assert "roles must alternate" in said
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "the chat template raises an error for the row" in page
    only = str(write_jsonl(tmp_path / "only.jsonl", [row for n, row in enumerate(chats()) if n in refused]))
    with pytest.raises(InputError, match=r"all 8 rows are refused by the chat template; row 0: .*roles must alternate"):
        run(AuditConfig(data=only, out=tmp_path / "none", **given_))


SWITCHED = TURNS + head("enable_thinking is false")[len(TURNS) :]


def test_audit_tune_evaluate_and_tracker_ask_the_same_prompt(tiny_folder: Path, tmp_path: Path) -> None:
    from foreknow.stages.audit.run import run as audited
    from foreknow.stages.evaluate.run import run as evaluated
    from foreknow.stages.train.run import run as tuned

    model = folder_with(tiny_folder, tmp_path / "model", SWITCHED)
    rows = [{"question": r["question"], "answer": r["answer"]} for r in fact_rows()]
    train, dev = (
        str(write_jsonl(tmp_path / "train.jsonl", rows[:8])),
        str(write_jsonl(tmp_path / "dev.jsonl", rows[24:30])),
    )
    same: dict[str, Any] = {"chat_template": True, "dtype": "float32"}
    audit = audited(
        AuditConfig(data=train, model=str(model), out=tmp_path / "a", exemplar_sets=2, shots=2, **same)
    ).summary["protocol"]
    run = tuned(TuneConfig(train=train, dev=dev, model=str(model), out=tmp_path / "t", epochs=1, keep="last", **same))
    method = run.results["method"]
    evaluation = evaluated(
        EvaluateConfig(data=dev, model=str(tmp_path / "t" / "convergence"), out=tmp_path / "e", **same)
    ).summary["protocol"]
    for told in (audit, method["training_text"], evaluation):
        assert told["thinking"] == "off"
        assert told["chat_template_settings"] == {"enable_thinking": False}
    assert audit["notes"] == method["notes"] == evaluation["notes"]
    for name in "ate":
        assert "thinking is off" in (tmp_path / name / "report.html").read_text(encoding="utf-8"), name
    assert ChatTemplate(AutoTokenizer.from_pretrained(tmp_path / "t" / "convergence")).settings == {
        "enable_thinking": False
    }


def test_the_page_says_that_prompts_end_in_a_thought(tiny_folder: Path, tmp_path: Path) -> None:
    from foreknow.stages.audit.run import run

    model = folder_with(tiny_folder, tmp_path / "model", TURNS + "{% if add_generation_prompt %}<think>{% endif %}")
    rows = str(
        write_jsonl(
            tmp_path / "f.jsonl", [{"question": r["question"], "answer": r["answer"]} for r in fact_rows()[:12]]
        )
    )
    audit = run(
        AuditConfig(
            data=rows, model=str(model), out=tmp_path / "a", chat_template=True, exemplar_sets=1, shots=2,
            dtype="float32",
        )
    )  # fmt: skip
    assert audit.summary["protocol"]["thinking"] == "open"
    assert "prompts end inside an open thought" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")


THINKS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|stop|>{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{{ '<think>\n\n</think>\n\n' if enable_thinking is false else '<think>\n' }}{% endif %}"
)
STOPS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|stop|>{% endfor %}" + HEAD


@pytest.mark.parametrize(
    ("template", "before"), [(THINKS, "<think>\n\n</think>\n\n"), (STOPS, "")], ids=["thinks", "stops"]
)
def test_a_chat_model_that_knows_its_facts_is_found_to_know_them(template: str, before: str, tmp_path: Path) -> None:
    """Asked inside an open thought, or with its `<|stop|>` taken for a part of the answer, every row was Unknown."""
    from foreknow.stages.audit.run import run

    rows = [r for r in fact_rows() if r["split"] == "train"]
    made = tiny_tokenizer([f"{r['question']} {r['answer']}\n" for r in rows] * 3)
    marks = ["<|user|>", "<|assistant|>", "<|stop|>", "<think>", "</think>"]
    made.add_special_tokens({"additional_special_tokens": marks})
    made.chat_template = template
    model = tiny_model(len(made), made.eos_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(220):
        picks = torch.randint(len(rows), (12, 4), generator=generator).tolist()
        texts = [
            "".join(
                f"<|user|>{rows[n]['question']}<|stop|><|assistant|>{before}{rows[n]['answer']}<|stop|>" for n in some
            )
            for some in picks
        ]
        ids = made(texts, padding=False)["input_ids"]
        batch = torch.full((len(ids), max(map(len, ids))), -100)
        for n, line in enumerate(ids):
            batch[n, : len(line)] = torch.tensor(line)
        model(input_ids=batch.clamp(min=0), labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(tmp_path / "model")
    made.save_pretrained(tmp_path / "model")
    file = str(write_jsonl(tmp_path / "f.jsonl", [{"question": r["question"], "answer": r["answer"]} for r in rows]))
    audit = run(
        AuditConfig(
            data=file, model=str(tmp_path / "model"), out=tmp_path / "run", chat_template=True, dtype="float32",
            shots=2, exemplar_sets=2,
        )
    )  # fmt: skip
    assert audit.summary["categories"]["overall"]["Unknown"] < 0.3
