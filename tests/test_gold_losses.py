"""The losses of golds that the tracker's pass finds, against a plain forward pass a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreknow.prompts.prompt_template import Prompter, Template
from foreknow.stages.train.dataset import SET, LabelledSplit
from foreknow.stages.train.gold_losses import LossSums, gold_tokens
from foreknow.stages.train.tracker import Tracker, vocabulary_for
from foreknow.stages.train.training_examples import TrainingExample, examples

TEMPLATE = Template(target="Q: {question}\nA:")


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def rows(frame: pl.DataFrame) -> pl.DataFrame:
    answers = frame["answers"].to_list()
    answers[5] = [answers[5][0], "nothing of the sort", f"{answers[5][0]} and more"]  # the gold begins another answer
    answers[7] = ["a gold of several words", "another"]
    extra = {
        "category": pl.Series([None] * frame.height, dtype=pl.String),
        "weight": pl.Series([1.0] * frame.height),
        "loss_exclude": pl.Series([None] * frame.height, dtype=SET["loss_exclude"]),
        "answers": pl.Series(answers),
    }
    return frame.with_columns(**extra).select(*[name for name in SET if name in {*frame.columns, *extra}])


def plain_loss(model: Any, rows: list[TrainingExample]) -> tuple[float, int]:
    """The sum of -log p over the counted tokens of the answers, and their number, one plain pass a row."""
    total, count = 0.0, 0
    for example in rows:
        logits = model(torch.tensor([[*example.prompt, *example.answer]])).logits[0].double().log_softmax(-1)
        for n, (token, counts) in enumerate(zip(example.answer, example.in_loss, strict=True)):
            if counts:
                total -= float(logits[len(example.prompt) + n - 1, token])
                count += 1
    return total, count


@torch.inference_mode()
def test_the_tracker_finds_the_losses_of_a_plain_pass(model: Any, tokenizer: Any, rows: pl.DataFrame) -> None:
    prompter = Prompter(tokenizer, TEMPLATE)
    lessons = examples(LabelledSplit("dev", "x", rows, 0, "", ""), prompter, tokenizer.eos_token_id)
    lessons[2] = lessons[2]._replace(excluded=(0,))
    lessons[4] = lessons[4]._replace(prompt=(*lessons[4].prompt, 5))  # in another form than it is asked in
    lessons[6] = lessons[6]._replace(answer=(1, 2, 3, *lessons[6].answer))  # no accepted answer
    sets = {"train": rows.head(9), "dev": rows}
    with_losses = Tracker(
        prompter, vocabulary_for(model, tokenizer), sets, batch_tokens=300, chunk_rows=16, examples={"dev": lessons}
    )
    without = Tracker(prompter, vocabulary_for(model, tokenizer), sets, batch_tokens=300, chunk_rows=16)
    found = with_losses.measure(model)
    assert {name: [row.row for row in own] for name, own in with_losses.unscored.items()} == {
        "dev": [lessons[4].row, lessons[6].row]
    }
    assert found.losses is not None
    total, count = plain_loss(model, [row for n, row in enumerate(lessons) if n not in (4, 6)])
    assert found.losses["dev"][1] == count
    assert found.losses["dev"][0] == pytest.approx(total, rel=1e-5)
    assert set(found.losses) == {"dev"}
    assert found.outcomes.equals(without.measure(model).outcomes)
    assert without.measure(model).losses is None


def test_a_model_in_bfloat16_or_in_plain_passes_keeps_its_own_pass(
    model: Any, tokenizer: Any, rows: pl.DataFrame
) -> None:
    prompter = Prompter(tokenizer, TEMPLATE)
    lessons = examples(LabelledSplit("dev", "x", rows, 0, "", ""), prompter, tokenizer.eos_token_id)
    measure = Tracker(prompter, vocabulary_for(model, tokenizer), {"dev": rows}, examples={"dev": lessons})
    expected = measure(model)
    measure._engines.refusal = "no packing today"
    found = measure.measure(model)
    assert found.losses is None
    assert found.outcomes.equals(expected)
    measure._engines.refusal = None
    assert measure.measure(model.bfloat16()).losses is None


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), max_size=4),
    st.data(),
)
def test_a_gold_is_found_if_and_only_if_its_tree_holds_it(
    gold: list[int], others: list[list[int]], data: st.DataObject
) -> None:
    end = 9
    held = data.draw(st.booleans())
    answers = [*others, gold] if held else others
    tree = sorted({tuple(answer[:n]) for answer in answers for n in range(1, len(answer) + 1)})
    excluded = tuple(data.draw(st.sets(st.integers(0, len(gold)), max_size=len(gold))))
    example = TrainingExample(0, (7, 8), (*gold, end), 1.0, excluded)
    assert gold_tokens(example, (7,), tree) is None
    found = gold_tokens(example, (7, 8), tree)
    assert (found is not None) == (tuple(gold) in tree)
    if found is None:
        return
    nodes = [(), *tree]
    assert {nodes[n]: token for n, token in enumerate(found.targets) if token >= 0} == {
        tuple(gold[:n]): token for n, token in enumerate((*gold, end))
    }
    sums = LossSums()
    log_p = np.array([-float(len(path) + 1) for path in nodes])
    sums.add("dev", found, log_p)
    sums.add("dev", found, log_p)
    counted = [n for n in range(len(gold) + 1) if n not in excluded]
    assert sums.sums == {"dev": (2.0 * sum(n + 1 for n in counted), 2 * len(counted))}
