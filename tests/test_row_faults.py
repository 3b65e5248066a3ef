"""Rows that nothing can be learnt from: counted by reason, named, refused or left out, in tune, callback and mix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from builders import write_jsonl
from conftest import fact_rows
from foreknow.config import EvaluateConfig, MixConfig, TuneConfig
from foreknow.data.schema import ROWS
from foreknow.errors import InputError
from foreknow.prompts.prompt_template import Prompter, Template
from foreknow.stages.mix.sampling import draw_mix
from foreknow.stages.mix.unusable_rows import check_left_out, left_out, unusable_lines
from foreknow.stages.train import row_faults
from foreknow.stages.train.callback import KnowledgeCallback
from foreknow.stages.train.dataset import SET, LabelledSplit
from foreknow.stages.train.label_check import IGNORED, MOST, LabelReport, check_labels
from foreknow.stages.train.row_faults import RowFault
from foreknow.stages.train.run import run
from foreknow.stages.train.training_examples import TRAINING, template_faults, tokenise, without_faulty

OLD_NAMES = "ignore:.*is deprecated and will be removed:FutureWarning"  # TRL and PEFT use old names of transformers
KNOWN = Template(target="Q: {question}\nA:")
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<|{{ m['role'] }}|>{{ m['content'] | trim }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows of a set."""
    whole = [
        {**dict.fromkeys(SET), "row": n, "group": "all", "flags": [], "weight": 1.0, **row}
        for n, row in enumerate(rows)
    ]
    return pl.DataFrame(whole, schema=SET)


def named(rows: list[dict[str, Any]]) -> LabelledSplit:
    return LabelledSplit("train", "f.jsonl", frame(rows), {}, "", "")


# rows of ours


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


def test_every_row_is_learnt_from_or_has_a_reason(tokenizer: Any) -> None:
    tokenizer.chat_template = STRICT
    prompter = Prompter(tokenizer, TRAINING, chat=True)
    twice = [{"role": "user", "content": "Are you there?"}]
    rows = named([
        {"question": "Where?", "answers": ["Avens"]},
        {"question": "Where?", "answers": ["Avens"], "context": twice},
        {"question": "Where? " * 200, "answers": ["Avens"]},
        {"question": "Where?", "answers": ["Avens " * 200]},
        {"question": "Where?", "answers": ["Avens"], "weight": 0.0},
    ])  # fmt: skip
    lessons, faults = tokenise(rows, prompter, tokenizer.eos_token_id, 128)
    assert [fault[:2] for fault in faults] == [
        (1, "template_refuses"), (2, "answer_cut"), (3, "answer_cut"), (4, "weight_zero"),
    ]  # fmt: skip
    assert [lesson.row for lesson in lessons] == [0, 4]
    assert without_faulty("f.jsonl", rows.rows, faults)["row"].to_list() == [0, 4]
    assert row_faults.counts(faults)["answer_cut"] == {"rows": 2, "first": [2, 3]}
    with pytest.raises(
        InputError, match=r"f.jsonl: 1 row refused by the chat template, first row 1, counted from 0: .*roles must"
    ) as e:
        row_faults.check([("f.jsonl", faults)], "refuse")
    told = str(e.value)
    assert "2 rows with no room for the whole answer, first row 2, " in told
    assert "; then 3" in told
    assert "weight 0" not in told, "such rows are no error"
    assert told.count("\n") == 1
    row_faults.check([("f.jsonl", faults)], "skip")
    only = named([{"question": "Where?", "answers": ["Avens"], "context": twice}])
    gone = template_faults(only.rows, prompter)
    with pytest.raises(InputError, match=r"none of its 1 rows can be used: 1 row refused by the chat template"):
        without_faulty("f.jsonl", only.rows, gone)


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        ("{{ m['content'] }}{% generation %}{% endgeneration %}", "no_label"),
        ("{% generation %}{{ m['content'] }}{% endgeneration %}", None),
        ("{{ m['content'] }}", None),
        ("{% if m['role'] == 'model' %}{% generation %}{% endgeneration %}{% endif %}{{ m['content'] }}", "no_label"),
        ("{% generation %}{{ m['content'] | upper }}{% endgeneration %}", "answer_changed"),
        ("{{ m['content'][:3] }}", "answer_changed"),
    ],
)
def test_what_the_template_makes_of_answers(tokenizer: Any, mark: str, reason: str | None) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% else %}<|bot|>"
        + mark
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
    )
    rows = named([{"question": "Where is it?", "answers": ["Avens"]}])
    lessons, faults = tokenise(rows, Prompter(tokenizer, TRAINING, chat=True), tokenizer.eos_token_id)
    assert [fault.reason for fault in faults] == ([] if reason is None else [reason])
    assert len(lessons) == (reason != "no_label")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["template_refuses", "answer_cut", "weight_zero", "no_label"]), max_size=30))
