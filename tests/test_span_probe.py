"""Fact spans in place, against a slow computation by the model's own forward pass and by generate."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from builders import load, rows_frame
from conftest import CAPITALS, RIVERS
from foreknow.config import AuditConfig
from foreknow.data.spans.finder import AnswerText, Span
from foreknow.data.spans.rules import RuleFinder
from foreknow.data.spans.schema import CUT, FEW_ALTERNATIVES, NO_ALTERNATIVES, is_new
from foreknow.inference.answer_tokens import tokenize_answers
from foreknow.inference.engine import Sampling
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.span_categories import recognition
from foreknow.inference.span_distributions import word_ending_tokens
from foreknow.inference.span_engine import PackedTrees, PlainTrees, TreeEngine
from foreknow.inference.span_probe import IN_EXEMPLARS, SpanProber, SpanSettings
from foreknow.inference.span_tree import TOKEN_EDGES, SpanText, SpanTree, span_paths, word_ends
from foreknow.models.loading import Loaded
from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.audit.span_plan import PlannedSpans, plan_spans

NAMES = list(CAPITALS)
HOSTILE = [
    "<|im_start|>user\n", "<|end|>", "</s>", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1f3\U0001f1f4",
    "e\u0301", "\u05d9\u05e8\u05d5\u05e9\u05dc\u05d9\u05dd", "\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f",
    "\u0926\u093f\u0932\u094d\u0932\u0940", "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e", "\u6771\u4eac",
    "| Avens | 12 km |\n|---|---|\n", "```py\nx = 10\n```\n", "\r\n", "\t", "\u200b", "\xa0", "\ufeff", "Avens",
    "Brigston", "1999", "1,500.75", "HTLV-1", "H1N1", "acetazolamide", ".", ", ", " ",
    "What is the capital of Avens?", "\n\n",
]  # fmt: skip
"""Pieces of chat marks, emoji, combining marks, right-to-left text, scripts without blanks, a table and code."""
POSITIONS = 512


def answer_of(name: str, number: int) -> str:
    """A few sentences about a country of the tiny model's world; the first words are those it was trained on."""
    return (
        f"{CAPITALS[name]}.\nQ: Which river crosses {name}?\nA: {RIVERS[name]}\nIn {1000 + 37 * number} the people of "
        f"{NAMES[-1 - number]} counted {number}50 mg of salt (Gold) there."
    )


def long_rows(count: int = 8) -> pl.DataFrame:
    return rows_frame(
        {
            "question": f"What is the capital of {name}?",
            "answers": [answer_of(name, row)],
            "record": row,
            "flags": ["long_answer"],
        }
        for row, name in enumerate(NAMES[:count])
    )


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> Loaded:
    return load(tiny_folder)


@pytest.fixture(scope="module")
def prompter(loaded: Loaded) -> Prompter:
    return Prompter(loaded.tokenizer)


def config(**settings: object) -> AuditConfig:
    return AuditConfig.model_validate(
        {"data": "x", "span_shots": 1, "span_sets": 3, "span_alternatives": 3, **settings}
    )


def plan(rows: pl.DataFrame, prompter: Prompter, given: AuditConfig) -> PlannedSpans:
    planned = plan_spans(given, rows, rows, None, prompter, POSITIONS, "x")
    assert planned is not None
    return planned


def prober_of(
    loaded: Loaded, prompter: Prompter, planned: PlannedSpans, engine: TreeEngine, given: AuditConfig
) -> SpanProber:
    settings = SpanSettings(
        Sampling(given.temperature, given.top_k),
        given.samples,
        given.span_sets,
        given.span_shots,
        given.span_alternatives,
        positions=POSITIONS,
    )
    ends = word_ending_tokens(loaded.tokenizer, loaded.model.config.vocab_size)
    return SpanProber(engine, prompter, planned.plan.exemplars, settings, ends)


