"""What foreknow writes is what trainers read: `load_dataset` of `datasets`, and a step of TRL's `SFTTrainer`."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from conftest import CAPITALS, tiny_model, tiny_tokenizer
from foreknow.data.dataset import Dataset, read_dataset

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SYSTEM = {"role": "system", "content": "Be brief."}
REFUSAL = "I don't know."
FACTS = list(CAPITALS.items())[:6]
LABELS = pl.DataFrame({
    "row": [0, 1, 2, 4, 5],  # row 3 was not audited
    "category": ["HighlyKnown", "Unknown", "MaybeKnown", None, "WeaklyKnown"],
    "p_greedy": [1.0, 0.0, 0.5, float("nan"), 0.0],
    "p_sampled": [0.9, 0.0, 0.25, None, 0.125],
    "p_hit": [1.0, 0.0, 1.0, None, 0.75],
    "model_answer": ["Avens", "é\u2028\"'", "", None, "Elm, fort\n"],
    "flags": [[], ["duplicate", "undecided"], ["context"], ["no_answer"], []],
})  # fmt: skip


class Kind(NamedTuple):
    """A layout. `record`: of a country and its capital. `answers`: the columns that a replaced answer changes.

    `text`: what a user's `formatting_func` makes of a row, where TRL does not read the layout by itself.
    """

    record: Callable[[str, str], dict[str, Any]]
    answers: tuple[str, ...]
    text: Callable[[Mapping[str, Any]], str] | None = None
    flat: bool = True


def asked(country: str) -> str:
    return f"What is the capital of {country}?"


def turns(country: str) -> list[dict[str, str]]:
    return [SYSTEM, {"role": "user", "content": asked(country)}]


def said(capital: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": capital}]


def shared(country: str, capital: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": asked(country)}, {"from": "gpt", "value": capital}]


def popqa(country: str, capital: str) -> dict[str, Any]:
    names = json.dumps([capital, capital.upper()])
    return {"id": len(country), "subj": country, "prop": "capital", "obj": capital, "s_pop": 12,
            "question": asked(country), "possible_answers": names}  # fmt: skip


KINDS: dict[str, Kind] = {
    "question": Kind(
        lambda c, a: {"id": c, "question": asked(c), "answer": a, "score": 0.5, "note": None},
        ("answer",),
        lambda row: f"{row['question']} {row['answer']}",
    ),
    "prompt-completion": Kind(lambda c, a: {"prompt": asked(c), "completion": f" {a}", "n": 1}, ("completion",)),
    "prompt-completion turns": Kind(
        lambda c, a: {"prompt": turns(c), "completion": said(a), "n": 1}, ("completion",), flat=False
    ),
    "messages": Kind(
        lambda c, a: {"messages": [*turns(c), *said(a)], "source": {"page": 7}}, ("messages",), flat=False
    ),
    "sharegpt": Kind(lambda c, a: {"conversations": shared(c, a), "id": c}, ("conversations",), flat=False),
    "alpaca": Kind(
        lambda c, a: {"instruction": "Name the capital.", "input": c, "output": a},
        ("output",),
        lambda row: f"{row['instruction']}\n{row['input']}\n{row['output']}",
    ),
    "popqa": Kind(popqa, ("obj", "possible_answers"), lambda row: f"{row['question']} {row['obj']}"),
    "triples": Kind(
        lambda c, a: {"subject": c, "relation": "capital", "object": a},
        ("object",),
        lambda row: f"{row['subject']} {row['relation']} {row['object']}",
    ),
}
FORMATS = {"jsonl": "json", "json": "json", "jsonl.gz": "json", "jsonl.zst": "json", "csv": "csv", "tsv": "csv",
           "parquet": "parquet"}  # fmt: skip
"""Our suffix -> the builder of `datasets`."""


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    """The records in the format that the path's name says."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd.compress, ".jsonl": bytes}
    if path.suffix == ".parquet":
        pl.DataFrame(records).write_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(records[0]), delimiter="," if path.suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(records)
        path.write_text(text.getvalue(), "utf-8", newline="")
    else:
        path.write_bytes(json.dumps(records).encode() if path.suffix == ".json" else packers[path.suffix](lines))
    return path