def test_no_row_goes_uncounted(reasons: list[str]) -> None:
    faults = [RowFault(n, reason, "it") for n, reason in enumerate(reasons)]
    counts = row_faults.counts(faults)
    assert sum(of["rows"] for of in counts.values()) == len(reasons)
    assert {reason: of["first"][0] for reason, of in counts.items()} == {r: reasons.index(r) for r in set(reasons)}
    assert len(row_faults.notes("train", faults)) == len(counts)


# tune


def test_a_file_that_is_trained_on_and_watched_is_refused_for_what_training_takes(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """A watched row needs no label: that the file is watched too does not excuse the rows that are trained on."""
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    unmarked = "{% for m in messages %}{{ m['content'] }}{% generation %}{% endgeneration %}{% endfor %}"
    (model / "chat_template.jinja").write_text(unmarked, encoding="utf-8")
    file = str(
        write_jsonl(tmp_path / "f.jsonl", [{"question": r["question"], "answer": r["answer"]} for r in fact_rows()[:4]])
    )
    config = TuneConfig(
        train=file, dev=file, model=str(model), out=tmp_path / "run", chat_template=True, allow_overlap=True,
        dtype="float32",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"f\.jsonl: 4 rows with no token of the answer marked by \{% generation %\}"):
        run(config)


def test_rows_of_weight_0_alone_are_not_trained_on(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"question": r["question"], "answer": r["answer"], "weight": 0} for r in fact_rows()[:6]]
    long = {"question": "why " * 600, "answer": "so", "weight": 1}  # the only row with a weight is left out
    config = TuneConfig(
        train=str(write_jsonl(tmp_path / "t.jsonl", [*rows, long])),
        dev=str(write_jsonl(tmp_path / "d.jsonl", [{**row, "weight": 1} for row in rows[:2]])),
        model=str(tiny_folder), out=tmp_path / "run", bad_rows="skip", allow_overlap=True, dtype="float32",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"t\.jsonl: no row is left whose weight is not 0"):
        run(config)


