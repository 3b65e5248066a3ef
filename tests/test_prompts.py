"""Prompts: the paper's text to the letter, the user's templates, and the ids a tokenizer makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from foreknow.errors import ConfigError
from foreknow.prompts.few_shot import Exemplar
from foreknow.prompts.prompt_template import PAPER, Prompter, Template, common_prefix, read_template

SHOTS = (
    Exemplar("What is the capital of France?", "Paris", "France"),
    Exemplar("Who wrote {answer}?", "{question}", None),
)
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(*, adds_bos: bool = False, bos: bool = True, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a handful of merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "P"), ("ĠP", "a"), ("ĠPa", "r"), ("P", "a"), ("Pa", "r"), ("i", "s"), ("ĠPar", "is"), ("Ġ", "A")]
    vocabulary = {text: i for i, text in enumerate(["<s>", "</s>", *alphabet, *(a + b for a, b in merges)])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>" if bos else None, eos_token="</s>", clean_up_tokenization_spaces=False
    )
    found.chat_template = CHAT if chat else None
    return found


# texts


def test_the_papers_prompt() -> None:
    assert PAPER.render(SHOTS[:1], "Where is Lima?") == (
        "Q: What is the capital of France?\nA: Paris\nQ: Where is Lima?\nA:"
    )
    assert PAPER.render((), "Where is Lima?") == "Q: Where is Lima?\nA:"
    assert PAPER.gap == " "


def test_braces_in_texts_are_left_alone() -> None:
    assert PAPER.render(SHOTS[1:], "What is {question} {0} {{x}} %s $y \\1?") == (
        "Q: Who wrote {answer}?\nA: {question}\nQ: What is {question} {0} {{x}} %s $y \\1?\nA:"
    )


@settings(deadline=None, max_examples=60)
@given(st.text(), st.text(), st.text())
def test_any_text_stands_in_the_prompt_as_it_is(question: str, answer: str, asked: str) -> None:
    shot = Exemplar(question, answer, None)
    assert PAPER.render([shot], asked) == f"Q: {question}\nA: {answer}\nQ: {asked}\nA:"


@pytest.mark.parametrize(("target", "gap"), [("{question}:", " "), ("{question}\n", ""), ("{question} ", "")])
def test_the_gap_before_the_answer(target: str, gap: str) -> None:
    assert Template(target=target).gap == gap


# the template file


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "prompt.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_a_template_file(tmp_path: Path) -> None:
    file = written(tmp_path, 'instruction: "Answer.\\n"\nshot: "{question} = {answer}; "\ntarget: "{question} ="\n')
    template = read_template(file)
    assert template == Template("Answer.\n", "{question} = {answer}; ", "{question} =")
    assert template.render(SHOTS[:1], "Lima?") == "Answer.\nWhat is the capital of France? = Paris; Lima? ="
    assert read_template(written(tmp_path, "instruction: Hello")) == Template(instruction="Hello")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe\x00", "not YAML"),
        ("shot: [", "not YAML"),
        ("", "expected the keys instruction, shot, target with texts"),
        ("- shot", "expected the keys instruction, shot, target with texts"),
        ("shot: 3", "expected the keys instruction, shot, target with texts"),
        ("shots: x", "unknown key 'shots'; known are instruction, shot, target"),
        ("1: x\nzz: y", "unknown key 1; known are instruction, shot, target"),
        ("target: 'Q:'", r"target must hold \{question\} and must not hold \{answer\}"),
        ("target: '{question} {answer}'", r"target must hold \{question\} and must not hold \{answer\}"),
        ("shot: '{question}'", r"shot must hold \{question\} and \{answer\}"),
        ("shot: '{answer}'", r"shot must hold \{question\} and \{answer\}"),
    ],
)
def test_what_is_wrong_with_a_template_file(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_template(file)
    assert str(caught.value).startswith(f"--prompt-template {file}: ")
    assert "\n" not in str(caught.value)


def test_a_template_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_template(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_template(tmp_path)


# ids


@pytest.mark.parametrize(
    ("bos", "adds_bos", "starts"),
    [
        ("auto", False, 0),
        ("auto", True, 1),
        ("yes", False, 1),
        ("yes", True, 1),
        ("no", False, 0),
        ("no", True, 0),
    ],
)
def test_beginning_of_sequence(bos: str, adds_bos: bool, starts: int) -> None:
    made = tokenizer(adds_bos=adds_bos)
    prompter = Prompter(made, bos=bos)  # type: ignore[arg-type]
    text = prompter.text(SHOTS, "Lima?")
    (ids,) = prompter.ids([text])
    assert [i == made.bos_token_id for i in ids].count(True) == starts
    assert made.decode(ids, skip_special_tokens=True) == text
    assert prompter.choices["bos"] == bos
    assert prompter.choices["bos_in_prompt"] is bool(starts)
    if bos == "auto":
        assert ids == made(text)["input_ids"]
    assert prompter.ids([]) == []
    assert prompter.ids([text, "x"])[0] == ids


def test_a_tokenizer_without_what_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="--bos yes: this model's tokenizer has no beginning-of-sequence token"):
        Prompter(tokenizer(bos=False), bos="yes")
    with pytest.raises(ConfigError, match="--chat-template: this model's tokenizer has no chat template"):
        Prompter(tokenizer(), chat=True)
    assert Prompter(tokenizer(bos=False), bos="no").choices["bos_in_prompt"] is False


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["Paris", "Par", "Zürich", "東京", "New York", "x"]) | st.text("Paris é京", min_size=1),
    st.sampled_from(["auto", "yes", "no"]),
    st.sampled_from(["Q: {question}\nA:", "{question}\n", "{question} ", "{question}"]),
)
def test_answer_ids_spell_the_answer_behind_the_prompt(answer: str, bos: str, target: str) -> None:
    answer = answer.strip() or "x"
    prompter = Prompter(TOKENIZER, Template(target=target), bos=bos)  # type: ignore[arg-type]
    text = prompter.text(SHOTS, "Lima?")
    ids = prompter.ids([text])[0]
    found = prompter.answer_ids(text, ids, answer)
    assert found
    assert TOKENIZER.decode(found) == prompter.template.gap + answer
    assert TOKENIZER.decode([*ids, *found], skip_special_tokens=True) == text + prompter.template.gap + answer


TOKENIZER = tokenizer(adds_bos=True)


def test_an_answer_that_melts_into_the_prompts_last_token_is_spelt_alone() -> None:
    # behind "... " the whole text has "ĠPar", so the prompt's own ids are no beginning of it
    prompter = Prompter(TOKENIZER, Template(target="{question} "))
    ids = prompter.ids([prompter.text((), "Lima?")])[0]
    assert prompter.ids([prompter.text((), "Lima?") + "Paris"])[0][: len(ids)] != ids
    found = prompter.answer_ids(prompter.text((), "Lima?"), ids, "Paris")
    assert TOKENIZER.bos_token_id not in found
    assert TOKENIZER.decode(found) == "Paris"


def test_the_chat_template() -> None:
    made = tokenizer(adds_bos=True, chat=True)
    prompter = Prompter(made, Template(instruction="Be short."), chat=True)
    text = prompter.text(SHOTS[:1], "Lima?")
    assert text == (
        "<system>Be short.\n<user>What is the capital of France?\n<assistant>Paris\n<user>Lima?\n<assistant>"
    )
    ids = prompter.ids([text])[0]
    assert made.bos_token_id not in ids, "the chat template writes its own special tokens"
    assert made.decode(ids) == text
    assert made.decode(prompter.answer_ids(text, ids, "Paris")) == "Paris", "no blank behind the last turn"
    assert Prompter(made, chat=True).text((), "Lima?") == "<user>Lima?\n<assistant>"
    assert Prompter(made, chat=True, bos="yes").ids([text])[0] == [made.bos_token_id, *ids]
    assert prompter.choices == {
        "prompt": "the tokenizer's chat template",
        "instruction": "Be short.",
        "chat_template": True,
        "bos": "auto",
        "bos_in_prompt": False,
    }


@pytest.mark.parametrize(
    ("a", "b", "shared"), [([], [], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1), ([1], [2], 0)]
)
def test_common_prefix(a: list[int], b: list[int], shared: int) -> None:
    assert common_prefix(a, b) == common_prefix(b, a) == shared
