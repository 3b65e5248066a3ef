"""What a tuned model writes where a long answer is wanted: against plain generation, one row at a time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import foreknow
from builders import write_jsonl
from conftest import CAPITALS, RIVERS
from foreknow.categories import CATEGORIES
from foreknow.config import AuditConfig, EvaluateConfig, TuneConfig
from foreknow.io.run_dir import RunDir
from foreknow.report.evaluation import render_evaluation
from foreknow.settings import settings_of
from foreknow.stages.audit import run as audit_run
from foreknow.stages.evaluate import run as evaluate_run
from foreknow.stages.evaluate.metrics import ANSWERED, summarise_answers
from foreknow.stages.evaluate.result import EvaluateResult
from foreknow.stages.evaluate.span_recall import SPAN_RECALL, span_recall, summarise_span_recall
from foreknow.stages.evaluate.tables import span_table, summary_lines
from foreknow.stages.train import run as train_run
from foreknow.stages.train.span_labels import WATCHED_SPANS
from foreknow.stages.train.training_examples import TRAINING
from span_files import add_spans

NAMES = list(CAPITALS)
TAUGHT = NAMES[:8]


def story(country: str) -> str:
    """Two lines, so that the first one alone is not the answer."""
    return f"The capital is {CAPITALS[country]}.\nThe {RIVERS[country]} crosses it, {len(country)}7 miles long."


def records(names: list[str]) -> list[dict[str, Any]]:
    return [{"question": f"Tell me of {name}.", "answer": story(name), "relation": "story"} for name in names]


class Files(NamedTuple):
    data: Path
    audit: Path
    tuned: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Files:
    """Long rows, half of which a model is tuned on until it says them; two short rows; a real audit of all."""
    folder = tmp_path_factory.mktemp("recall")
    short = [
        {"question": f"What is the capital of {n}?", "answer": CAPITALS[n], "relation": "capital"} for n in NAMES[:2]
    ]
    data = write_jsonl(folder / "all.jsonl", [*records(NAMES[:16]), *short])
    given = {"data": str(data), "model": str(tiny_folder), "out": folder / "audit", "dtype": "float32", "device": "cpu"}
    audit_run.run(settings_of(AuditConfig, {**given, "max_answer_tokens": 8}))
    add_spans(folder / "audit")
    train = write_jsonl(folder / "train.jsonl", records(TAUGHT))
    tuned = train_run.run(
        settings_of(
            TuneConfig,
            {
                "train": str(train), "dev": str(train), "out": folder / "tuned", "model": str(tiny_folder),
                "dtype": "float32", "device": "cpu", "epochs": 30, "learning_rate": 4e-3, "batch_size": 4,
                "dropout": 0.0, "allow_overlap": True, "keep": "last", "patience": None,
            },
        )
    )  # fmt: skip
    return Files(data, folder / "audit", tuned.folder / "convergence")


def settings(files: Files, out: Path, **given: Any) -> EvaluateConfig:
    base = {
        "model": str(files.tuned), "data": str(files.data), "out": out, "audit": files.audit, "dtype": "float32",
        "device": "cpu", "batch_rows": 5, "chunk_rows": 7,
    }  # fmt: skip
    return settings_of(EvaluateConfig, {**base, **given})


@pytest.fixture(scope="module")
def finished(files: Files, tmp_path_factory: pytest.TempPathFactory) -> EvaluateResult:
    return evaluate_run.run(settings(files, tmp_path_factory.mktemp("evaluation") / "out"))


def plain_texts(folder: Path, rows: pl.DataFrame) -> list[str]:
    """What the model writes, one row at a time and without padding, until it ends the text or has written enough."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    texts = []
    for question, answer in rows.select("question", "answer").iter_rows():
        prompt = TRAINING.render((), question)
        ids = tokenizer(prompt, return_tensors="pt")
        most = len(tokenizer(TRAINING.gap + answer)["input_ids"]) + 4
        made = model.generate(**ids, max_new_tokens=most, do_sample=False, pad_token_id=0)[0]
        texts.append(tokenizer.decode(made[ids["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return texts


def test_texts_are_those_of_plain_generation_past_line_breaks(
    finished: EvaluateResult, files: Files, tiny_folder: Path
) -> None:
    rows = finished.rows
    assert dict(rows.schema) == ANSWERED
    long = rows.filter(pl.col("gold_spans").is_not_null())
    assert long.height == 16
    assert rows.filter(pl.col("gold_spans").is_null()).select(list(SPAN_RECALL)).null_count().row(0) == (2,) * 6
    assert long["long_answer"].to_list() == plain_texts(files.tuned, long)
    assert long["base_long_answer"].to_list() == plain_texts(tiny_folder, long)
    taught = long.head(len(TAUGHT)).filter(pl.col("long_answer") == pl.col("answer"))  # both lines, word for word
    assert taught.height
    assert taught["long_answer_ended"].all()
    assert taught["prediction"].to_list() == [answer.split("\n")[0] for answer in taught["answer"]]


def test_short_answers_are_judged_as_without_labels_of_spans(
    finished: EvaluateResult, files: Files, tmp_path: Path
) -> None:
    """The first line of a long text is what the model answers anyway."""
    alone = evaluate_run.run(settings(files, tmp_path / "alone", audit=None)).rows
    columns = ["row", "ended", "correct", "correct_lenient", "refused"]
    assert finished.rows.select(columns).equals(alone.select(columns))
    both = finished.rows.filter("ended")["prediction"], alone.filter("ended")["prediction"]
    assert len(both[0]) > 8
    assert both[0].equals(both[1])  # one that has not ended is cut where its batch ends
    assert summarise_answers(alone)["long_answers"] is None


def test_spans_turn_up_where_their_text_stands(finished: EvaluateResult) -> None:
    long = finished.rows.filter(pl.col("gold_spans").is_not_null())
    texts, base = long["long_answer"].to_list(), long["base_long_answer"].to_list()
    said = []
    for n, (own, question, answer) in enumerate(long.select("gold_spans", "question", "answer").iter_rows()):
        assert own
        after = (n + 1) % long.height
        for span in own:
            word = re.compile(rf"\b{re.escape(span['text'])}\b", re.IGNORECASE)
            assert word.search(answer)
            assert span["in_text"] == bool(word.search(texts[n]))
            assert span["in_base_text"] == bool(word.search(base[n]))
            elsewhere = f"{long['question'][after]} {long['answer'][after]}"
            expected = None if word.search(elsewhere) else bool(word.search(texts[after]))
            assert span["in_other_text"] == expected
            said.append((span["category"], span["new"], span["in_text"], n < len(TAUGHT)))
        for other in long["other_spans"][n]:
            word = re.compile(rf"\b{re.escape(other['text'])}\b", re.IGNORECASE)
            assert word.search(texts[n])
            assert not word.search(f"{question} {answer}")
    learnt, others = ([turned_up for _, _, turned_up, taught in said if taught == want] for want in (True, False))
    assert sum(learnt) / len(learnt) > sum(others) / len(others)
    assert not all(others)
    section = finished.summary["long_answers"]
    assert section["rows"] == 16
    for category in CATEGORIES:
        own_said = [turned_up for c, _, turned_up, _ in said if c == category]
        assert section["by_label"][category]["said"]["count"] == sum(own_said)
        assert section["by_label"][category]["said"]["rows"] == len(own_said)
    new_said = [turned_up for _, new, turned_up, _ in said if new]
    assert new_said
    assert section["by_label"]["new"]["said"]["count"] == sum(new_said)


def test_what_the_text_names_beside_the_answer() -> None:
    lines = [
        {
            "row": 3, "question": "Who led Fenwall?", "context": [{"role": "user", "content": "Of Tarvos?"}],
            "answers": ["It was Jane Marlow in 1931, with 12,000 men.", "Mrs Marlow"],
            "long_answer": "It was Jane Marlow of Tarvos with Peter Quint in 1845, and with 12000 men. Quint led.",
            "long_answer_ended": True, "base_long_answer": None,
        },
        {
            "row": 5, "question": "Who wrote?", "context": None, "answers": ["We think Ann Bole wrote."],
            "long_answer": None, "long_answer_ended": None, "base_long_answer": None,
        },
    ]  # fmt: skip
    golds = [
        (3, 0, 7, 18, "Jane Marlow", "name", "Unknown", True, False),
        (3, 1, 22, 26, "1931", "date", "Unknown", False, False),
        (3, 2, 33, 39, "12,000", "number", "HighlyKnown", False, True),
        (5, 0, 9, 17, "Ann Bole", "name", "Unknown", True, False),
    ]
    schema = {"row": pl.Int64(), "question": pl.String(), "answers": pl.List(pl.String()), **SPAN_RECALL}
    context = pl.List(pl.Struct({"role": pl.String(), "content": pl.String()}))
    own_schema = {n: {**schema, "context": context}[n] for n in lines[0]}
    rows = span_recall(pl.DataFrame(lines, schema=own_schema), pl.DataFrame(golds, schema=WATCHED_SPANS, orient="row"))
    first, second = rows.to_dicts()
    assert [(s["text"], s["in_text"]) for s in first["gold_spans"]] == [
        ("Jane Marlow", True), ("1931", False), ("12,000", True)
    ]  # fmt: skip
    assert first["other_spans"] == [{"text": "Peter Quint", "type": "name"}, {"text": "1845", "type": "date"}]
    assert first["base_other_spans"] is None
    assert (second["gold_spans"][0]["in_text"], second["other_spans"]) == (None, None)
    summary = summarise_span_recall(rows)
    assert summary is not None
    assert (summary["not_finite"], summary["by_label"]["all"]["said"]["rows"]) == (1, 3)
    assert summary["by_label"]["all"]["base"] is None
    json.dumps(summary, allow_nan=False)


def test_a_stopped_evaluation_goes_on_to_the_same_bytes(
    finished: EvaluateResult, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = RunDir.save_chunk

    def killed(self: RunDir, number: int, kind: str, frame: pl.DataFrame) -> None:
        if (number, kind) == (2, "predictions"):
            raise KeyboardInterrupt
        keep(self, number, kind, frame)

    monkeypatch.setattr(RunDir, "save_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run.run(settings(files, tmp_path / "a"))
    monkeypatch.setattr(RunDir, "save_chunk", keep)
    done = evaluate_run.run(settings(files, tmp_path / "a"))
    assert (done.folder / "rows.parquet").read_bytes() == (finished.folder / "rows.parquet").read_bytes()


def test_a_file_of_long_rows_alone_can_be_evaluated_and_the_page_shows_it(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "long.jsonl", records(NAMES[4:12]))  # other row numbers than in the audit's file
    done = foreknow.evaluate(
        str(files.tuned), str(data), out=str(tmp_path / "out"), audit=str(files.audit), dtype="float32", device="cpu"
    )
    assert "labelled spans in 8 long answers" in capsys.readouterr().err
    of = done.summary["long_answers"]["by_label"]["all"]
    line = next(line for line in summary_lines(done.summary) if line.startswith("long answers: "))
    assert line.startswith(f"long answers: {of['said']['count']} of {of['said']['rows']} (")
    table = span_table(done.summary)
    assert table is not None
    assert table["gold spans"].to_list() == ["all", *CATEGORIES, "new"]
    page = render_evaluation(done)
    assert "what turns up in the model’s own texts" in page
    assert "No categories are known" not in page
    lead = re.search(r'<p class="lead">(.*?)</p>', page, re.DOTALL)
    assert lead is not None
    assert lead[1].startswith("In 8 texts that the model writes where a long answer is wanted")
    assert not any(line.startswith("no categories") for line in summary_lines(done.summary))
    other = done.summary["long_answers"]["other_spans"]["frequent"][0]["text"]
    assert f">{other}</bdi>" in page
    assert f">{other}</bdi>" not in render_evaluation(done, show_rows=False)
