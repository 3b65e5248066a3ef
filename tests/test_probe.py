"""The exact probe against real generation, on a tiny model that knows some facts and not others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from foreknow.data.schema import chunks, common_heads
from foreknow.inference import slick
from foreknow.inference.engine import Engine, PackedEngine, PlainEngine, Sampling
from foreknow.inference.exact_probe import Prober, ProbeSettings
from foreknow.inference.generate import Generator, Sampler, exact_head
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.prompt_builder import PromptBuilder
from foreknow.models import loading
from foreknow.prompts import few_shot
from foreknow.prompts.prompt_template import Prompter

SAMPLING = Sampling(temperature=0.9, top_k=40)


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> loading.Loaded:
    return loading.load_model(str(tiny_folder), dtype="float32", device="cpu")


@pytest.fixture
def rows(frame: pl.DataFrame) -> pl.DataFrame:
    """The facts, with aliases, a gold that is another's answer, and one the model can spell in many ways."""
    answers = frame["answers"].to_list()
    answers[3] = ["Dunwick", "dunwick", "The Dunwick", "River Dunw"]
    answers[5] = [answers[4][0]]
    answers[6] = ["Avens", "River Avens"]
    return frame.with_columns(answers=pl.Series(answers))


def prober(loaded: loading.Loaded, rows: pl.DataFrame, engine: Engine, **settings: object) -> Prober:
    drawn = few_shot.draw_exemplars(rows, sorted(rows["group"].unique()), shots=2, sets=4, seed=0)
    chosen = ProbeSettings(**settings)  # type: ignore[arg-type]
    prompts = PromptBuilder(Prompter(loaded.tokenizer), drawn, common_heads(rows))
    return Prober(engine, prompts, loading.vocabulary_of(loaded), chosen)


@pytest.fixture
def packed(loaded: loading.Loaded) -> Iterator[PackedEngine]:
    with PackedModel(loaded.model).attached() as attached:
        yield PackedEngine(attached, SAMPLING, 300)


def run(prober: Prober, rows: pl.DataFrame, size: int = 16) -> tuple[pl.DataFrame, pl.DataFrame]:
    found = [prober.probe(c) for c in chunks(rows, size)]
    return (
        pl.concat([c.probes for c in found]).sort("row", "exemplar_set"),
        pl.concat([c.answers for c in found]).sort("row"),
    )


def test_greedy_decisions_and_answers_are_those_of_generate(
    loaded: loading.Loaded, rows: pl.DataFrame, packed: PackedEngine
) -> None:
    exact = prober(loaded, rows, packed)
    probes, answers = run(exact, rows)
    loaded.model.set_attn_implementation("sdpa")
    with exact_head(loaded.model):
        sampler = Sampler(exact.prompts, Generator(loaded.model, exact.vocabulary, SAMPLING, 32), 16, 0)
        real = [sampler.probe(c) for c in chunks(rows, 16)]
    drawn = pl.concat([c.probes for c in real]).sort("row", "exemplar_set")
    columns = ["row", "exemplar_set", "greedy_correct", "greedy_lenient"]
    assert drawn.select(columns).to_dicts() == probes.select(columns).to_dicts()
    assert pl.concat([c.answers for c in real]).sort("row").equals(answers)
    assert 0.2 < probes["greedy_correct"].mean() < 0.9  # the model knows some, not all
    # hits against the stated probabilities: a z value beyond 4 would be a one in 16,000 accident
    p, hits = probes["p_correct"].to_numpy(), drawn["p_correct"].to_numpy() * 16
    z = (hits - 16 * p).sum() / np.sqrt((16 * p * (1 - p)).sum())
    assert abs(z) < 4
    # prompt by prompt: no count may be absurd under its own binomial
    tail = np.minimum(stats.binom.cdf(hits, 16, p), stats.binom.sf(hits - 1, 16, p))
    assert tail.min() > 1e-6


def test_the_plain_engine_gives_the_same(loaded: loading.Loaded, rows: pl.DataFrame, packed: PackedEngine) -> None:
    some = rows.head(12)
    ours, said = run(prober(loaded, rows, packed), some)
    loaded.model.set_attn_implementation("sdpa")
    plain, plain_said = run(prober(loaded, rows, PlainEngine(loaded.model, SAMPLING)), some)
    exact = ["row", "exemplar_set", "greedy_correct", "greedy_lenient", "expansions", "replaced_shots"]
    assert ours.select(exact).equals(plain.select(exact))
    assert said.equals(plain_said)
    for column in ("p_correct", "p_correct_upper", "p_lenient", "p_lenient_upper"):
        np.testing.assert_allclose(ours[column], plain[column], atol=2e-5)


