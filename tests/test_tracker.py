"""The tracker against real greedy generation, and what its outcomes come to: curves, best epoch, overfitting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreknow.categories import CATEGORIES, UNKNOWN
from foreknow.data.exact_match import Accepted, answer_of
from foreknow.errors import ConfigError
from foreknow.inference.packed_attention import UnsupportedModel
from foreknow.inference.packed_model import PackedModel
from foreknow.prompts.prompt_template import Prompter, Template
from foreknow.stages.train import answer_loss, curves, selection, tracker
from foreknow.stages.train.answer_loss import open_pass
from foreknow.stages.train.dataset import SET, LabelledSplit
from foreknow.stages.train.tracker import EvalModelCopy, Tracker, vocabulary_for
from foreknow.stages.train.training_examples import TRAINING, examples


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def rows(frame: pl.DataFrame) -> pl.DataFrame:
    """The facts as a set, with aliases, other spellings, and a gold that is another's answer."""
    answers = frame["answers"].to_list()
    answers[3] = ["Dunwick", "dunwick", "The Dunwick"]
    answers[5] = ["nothing of the sort", answers[5][0]]
    extra = {
        "category": pl.Series([CATEGORIES[n % 4] if n else None for n in range(frame.height)]),
        "weight": pl.Series([1.0] * frame.height),
        "loss_exclude": pl.Series([None] * frame.height, dtype=SET["loss_exclude"]),
        "answers": pl.Series(answers),
    }
    return frame.with_columns(**extra).select(*[name for name in SET if name in {*frame.columns, *extra}])


def generated(model: Any, tokenizer: Any, prompter: Prompter, rows: pl.DataFrame) -> list[tuple[bool, bool]]:
    """Strict and lenient outcome of every row by `generate`, one row at a time."""
    found = []
    model.eval()
    for question, answers in rows.select("question", "answers").iter_rows():
        ids = torch.tensor(prompter.ids([prompter.text((), question)]))
        made = model.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.eos_token_id)[0]
        new = made[ids.shape[1] :].tolist()
        ended = tokenizer.eos_token_id in new or "\n" in tokenizer.decode(new)
        said = answer_of(tokenizer.decode(new, skip_special_tokens=True))
        accepted = Accepted.of(answers)
        found.append((ended and accepted.right(said, "strict"), ended and accepted.right(said, "lenient")))
    return found


