"""P(True) against the model's own forward pass over the written-out prompt, option by option."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import foreknow
from conftest import fact_rows, tiny_model
from foreknow.inference.engine import PackedEngine, PlainEngine, Prompt
from foreknow.inference.loglikelihood import LongScorer
from foreknow.prompts.few_shot import Exemplar, GroupExemplars
from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.audit import p_true
from foreknow.stages.audit.p_true import (
    PTrueSettings,
    Question,
    Scorer,
    compute_p_true,
    pool_of,
    question_of,
    solved_examples,
)
from foreknow.stages.audit.result import AuditResult


@pytest.fixture(scope="module")
def audit(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    """Rows that stand among each other's exemplars, and one without an answer."""
    folder = tmp_path_factory.mktemp("ptrue")
    rows = [{k: v for k, v in row.items() if k != "split"} for row in fact_rows()]
    rows = [*rows[:10], *rows[24:34], {"question": "Which river crosses nothing?", "answer": None, "relation": "river"}]
    data = folder / "facts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"dtype": "float32", "device": "cpu", "exemplar_sets": 3, "shots": 2}
    return foreknow.audit(str(data), model=str(tiny_folder), out=str(folder / "audit"), **options)


@pytest.fixture
def copy(audit: AuditResult, tmp_path: Path) -> Callable[[str], AuditResult]:
    def copied(name: str) -> AuditResult:
        return AuditResult(Path(shutil.copytree(audit.folder, tmp_path / name)))

    return copied


def written(question: str, gold: str) -> str:
    return f"Question: {question}\nProposed Answer: {gold}\n(A) True\n(B) False\nThe proposed answer is:"


@pytest.mark.parametrize("shots", [0, 4])
def test_every_score_is_that_of_a_forward_pass_over_the_whole_prompt(
    copy: Callable[[str], AuditResult], tiny_folder: Path, shots: int
) -> None:
    out = copy("one")
    found = compute_p_true(out, settings=PTrueSettings(shots=shots, chunk=7))
    assert found.equals(pl.read_parquet(out.folder / "ptrue.parquet"))
    assert dict(found.schema) == p_true.PTRUE
    known = out.rows.filter(pl.col("category").is_not_null())
    assert found["row"].to_list() == known["row"].to_list() == list(range(20))
    assert found["p_true"].is_between(0, 1).all()
    assert found["p_true"].n_unique() > 10
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    exemplars = json.loads((out.folder / "exemplars.json").read_text())
    probes = out.probes
    replaced = 0
    for row in known.to_dicts():
        own = probes.filter(pl.col("row") == row["row"]).sort("exemplar_set")["replaced_shots"].to_list()
        gone = {(j, s["slot"]) for j, shown in enumerate(own) for s in shown}
        replaced += len(gone)
        pool: list[Exemplar] = []
        for j, one in enumerate(exemplars[row["group"]]):
            for slot, e in enumerate(one):
                if (j, slot) not in gone and e["question"] not in [p.question for p in pool]:
                    pool.append(Exemplar(e["question"], e["answer"], None))
        text = "".join(
            f"{s.question} {s.answer}\n\n" for s in solved_examples(pool, row["group"], PTrueSettings(shots=shots))
        )
        assert row["question"] not in text  # the row's own fact is never shown solved
        text += written(row["question"], row["answer"])
        logs = []
        for letter in "AB":
            ids = tokenizer(f"{text} ({letter})", return_tensors="pt")["input_ids"]
            other = tokenizer(f"{text} ({'B' if letter == 'A' else 'A'})")["input_ids"]
            first = next(n for n, (a, b) in enumerate(zip(ids[0].tolist(), other, strict=True)) if a != b)
            with torch.inference_mode():
                log_p = model(ids).logits[0].log_softmax(-1)
            logs.append(float(log_p[first - 1, ids[0, first]]))
        expected = math.exp(logs[0]) / (math.exp(logs[0]) + math.exp(logs[1]))
        ours = found.filter(pl.col("row") == row["row"])["p_true"].item()
        assert ours == pytest.approx(expected, abs=2e-5)
    assert replaced > 0