def read(tmp_path: Path, kind: str, suffix: str) -> tuple[Path, Dataset]:
    path = written(tmp_path / f"in.{suffix}", [KINDS[kind].record(*fact) for fact in FACTS])
    facts = read_dataset(path, templates={"capital": "What is the capital of [X]?"})
    assert facts.layout == kind.split(" ", maxsplit=1)[0]
    assert facts.rows["question"][0] == ("Name the capital.\nArland" if kind == "alpaca" else asked("Arland"))
    assert facts.rows["answers"].list.first().to_list() == [capital for _, capital in FACTS]
    return path, facts


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Path], Any]:
    """`datasets.load_dataset` on a file, as a user calls it."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.disable_progress_bars()

    def loaded(path: Path) -> Any:
        more = {"sep": "\t"} if path.suffix == ".tsv" else {}
        builder = FORMATS[path.name.partition(".")[2]]
        return datasets.load_dataset(
            builder, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"), **more
        )

    return loaded


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_datasets_loads_what_is_written_with_all_else_as_it_was(
    tmp_path: Path, load: Callable[[Path], Any], kind: str, suffix: str
) -> None:
    table = suffix in ("csv", "tsv")
    if table and not KINDS[kind].flat:
        pytest.skip("chats do not go into tables")
    path, facts = read(tmp_path, kind, suffix)
    before = load(path)
    names = [name for name in LABELS.columns if name != "row"]
    out = tmp_path / f"annotated.{suffix}"
    facts.annotate(LABELS, out)
    after = load(out)
    assert after.column_names == [*before.column_names, *names]
    assert after.select_columns(before.column_names).to_list() == before.to_list()
    every = pl.DataFrame({"row": range(6)}).join(LABELS, on="row", how="left").fill_nan(None)
    expected = every.drop("row").to_dicts()
    if table:  # a table has no lists, and an empty cell is null
        expected = [
            {**row, "flags": row["flags"] if row["flags"] is None else json.dumps(row["flags"])} for row in expected
        ]
        expected = [{**row, "model_answer": row["model_answer"] or None} for row in expected]
    assert after.select_columns(names).to_list() == expected

    some = tmp_path / f"some.{suffix}"
    facts.write(LABELS.select("row", "category").filter(pl.col("row").is_in([1, 2, 5])), some, {1: REFUSAL})
    fewer = load(some)
    assert fewer["category"][:] == ["Unknown", "MaybeKnown", "WeaklyKnown"]
    kept = [name for name in before.column_names if name not in KINDS[kind].answers]
    assert fewer.column_names == [*before.column_names, "category"]
    assert fewer.select_columns(kept).to_list() == before.select([1, 2, 5]).select_columns(kept).to_list()
    assert fewer.select([1, 2]).remove_columns("category").to_list() == before.select([2, 5]).to_list()
    back = read_dataset(some, templates={"capital": "What is the capital of [X]?"}).rows["answers"]
    assert back.to_list() == [[REFUSAL], *[facts.rows["answers"][row].to_list() for row in (2, 5)]]


@pytest.fixture(scope="module")
def trainer() -> Callable[..., Any]:
    """One step of TRL's SFTTrainer on a tiny model whose chat template names roles and ends turns."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    tokenizer = tiny_tokenizer([f"{asked(country)} {capital} {REFUSAL}" for country, capital in FACTS] * 3)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )

    def stepped(data: Any, out: Path, text: Callable[[Mapping[str, Any]], str] | None) -> Any:
        config = trl.SFTConfig(
            output_dir=str(out), max_steps=1, per_device_train_batch_size=3, report_to="none", save_strategy="no",
            use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1, seed=0,
        )  # fmt: skip
        made = trl.SFTTrainer(
            tiny_model(len(tokenizer), tokenizer.eos_token_id),
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
            formatting_func=text,
        )
        made.train()
        return made

    return stepped


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL sets it itself
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_trl_takes_a_step_on_what_is_written(
    tmp_path: Path, load: Callable[[Path], Any], trainer: Callable[..., Any], kind: str, suffix: str
) -> None:
    _, facts = read(tmp_path, kind, suffix)
    some = tmp_path / f"some.{suffix}"
    facts.write(LABELS.filter(pl.col("row").is_in([1, 2, 5])), some, {1: REFUSAL})
    done = trainer(load(some), tmp_path / "out", KINDS[kind].text)
    assert done.state.global_step == 1
    assert math.isfinite(done.state.log_history[0]["loss"])
    texts = [done.processing_class.decode(ids) for ids in done.train_dataset["input_ids"]]
    for text, row, answer in zip(texts, (1, 2, 5), (REFUSAL, FACTS[2][1], FACTS[5][1]), strict=True):
        country, capital = FACTS[row]
        assert country in text
        assert answer in text
        assert capital == answer or capital not in text
        assert text.index(country) < text.index(answer)
        assert kind != "prompt-completion" or f"? {answer}" in text  # its completions begin with a blank
