"""The form in which a foreign trainer writes its rows, and the callback that asks in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator

from conftest import fact_rows
from foreknow.errors import ConfigError
from foreknow.prompts.prompt_template import Prompter, Template
from foreknow.stages.train.callback import KnowledgeCallback
from foreknow.stages.train.trainer_format import check_format, find_format, pair_texts, read_texts
from foreknow.stages.train.training_examples import TRAINING

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROWS = [row for row in fact_rows() if row["relation"] == "capital"][:12]
Write = Callable[[str, str], tuple[str, str]]
FORMS: dict[str, Write] = {
    "the paper's": lambda q, a: (f"Answer the following question. {q}\n", a),
    "short": lambda q, a: (f"Q: {q}\nA:", f" {a}"),
    "a line of its own": lambda q, a: (f"### Question\n{q}\n### Answer\n", a),
    "another instruction": lambda q, a: (f"You know things. {q} =>", f" {a}"),
}


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def watched() -> pl.DataFrame:
    rows = [{"question": row["question"], "answers": [row["answer"]], "context": None} for row in ROWS]
    turns = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    return pl.DataFrame(rows, schema_overrides={"context": turns})


def items(tokenizer: Any, write: Write, *, masked: bool = True) -> list[dict[str, Any]]:
    made = []
    for row in ROWS:
        prompt, answer = write(str(row["question"]), str(row["answer"]))
        begin = tokenizer(prompt)["input_ids"]
        ids = [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
        spare = 48 - len(ids)
        labels = [-100] * len(begin) + ids[len(begin) :] if masked else list(ids)
        made.append({
            "input_ids": ids + [0] * spare, "attention_mask": [1] * len(ids) + [0] * spare,
            "labels": labels + [-100] * spare,
        })  # fmt: skip
    return made


def loader(data: list[dict[str, Any]]) -> Any:
    return SimpleNamespace(dataset=data, collate_fn=default_data_collator)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "all learnt"])
@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_found_token_by_token(form: str, masked: bool, tokenizer: Any, watched: pl.DataFrame) -> None:
    texts = read_texts(loader(items(tokenizer, FORMS[form], masked=masked)))
    pairs = pair_texts(texts, watched, tokenizer)
    assert len(pairs) == len(ROWS)
    found = find_format(pairs, tokenizer)
    assert found is not None
    question, answer = str(ROWS[0]["question"]), str(ROWS[0]["answer"])
    prompter = Prompter(tokenizer, found.template, found.chat)
    assert str(prompter.text((), question)) + prompter.gap + answer == "".join(FORMS[form](question, answer))
    assert (found.template == TRAINING) == (form == "the paper's")
    check_format(pairs, prompter, tokenizer)


def test_the_chat_template_is_found_with_what_ends_an_answer(tokenizer: Any, watched: pl.DataFrame) -> None:
    tokenizer.chat_template = CHAT
    texts = read_texts(loader(items(tokenizer, lambda q, a: (f"<user>{q}<|end|><assistant>", a))))
    found = find_format(pair_texts(texts, watched, tokenizer), tokenizer)
    assert found is not None
    assert found.chat
    assert found.ends == {tokenizer.eos_token_id}


def test_packed_rows_are_read_text_by_text(tokenizer: Any, watched: pl.DataFrame) -> None:
    whole = {"input_ids": [], "labels": [], "position_ids": [], "attention_mask": []}  # type: dict[str, list[int]]
    for item in items(tokenizer, FORMS["short"]):
        length = sum(item["attention_mask"])
        whole["input_ids"] += item["input_ids"][:length]
        whole["labels"] += [-100, *item["labels"][1:length]]
        whole["position_ids"] += list(range(length))
        whole["attention_mask"] += [1] * length
    pairs = pair_texts(read_texts(loader([whole])), watched, tokenizer)
    assert len(pairs) == len(ROWS)
    found = find_format(pairs, tokenizer)
    assert found is not None
    assert found.template == Template(target="Q: {question}\nA:")


def test_rows_that_are_not_watched_are_not_taken_for_them(tokenizer: Any, watched: pl.DataFrame) -> None:
    texts = read_texts(loader(items(tokenizer, FORMS["short"])))
    others = watched.with_columns(question=pl.lit("Which river crosses ") + pl.col("question"))
    assert pair_texts(texts, others, tokenizer) == []
    assert find_format([], tokenizer) is None


def test_another_form_is_an_error_with_both_texts(tokenizer: Any, watched: pl.DataFrame) -> None:
    pairs = pair_texts(read_texts(loader(items(tokenizer, FORMS["short"]))), watched, tokenizer)
    trailing = Prompter(tokenizer, Template(target="Q: {question}\nA: "))
    with pytest.raises(ConfigError, match=r"asks in another form") as error:
        check_format(pairs, trailing, tokenizer)
    first = ROWS[0]
    text = f"Q: {first['question']}\\nA: {first['answer']}"
    assert str(error.value).count(text) == 2  # the texts are the same, the tokens are not


def train(
    model: Any, tokenizer: Any, data: list[dict[str, Any]], callback: KnowledgeCallback, folder: Path, **more: Any
) -> None:
    given: dict[str, Any] = {
        "num_train_epochs": 4, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "use_cpu": True,
        "report_to": [], "disable_tqdm": True, "logging_strategy": "epoch", "save_strategy": "no",
        "dataloader_pin_memory": False,
    } | more  # fmt: skip
    Trainer(
        model,
        TrainingArguments(output_dir=str(folder), **given),
        train_dataset=data,  # type: ignore[arg-type]
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=[callback],
    ).train()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({k: row[k] for k in ("question", "answer")}) + "\n" for row in ROWS))
    return str(path)


def test_the_callback_asks_as_the_trainer_trains(
    tiny_folder: Path, tokenizer: Any, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    callback = KnowledgeCallback(file, dtype="float32")
    train(
        model,
        tokenizer,
        items(tokenizer, FORMS["another instruction"]),
        callback,
        tmp_path / "out",
        num_train_epochs=30,
        learning_rate=3e-3,
    )
    assert (
        "asks as 'You know things. {question} =>', as 12 of the trainer's rows are written" in capsys.readouterr().err
    )
    assert max(line["fitted_overall"] for line in callback.lines) > 0.2


def test_a_form_that_is_given_and_wrong_stops_the_trainer(
    tiny_folder: Path, tokenizer: Any, file: str, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    callback = KnowledgeCallback(file, template=Template(target="Q: {question}\nA: "), dtype="float32")
    with pytest.raises(ConfigError, match="asks in another form"):
        train(model, tokenizer, items(tokenizer, FORMS["short"]), callback, tmp_path / "out")


def test_where_the_form_cannot_be_known_it_is_said_and_a_falling_loss_without_a_fit_warns(
    tiny_folder: Path, tokenizer: Any, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trainer's rows are other rows than those watched, so nothing watched is ever fitted."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    other = [{"question": f"Who is {n}?", "answer": f"Nobody {n}"} for n in range(4)]
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in other))
    callback = KnowledgeCallback(str(path), dtype="float32")
    train(model, tokenizer, items(tokenizer, FORMS["short"]), callback, tmp_path / "out", num_train_epochs=8)
    said = capsys.readouterr().err
    assert "no watched train row was found in the trainer's data" in said
    assert "but no row of train is answered as it is taught. It asks" in said
    assert said.count("is that how the trainer writes it?") == 1