def test_tune_refuses_such_rows_or_leaves_them_out_by_choice(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    (model / "chat_template.jinja").write_text(STRICT, encoding="utf-8")
    rows = []
    for n, row in enumerate(fact_rows()[:12]):
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        found: dict[str, Any] = {"messages": turns}
        if n in (3, 5):
            turns.insert(0, {"role": "user", "content": "Are you there?"})
        if n == 7:
            turns[1]["content"] = "Avens " * 600
        rows.append(found)
    given_: dict[str, Any] = {
        "train": str(write_jsonl(tmp_path / "t.jsonl", rows)), "dev": str(write_jsonl(tmp_path / "d.jsonl", rows[8:])),
        "model": str(model), "chat_template": True, "epochs": 1, "dtype": "float32", "allow_overlap": True,
    }  # fmt: skip
    with pytest.raises(
        InputError,
        match=r"2 rows refused by the chat template, first row 3, counted from 0: .*1 row with no room for the whole",
    ):
        run(TuneConfig(out=tmp_path / "refused", **given_))
    assert not (tmp_path / "refused" / "manifest.json").exists()
    done = run(TuneConfig(out=tmp_path / "run", bad_rows="skip", **given_))
    data = done.results["data"]["train"]
    assert (data["rows"], data["row_faults"]) == (
        9,
        {"template_refuses": {"rows": 2, "first": [3, 5]}, "answer_cut": {"rows": 1, "first": [7]}},
    )
    said = capsys.readouterr().err
    assert "warning: train: 2 rows refused by the chat template, first row 3, counted from 0: " in said
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "train: 2 rows left out: the chat template refuses them (row 3, 5, counted from 0)" in page
    assert "train: 1 row left out: longer than the model&#39;s positions" in page
    from foreknow.stages.evaluate.run import run as evaluate

    some = str(write_jsonl(tmp_path / "some.jsonl", rows[:7]))
    asked = evaluate(
        EvaluateConfig(
            data=some, model=str(tmp_path / "run" / "early_stop"), out=tmp_path / "e", chat_template=True,
            dtype="float32",
        )
    )  # fmt: skip
    assert asked.rows["row"].to_list() == [0, 1, 2, 4, 6]
    assert asked.summary["row_faults"] == {"template_refuses": {"rows": 2, "first": [3, 5]}}
    page = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    assert "rows: 2 rows left out: the chat template refuses them (row 3, 5, counted from 0)" in page


def test_a_first_loss_of_zero_stops_tune(
    tiny_folder: Path, facts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foreknow.errors import NotFinite
    from foreknow.stages.train import answer_loss

    real = answer_loss.cross_entropy
    monkeypatch.setattr(answer_loss, "cross_entropy", lambda *given: real(*given) * 0)
    config = TuneConfig(
        train=str(facts_file), dev=str(facts_file), allow_overlap=True, model=str(tiny_folder), out=tmp_path / "run",
        epochs=1, dtype="float32",
    )  # fmt: skip
    with pytest.raises(NotFinite, match=r"the loss of the first step is exactly 0: nothing would be learnt at step 1"):
        run(config)


# the callback in other trainers


def lesson(tokenizer: Any, row: dict[str, Any], *, taught: bool = True) -> dict[str, Any]:
    """A row as a plain Trainer is given it."""
    prompt = tokenizer(f"Q: {row['question']}\nA:")["input_ids"]
    ids = [*tokenizer(f"Q: {row['question']}\nA: {row['answer']}")["input_ids"], tokenizer.eos_token_id]
    labels = [IGNORED] * len(prompt) + ids[len(prompt) :] if taught else [IGNORED] * len(ids)
    spare = 32 - len(ids)
    return {
        "input_ids": ids + [0] * spare, "attention_mask": [1] * len(ids) + [0] * spare,
        "labels": labels + [IGNORED] * spare,
    }  # fmt: skip


def trained(
    tiny_folder: Path, folder: Path, data: Any, collator: Any, bad_rows: Any = "refuse", **more: Any
) -> KnowledgeCallback:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    rows = [{"question": r["question"], "answers": [r["answer"]]} for r in fact_rows()[:4]]
    callback = KnowledgeCallback(
        sets={"dev": frame(rows).select("question", "answers")}, template=KNOWN, dtype="float32", bad_rows=bad_rows
    )
    arguments: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": [],
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "dataloader_pin_memory": False,
    }  # fmt: skip
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        TrainingArguments(**{**arguments, **more}),
        train_dataset=data,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    return callback


def test_rows_without_a_label_stop_a_foreign_trainer_before_it_trains(
    tiny_folder: Path, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [lesson(tokenizer, row, taught=n not in (2, 5)) for n, row in enumerate(fact_rows()[:8])]
    with pytest.raises(InputError) as caught:
        trained(tiny_folder, tmp_path, data, default_data_collator)
    assert str(caught.value) == (
        "the trainer's data set (8 rows looked at): 2 rows without any label, first row 2, counted from 0: all its "
        "labels are -100; then 5.\nLeave them out or shorten them, or go on without them: bad_rows='skip'"
    )
    callback = trained(tiny_folder, tmp_path, data, default_data_collator, "skip")
    assert callback.labels is not None
    assert (callback.labels.looked, len(callback.labels.faults)) == (8, 2)
    assert "warning: the trainer's data set (8 rows looked at): 2 rows without any label" in capsys.readouterr().err
    whole = [lesson(tokenizer, row) for row in fact_rows()[:8]]
    fine = trained(tiny_folder, tmp_path, whole, default_data_collator)
    assert fine.labels is not None
    assert (fine.labels.faults, fine.labels.notes) == ([], [])


def test_an_answer_may_end_as_the_chat_template_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def look(_loader: Any, _arguments: Any, ends: Any) -> LabelReport:
        found.extend(ends)
        return LabelReport(0, None, [], [], [])

    monkeypatch.setattr("foreknow.stages.train.callback.check_labels", look)
    dev = frame([{"question": "Where?", "answers": ["Avens"]}])
    callback = KnowledgeCallback(
        sets={"dev": dev.select("question", "answers")}, tokenizer=SimpleNamespace(eos_token_id=3)
    )  # type: ignore[arg-type]
    callback._prompter = SimpleNamespace(answer_end=7)  # type: ignore[assignment]
    callback._check_labels(None, TrainerState(), {})
    assert found == [3, 7]


class Masked:
    """A collator that learns the tokens that `assistant_masks` marks, as trainers do."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        mask = torch.tensor([row["assistant_masks"] for row in rows])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.where(mask == 1, IGNORED)}


class ResponseOnly(DataCollatorForLanguageModeling):
    """A collator that masks all up to a response mark, and everything where the mark is not found."""

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        found: dict[str, Any] = super().torch_call(examples)
        mark = self.tokenizer("### Answer", add_special_tokens=False)["input_ids"]
        for n, ids in enumerate(found["input_ids"].tolist()):
            at = next((k for k in range(len(ids)) if ids[k : k + len(mark)] == mark), None)
            found["labels"][n, : len(ids) if at is None else at + len(mark)] = IGNORED
        return found


def test_masks_of_zeros_and_marks_that_are_not_found_are_named(
    tiny_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    ids = [lesson(tokenizer, row)["input_ids"] for row in fact_rows()[:6]]
    zeros = [{"input_ids": one, "assistant_masks": [0] * len(one)} for one in ids]
    expected = r"6 rows without any label, first row 0, counted from 0: its 'assistant_masks' is all zeros"
    with pytest.raises(InputError, match=expected):
        trained(tiny_folder, tmp_path, zeros, Masked(), remove_unused_columns=False)
    some = [{"input_ids": one, "assistant_masks": [0] * 20 + [1] * (len(one) - 20)} for one in ids]
    assert trained(tiny_folder, tmp_path, some, Masked(), remove_unused_columns=False).labels is not None
    tokenizer.pad_token = tokenizer.eos_token
    plain = [{"input_ids": one[:12]} for one in ids]
    expected = "6 rows without any label, first row 0, counted from 0: all its labels are -100"
    with pytest.raises(InputError, match=expected):
        trained(tiny_folder, tmp_path, plain, ResponseOnly(tokenizer, mlm=False))


def test_an_end_that_is_padding_too_is_a_warning(
    tiny_folder: Path, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    ended = [{"input_ids": [*tokenizer(f"{r['question']} {r['answer']}")["input_ids"], tokenizer.eos_token_id]}
             for r in fact_rows()[:6]]  # fmt: skip
    trained(tiny_folder, tmp_path, ended, DataCollatorForLanguageModeling(tokenizer, mlm=False))
    assert "the end-of-sequence token is a label in no row of the trainer" in capsys.readouterr().err


class Once(IterableDataset[Any]):
    """A stream that can be read only once."""

    def __init__(self, rows: list[Any]):
        self.rows = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return self.rows


def test_a_stream_is_left_alone_and_its_first_loss_looked_at(
    tiny_folder: Path, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stream(taught: bool) -> Once:
        return Once([lesson(tokenizer, row, taught=taught) for row in fact_rows()[:8]])

    callback = trained(tiny_folder, tmp_path, stream(True), default_data_collator)
    assert callback.labels is not None
    assert callback.labels.why_not == "its data set can be read only once"
    assert "could not be looked at before training: its data set can be read only once" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"the trainer's first loss is (0|nan) at step 1: nothing is learnt"):
        trained(tiny_folder, tmp_path, stream(False), default_data_collator)


def test_a_set_that_can_be_read_again_is_looked_at_though_it_is_a_stream(tokenizer: Any) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [lesson(tokenizer, row, taught=n != 4) for n, row in enumerate(fact_rows()[:8])]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    loader: Any = DataLoader(stream, batch_size=2, collate_fn=default_data_collator)
    found = check_labels(loader, None, [tokenizer.eos_token_id])
    assert (found.looked, found.total, [fault.row for fault in found.faults]) == (8, None, [4])
    assert "the first of them" in found.notes[0]


def test_of_a_large_set_rows_are_looked_at_all_over_it(tokenizer: Any) -> None:
    class Many:
        def __len__(self) -> int:
            return 10 * MOST

        def __getitem__(self, place: int) -> dict[str, Any]:
            ids = [1, 2, 3]
            return {"input_ids": ids, "labels": ids if place < 15000 else [IGNORED] * 3}

    loader: Any = DataLoader(Many(), batch_size=2, collate_fn=default_data_collator, shuffle=True)  # type: ignore[arg-type]
    state = torch.get_rng_state()
    found = check_labels(loader, None, [])
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.looked, found.faults[0].row, len(found.faults)) == (MOST, 15000, MOST // 4)
    assert found.notes == [f"labels: {MOST:,} of the trainer's {10 * MOST:,} rows, spread were looked at"]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=5), st.integers(0, 3))
def test_packed_texts_without_a_label_are_found(texts: list[list[bool]], spare: int) -> None:
    labels = [7 if learnt else IGNORED for text in texts for learnt in text] + [IGNORED] * spare
    row = {"input_ids": [7] * len(labels), "labels": labels, "seq_lengths": [len(text) for text in texts]}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: torch.tensor([rows[0][name]]) for name in ("input_ids", "labels")}

    loader = type("Loader", (), {"dataset": [row], "collate_fn": staticmethod(collate)})()
    found = check_labels(loader, None, [])
    assert len(found.faults) == sum(not any(text[1:]) for text in texts), "the first token of a text predicts nothing"


def test_a_collator_that_changes_rows_in_place_leaves_them_whole(tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3]}, {"input_ids": [1], "labels": [1]}]
    before = json.dumps(rows)
    loader: Any = DataLoader(rows, collate_fn=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8))  # type: ignore[arg-type]
    found = check_labels(loader, None, [])
    assert [fault.row for fault in found.faults] == [1]
    assert json.dumps(rows) == before


@pytest.mark.parametrize(
    ("loader", "why"),
    [
        (None, "it has no data loader with a data set and a collator"),
        (type("L", (), {"dataset": [1], "collate_fn": staticmethod(lambda rows: rows[1])})(),
         "its collator takes no single row (IndexError: list index out of range)"),
        (type("L", (), {"dataset": [1], "collate_fn": staticmethod(lambda _: {"x": 1})})(),
         "its batches have no 'labels'"),
    ],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_said(loader: Any, why: str) -> None:
    found = check_labels(loader, None, [])
    assert found.why_not == why
    assert found.notes == [f"warning: the trainer's labels could not be looked at before training: {why}"]


# TRL


def sft(
    tiny_folder: Path, folder: Path, rows: list[dict[str, Any]], watched: pl.DataFrame | None, bad: Any = "refuse",
    **more: Any,
) -> KnowledgeCallback:  # fmt: skip
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    dev = frame([{"question": r["question"], "answers": [r["answer"]]} for r in fact_rows()[:4]])
    callback = KnowledgeCallback(
        watched, sets={"dev": dev.select("question", "answers")}, template=KNOWN, dtype="float32", bad_rows=bad
    )
    arguments = {
        "output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": [],
        "disable_tqdm": True, "save_strategy": "no", "bf16": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        trl.SFTConfig(**{**arguments, **more}),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_folder),
        callbacks=[callback],
    )
    trainer.train()
    return callback


def pairs(long: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    found = []
    for n, row in enumerate(fact_rows()[:8]):
        question = f"{row['question']} " * 12 if n in long else str(row["question"])
        found.append({"prompt": f"Q: {question}\nA:", "completion": f" {row['answer']}", "question": question})
    return found


@pytest.mark.filterwarnings(OLD_NAMES)
def test_rows_that_trl_drops_are_named(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pairs(long=(2, 6))
    answers = [str(r["answer"]) for r in fact_rows()[:8]]
    watched = frame([{"question": r["question"], "answers": [a]} for r, a in zip(rows, answers, strict=True)])
    data = [{key: row[key] for key in ("prompt", "completion")} for row in rows]
    asked: dict[str, Any] = {"watched": watched.select("question", "answers"), "max_length": 48}
    with pytest.raises(
        InputError,
        match=r"the rows watched as train: 2 rows with no room for the whole answer, first row 2, ",
    ):
        sft(tiny_folder, tmp_path, data, **asked)
    sft(tiny_folder, tmp_path, data, bad="skip", **asked)
    assert "the trainer's max_length is 48; then 6" in capsys.readouterr().err
    callback = sft(tiny_folder, tmp_path, data, **{**asked, "max_length": 512})
    assert callback.labels is not None
    assert (callback.labels.looked, callback.labels.faults) == (8, [])


@pytest.mark.filterwarnings(OLD_NAMES)
@pytest.mark.parametrize("packing", [False, True], ids=["alone", "packed"])
def test_labels_that_are_all_ignored_stop_trl(tiny_folder: Path, tmp_path: Path, packing: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    rows = []
    for n, row in enumerate(fact_rows()[:8]):
        one = lesson(tokenizer, row, taught=n not in (1, 4))
        rows.append({"input_ids": one["input_ids"][:20], "labels": one["labels"][:20]})
    if packing:
        rows = [
            {"input_ids": [*a["input_ids"], *b["input_ids"]], "labels": [*a["labels"], *b["labels"]],
             "seq_lengths": [20, 20]}
            for a, b in zip(rows[::2], rows[1::2], strict=True)
        ]  # fmt: skip
    expected = r"2 rows without any label, first row [01], counted from 0: all its labels are -100"
    with pytest.raises(InputError, match=expected):
        sft(tiny_folder, tmp_path, rows, None, dataset_kwargs={"skip_prepare_dataset": True})


# mix


def audit_rows() -> pl.DataFrame:
    rows = []
    for n in range(20):
        flags = {3: ["no_answer"], 5: ["template_refuses"], 8: ["long_answer"], 9: ["no_question", "no_answer"]}.get(
            n, []
        )
        rows.append({
            "row": n, "group": "all", "relation": None, "split": None, "question": f"q{n}", "answer": f"a{n}",
            "category": None if flags else ("Unknown" if n % 2 else "HighlyKnown"), "flags": flags,
        })  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"relation": pl.String, "split": pl.String, "flags": ROWS["flags"]})


def test_mix_counts_what_it_cannot_take(tmp_path: Path) -> None:
    found = left_out(audit_rows())
    assert found == {
        "no_question": {"rows": 1, "first": [9]}, "no_answer": {"rows": 1, "first": [3]},
        "template_refuses": {"rows": 1, "first": [5]}, "long_answer": {"rows": 1, "first": [8]},
    }  # fmt: skip
    assert unusable_lines(found)[2] == "1 row refused by the chat template (row 5, counted from 0)"
    config: dict[str, Any] = {"audit": tmp_path, "out": tmp_path / "x.jsonl", "natural": True}
    mix = draw_mix(audit_rows(), MixConfig(**config, weight={"Unknown": 0}), {})
    assert mix.manifest["left_out"] == found
    assert any(
        note.startswith("never drawn: 1 row without a question (row 9, counted from 0); 1") for note in mix.notes
    )
    assert any("rows have weight 0 and teach nothing (Unknown 7)" in note for note in mix.notes)
    with pytest.raises(InputError, match=r"learnt from: 1 row without a question \(row 9, counted from 0\)"):
        draw_mix(audit_rows(), MixConfig(**config, bad_rows="refuse"), {})
    check_left_out({"long_answer": {"rows": 1, "first": [8]}}, "refuse")
