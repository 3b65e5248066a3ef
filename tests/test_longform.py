"""Long answers against a plain loop over the model's own logits, and where an answer begins and is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from builders import random_model
from foreknow.data.schema import ROWS as SCHEMA
from foreknow.inference.generate import exact_head
from foreknow.inference.lm_head import OutputHead
from foreknow.inference.loglikelihood import LongScorer, Text, batches, log_probs, split_head
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.packing import Segment, TokenTree
from foreknow.inference.surprisal import LONG
from foreknow.prompts.prompt_template import Prompter, Template

ANSWERS = (
    "Avens, and River Aven crosses it; what is said of Borvia is said of Arland.",
    "Brigston. Which river crosses Borvia? River Brig, as everyone who was ever there will know of it.",
    "In short\n\n\nCallow, or caf\u00e9 \u6771\u4eac, as some have it \U0001f600.",
    "Dunwick",
    "The capital of Estoria is Elmfort, the capital of Fenwall is Farrow, the capital of Galdor is Grimsby. " * 3,
)
COUNTRIES = ("Arland", "Borvia", "Cendor", "Delmar", "Estoria")


def table(answers: Sequence[str], questions: Sequence[str]) -> pl.DataFrame:
    lines = enumerate(zip(answers, questions, strict=True))
    records = [{"row": i, "question": q, "answers": [a, "another"]} for i, (a, q) in lines]
    return pl.DataFrame(records, schema=SCHEMA)


ROWS = table(ANSWERS, [f"What is the capital of {name}?" for name in COUNTRIES])


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompter(tokenizer: PreTrainedTokenizerFast) -> Prompter:
    return Prompter(tokenizer)


SMALL = {"vocab_size": 420, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GATED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0, "head_dim": 8}
OTHERS = {
    "gemma3 with a window": Gemma3TextConfig(**GATED, sliding_window=9, query_pre_attn_scalar=8),
    "gemma2 with soft caps": Gemma2Config(
        **GATED, sliding_window=9, attn_logit_softcapping=3.0, final_logit_softcapping=4.0
    ),
    "gpt2 with learned positions": GPT2Config(vocab_size=420, n_embd=32, n_layer=3, n_head=4, n_positions=400),
}


def plain(model: PreTrainedModel, prompter: Prompter, question: str, answer: str) -> list[float]:
    """log p of the answer's tokens, one row at a time; the prompt's own tokens begin this tokenizer's whole."""
    prompt = prompter.ids([prompter.text([], question)])[0]
    whole = prompter.ids([prompter.text([], question) + " " + answer])[0]
    assert whole[: len(prompt)] == prompt
    with torch.inference_mode():
        logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return [float(logits[t - 1, whole[t]]) for t in range(len(prompt), len(whole))]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def is_plain(found: pl.DataFrame, model: PreTrainedModel, prompter: Prompter, tolerance: float = 1e-5) -> None:
    for line, question, answers in zip(found.to_dicts(), ROWS["question"], ROWS["answers"], strict=True):
        own, bare = plain(model, prompter, question, answers[0]), plain(model, prompter, "", answers[0])
        assert line["answer_tokens"] == line["scored_tokens"] == len(own)
        assert line["logprob"] == pytest.approx(mean(own), abs=tolerance)
        assert line["logprob_alone"] == pytest.approx(mean(bare), abs=tolerance)


def test_scores_are_those_of_a_plain_loop(model: PreTrainedModel, prompter: Prompter) -> None:
    found = LongScorer(model, prompter).score(ROWS)
    assert found.schema == pl.Schema(LONG)
    is_plain(found, model, prompter)


@pytest.mark.parametrize("kind", OTHERS)
def test_scores_of_other_architectures_are_those_of_a_plain_loop(kind: str, prompter: Prompter) -> None:
    model = random_model(OTHERS[kind])
    scorer = LongScorer(model, prompter, batch_tokens=600)
    assert scorer.split is not None
    is_plain(scorer.score(ROWS), model, prompter)


def test_an_attached_model_scores_the_same_and_stays_attached(model: PreTrainedModel, prompter: Prompter) -> None:
    outside = LongScorer(model, prompter).score(ROWS)
    ids = prompter.ids(["Q: What is the capital of Arland?"])[0]
    packed = PackedModel(model)
    with packed.attached():
        before, _ = packed.forward([Segment(None, [TokenTree.chain(ids, range(len(ids)))])])
        inside = LongScorer(model, prompter).score(ROWS)
        after, _ = packed.forward([Segment(None, [TokenTree.chain(ids, range(len(ids)))])])
    assert inside.equals(outside)
    assert torch.equal(before, after)
    assert model.config._attn_implementation != "foreknow_packed"


def test_ordered_bf16_layers_score_as_plain_ones(model: PreTrainedModel, tiny_folder: Path, prompter: Prompter) -> None:
    rough = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    outside = LongScorer(rough, prompter).score(ROWS)
    with PackedModel(rough).attached():
        inside = LongScorer(rough, prompter).score(ROWS)
    exact = LongScorer(model, prompter).score(ROWS)
    for column in ("logprob", "logprob_alone"):
        assert (inside[column] - exact[column]).abs().max() < 0.1
        assert (inside[column] - outside[column]).abs().max() < 0.1