@pytest.mark.parametrize("template", [TRAINING, Template(target="Q: {question}\nA:")], ids=["paper", "known"])
def test_outcomes_are_those_of_generate_before_during_and_after_training(
    model: Any, tokenizer: Any, rows: pl.DataFrame, template: Template
) -> None:
    prompter = Prompter(tokenizer, template)
    # every third row accepts another case only: what is learnt there is right leniently
    shouted = pl.when(pl.col("row") % 3 == 0).then(pl.col("answers").list.eval(pl.element().str.to_uppercase()))
    asked = rows.with_columns(answers=shouted.otherwise("answers"))
    measure = Tracker(
        prompter, vocabulary_for(model, tokenizer), {"dev": asked}, lenient=True, batch_tokens=300, chunk_rows=16
    )
    strict = Tracker(prompter, vocabulary_for(model, tokenizer), {"dev": asked})
    lessons = examples(LabelledSplit("train", "x", rows, 0, "", ""), prompter, tokenizer.eos_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    right = []
    with open_pass(model, lessons[:2]) as (losses, _):
        for steps in (0, 8, 60):
            model.train()
            for _ in range(steps):
                _, loss = losses.losses(lessons)
                loss.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            ours = measure(model).select("correct", "lenient").rows()
            assert strict(model).select("correct", "lenient").rows() == [(right, None) for right, _ in ours]
            assert model.training
            model.set_attn_implementation("sdpa")
            theirs = generated(model, tokenizer, prompter, asked)
            model.set_attn_implementation(answer_loss.ATTENTION)
            model.train()
            assert ours == theirs
            right.append(sum(strict for strict, _ in ours))
    # something to tell apart: some rows right, some not, more of them leniently
    assert 5 < right[2] < rows.height
    assert sum(lenient for _, lenient in ours) > right[2]


def test_plain_passes_measure_the_same(
    model: Any, tokenizer: Any, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompter = Prompter(tokenizer, Template(target="Q: {question}\nA:"))
    packed = Tracker(prompter, vocabulary_for(model, tokenizer), {"dev": rows})
    found = packed(model)
    assert packed.note is None

    def refuse(*_: object) -> None:
        raise UnsupportedModel("no packing today")

    monkeypatch.setattr(PackedModel, "verify", refuse)
    plain = Tracker(prompter, vocabulary_for(model, tokenizer), {"dev": rows})
    assert plain(model).equals(found)
    assert "no packing today" in str(plain.note)
    assert found["correct"].any()


def test_of_train_the_gold_alone_counts(model: Any, tokenizer: Any, rows: pl.DataFrame) -> None:
    prompter = Prompter(tokenizer, Template(target="Q: {question}\nA:"))
    vocabulary = vocabulary_for(model, tokenizer)
    known = Tracker(prompter, vocabulary, {"dev": rows})(model).filter(pl.col("correct"))["row"].to_list()
    # the model's own answer, behind another gold: right in dev, not fitted in train
    other = rows.filter(pl.col("row").is_in(known)).with_columns(
        answers=pl.concat_list(pl.lit("Atlantis"), pl.col("answers"))
    )
    both = Tracker(prompter, vocabulary, {"dev": other, "train": other})(model)
    assert both.filter(pl.col("set") == "dev")["correct"].all()
    assert not both.filter(pl.col("set") == "train")["correct"].any()
    assert len(known) > 5


def test_an_answer_of_two_lines_is_fitted_when_generate_writes_it(
    model: Any, tokenizer: Any, rows: pl.DataFrame
) -> None:
    prompter = Prompter(tokenizer, TRAINING)
    two = rows.head(12).with_columns(answers=pl.concat_list(pl.col("answers").list.first() + "\nand that is all"))
    measure = Tracker(prompter, vocabulary_for(model, tokenizer), {"train": two, "dev": rows.tail(4)}, batch_tokens=300)
    lessons = examples(LabelledSplit("train", "x", two, 0, "", ""), prompter, tokenizer.eos_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    counts = []
    with open_pass(model, lessons[:2]) as (losses, _):
        for steps in (0, 25, 60):
            model.train()
            for _ in range(steps):
                _, loss = losses.losses(lessons)
                loss.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            ours = measure(model).filter(pl.col("set") == "train")["correct"].to_list()
            model.set_attn_implementation("sdpa")
            theirs = [
                written_by_generate(model, tokenizer, prompter, *row)
                for row in two.select("question", "answers").rows()
            ]
            model.set_attn_implementation(answer_loss.ATTENTION)
            assert ours == theirs
            counts.append(sum(ours))
    assert counts[0] == 0
    assert counts[2] > 6


def written_by_generate(model: Any, tokenizer: Any, prompter: Prompter, question: str, answers: list[str]) -> bool:
    """Whether greedy generation writes the gold whole, line break and all, and then ends."""
    ids = torch.tensor(prompter.ids([prompter.text((), question)]))
    made = model.eval().generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.eos_token_id)[0]
    new = made[ids.shape[1] :].tolist()
    return tokenizer.eos_token_id in new and tokenizer.decode(new, skip_special_tokens=True).strip() == answers[0]


def test_measuring_leaves_everything_as_it_was(model: Any, tokenizer: Any, rows: pl.DataFrame) -> None:
    measure = Tracker(Prompter(tokenizer), vocabulary_for(model, tokenizer), {"dev": rows.head(8)})
    model.train()
    model.model.layers[0].mlp.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    measure(EvalModelCopy(torch.bfloat16).of(model))
    measure(model)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model.model.layers[0].mlp.training
    assert model.config._attn_implementation == "sdpa"


def test_a_mirror_is_the_saved_model_in_its_dtype(model: Any, tiny_folder: Path, tmp_path: Path) -> None:
    mirror = EvalModelCopy(torch.bfloat16)
    mirror.of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    copy = mirror.of(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    found = dict(copy.named_parameters()) | dict(copy.named_buffers())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
    assert mirror.of(copy) is copy


def lines(*epochs: tuple[float, float], unknown: bool = True) -> list[curves.Line]:
    """Evaluations with (dev EM, share of Unknown fitted)."""
    return [
        {
            "epoch": n, "step": n * 10, "train_loss": 1.0, "fitted": {UNKNOWN: fitted} if unknown else {},
            "em": {"dev": em}, "em_lenient": {"dev": em}, "em_by_category": {}, "em_by_relation": {},
        }
        for n, (em, fitted) in enumerate(epochs, start=1)
    ]  # fmt: skip


def test_overfitting_begins_where_unknown_rises_and_dev_falls() -> None:
    # the paper's curve at 50 % Unknown (section 4), as epochs 1, 2, ...
    paper = [(39, 0.4), (40.4, 1), (42, 1.8), (42.9, 4), (43.2, 9), (43.1, 14), (43.0, 32.5), (42.1, 54), (39.8, 100)]
    curve = lines(*[(em / 100, unknown / 100) for em, unknown in paper])
    assert [curves.overfitting_epoch(curve[:n]) for n in range(10)] == [None] * 6 + [6] * 4
    # dev falls, but nothing new is learnt; new facts are learnt, but dev does not fall; a new best takes it back
    assert curves.overfitting_epoch(lines((0.5, 0.1), (0.4, 0.1), (0.3, 0.12))) is None
    assert curves.overfitting_epoch(lines((0.5, 0.1), (0.5, 0.5), (0.5, 0.9))) is None
    assert curves.overfitting_epoch(lines((0.5, 0.1), (0.4, 0.5), (0.6, 0.9))) is None
    assert curves.overfitting_epoch(lines((0.5, 0.1), (0.4, 0.9), unknown=False)) is None
    assert curves.overfitting_epoch([]) is None


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.floats(0, 1)), max_size=12))
def test_overfitting_never_begins_before_the_best_epoch(curve: list[tuple[float, float]]) -> None:
    found = lines(*curve)
    began, leader = curves.overfitting_epoch(found), selection.best(found, "dev_em")
    if began is not None:
        assert leader is not None
        assert began > leader["epoch"]
        assert found[began - 1]["em"]["dev"] < leader["em"]["dev"]
        assert found[began - 1]["fitted"][UNKNOWN] >= leader["fitted"][UNKNOWN] + curves.RISE