@pytest.mark.parametrize("top_k", [0, 1, 5])
def test_other_top_k(loaded: loading.Loaded, rows: pl.DataFrame, packed: PackedEngine, top_k: int) -> None:
    some, sampling = rows.head(6), Sampling(0.7, top_k)
    ours, _ = run(prober(loaded, rows, PackedEngine(packed.packed, sampling, 300)), some)
    loaded.model.set_attn_implementation("sdpa")
    plain, _ = run(prober(loaded, rows, PlainEngine(loaded.model, sampling)), some)
    np.testing.assert_allclose(ours["p_correct"], plain["p_correct"], atol=2e-5)
    if top_k == 1:  # one token to draw from: a sample is the greedy answer
        np.testing.assert_allclose(ours["p_correct"], ours["greedy_correct"].cast(pl.Float64), atol=1e-6)


def test_intervals_are_tight_and_nested(loaded: loading.Loaded, rows: pl.DataFrame, packed: PackedEngine) -> None:
    wide, _ = run(prober(loaded, rows, packed, tolerance=5.0), rows)
    narrow, _ = run(prober(loaded, rows, packed, tolerance=1e-4, max_expansions=2000), rows)
    slack = 1e-5
    assert (narrow["p_correct"] >= wide["p_correct"] - slack).all()
    assert (narrow["p_correct_upper"] <= wide["p_correct_upper"] + slack).all()
    missing = (narrow["p_correct_upper"] - narrow["p_correct"]).to_numpy().reshape(-1, 4).sum(1)
    assert (16 * missing <= 1e-4 + 1e-9).all()
    assert narrow["expansions"].sum() > wide["expansions"].sum()


def test_aliases_add_up(loaded: loading.Loaded, rows: pl.DataFrame, packed: PackedEngine) -> None:
    """P(any of two answers) is the sum of each alone: their texts differ, so their masses are disjoint."""

    def p(answers: list[str]) -> float:
        one = rows.head(1).with_columns(answers=pl.Series([answers]))
        found, _ = run(prober(loaded, rows, packed, tolerance=1e-5, max_expansions=2000), one)
        return float(found["p_correct"].sum())

    both = p(["Avens", "Brigston"])
    assert both == pytest.approx(p(["Avens"]) + p(["Brigston"]), abs=1e-4)
    assert p(["Avens", "Avens ", " Avens"]) == pytest.approx(p(["Avens"]), abs=1e-5)


def test_a_result_depends_on_the_chunk_only(loaded: loading.Loaded, rows: pl.DataFrame, packed: PackedEngine) -> None:
    plan = chunks(rows, 16)
    straight = [prober(loaded, rows, packed).probe(c) for c in plan]
    again = PackedEngine(packed.packed, SAMPLING, 300)  # a new process: nothing cached, another chunk first
    resumed = prober(loaded, rows, again).probe(plan[-1])
    assert resumed.probes.equals(straight[-1].probes)


def test_a_row_never_sees_its_own_fact(loaded: loading.Loaded, rows: pl.DataFrame, packed: PackedEngine) -> None:
    exact = prober(loaded, rows, packed)
    probes, _ = run(exact, rows)
    replaced = probes.filter(pl.col("replaced_shots").list.len() > 0)
    assert replaced.height > 0
    dev = set(rows.filter(pl.col("split") == "dev")["row"])
    assert set(replaced["row"]) <= dev
    for part in chunks(rows, 48):
        found, prompts = exact.prompts.build(part)
        for row, line in zip(found, prompts, strict=True):
            question = rows.row(row.number, named=True)["question"]
            for prompt in line:
                assert loaded.tokenizer.decode(prompt.ids).count(question) == 1


def test_shots_none(loaded: loading.Loaded, rows: pl.DataFrame, packed: PackedEngine) -> None:
    drawn = few_shot.draw_exemplars(rows, ["capital", "river"], shots=0, sets=1, seed=0)
    prompts = PromptBuilder(Prompter(loaded.tokenizer), drawn)
    bare = Prober(packed, prompts, loading.vocabulary_of(loaded), ProbeSettings())
    probes, _ = run(bare, rows.head(3))
    assert probes.height == 3


def test_labels_do_not_hang_on_the_chunk_size(loaded: loading.Loaded, rows: pl.DataFrame, packed: PackedEngine) -> None:
    small, _ = run(prober(loaded, rows, packed), rows, 5)
    large, _ = run(prober(loaded, rows, packed), rows, 48)
    a, b = slick.label(small, samples=16), slick.label(large, samples=16)
    assert a["category"].equals(b["category"])
    np.testing.assert_allclose(a["p_sampled"], b["p_sampled"], atol=1e-5)