def test_an_interrupted_run_goes_on_and_ends_the_same(
    copy: Callable[[str], AuditResult],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    whole, cut = copy("whole"), copy("cut")
    asking = PTrueSettings(chunk=6)
    compute_p_true(whole, tmp_path / "whole.parquet", asking)
    asked = PackedEngine.open
    calls = []

    def stops(self: PackedEngine, *given: object) -> object:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return asked(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(PackedEngine, "open", stops)
    with pytest.raises(KeyboardInterrupt):
        compute_p_true(cut, tmp_path / "cut.parquet", asking)
    assert not (tmp_path / "cut.parquet").exists()
    monkeypatch.setattr(PackedEngine, "open", asked)
    capsys.readouterr()
    compute_p_true(cut, tmp_path / "cut.parquet", asking)
    assert "2 of 4 chunks are finished" in capsys.readouterr().err
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not (cut.folder / ".ptrue").exists()


def test_options_among_unlikely_tokens_are_scored_all_the_same(tiny_folder: Path, frame: pl.DataFrame) -> None:
    """A vocabulary of 3,000 tokens: the engine lists 512 of them, and the options are seldom among those."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    model = tiny_model(3000, tokenizer.eos_token_id).eval()
    prompter = Prompter(tokenizer, p_true.TEMPLATE)
    engine = PlainEngine(model, p_true.WHOLE)
    scorer = Scorer(engine, prompter, LongScorer(model, prompter), PTrueSettings(shots=0))
    rows = frame.head(12)
    questions = scorer.questions(rows, [[]] * 12)
    _, nodes = engine.open([q.prompt for q in questions], [q.tree for q in questions])
    letters = {option[span.start] for q in questions for option, span in zip(q.options, q.spans, strict=True)}
    sizes = [1 + len(q.tree) for q in questions]
    assert any(not letters <= set(opened[-1].tokens) for opened in nodes.split(sizes))
    found = scorer.score(rows, [[]] * 12)
    for row, p in found.rows():
        text = written(rows["question"][row], rows["answers"][row][0])
        logs = []
        for letter in "AB":
            ids = tokenizer(f"{text} ({letter})", return_tensors="pt")["input_ids"]
            at = next(n for n in range(ids.shape[1] - 1, 0, -1) if letter in tokenizer.decode(ids[0, n]))
            with torch.inference_mode():
                logs.append(float(model(ids).logits[0, at - 1].log_softmax(-1)[ids[0, at]]))
        assert p == pytest.approx(1 / (1 + math.exp(logs[1] - logs[0])), abs=2e-5)


def asked(a: tuple[int, ...], b: tuple[int, ...]) -> Question:
    return Question(Prompt(((),), 0, 0, (1,)), (a, b))


def test_options_that_differ_in_one_token_are_told_apart_by_it_and_others_whole() -> None:
    assert asked((7, 8, 9), (7, 5, 9)).spans == (range(1, 2), range(1, 2))
    assert asked((7, 8, 9), (7, 5, 9)).tree == [(7,)]
    assert asked((8, 9), (5, 9)).tree == []
    # ` (A` in one token, ` (`, `B` in two: all that follows the common beginning counts
    question = asked((3, 9), (7, 5, 9))
    assert question.spans == (range(0, 2), range(0, 3))
    assert question.tree == [(3,), (7,), (7, 5)]


pools = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from(["Avens", "avens", "Brigston", "Callow"])), max_size=10
).map(lambda some: [Exemplar(f"What is the capital of {n}?", answer, None) for n, answer in some])


@given(pools, st.integers(0, 8), st.sampled_from(["P17", "P36", "P40"]))
def test_half_of_the_solved_examples_are_false(pool: list[Exemplar], shots: int, group: str) -> None:
    found = solved_examples(pool, group, PTrueSettings(shots=shots))
    assert len(found) == min(shots, len(pool))
    false = [i for i, shot in enumerate(found) if shot.answer == "(B)"]
    distinct = {e.answer.casefold() for e in pool}
    assert len(false) == (len(found) // 2 if len(distinct) > 1 else 0)
    for i, (shot, exemplar) in enumerate(zip(found, pool, strict=False)):
        honest = shot.question == question_of(exemplar.question, exemplar.answer)
        assert honest == (i not in false)
        if not honest:
            shown = shot.question.split("Proposed Answer: ")[1].split("\n")[0]
            assert shown.casefold() != exemplar.answer.casefold()


def test_a_row_s_own_fact_is_not_in_its_pool() -> None:
    one, two, three = (Exemplar(f"What is {n}?", n.upper(), None) for n in "abc")
    group = GroupExemplars(((one, two), (three, one)), ())
    assert pool_of(group, "What is z?", None) == [one, two, three]
    assert pool_of(group, "what is A?", None) == [two, three]
    replaced_shots = [[{"slot": 1, "question": "q", "answer": "a"}], []]
    assert pool_of(group, "Which one is b?", replaced_shots) == [one, three]