def packed(
    loaded: Loaded, prompter: Prompter, rows: pl.DataFrame, given: AuditConfig, tokens: int = 700
) -> pl.DataFrame:
    planned = plan(rows, prompter, given)
    with PackedModel(loaded.model).attached() as model:
        return prober_of(loaded, prompter, planned, PackedTrees(model, tokens), given).probe(planned.long, "rules")


class Oracle:
    """Computes a span's figures behind one prompt from whole texts, one forward pass for each."""

    def __init__(self, loaded: Loaded, prompter: Prompter, given: AuditConfig):
        self.loaded, self.prompter, self.given = loaded, prompter, given
        self.logits = lru_cache(maxsize=None)(self._logits)

    @torch.inference_mode()
    def _logits(self, ids: tuple[int, ...]) -> torch.Tensor:
        return self.loaded.model(torch.tensor([ids])).logits[0].double()

    def ends(self, token: int, after: int | None) -> bool:
        """Whether a token does not go on with a word: judged by the text it adds behind a letter."""
        tokenizer = self.loaded.tokenizer
        letter = tokenizer("a")["input_ids"]
        text = tokenizer.decode([*letter, token])[1:]
        return token == after or (
            not (text[:1].isalnum() or text[:1] in ("\ufffd", "_") or text[:1] == "\u0300")
            and not (text[:1] in (".", ",") and text[1:2].isdigit())
        )

    def __call__(
        self, prompt: str, answer: str, start: int, end: int, other: str | None = None
    ) -> tuple[bool, float, float]:
        """(greedy says it, P(sample), log p at temperature 1) of the span, or of `other` in its place."""
        whole = self.prompter.encoded([prompt + answer])[0]
        at = len(prompt)
        covering = [n for n, (a, b) in enumerate(whole.offsets) if b > at + start and a < at + end and b > a]
        first, last = covering[0], covering[-1] + 1
        after = whole.ids[last] if last < len(whole.ids) else None
        ids = whole.ids[:last]
        if other is not None:
            ids = self.prompter.ids([prompt + answer[:start] + other])[0]
            assert ids[:first] == whole.ids[:first]
        logits = self.logits(tuple(ids))
        greedy, p, logp = True, 1.0, 0.0
        for n in range(first, len(ids)):
            row = logits[n - 1]
            greedy &= int(row.argmax()) == ids[n]
            kept = row.masked_fill(row < row.topk(self.given.top_k).values[-1], -math.inf) / self.given.temperature
            p *= float(kept.softmax(-1)[ids[n]])
            logp += float(row.log_softmax(-1)[ids[n]])
        row = logits[-1]
        mask = torch.tensor([self.ends(token, after) for token in range(len(row))])
        kept = row.masked_fill(row < row.topk(self.given.top_k).values[-1], -math.inf) / self.given.temperature
        greedy &= bool(mask[int(row.argmax())])
        return greedy, p * float(kept.softmax(-1)[mask].sum()), logp + math.log(float(row.softmax(-1)[mask].sum()))


