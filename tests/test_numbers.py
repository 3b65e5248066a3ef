"""Numbers that cannot lie: what is not finite gets no label, ties and roundings are decided or counted."""

from __future__ import annotations

import html
import json
import math
import shutil
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreknow.config import AuditConfig
from foreknow.data.exact_match import Accepted, normalise
from foreknow.data.schema import common_heads
from foreknow.errors import ModelError
from foreknow.inference import slick
from foreknow.inference.answer_search import AnswerSearches
from foreknow.inference.engine import PackedEngine, PlainEngine, Sampling, nodes_of
from foreknow.inference.exact_probe import Prober, ProbeSettings
from foreknow.inference.expansion import Budget, paths_to_expand
from foreknow.inference.generate import Answer, Generator, Sampler, _Guard, answer_within, exact_head
from foreknow.inference.nodes import Node, Nodes
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.path_states import PathStates
from foreknow.inference.prompt_builder import PromptBuilder
from foreknow.models import loading
from foreknow.prompts import few_shot
from foreknow.prompts.prompt_template import PAPER, Prompter
from foreknow.prompts.vocabulary import Vocabulary
from foreknow.stages.audit import precision_check
from foreknow.stages.audit import run as audit_run
from foreknow.stages.audit.executor import PromptPlan
from foreknow.stages.audit.verdict.row_flags import MEANINGS

SAMPLING = Sampling(temperature=0.9, top_k=20)
ODD = "~"
"""A character no fact holds: its embedding can be broken alone."""


def broken(folder: Path, source: Path, value: float, where: str = "embedding") -> Path:
    """A copy of the tiny model with `value` in the embedding of `ODD`, or in the output head."""
    shutil.copytree(source, folder)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    (odd,) = tokenizer(ODD, add_special_tokens=False)["input_ids"]
    table = model.get_input_embeddings().weight
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(torch.nn.Linear(table.shape[1], table.shape[0], bias=False))
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(table)
        (table if where == "embedding" else model.get_output_embeddings().weight)[odd] = value
    model.save_pretrained(folder)
    return folder


def asked(folder: Path, facts: Path, odd: tuple[int, ...]) -> Path:
    """The facts with the odd character in some questions."""
    records = [json.loads(line) for line in facts.read_text().splitlines()]
    for row in odd:
        records[row]["question"] = f"{ODD} {records[row]['question']}"
    path = folder / "facts.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


# logits that are not finite