def test_a_model_whose_head_does_more_is_scored_by_its_own_logits(prompter: Prompter) -> None:
    model = random_model(OTHERS["gpt2 with learned positions"])

    class Louder(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.5

    louder = Louder(32, 420, bias=False)
    louder.weight = model.lm_head.weight
    model.lm_head = louder
    scorer = LongScorer(model, prompter)
    assert scorer.split is None
    is_plain(scorer.score(ROWS), model, prompter)


def test_the_float32_head_of_the_sampled_protocol_is_scored_too(tiny_folder: Path, prompter: Prompter) -> None:
    rough = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    own = LongScorer(rough, prompter).score(ROWS)
    with exact_head(rough):
        scorer = LongScorer(rough, prompter)
        found = scorer.score(ROWS)
    assert scorer.split is not None
    assert (found["logprob"] - own["logprob"]).abs().max() < 1e-5


@pytest.mark.parametrize("tokens", [1, 64, 300, 100_000])
def test_batches_change_nothing_but_rounding(model: PreTrainedModel, prompter: Prompter, tokens: int) -> None:
    whole = LongScorer(model, prompter).score(ROWS)
    cut = LongScorer(model, prompter, batch_tokens=tokens)
    parts = pl.concat([cut.score(ROWS.filter(pl.col("row") % 2 == odd).reverse()) for odd in (1, 0)]).sort("row")
    for column in ("logprob", "logprob_alone"):
        assert (parts[column] - whole[column]).abs().max() < 1e-5
    places = pl.col("spans").list.eval(pl.element().struct.field("start"))
    assert parts.select(places).equals(whole.select(places))


@given(st.lists(st.integers(1, 400), max_size=40), st.integers(1, 1000))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    found = batches(lengths, tokens)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens


@given(st.integers(0, 2**31), st.integers(1, 900), st.sampled_from([1, 3, 700]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_head_in_pieces_gives_the_whole_heads_probabilities(seed: int, size: int, count: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(16, 901, bias=bias, dtype=torch.bfloat16)
    linear.weight.data = torch.randn(901, 16, generator=generator).bfloat16()
    config = Gemma2Config(**GATED, final_logit_softcapping=4.0)
    head = OutputHead(linear, config)
    states = torch.randn(count, 16, generator=generator).bfloat16()
    targets = torch.randint(0, 901, (count,), generator=generator)
    parts = split_head(head, size * (16 + 1024))
    assert len(parts) == -(-901 // size)
    expected = head.full_logits(states).detach().double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(log_probs(parts, states, targets).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_question_the_model_knows_makes_its_answer_likelier(model: PreTrainedModel, prompter: Prompter) -> None:
    told = [("Arland", "Avens"), ("Borvia", "Brigston"), ("Cendor", "Callow"), ("Delmar", "Dunwick")]
    rows = table([a for _, a in told], [f"What is the capital of {name}?" for name, _ in told])
    found = LongScorer(model, prompter).score(rows)
    assert (found["logprob"] > found["logprob_alone"] + 1).all()


def test_a_wrong_fact_in_a_long_answer_is_its_first_span(model: PreTrainedModel, prompter: Prompter) -> None:
    told = [("Arland", "Avens"), ("Borvia", "Brigston"), ("Cendor", "Wexcombe"), ("Delmar", "Dunwick")]
    text = "".join(f"Q: What is the capital of {name}?\nA: {answer}\n" for name, answer in told)
    head, _, answer = text.strip().partition("\nA: ")
    found = LongScorer(model, prompter).score(table([answer], [head.removeprefix("Q: ")])).to_dicts()[0]
    assert "Wexcombe" in found["spans"][0]["text"]
    span = found["spans"][0]
    assert answer[span["start"] : span["end"]] == span["text"]


def test_longer_answers_are_cut_and_say_so(model: PreTrainedModel, prompter: Prompter) -> None:
    found = LongScorer(model, prompter, max_tokens=7).score(ROWS)
    for line, question, answers in zip(found.to_dicts(), ROWS["question"], ROWS["answers"], strict=True):
        own, bare = plain(model, prompter, question, answers[0]), plain(model, prompter, "", answers[0])
        assert (line["answer_tokens"], line["scored_tokens"]) == (len(own), min(7, len(own)))
        assert line["logprob"] == pytest.approx(mean(own[:7]), abs=1e-5)
        assert line["logprob_alone"] == pytest.approx(mean(bare[:7]), abs=1e-5)


def test_the_models_positions_are_the_limit(prompter: Prompter) -> None:
    model = random_model(GPT2Config(vocab_size=420, n_embd=32, n_layer=2, n_head=4, n_positions=60))
    rows = table([ANSWERS[4], ANSWERS[4]], ["What is the capital of Estoria?", "Which river? " * 30])
    cut, none = LongScorer(model, prompter).score(rows).to_dicts()
    prompt = len(prompter.ids([prompter.text([], "What is the capital of Estoria?")])[0])
    assert cut["scored_tokens"] == 60 - prompt < cut["answer_tokens"]
    assert none["answer_tokens"] == cut["answer_tokens"]
    assert (none["scored_tokens"], none["logprob"], none["logprob_alone"], none["spans"]) == (0, None, None, [])


def test_no_rows_give_an_empty_frame(model: PreTrainedModel, prompter: Prompter) -> None:
    found = LongScorer(model, prompter).score(ROWS.clear())
    assert found.schema == pl.Schema(LONG)
    assert found.is_empty()


def test_an_answer_with_nothing_before_it_is_scored_from_its_second_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    alone = Prompter(tokenizer, Template(target="{question}"))
    found = LongScorer(model, alone).score(ROWS.head(1)).to_dicts()[0]
    assert found["scored_tokens"] == found["answer_tokens"] - 1


@pytest.fixture(scope="module")
def tokenizer_cases(tiny_folder: Path) -> list[Prompter]:
    """With and without special tokens around the text, and each way to have the first one."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    around = AutoTokenizer.from_pretrained(tiny_folder, bos_token="<|end|>")
    around.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[("<|end|>", around.eos_token_id)]
    )
    named = AutoTokenizer.from_pretrained(tiny_folder, bos_token="<|end|>")
    return [Prompter(tokenizer), Prompter(around), Prompter(around, bos="no"), Prompter(named, bos="yes")]


def prompter_texts(prompter: Prompter, pairs: list[tuple[str, str]]) -> list[Text]:
    scorer = object.__new__(LongScorer)
    scorer.prompter = prompter
    return scorer.texts([(scorer._prompt_text(question, None), answer) for question, answer in pairs])


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40), st.text(st.characters(codec="utf-8")))
@settings(max_examples=100, deadline=None)
def test_an_answers_tokens_spell_it_whatever_it_is(tokenizer_cases: list[Prompter], a: str, q: str) -> None:
    for prompter in tokenizer_cases:
        (text,) = prompter_texts(prompter, [(q, a)])
        assert text.ids == prompter.ids([prompter.text([], q) + " " + a])[0]
        spelled = prompter.tokenizer.decode(text.ids[text.first : text.last], clean_up_tokenization_spaces=False)
        assert spelled.removeprefix(" ") == a.removeprefix(" ")
        assert len(text.offsets) == text.last - text.first
        covered = {c for start, end in text.offsets for c in range(start, end)}
        assert covered >= {i for i, c in enumerate(a) if not c.isspace()}


def test_a_blank_that_is_a_token_of_its_own_is_not_the_answers(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    number, name = prompter_texts(Prompter(tokenizer), [("When?", "9 nine"), ("When?", "Nine 9")])
    assert tokenizer.decode(number.ids[number.first : number.last]) == "9 nine"
    assert tokenizer.decode(name.ids[name.first : name.last]) == " Nine 9"
    assert (number.offsets[0], name.offsets[0][0]) == ((0, 1), 0)


def test_the_end_of_a_text_is_not_the_answers(tokenizer_cases: list[Prompter]) -> None:
    for prompter in tokenizer_cases[1:3]:
        (text,) = prompter_texts(prompter, [("Who?", "Nobody")])
        assert text.ids[text.last :] == []
        assert text.ids[-1] != prompter.tokenizer.eos_token_id


def test_without_offsets_the_answer_begins_where_the_prompt_ends() -> None:
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    (text,) = prompter_texts(Prompter(tokenizer), [("Who?", "Nobody, at 9.")])
    assert tokenizer.decode(text.ids[text.first : text.last]) == "Nobody, at 9."
    assert text.ids[text.last :] == []
    assert ["Nobody, at 9."[a:b].strip() for a, b in text.offsets] == [c.strip() for c in "Nobody, at 9."]


def test_a_chat_template_is_asked_as_a_chat(model: PreTrainedModel, tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    prompter = Prompter(tokenizer, chat=True)
    (text,) = prompter_texts(prompter, [("Who?", "Nobody")])
    assert tokenizer.decode(text.ids) == "[user] Who?\n[assistant] Nobody"
    found = LongScorer(model, prompter).score(ROWS)
    assert found["scored_tokens"].to_list() == found["answer_tokens"].to_list()
    assert found["logprob"].max() < 0


def test_earlier_turns_stand_before_the_question(model: PreTrainedModel, tiny_folder: Path) -> None:
    scorer = LongScorer(model, Prompter(AutoTokenizer.from_pretrained(tiny_folder)))
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    told = ROWS.with_columns(context=pl.Series([turns] * ROWS.height, dtype=SCHEMA["context"]))
    plain, behind = scorer.score(ROWS), scorer.score(told)
    assert plain["logprob_alone"].equals(behind["logprob_alone"])
    assert not plain["logprob"].equals(behind["logprob"])