def test_probabilities_are_those_of_the_models_own_forward_pass(loaded: Loaded, prompter: Prompter) -> None:
    given, rows = config(), long_rows()
    frame, planned = packed(loaded, prompter, rows, given), plan(rows, prompter, given)
    oracle = Oracle(loaded, prompter, given)
    compared = 0
    spans = {(row, s["start"]): s for row, own in planned.long.select("row", "fact_spans").iter_rows() for s in own}
    for line in frame.iter_rows(named=True):
        record = rows.row(line["row"], named=True)
        if TOKEN_EDGES in line["flags"] or line["category"] is None:
            continue
        answer = record["answers"][0]
        sets = planned.plan.exemplars.for_row("all", record["question"], answer, None, record["record"])
        assert len(sets) == 3
        assert all(shot.question != record["question"] for shots in sets for shot in shots)
        prompts = [prompter.text(shots, record["question"]) + " " for shots in sets]
        scores = [oracle(prompt, answer, line["start"], line["end"]) for prompt in prompts]
        assert line["p_greedy"] == pytest.approx(sum(greedy for greedy, _, _ in scores) / 3)
        assert line["p_sampled"] == pytest.approx(sum(p for _, p, _ in scores) / 3, rel=1e-4, abs=1e-9)
        hit = 1 - math.prod((1 - p) ** 16 for _, p, _ in scores)
        assert line["p_hit"] == pytest.approx(hit, rel=1e-4, abs=1e-8)
        others = spans[line["row"], line["start"]]["alternatives"]
        if not others:
            assert line["recognised"] is None
            assert NO_ALTERNATIVES in line["flags"]
            continue
        logps = [oracle(prompts[0], answer, line["start"], line["end"], other)[2] for other in others]
        wanted = recognition([scores[0][2]], [logps])
        assert line["alternatives"] == len(others)
        assert line["p_recognised"] == pytest.approx(wanted["p_recognised"], rel=1e-3)
        assert line["rank"] == wanted["rank"]
        compared += 1
    assert compared > 20
    assert frame.filter(pl.col("p_greedy") > 0).height > 3, "the tiny model knows some of them"
    assert frame["category"].n_unique() > 1


def test_the_greedy_figure_is_what_generate_says(loaded: Loaded, prompter: Prompter) -> None:
    given, rows = config(), long_rows()
    frame, planned = packed(loaded, prompter, rows, given), plan(rows, prompter, given)
    said = []
    for line in frame.filter(pl.col("type") == "name").iter_rows(named=True):
        record = rows.row(line["row"], named=True)
        answer = record["answers"][0]
        sets = planned.plan.exemplars.for_row("all", record["question"], answer, None, record["record"])
        hits = 0
        for shots in sets:
            before = prompter.text(shots, record["question"]) + " " + answer[: line["start"]]
            ids = torch.tensor([prompter.ids([before.rstrip(" ")])[0]])
            made = loaded.model.generate(ids, max_new_tokens=14, do_sample=False, pad_token_id=0)
            text = loaded.tokenizer.decode(made[0, ids.shape[1] :]).lstrip(" ")
            following = text[len(line["text"]) :]
            hits += text.startswith(line["text"]) and not following[:1].isalnum()
        said.append((line["p_greedy"], hits / len(sets)))
    assert len(said) > 8
    assert [a for a, _ in said] == pytest.approx([b for _, b in said])
    assert {a > 0 for a, _ in said} == {True, False}


def test_packed_and_plain_passes_agree_whatever_the_batch(loaded: Loaded, prompter: Prompter) -> None:
    given, rows = config(), long_rows(5)
    planned = plan(rows, prompter, given)
    one = packed(loaded, prompter, rows, given)
    plain = prober_of(loaded, prompter, planned, PlainTrees(loaded.model), given).probe(planned.long, "rules")
    assert_frame_equal(one, plain, abs_tol=1e-5)
    assert_frame_equal(one, packed(loaded, prompter, rows, given, tokens=64), abs_tol=1e-5)
    assert_frame_equal(one, packed(loaded, prompter, rows, given))


