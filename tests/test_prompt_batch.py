"""A row's prompts that are put together from parts are those that the tokenizer gives for the whole text."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from builders import random_model, rows_frame
from foreknow.data import exact_match
from foreknow.data.exact_match import Accepted, MatchResult, canonical, canonical_parts, may_become, normalise
from foreknow.data.schema import common_heads
from foreknow.inference import packed_attention
from foreknow.inference.exact_probe import probes_frame
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.packing import Segment, TokenTree
from foreknow.inference.prompt_builder import PreparedRow, PromptBuilder
from foreknow.inference.slick import PROBES
from foreknow.models import loading
from foreknow.prompts import few_shot, prompt_batch
from foreknow.prompts.few_shot import Exemplar, Substitution
from foreknow.prompts.prompt_batch import GroupPrompts, PromptEncoder, splits_by_pattern
from foreknow.prompts.prompt_template import PAPER, Prompter, Template
from foreknow.prompts.special_tokens import SpecialTokens
from foreknow.prompts.vocabulary import Vocabulary
from test_packed import CONFIGS, draw

CITIES = ["Paris", "Lima", "Oslo", "Quito", "Rome", "Tunis", "Accra", "Bern", "Dakar", "Delhi", "Hanoi", "Cairo"]


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as most language models have one."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    texts = [f"Q: In which country is the city of {c}?\nA: {c}land\n" for c in CITIES]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def facts(questions: list[str]) -> pl.DataFrame:
    return rows_frame(
        {"question": question, "answers": [f"Land {n}", f"l\u00e4nd {n}"], "subject": f"s{n}"}
        for n, question in enumerate(questions)
    )


def prompt_builder(
    tokenizer: PreTrainedTokenizerFast,
    rows: pl.DataFrame,
    heads: dict[str, str] | None = None,
    template: Template = PAPER,
) -> PromptBuilder:
    exemplars = few_shot.draw_exemplars(rows, ["all"], shots=2, sets=3, seed=0)
    return PromptBuilder(Prompter(tokenizer, template), exemplars, common_heads(rows) if heads is None else heads)


QUESTIONS = [f"In which country is the city of {c}?" for c in CITIES]
ODD = [" padded", "\u0301accent first", "two\nlines", "</s> is spelled", "12 34", "", "\U0001f600 emoji", "Q: A:"]


@pytest.mark.parametrize("questions", [QUESTIONS, [*QUESTIONS[:6], *ODD], ODD])
def test_prompts_and_answer_paths_are_those_of_whole_texts(
    byte_level: PreTrainedTokenizerFast, questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = facts(questions)
    assert splits_by_pattern(byte_level)
    ours, prompts = prompt_builder(byte_level, rows).build(rows)
    monkeypatch.setattr(prompt_batch, "splits_by_pattern", lambda _: False)
    whole, whole_prompts = prompt_builder(byte_level, rows).build(rows)
    assert [[p.ids for p in line] for line in prompts] == [[p.ids for p in line] for line in whole_prompts]
    assert prompts == whole_prompts
    assert [(row.tree, row.max_new) for row in ours] == [(row.tree, row.max_new) for row in whole]


def test_answers_encoded_apart_from_their_prompts_get_the_ids_they_have_behind_them(
    byte_level: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = [
        "'s Land",
        "12 34",
        "\u0301x",
        "</s>",
        "two\nlines",
        "/x",
        " padded ",
        "(A)",
        "\U0001f600",
        "La",
        "La",
        "\u00e9",
    ]
    rows = rows_frame(
        {"question": question, "answers": ["Land", answer], "subject": question}
        for question, answer in zip(QUESTIONS, odd, strict=True)
    )
    texts: list[str] = []
    encode = SpecialTokens.encode

    def counted(special: SpecialTokens, some: list[str], **more: bool) -> object:
        texts.extend(some)
        return encode(special, some, **more)

    monkeypatch.setattr(SpecialTokens, "encode", counted)
    ours, _ = prompt_builder(byte_level, rows, {}, LINES).build(rows)
    assert texts.count(" Land") == texts.count(" La") == 1, "once for all rows that have it"
    assert sum(text.endswith("A: Land") for text in texts) == 1, "the proof's"
    monkeypatch.setattr(prompt_batch, "splits_by_pattern", lambda _: False)
    whole, _ = prompt_builder(byte_level, rows, {}, LINES).build(rows)
    assert [(row.tree, row.max_new) for row in ours] == [(row.tree, row.max_new) for row in whole]


def test_rows_that_begin_alike_are_encoded_without_an_exemplar(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    rows = facts(QUESTIONS)
    ours = prompt_builder(byte_level, rows, {}, LINES)
    ours.build(rows)
    assert ours._groups["all"].single is not None
    assert len(ours._groups["all"].shots) == 0


def test_a_group_whose_prompts_differ_is_encoded_whole(
    byte_level: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = facts(QUESTIONS)
    _, expected = prompt_builder(byte_level, rows).build(rows)
    made = prompt_batch.group_prompts

    def wrong(*given: object) -> GroupPrompts:
        group = made(*given)  # type: ignore[arg-type]
        assert group.single is not None
        return group._replace(family=(group.family[0], group.family[1][:-1], *group.family[2:]))

    monkeypatch.setattr("foreknow.inference.prompt_builder.group_prompts", wrong)
    _, prompts = prompt_builder(byte_level, rows).build(rows)
    assert [[p.ids for p in line] for line in prompts] == [[p.ids for p in line] for line in expected]


LINES = Template(shot="Q:\n{question}\nA: {answer}\n", target="Q:\n{question}\nA:")
"""A template whose questions begin a line, so that the tokenizer of these tests gives their beginning the same ids."""


def test_later_chunks_prove_a_group_on_one_prompt(
    byte_level: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = facts(QUESTIONS)
    sizes: list[list[int]] = []
    whole = prompt_batch.PromptEncoder._whole

    def counted(encoder: PromptEncoder, records: list[object], sets: list[list[object]]) -> object:
        sizes.append([len(own) for own in sets])
        return whole(encoder, records, sets)  # type: ignore[arg-type]

    monkeypatch.setattr(prompt_batch.PromptEncoder, "_whole", counted)
    ours = prompt_builder(byte_level, rows, {}, LINES)
    assert [ours.build(rows)[1], ours.build(rows)[1]] == [
        prompt_builder(byte_level, rows, {}, LINES).build(rows)[1]
    ] * 2
    proofs = [own for own in sizes if own]
    assert proofs[:2] == [[3], [1]]


def test_a_group_that_a_later_chunk_disproves_is_encoded_whole(byte_level: PreTrainedTokenizerFast) -> None:
    rows = facts(QUESTIONS)
    ours = prompt_builder(byte_level, rows, {}, LINES)
    _, expected = ours.build(rows)
    group = ours._groups["all"]
    assert group.is_proven
    ours._groups["all"] = group._replace(family=tuple(ids[:-1] for ids in group.family))
    assert [[p.ids for p in line] for line in ours.build(rows)[1]] == [[p.ids for p in line] for line in expected]


def test_a_tokenizer_that_splits_nothing_is_not_trusted() -> None:
    unsplit = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    assert not splits_by_pattern(PreTrainedTokenizerFast(tokenizer_object=unsplit))
    looks_back = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    from tokenizers import Regex

    looks_back.pre_tokenizer = pre_tokenizers.Split(Regex("(?<=a)b"), "isolated")
    assert not splits_by_pattern(PreTrainedTokenizerFast(tokenizer_object=looks_back))


def test_pieces_spell_what_the_tokenizer_decodes(byte_level: PreTrainedTokenizerFast) -> None:
    texts = [byte_level.decode([n]) for n in range(len(byte_level))]
    vocabulary = Vocabulary(byte_level.decode, frozenset({0}), frozenset(), texts)
    ids = byte_level("Z\u00fcrich 12, \U0001f600 and \u4e2d\u6587 land")["input_ids"]
    for n, token in enumerate(ids):
        path = tuple(ids[:n])
        text = byte_level.decode(list(path)) if path else ""
        assert vocabulary.decode_next(text, path, token) == byte_level.decode(ids[: n + 1])


WORDS = ["the", "a", "an", "The", "New", "york", "U.S.", "st", "t", "th", " ", "-", ".", "'", "\t", "9", "he", "\u00e9"]
TEXT = st.lists(st.sampled_from([*WORDS, " "]), max_size=6).map("".join)


def _judge_any(accepted: Accepted, text: str) -> MatchResult:
    """What `Accepted.judge` says of a text that is not ASCII, whose last step this repeats for all texts."""
    whole = text.rstrip("\ufffd")
    finished = canonical(whole) in accepted.strict
    head = canonical_parts(whole.lstrip())
    strict_open = finished or any(may_become(head, part) for part in accepted.parts)
    lenient = normalise(whole) in accepted.lenient
    return MatchResult(finished, lenient, strict_open, lenient or strict_open or accepted._lenient_open(whole))


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=3), TEXT, TEXT, st.integers(0, 8))
def test_ascii_texts_are_judged_alike_and_no_open_one_is_excluded(
    answers: list[str], text: str, piece: str, cut: int
) -> None:
    accepted = Accepted.of(answers)
    for before in (text, answers[0][:cut], "the " + answers[0][:cut]):
        for after in (piece, answers[0][len(before) : len(before) + 3]):
            expected = _judge_any(accepted, before + after)
            assert accepted.judge(before + after) == expected
            openings = accepted.openings(before)
            if openings is not None and openings.exclude(after):
                assert not expected.lenient_open


def test_openings_exclude_most_tokens() -> None:
    openings = Accepted.of(["New York"]).openings("New")
    assert openings is not None
    pieces = (" Yo", " London", "port", "-y", " the", ".", "z", " Yard", " York ", "yo", " a", " their")
    assert [p for p in pieces if openings.exclude(p)] == [" London", "port", "z", " Yard", " their"]
    assert openings.exclude("y York") is False, "a piece of several words is known by its first letter"
    openings = Accepted.of(["Z\u00fcrich"]).openings("Z")
    assert openings is not None
    assert [p for p in ("\u00fcr", "u", "\u0308", "o", "\u00f6", "\ufffd", " v") if openings.exclude(p)] == [
        *("o", "\u00f6", " v"),
    ]
    openings = Accepted.of(["Z\u00fcrich"]).openings("\u201cZ\u00fc")
    assert openings is not None
    assert [p for p in ("rich", "\u0308", "\u00fc", "a", " b") if openings.exclude(p)] == ["\u00fc", "a", " b"]
    assert Accepted.of(["Z\u00fcrich"]).openings("Z\ufffd") is None, "the next token completes the character"


ODD_CHARACTERS = st.sampled_from(
    "aAtThHeE .-\u2019\u2013\u0301\u0327\u0345\u00e9\u0130\u00df\u01f0\u0149\u017f\ufb01\u212a\u00bd\u2460\u00b2"
    "\u1100\u1161\u11a8\uac00\u0640\u200b\ufe0f\u03b9\u1fb3\ufe70\u3000\u0e33\u0915\u093c\u09c7\u09be"
)
"""Characters that join, vanish, or become several others when texts are normalised."""


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.text(st.one_of(ODD_CHARACTERS, st.characters()), max_size=5), min_size=1, max_size=3),
    st.text(st.one_of(st.characters(max_codepoint=127), ODD_CHARACTERS, st.characters()), max_size=4),
    st.text(st.one_of(ODD_CHARACTERS, st.characters()), max_size=3),
    st.integers(0, 4),
)
def test_no_text_in_any_script_is_excluded_that_could_become_right(
    answers: list[str], text: str, piece: str, cut: int
) -> None:
    accepted = Accepted.of(answers)
    for before in (text, answers[0][:cut], canonical_parts(answers[0])[:cut], normalise(answers[0])[:cut]):
        openings = accepted.openings(before)
        for answer in (answers[0], canonical_parts(answers[0]), normalise(answers[0])):
            for after in (piece, answer[len(before) : len(before) + 2], " " + answer[len(before) :]):
                if openings is not None and openings.exclude(after):
                    assert not _judge_any(accepted, before + after).lenient_open


def test_one_call_for_all_segments_gives_what_one_for_each_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = PackedModel(random_model(CONFIGS["llama"]))
    rows = [[draw(10 + i, n) for i, n in enumerate((1, 4, 7))], [draw(20 + i, n) for i, n in enumerate((15, 2))]]
    tree = TokenTree([5, 6, 7, 8], [-1, 0, 0, 1], [1, 2, 3])

    def states() -> tuple[torch.Tensor, list[torch.Tensor]]:
        prefixes = [*packed.prefixes([draw(1, 11), draw(2, 17)]), None]
        segments = [
            Segment(p, [*(TokenTree.chain(r, range(len(r))) for r in some), tree])
            for p, some in zip(prefixes, [*rows, rows[0]], strict=True)
        ]
        out, caches = packed.forward(segments, keep=True)
        return out, [k[row.first :][: row.length] for rows in caches for row in rows for k, _ in row.cache.layers]

    calls: list[int] = []
    in_blocks = packed_attention._attend_in_blocks
    monkeypatch.setattr(packed_attention, "_attend_in_blocks", lambda *a: (calls.append(1), in_blocks(*a))[1])
    with packed.attached():
        together, kept = states()
        assert len(calls) == 2 * 3, "both passes, all three layers"
        monkeypatch.setattr(packed_attention, "_takes_row_blocks", lambda *_: False)
        apart, kept_apart = states()
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    for one, other in zip(kept, kept_apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_frame_of_probes_with_and_without_replaced_shots() -> None:
    swapped = [Substitution(1, Exemplar("q", "a", None)), Substitution(0, Exemplar("r", "b", "s"))]

    rows = [PreparedRow(7, ("a",), [], 5, [[], swapped]), PreparedRow(2, ("b",), [], 5, [[], []])]
    figures = {
        **dict.fromkeys(("p_correct", "p_correct_upper", "p_lenient", "p_lenient_upper"), (0.1, 0.2, 0.3, 0.4)),
        **dict.fromkeys(("greedy_correct", "greedy_lenient"), (True, False) * 2),
        "expansions": (0, 1, 2, 3),
    }
    frame = probes_frame(rows, 2, figures)
    assert frame.schema == PROBES
    assert frame["row"].to_list() == [2, 2, 7, 7]
    assert frame["exemplar_set"].to_list() == [0, 1, 0, 1]
    assert frame["expansions"].to_list() == [2, 3, 0, 1]
    assert frame["replaced_shots"].to_list() == [
        *([], [], []),
        [{"slot": 1, "question": "q", "answer": "a"}, {"slot": 0, "question": "r", "answer": "b"}],
    ]
    assert probes_frame([], 2, dict.fromkeys(figures, ())).schema == PROBES
    half = {name: values[2:] for name, values in figures.items()}
    assert probes_frame(rows[1:], 2, half)["replaced_shots"].to_list() == [[], []]


def test_loaded_vocabularies_join_pieces_only_where_bytes_are_joined(tiny_folder: Path) -> None:
    loaded = loading.load_model(str(tiny_folder), dtype="float32", device="cpu")
    decoder = type(loaded.tokenizer.backend_tokenizer.decoder).__name__
    assert (loading.vocabulary_of(loaded).pieces is not None) == (decoder == "ByteLevel")


def test_the_modules_agree_on_what_is_dropped() -> None:
    assert {chr(n) for n in exact_match._DROPPED_ASCII} == {
        chr(n) for n in range(128) if exact_match._is_dropped(chr(n))
    }