@pytest.mark.usefixtures("unchecked_weights")
@pytest.mark.parametrize("protocol", ["exact", "sampled"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_whose_logits_are_not_finite_gets_no_category_and_says_so(
    tmp_path: Path, tiny_folder: Path, facts_file: Path, value: float, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = (17, 20, 40)
    model = broken(tmp_path / "model", tiny_folder, value)
    config = AuditConfig(
        data=str(asked(tmp_path, facts_file, odd)), model=str(model), out=tmp_path / "audit", exemplars=facts_file,
        dtype="float32", device="cpu", shots=2, exemplar_sets=2, seed=0, protocol=protocol, samples=4,
    )  # fmt: skip
    audit = audit_run.run(config)
    flagged = audit.rows.filter(pl.col("flags").list.contains("not_finite"))
    assert tuple(flagged["row"]) == odd
    for column in ("category", "category_lenient", "p_greedy", "p_sampled", "p_hit", "p_hit_upper", "model_answer"):
        assert flagged[column].is_null().all(), column
    others = audit.rows.filter(~pl.col("row").is_in(odd))
    assert others["category"].is_not_null().all()
    assert audit.summary["labelled"] == 48 - len(odd)
    assert audit.summary["protocol"]["engine"] == ("packed" if protocol == "exact" else "generate")
    assert audit.summary["flags"]["not_finite"] == len(odd)
    labels = [json.loads(line) for line in (tmp_path / "audit/annotated.jsonl").read_text().splitlines()]
    assert [n for n, line in enumerate(labels) if line["category"] is None] == list(odd)
    assert "NaN" not in (tmp_path / "audit/annotated.jsonl").read_text()
    assert MEANINGS["not_finite"] in html.unescape((tmp_path / "audit/report.html").read_text())
    from foreknow.console import print_audit

    capsys.readouterr()
    print_audit(audit.summary)
    assert "3 rows get no category: the model's logits were not finite" in capsys.readouterr().out


@pytest.mark.usefixtures("unchecked_weights")
@pytest.mark.parametrize("engine", ["packed", "plain"])
def test_broken_logits_of_one_row_do_not_touch_its_neighbours(
    tmp_path: Path, tiny_folder: Path, frame: pl.DataFrame, engine: str
) -> None:
    """They are computed side by side: all others' probabilities stay as they are, to the last bit or nearly."""
    questions = frame["question"].to_list()
    for row in (18, 44):
        questions[row] = f"Is {ODD} {questions[row]}"
    rows = frame.with_columns(question=pl.Series(questions))
    found = {}
    for name, folder in (("sound", tiny_folder), ("broken", broken(tmp_path / "m", tiny_folder, math.nan))):
        loaded = loading.load_model(str(folder), dtype="float32", device="cpu")
        with PackedModel(loaded.model).attached() as packed:
            taken: Any = PackedEngine(packed, SAMPLING, 300)
            if engine == "plain":
                loaded.model.set_attn_implementation("sdpa")
                taken = PlainEngine(loaded.model, SAMPLING)
            drawn = few_shot.draw_exemplars(frame, ["capital", "river"], shots=1, sets=2, seed=0)
            prompts = PromptBuilder(Prompter(loaded.tokenizer), drawn)
            prober = Prober(taken, prompts, loading.vocabulary_of(loaded), ProbeSettings())
            found[name] = prober.probe(rows).probes
    other = ~pl.col("row").is_in([18, 44])
    assert found["broken"].filter(~other)["p_correct"].is_nan().all()
    assert not found["broken"].filter(~other)["greedy_correct"].any()
    a, b = found["sound"].filter(other), found["broken"].filter(other)
    assert a["greedy_correct"].equals(b["greedy_correct"])
    np.testing.assert_allclose(a["p_correct"], b["p_correct"], atol=1e-6)


def sampled(folder: Path, rows: pl.DataFrame, drawn_from: pl.DataFrame, values: torch.Tensor | None = None) -> Any:
    """The rows' probes by generation; `values`: what is added to the head's logits."""
    loaded = loading.load_model(str(folder), dtype="float32", device="cpu")
    if values is not None:
        head = torch.nn.Linear(64, 420)
        with torch.no_grad():
            head.weight.copy_(loaded.model.get_input_embeddings().weight)
            head.bias.copy_(values)
        loaded.model.config.tie_word_embeddings = False
        loaded.model.set_output_embeddings(head)
    drawn = few_shot.draw_exemplars(drawn_from, ["capital", "river"], shots=1, sets=2, seed=0)
    vocabulary = loading.vocabulary_of(loaded)
    with exact_head(loaded.model):
        prompts = PromptBuilder(Prompter(loaded.tokenizer), drawn)
        return Sampler(prompts, Generator(loaded.model, vocabulary, SAMPLING, 24), 4, 0).probe(rows)


@pytest.mark.usefixtures("unchecked_weights")
def test_broken_logits_of_one_row_do_not_touch_answers_generated_beside_it(
    tmp_path: Path, tiny_folder: Path, frame: pl.DataFrame
) -> None:
    questions = frame["question"].to_list()
    for row in (3, 5):
        questions[row] = f"Is {ODD} {questions[row]}"
    rows = frame.with_columns(question=pl.Series(questions)).head(9)
    sound = sampled(tiny_folder, rows, frame)
    unsound = sampled(broken(tmp_path / "m", tiny_folder, math.nan), rows, frame)
    other = ~pl.col("row").is_in([3, 5])
    figures = ["p_correct", "p_correct_upper", "p_lenient", "p_lenient_upper"]
    for figure in figures:
        assert unsound.probes.filter(~other)[figure].is_nan().all()
        assert unsound.probes.filter(other)[figure].is_finite().all()
    assert not unsound.probes.filter(~other)["greedy_correct"].any()
    same = ["row", "exemplar_set", "greedy_correct", "greedy_lenient"]
    assert unsound.probes.filter(other).select(same).equals(sound.probes.filter(other).select(same))
    assert unsound.answers.filter(other).equals(sound.answers.filter(other))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["one token", "every token"])
def test_answers_of_a_model_that_never_gives_a_distribution_are_worth_no_number(
    tiny_folder: Path, frame: pl.DataFrame, where: str, value: float
) -> None:
    values = torch.zeros(420)
    values[slice(5, 6) if where == "one token" else slice(None)] = value
    labels = slick.label(sampled(tiny_folder, frame.head(5), frame, values).probes, samples=4, sampled=True)
    whole = where == "one token" and value == -math.inf  # it cannot be drawn, and the others can
    assert labels["not_finite"].to_list() == [not whole] * 5
    assert labels["category"].is_null().to_list() == [not whole] * 5


@dataclass(frozen=True)
class Tells:
    """Says "x" to everything; the greedy answer to the prompt `greedy`, and one drawn for `drawn`, is not sound."""

    greedy: int
    drawn: int

    def generate(self, prompts: Any, limits: Any, draws: int | None, seed: int) -> list[list[Answer]]:
        del limits, seed
        odd = self.greedy if draws is None else self.drawn
        return [[Answer("x", True, sound=(i, k) != (odd, 0)) for k in range(draws or 1)] for i in range(len(prompts))]


def test_one_answer_that_is_not_sound_makes_its_prompt_worth_no_number(tiny_folder: Path, frame: pl.DataFrame) -> None:
    loaded = loading.load_model(str(tiny_folder), dtype="float32", device="cpu")
    drawn = few_shot.draw_exemplars(frame, ["capital", "river"], shots=1, sets=2, seed=0)
    prompts = PromptBuilder(Prompter(loaded.tokenizer), drawn)
    found = Sampler(prompts, Tells(greedy=1, drawn=4), 4, 0).probe(frame.head(3)).probes
    assert found["p_correct"].is_nan().to_list() == [False, True, False, False, True, False]
    assert slick.label(found, samples=4, sampled=True)["not_finite"].to_list() == [True, False, True]


def test_logits_that_are_not_finite_end_an_answer_and_none_that_has_ended_is_marked() -> None:
    guard = _Guard(2, [4, 1])
    plain = torch.tensor([2.0, -math.inf, 0.5, 1.0, 0.0])
    rows = [plain, plain.clone(), plain.clone(), torch.full((5,), -math.inf), plain.clone()]
    rows[1][3], rows[2][3], rows[4][0] = math.nan, math.inf, math.nan
    before = torch.stack(rows)
    ids = torch.tensor([[4, 4, 3], [4, 4, 3], [4, 4, 2], [4, 4, 0], [3, 3, 1]])  # only the last has ended
    found = guard(ids, before.clone())
    assert guard.unsound is not None
    assert guard.unsound.tolist() == [False, True, True, True, False]
    assert torch.equal(found[0], plain)
    assert torch.multinomial(found[1:].softmax(-1), 1).flatten().tolist() == [4] * 4
    guard(torch.cat([ids, torch.full((5, 1), 4)], dim=1), torch.full((5, 5), math.nan))
    assert guard.unsound.tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(("limit", "sound"), [(1, True), (2, True), (3, False)])
def test_what_stands_beyond_an_answers_tokens_is_not_unsound(limit: int, sound: bool) -> None:
    found = answer_within(VOCABULARY, (1, 2), limit, sound=False)
    assert (found.ended, found.sound) == (False, sound)


probability = st.floats(0, 1) | st.sampled_from([math.nan, math.inf, -math.inf, None])


@given(
    st.lists(st.tuples(probability, probability, probability, probability, st.booleans()), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_no_label_is_made_of_what_is_no_number(probes: list[Any], lenient: bool, sampled: bool) -> None:
    lines = [
        {"row": 0, "exemplar_set": j, "greedy_correct": g, "greedy_lenient": g, "p_correct": a, "p_correct_upper": b,
         "p_lenient": c, "p_lenient_upper": d, "expansions": 0, "replaced_shots": []}
        for j, (a, b, c, d, g) in enumerate(probes)
    ]  # fmt: skip
    (row,) = slick.label(
        pl.DataFrame(lines, schema=slick.PROBES), samples=16, sampled=sampled, lenient=lenient
    ).to_dicts()
    finite = all(p is not None and math.isfinite(p) for probe in probes for p in probe[:4])
    assert row["not_finite"] is not finite
    assert (row["category"] is None) is not finite
    assert (row["category_lenient"] is None) is not finite
    assert all(value is None or math.isfinite(value) for value in row.values() if isinstance(value, float))
    if not finite:
        assert not row["undecided"]


@pytest.mark.parametrize(
    ("p_greedy", "hit"), [(math.nan, 0.5), (0.0, math.nan), (math.inf, 0.1), (None, 0.2), (1.0, None)]
)
def test_the_category_of_what_is_no_number_is_null(p_greedy: float | None, hit: float | None) -> None:
    frame = pl.DataFrame({"g": [p_greedy], "h": [hit]}, schema={"g": pl.Float64, "h": pl.Float64})
    assert frame.select(slick.category(pl.col("g"), pl.col("h"))).item() is None


WORDS = ("\n", "Par", "is", "x")
VOCABULARY = Vocabulary(lambda path: "".join(WORDS[t] for t in path), frozenset({0}), frozenset())


@pytest.mark.parametrize("unsound", [Node(2**63 - 1, [], [], 0.0), Node(3, [], [], math.nan)])
def test_a_search_that_meets_no_distribution_ends_and_is_worth_no_number(unsound: Node) -> None:
    states = PathStates(VOCABULARY)
    root = states.root(("Paris",))
    par, paris = states.at(root, [(1,), (1, 2)])
    two = np.array([0, 1])
    searches = AnswerSearches(states, np.repeat(root, 2), np.full(2, 4), 1e-9)
    spent, budget = np.zeros(2, dtype=np.int64), Budget(0.01, 10, 16)
    searches.feed(two, np.repeat(root, 2), Nodes.of([Node(1, [1, 3], [0.9, 0.1])] * 2))
    assert paths_to_expand(searches, 2, spent, budget) == {(0, par), (1, par)}
    (end,) = searches.feed(two[:1], np.array([par]), Nodes.of([unsound]))
    assert VOCABULARY.is_end(int(end)), "what the model says ends where it has no distribution"
    assert np.isnan([searches.strict[0], searches.lenient[0]]).all()
    assert searches.unsearched()[0] == searches.unsearched(lenient=True)[0] == 0
    assert (searches.greedy_done[0], searches.greedy_strict[0], searches.greedy_lenient[0]) == (True, False, False)
    assert paths_to_expand(searches, 1, spent, budget) == {(1, par)}
    assert paths_to_expand(searches, 2, spent, budget) == set(), "both prompts are one row's"
    searches.feed(two[:1], np.array([paris]), Nodes.of([Node(0, [0], [1.0])]))
    assert math.isnan(searches.strict[0])
    searches.feed(two, np.array([-1, par]), Nodes.of([unsound, Node(2, [2], [1.0])]))
    assert searches.sound.tolist() == [False, True]


# minus infinity among the logits


def test_a_token_of_minus_infinity_cannot_be_drawn_and_the_others_keep_their_shares() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -math.inf], [1.0, -math.inf, -math.inf, -math.inf]])
    ids = torch.tensor([[7, 3, 9, 0], [4, 0, 0, 0]])
    one, other = nodes_of(ids, logits, Sampling(0.5, 3))
    assert one.is_sound
    assert list(one.tokens) == [7, 3, 9]
    assert one.greedy == 7
    np.testing.assert_allclose(one.p, np.exp([4, 2, 0]) / np.exp([4, 2, 0]).sum())
    assert (list(other.tokens), list(other.p), other.greedy, other.is_sound) == ([4], [1.0], 4, True)


@pytest.mark.parametrize("line", [[math.nan, 1.0, 0.0], [math.inf, 1.0, 0.0], [-math.inf] * 3, [math.nan] * 3])
@pytest.mark.parametrize("total", [None, math.nan])
def test_a_line_of_logits_that_is_not_finite_is_no_distribution(line: list[float], total: float | None) -> None:
    whole = None if total is None else torch.tensor([total, math.log(3.0)])
    unsound, sound = nodes_of(torch.tensor([[0, 1, 2]] * 2), torch.tensor([line, [0.0] * 3]), Sampling(1.0, 3), whole)
    assert not unsound.is_sound
    assert sound.is_sound
    np.testing.assert_allclose(sound.p, [1 / 3] * 3)


# ties


def test_the_greedy_choice_among_equals_is_the_one_generation_makes(tiny_folder: Path, frame: pl.DataFrame) -> None:
    """Every token's output row stands twice: each arg max is a tie, and the lowest id wins in every engine."""
    loaded = loading.load_model(str(tiny_folder), dtype="float32", device="cpu")
    model = loaded.model
    head = torch.nn.Linear(64, 420, bias=False)
    table = model.get_input_embeddings().weight.detach().clone()
    order = torch.arange(420)
    order[0::2] = order[1::2] = torch.arange(0, 420, 2)  # ids 2k and 2k + 1 score the same
    with torch.no_grad():
        head.weight.copy_(table[order])
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    drawn = few_shot.draw_exemplars(frame, ["capital", "river"], shots=1, sets=1, seed=0)
    vocabulary = loading.vocabulary_of(loaded)
    some = frame.head(12)
    with PackedModel(model).attached() as packed:
        builder = PromptBuilder(Prompter(loaded.tokenizer), drawn)
        prober = Prober(PackedEngine(packed, SAMPLING, 300), builder, vocabulary, ProbeSettings())
        ours = prober.probe(some)
        _, prompts = builder.build(some)
        _, nodes = prober.engine.open([line[0] for line in prompts], [[] for _ in prompts])
    assert not (nodes.greedy % 2).any()
    assert (nodes.p[:, 0] == nodes.p[:, 1]).all()
    model.set_attn_implementation("sdpa")
    plain = PlainEngine(model, SAMPLING)
    _, again = plain.open([line[0] for line in prompts], [[] for _ in prompts])
    assert again.greedy.tolist() == nodes.greedy.tolist()
    with exact_head(model):
        real = Sampler(builder, Generator(model, vocabulary, SAMPLING, 32), 16, 0).probe(some)
    assert real.answers.equals(ours.answers)
    assert real.probes["greedy_correct"].equals(ours.probes["greedy_correct"])


# answers that normalising leaves nothing of


def test_no_text_is_normalised_away() -> None:
    """Every character that is no letter, alone: or two answers of which nothing is left would be one."""
    every = (c for c in map(chr, range(sys.maxunicode + 1)) if c.strip() and not c.isalnum())
    assert [c for c in every if unicodedata.category(c) not in ("Cn", "Co") and not normalise(c)] == []


def test_an_empty_answer_is_never_accepted() -> None:
    for golds in (["..."], ["the"], ["The", "a"], ["\u200b"], ["\u00a8"], ["''"], ["?!", "the the"], ["\u3000x"]):
        accepted = Accepted.of(golds)
        for said in ("", " ", "\u3000", "\ufeff ", "\n"):
            assert not accepted.right(said, "strict")
            assert not accepted.right(said, "lenient")
        assert all(accepted.right(gold, mode) for gold in golds for mode in ("strict", "lenient"))
    assert not Accepted.of(["...", "  ", ""]).right("!!!", "lenient")


# nothing ends an answer


def test_a_model_whose_answers_cannot_end_is_refused() -> None:
    with pytest.raises(ModelError, match="neither an end-of-sequence token nor a line break"):
        Vocabulary(str, frozenset(), frozenset())


# bfloat16 against float32


def drawn_of(frame: pl.DataFrame) -> PromptPlan:
    found = few_shot.draw_exemplars(frame, ["capital", "river"], shots=2, sets=2, seed=0)
    return PromptPlan(PAPER, found, frame, frame.clear(), common_heads(frame), frame)


def test_the_same_rows_in_float32_differ_where_bfloat16_rounds(tiny_folder: Path, frame: pl.DataFrame) -> None:
    config = AuditConfig(data="x", model=str(tiny_folder), dtype="bfloat16", device="cpu", exemplar_sets=2, shots=2)
    draw = drawn_of(frame)
    loaded = {kind: loading.load_model(str(tiny_folder), dtype=kind, device="cpu") for kind in ("bfloat16", "float32")}
    probes = {}
    for kind, one in loaded.items():
        with PackedModel(one.model).attached() as packed:
            engine = PackedEngine(packed, Sampling(config.temperature, config.top_k), 2048)
            prompts = PromptBuilder(Prompter(one.tokenizer), draw.exemplars, draw.heads)
            prober = Prober(engine, prompts, loading.vocabulary_of(one), ProbeSettings())
            probes[kind] = prober.probe(frame).probes
    found = precision_check.compare_precision(config, draw, probes["bfloat16"], "bfloat16")
    assert found is not None
    rows = precision_check.sample(frame)["row"]
    ours, exact = (probes[kind].filter(pl.col("row").is_in(rows.implode())) for kind in ("bfloat16", "float32"))
    labels = [slick.label(some, samples=16)["category"] for some in (ours, exact)]
    assert found == {
        "dtype": "bfloat16",
        "rows": 16,
        "greedy_compared": 32,
        "greedy_differ": (ours["greedy_correct"] != exact["greedy_correct"]).sum(),
        "categories_differ": (labels[0] != labels[1]).sum(),
    }
    assert not np.allclose(ours["p_correct"], exact["p_correct"], atol=1e-6), "bfloat16 rounds"
    turned = probes["bfloat16"].with_columns(~pl.col("greedy_correct"))
    other = precision_check.compare_precision(config, draw, turned, "bfloat16")
    assert other is not None
    assert other["greedy_differ"] == 32 - found["greedy_differ"]
    assert "of 32 greedy decisions on 16 rows" in precision_check.format_differences(found)


def test_what_needs_no_comparison_gets_none(frame: pl.DataFrame) -> None:
    config = AuditConfig(data="x", model="nowhere", device="cpu")
    none = pl.DataFrame(schema=slick.PROBES)
    assert precision_check.compare_precision(config, drawn_of(frame), none, "float32") is None
    assert (
        precision_check.compare_precision(config, drawn_of(frame)._replace(rows=frame.clear()), none, "bfloat16")
        is None
    )
    sampled = config.model_copy(update={"protocol": "sampled"})
    assert precision_check.compare_precision(sampled, drawn_of(frame), none, "bfloat16") is None


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_for_a_float32_copy_is_said(
    frame: pl.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(precision_check.loading, "load_from_settings", full)
    config = AuditConfig(data="x", model="m", device="cpu")
    assert (
        precision_check.compare_precision(config, drawn_of(frame), pl.DataFrame(schema=slick.PROBES), "bfloat16")
        is None
    )
    assert "bfloat16 is not compared with float32: there is too little memory" in capsys.readouterr().err


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(1, 20), st.integers(1, 6))
def test_the_sample_is_spread_over_groups_and_depends_on_the_rows_alone(of: list[int], most: int, groups: int) -> None:
    rows = pl.DataFrame({"row": range(len(of)), "group": [f"g{n}" for n in of]})
    found = precision_check.sample(rows, most, groups)
    assert found["row"].n_unique() == found.height <= most
    assert found["group"].n_unique() <= groups
    assert precision_check.sample(rows.sample(fraction=1.0, shuffle=True, seed=1), most, groups).equals(found)
    if most >= groups:
        assert found["group"].n_unique() == min(groups, len(set(of)))


def test_what_differs_is_counted_row_by_row() -> None:
    def probes(greedy: list[bool], p: list[float]) -> pl.DataFrame:
        lines = [
            {"row": n // 2, "exemplar_set": n % 2, "greedy_correct": g, "greedy_lenient": not g, "p_correct": q,
             "p_correct_upper": q, "p_lenient": q, "p_lenient_upper": q, "expansions": 0, "replaced_shots": []}
            for n, (g, q) in enumerate(zip(greedy, p, strict=True))
        ]  # fmt: skip
        return pl.DataFrame(lines, schema=slick.PROBES)

    ours = probes([True, True, False, False, True, True], [0.9] * 6)
    exact = probes([True, False, False, False], [0.9, 0.9, 0.0, math.nan])
    counts = precision_check.differences(ours, exact, samples=16)
    assert counts == {"rows": 2, "greedy_compared": 4, "greedy_differ": 1, "categories_differ": 2}
    assert precision_check.differences(ours, exact, samples=16, lenient=True)["greedy_differ"] == 1
    assert precision_check.differences(exact, exact, samples=16)["categories_differ"] == 0


@pytest.mark.parametrize("top_k", [0, 20])
@pytest.mark.parametrize("engine", ["packed", "plain"])
@pytest.mark.parametrize("where", ["one token", "every token"])
def test_a_model_that_never_gives_a_distribution_labels_nothing(
    tiny_folder: Path, frame: pl.DataFrame, engine: str, where: str, top_k: int
) -> None:
    loaded = loading.load_model(str(tiny_folder), dtype="float32", device="cpu")
    head = torch.nn.Linear(64, 420, bias=False)
    with torch.no_grad():
        head.weight.copy_(loaded.model.get_input_embeddings().weight)
        head.weight[slice(5, 6) if where == "one token" else slice(None)] = math.nan
    loaded.model.config.tie_word_embeddings = False
    loaded.model.set_output_embeddings(head)
    sampling = Sampling(0.9, top_k)
    with PackedModel(loaded.model).attached() as packed:
        taken: Any = PackedEngine(packed, sampling, 300)
        if engine == "plain":
            loaded.model.set_attn_implementation("sdpa")
            taken = PlainEngine(loaded.model, sampling)
        drawn = few_shot.draw_exemplars(frame, ["capital", "river"], shots=1, sets=2, seed=0)
        prompts = PromptBuilder(Prompter(loaded.tokenizer), drawn)
        prober = Prober(taken, prompts, loading.vocabulary_of(loaded), ProbeSettings())
        labels = slick.label(prober.probe(frame.head(9)).probes, samples=16)
    assert labels["not_finite"].all()
    assert labels["category"].is_null().all()
