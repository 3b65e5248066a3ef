"""Fact spans in place, against a slow computation by the model's own forward pass and by generate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from builders import load, rows_frame, write_jsonl
from conftest import CAPITALS, RIVERS
from foreknow.config import AuditConfig
from foreknow.data.spans.schema import SPANS
from foreknow.inference.engine import Sampling
from foreknow.inference.engine_choice import open_engine
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.span_engine import PackedTrees, PlainTrees
from foreknow.inference.span_probe import SpanProber, SpanSettings, word_ending_tokens
from foreknow.models.loading import Loaded
from foreknow.prompts.long_exemplars import LongExemplars
from foreknow.prompts.few_shot import Exemplar
from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.audit.span_plan import plan_spans

NAMES = list(CAPITALS)
SAMPLING = Sampling(0.5, 40)


def answer_of(name: str) -> str:
    number = 1000 + 37 * len(name)
    return (
        f"The capital of the country is {CAPITALS[name]}, as all know. Those who cross the border in the year {number} "
        f"see that the {RIVERS[name]} flows there, for 12 km."
    )


def long_rows(count: int = 12) -> pl.DataFrame:
    return rows_frame(
        {"question": f"What is said of {name}?", "answers": [answer_of(name)], "record": row, "flags": ["long_answer"]}
        for row, name in enumerate(NAMES[:count])
    )


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> Loaded:
    return load(tiny_folder)


@pytest.fixture(scope="module")
def prompter(loaded: Loaded) -> Prompter:
    return Prompter(loaded.tokenizer)


def config(**settings: object) -> AuditConfig:
    return AuditConfig(data="x", span_shots=1, span_sets=3, span_alternatives=3, **settings)


def probed(loaded: Loaded, prompter: Prompter, rows: pl.DataFrame, engine: object, given: AuditConfig) -> pl.DataFrame:
    planned = plan_spans(given, rows, rows, None, prompter, 512, "x")
    assert planned is not None
    ends = word_ending_tokens(loaded.tokenizer, loaded.model.config.vocab_size)
    settings = SpanSettings(SAMPLING, given.samples, given.span_sets, given.span_shots, positions=512)
    prober = SpanProber(engine, prompter, planned.plan.exemplars, settings, ends)  # type: ignore[arg-type]
    return prober.probe(planned.long, "rules")


def test_try(loaded: Loaded, prompter: Prompter) -> None:
    rows = long_rows()
    with PackedModel(loaded.model).attached() as packed:
        packed_frame = probed(loaded, prompter, rows, PackedTrees(packed, 512), config())
    with pl.Config(tbl_rows=40, tbl_cols=20, tbl_width_chars=250):
        print(packed_frame)
    plain = probed(loaded, prompter, rows, PlainTrees(loaded.model, 512), config())
    from polars.testing import assert_frame_equal

    assert_frame_equal(packed_frame, plain, abs_tol=1e-5)