@pytest.mark.parametrize("tokens", [700, 64])
def test_rows_of_all_exemplar_sets_share_passes_of_at_most_about_batch_tokens(
    loaded: Loaded, prompter: Prompter, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    forward, passes = PackedModel.forward, []

    def counting(self: PackedModel, segments: Any, *, keep: bool = False) -> Any:
        passes.append(segments)
        return forward(self, segments, keep=keep)

    monkeypatch.setattr(PackedModel, "forward", counting)
    packed(loaded, prompter, long_rows(5), config(), tokens)
    trunks = [segments for segments in passes if segments[0].prefix is not None and segments[0].past is None]
    sizes = [[len(tree.ids) for segment in segments for tree in segment.branches] for segments in trunks]
    assert all(sum(own) <= tokens or len(own) == 1 for own in sizes)
    assert sum(map(len, sizes)) == 15  # five rows behind three sets
    prefixes = {tuple(segment.prefix.ids) for segment in trunks[0]}
    assert len(prefixes) > 1 if tokens == 700 else len(trunks) > 4


def test_spans_behind_the_models_positions_are_cut(loaded: Loaded, prompter: Prompter) -> None:
    rows = long_rows(6).with_columns(
        answers=pl.col("answers").list.eval(pl.element() + (" again and again" * 90) + " by Nobody Else.")
    )
    frame = packed(loaded, prompter, rows, config())
    late = frame.filter(pl.col("text") == "Nobody Else")
    assert late.height == 6
    assert all(CUT in flags for flags in late["flags"])
    assert late["category"].null_count() == 6
    assert late["p_sampled"].null_count() == 6
    assert frame.filter(~pl.col("flags").list.contains(CUT))["category"].null_count() == 0


def test_a_span_inside_a_token_is_scored_by_the_tokens_that_cover_it(loaded: Loaded, prompter: Prompter) -> None:
    import json

    answer = "Avens. The River Aven crosses it."
    edge = {"start": 1, "end": 4}
    rows = long_rows(6)
    first = rows.head(1).with_columns(
        answers=pl.Series([[answer]]), spans=pl.Series([json.dumps([edge, "River Aven"])])
    )
    rows = pl.concat([first, rows.tail(5)])
    frame = packed(loaded, prompter, rows, config())
    assert frame["text"].to_list() == ["ven", "River Aven"]
    assert TOKEN_EDGES in frame["flags"][0] or "open_end" in frame["flags"][0]
    assert frame["category"].null_count() == 0
    assert frame["type"].to_list() == ["own", "own"]


def test_a_span_that_an_exemplar_shows_is_flagged(loaded: Loaded, prompter: Prompter) -> None:
    rows = long_rows(6).with_columns(answers=pl.col("answers").list.eval(pl.element() + " So says Emil Storm."))
    frame = packed(loaded, prompter, rows, config())
    shown = frame.filter(pl.col("text") == "Emil Storm")
    assert shown.height == 6
    assert all(IN_EXEMPLARS in flags for flags in shown["flags"])


def test_a_span_with_few_alternatives_is_judged_by_its_category_alone(loaded: Loaded, prompter: Prompter) -> None:
    frame = packed(loaded, prompter, long_rows(4), config(span_alternatives=9))
    few = frame.filter(pl.col("alternatives").is_between(1, 4))
    assert few.height > 3
    assert all(FEW_ALTERNATIVES in flags for flags in few["flags"])
    assert few["recognised"].null_count() == few.height
    assert few["rank"].null_count() == 0
    unknown = (few["category"] == "Unknown").alias("new")
    assert few.select(new=is_new()).to_series().equals(unknown)


def test_one_row_alone_is_probed_without_exemplars(loaded: Loaded, prompter: Prompter) -> None:
    frame = packed(loaded, prompter, long_rows(1), config())
    assert frame.height > 2
    assert all("zero_shot" in flags for flags in frame["flags"])
    assert frame["category"].null_count() == 0


def test_a_number_may_be_written_with_or_without_commas(loaded: Loaded, prompter: Prompter) -> None:
    def p_of(text: str) -> float:
        rows = long_rows(6)
        own = rows.head(1).with_columns(answers=pl.Series([[f"Avens. It has {text} inhabitants in all."]]))
        frame = packed(loaded, prompter, pl.concat([own, rows.tail(5)]), config(temperature=4.0, top_k=0))
        return float(frame.filter(pl.col("text") == text)["p_sampled"][0])

    with_comma, without = p_of("12,500"), p_of("12500")
    assert with_comma == pytest.approx(without, rel=1e-3)
    assert 0 < with_comma < 1e-3


def test_paths_of_a_tree_share_tokens_and_every_way_ends_in_a_leaf() -> None:
    tree = SpanTree([5, 6, 7, 8])
    own = tree.add(1, (7, 8))
    other = tree.add(1, (7, 9))
    third = tree.add(1, (9, 9))
    assert (own.before, own.last) == ([1, 2], 3)
    assert (other.before, other.last) == ([1, 2], 4)
    assert (third.before, third.last) == ([1, 5], 6)
    ways = [[tree.ids[node] for node in way] for way in tree.sequences()]
    assert sorted(ways) == [[5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 9, 9]]
    assert [(branch.at, branch.nodes) for branch in tree.branches()] == [(1, [5, 6]), (2, [4])]


def test_the_likeliest_of_all_has_rank_1_and_ties_count_against_the_span() -> None:
    first = recognition([-1.0, -2.0], [[-3.0, -2.0], [-2.0, -4.0]])
    assert first == {
        "recognised": True,
        "rank": 1,
        "alternatives": 2,
        "p_recognised": pytest.approx(math.exp(-1.5) / (math.exp(-1.5) + math.exp(-2.5) + math.exp(-3.0))),
    }
    assert recognition([-1.0], [[-1.0]])["rank"] == 2


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (" the", True),
        ("ing", False),
        (".", True),
        (".5", False),
        (",000", False),
        ("", True),
        ("\n", True),
        ("\u00e9", False),
        ("\u0301", False),
        ("\u094d\u0932", False),
        ("\u0940", False),
        ("\u0650", False),
        ("\u05b8", False),
        ("\u0964", True),
    ],
)
def test_what_ends_a_word(text: str, ends: bool) -> None:
    assert word_ends([text]) == [ends]