@pytest.fixture
def measured(rows: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    outcomes = [
        {"set": name, "row": row, "correct": row % 3 == 0, "lenient": row % 3 <= 1}
        for name in ("train", "dev")
        for row in rows["row"]
    ]
    return pl.DataFrame(outcomes, schema=tracker.OUTCOMES), {"train": rows, "dev": rows.head(24)}


def test_shares_are_counted_by_category_and_relation(
    measured: tuple[pl.DataFrame, dict[str, pl.DataFrame]], rows: pl.DataFrame
) -> None:
    line = curves.measures(*measured)
    for name, share in line["fitted"].items():
        of = rows.filter(pl.col("category") == name)["row"]
        assert share == pytest.approx(sum(row % 3 == 0 for row in of) / len(of))
    assert line["em"] == {"dev": 8 / 24}
    assert line["em_lenient"] == {"dev": 16 / 24}
    assert line["em_by_relation"] == {"dev": {"capital": 8 / 24}}
    assert line["counts"]["train"]["rows"] == 48
    assert sum(right for right, _ in line["counts"]["train"]["by_category"].values()) == 15  # row 0 has no category
    assert curves.measures(*measured, lenient=True)["em"] == {"dev": 16 / 24}
    names = curves.flat(line)
    assert {"dev_em", "dev_em_lenient", "dev_Unknown_em", "train_Unknown_fitted", "train_fitted"} <= set(names)


def test_a_metric_that_does_not_exist_is_an_error(
    measured: tuple[pl.DataFrame, dict[str, pl.DataFrame]],
) -> None:
    curves.check_metric("dev_Unknown_em", measured[1])
    curves.check_metric("dev_em_lenient", measured[1], lenient=True)
    with pytest.raises(ConfigError, match=r"--metric eval_loss: no such metric; this run has .*dev_em, .*train_fitted"):
        curves.check_metric("eval_loss", measured[1])


def test_a_line_is_shown_with_bars(measured: tuple[pl.DataFrame, dict[str, pl.DataFrame]]) -> None:
    line = {"epoch": 3, "step": 9, "train_loss": 0.5, **curves.measures(*measured)}
    text = curves.format_point(line, "best")
    assert text.startswith("epoch    3  loss 0.500  Known ████········  31%  Unknown ████········  33%  dev EM 33.3%")
    assert text.endswith("* best")
    assert "*" not in curves.format_point(line)
    assert "dev EM 33.3%, loss 1.250" in curves.format_point({**line, "loss": {"dev": 1.25}})