@given(st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=12).map("".join), st.data())
@settings(max_examples=150, deadline=None)
def test_no_text_gives_a_wrong_place(prompter: Prompter, answer: str, data: st.DataObject) -> None:
    """text[start:end] is the span, its tokens cover it, and spelling it again gives the same characters."""
    question = "What is the capital of Avens?"
    found = RuleFinder([answer]).find([AnswerText(0, answer, question)])[0]
    start = data.draw(st.integers(0, len(answer) - 1))
    drawn = Span(start, data.draw(st.integers(start + 1, len(answer))), "name")
    prompt = f"Q: {question}\nA:{prompter.gap}"
    (text,) = tokenize_answers(prompter, [(prompt, answer)])
    for span in (*found, *([drawn] if answer[drawn.start : drawn.end].strip() else [])):
        own = answer[span.start : span.end]
        paths = span_paths(prompter, prompt, answer, text, SpanText(*span, ()))
        assert paths is not None
        offsets = text.offsets[paths.first : paths.last]
        assert min(a for a, _ in offsets) <= span.start
        assert max(b for _, b in offsets) >= span.end
        ids = text.ids[text.first + paths.first : text.first + paths.last]
        assert tuple(ids) == paths.spellings[0]
        whole = str(prompter.tokenizer.decode(ids))
        assert own in whole or "\ufffd" in whole, "a token may hold a part of a character"
        assert len(ids) == 1 or all(b > span.start for _, b in offsets), (
            "no token in front of the span is taken with it"
        )


def test_an_answer_of_fifty_thousand_characters_keeps_its_places(prompter: Prompter) -> None:
    answer = "".join(HOSTILE[n % len(HOSTILE)] + " " for n in range(9_000))[:50_000]
    (text,) = tokenize_answers(prompter, [("A: ", answer)])
    found = RuleFinder([answer]).find([AnswerText(0, answer, "")])[0]
    assert found
    for span in (found[0], found[len(found) // 2], found[-1]):
        paths = span_paths(prompter, "A: ", answer, text, SpanText(*span, ()))
        assert paths is not None
        ids = text.ids[text.first + paths.first : text.first + paths.last]
        assert answer[span.start : span.end] in str(prompter.tokenizer.decode(ids))
