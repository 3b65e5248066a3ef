"""Training on long answers with labels of spans: masks in the loss, tokens for other trainers, and fitted spans."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import foreknow
from builders import asking_of, write_jsonl
from conftest import CAPITALS, RIVERS
from foreknow.categories import CATEGORIES
from foreknow.cli import main
from foreknow.config import AuditConfig, MixConfig, TuneConfig
from foreknow.data.spans.schema import is_new
from foreknow.errors import ConfigError, InputError
from foreknow.prompts.prompt_template import Prompter
from foreknow.settings import settings_of
from foreknow.stages.audit import run as audit_run
from foreknow.stages.audit.result import AuditResult, open_audit
from foreknow.stages.mix.run import write_mix
from foreknow.stages.train import row_faults
from foreknow.stages.train.answer_loss import PlainPass, open_pass
from foreknow.stages.train.answer_places import answer_places, tokens_in
from foreknow.stages.train.callback import KnowledgeCallback
from foreknow.stages.train.dataset import read_set
from foreknow.stages.train.inputs import labelled_spans
from foreknow.stages.train.label_check import IGNORED
from foreknow.stages.train.pretokenized import tokens_path, write_tokens
from foreknow.stages.train.run import run
from foreknow.stages.train.set_loss import mean_losses
from foreknow.stages.train.span_labels import count_fitted, watched_spans, without_trained
from foreknow.stages.train.tracker import Tracker, vocabulary_for
from foreknow.stages.train.training_examples import TRAINING, TrainingExample, tokenise
from span_files import Label, add_spans

OLD_NAMES = "ignore:.*is deprecated and will be removed:FutureWarning"


def story(country: str) -> str:
    return (
        f"The capital of {country} is {CAPITALS[country]}, and the {RIVERS[country]} crosses it. About "
        f"{len(country)}00 people live in {CAPITALS[country]}."
    )


def records(names: list[str]) -> list[dict[str, Any]]:
    return [{"question": f"Tell me of {name}.", "answer": story(name), "relation": "story"} for name in names]


def label(text: str, at: int) -> Label:
    """Numbers are new; names go through the categories, the Unknown of them recognised."""
    return ("Unknown", False) if text.isdigit() else (CATEGORIES[at % 4], True)


class Files(NamedTuple):
    train: Path
    dev: Path
    audit: AuditResult
    spans: pl.DataFrame


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Files:
    """A real audit of 16 long rows to train on and 8 of dev, with labels of spans."""
    folder = tmp_path_factory.mktemp("spans")
    names = list(CAPITALS)
    train, dev = write_jsonl(folder / "train.jsonl", records(names[:16])), folder / "dev.jsonl"
    write_jsonl(dev, records(names[16:]))
    both = write_jsonl(folder / "all.jsonl", records(names))
    given = {"data": str(both), "model": str(tiny_folder), "out": folder / "audit", "dtype": "float32", "device": "cpu"}
    audit_run.run(settings_of(AuditConfig, {**given, "max_answer_tokens": 8}))
    spans = add_spans(folder / "audit", label)
    return Files(train, dev, open_audit(folder / "audit"), spans)


@pytest.fixture(scope="module")
def masked(files: Files) -> Path:
    out = files.train.with_name("masked.jsonl")
    write_mix(MixConfig(audit=files.audit.folder, out=out, mask="new"))
    return out


@pytest.fixture
def prompter(tiny_folder: Path) -> Prompter:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.pad_token = tokenizer.eos_token
    return Prompter(tokenizer, TRAINING)


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()


def rows_of(path: Path, prompter: Prompter) -> list[TrainingExample]:
    split = read_set("train", str(path), None)
    examples, faults = tokenise(split, prompter, prompter.tokenizer.eos_token_id)
    assert not faults
    return examples


def test_masked_tokens_are_those_that_spell_the_new_spans(masked: Path, prompter: Prompter) -> None:
    rows = read_set("train", str(masked), None).rows
    ranges = dict(rows.select("row", "loss_exclude").iter_rows())
    for example, gold in zip(rows_of(masked, prompter), rows["answers"].list.first(), strict=True):
        pieces = [prompter.tokenizer.decode([token]) for token in example.answer[:-1]]
        assert "".join(pieces) == gold  # byte-level tokens of ASCII: the pieces add up to the text
        ends = [len("".join(pieces[: n + 1])) for n in range(len(pieces))]
        expected = [
            n
            for n, end in enumerate(ends)
            if any(start < end and end - len(pieces[n]) < last for start, last in ranges[example.row])
        ]
        assert expected
        assert list(example.excluded) == expected
        assert "".join(pieces[n] for n in expected).split() == [gold[start:end] for start, end in ranges[example.row]]
        assert example.in_loss[-1]
        assert example.learnt == len(example.answer) - len(expected)


def slow_loss(model: Any, rows: list[TrainingExample]) -> torch.Tensor:
    """The mean of -log p over the tokens of answers that are not left out, one plain forward pass a row."""
    losses = []
    for example in rows:
        ids = [*example.prompt, *example.answer]
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for n, token in enumerate(example.answer):
            if n not in example.excluded:
                losses.append(-logits[len(example.prompt) + n - 1, token])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("packed", [True, False])
def test_loss_and_gradient_are_those_of_the_tokens_that_are_left(
    masked: Path, prompter: Prompter, model: Any, packed: bool
) -> None:
    rows = rows_of(masked, prompter)[:6]
    slow_loss(model, rows).backward()
    slow = {name: p.grad.clone() for name, p in model.named_parameters()}
    expected = float(slow_loss(model, rows).detach())
    model.zero_grad()
    with open_pass(model, rows[:2]) if packed else nullcontext((PlainPass(model), "plain")) as (losses, reason):
        assert ("packed rows" in reason) == packed
        ordered, values = losses.losses(rows)
        weights = torch.tensor([w for example in ordered for w in example.token_weights])
        loss = (values * weights).sum() / sum(example.weight * example.learnt for example in ordered)
        loss.backward()
        mean = mean_losses(asking_of(model, losses=losses, tokens=300), {"dev": rows})
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)
    assert mean["dev"] == pytest.approx(expected, abs=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, slow[name], atol=2e-5, rtol=1e-3)


def settings(files: Files, tiny_folder: Path, out: Path, **given: Any) -> TuneConfig:
    common = {"dev": str(files.dev), "model": str(tiny_folder), "dtype": "float32", "device": "cpu", "out": out}
    more = {"audit": files.audit.folder, "epochs": 3, "batch_size": 4, "learning_rate": 2e-3, "dropout": 0.0}
    return settings_of(TuneConfig, {**common, **more, **given})


def test_a_step_of_tune_has_the_loss_of_the_tokens_that_are_left(
    masked: Path, files: Files, tiny_folder: Path, tmp_path: Path, prompter: Prompter, model: Any
) -> None:
    config = settings(
        files, tiny_folder, tmp_path / "run", train=str(masked), epochs=1, batch_size=64, allow_overlap=True
    )
    done = run(config)
    line = json.loads((done.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert line["train_loss"] == pytest.approx(float(slow_loss(model, rows_of(masked, prompter)).detach()), abs=1e-4)


def test_rows_whose_whole_answer_is_masked_teach_nothing_and_are_counted(tmp_path: Path, prompter: Prompter) -> None:
    lines = records(list(CAPITALS)[:3])
    lines[1]["loss_exclude"] = [[0, len(lines[1]["answer"])]]
    lines[2]["loss_exclude"] = [[2, 5]]
    split = read_set("train", str(write_jsonl(tmp_path / "t.jsonl", lines)), None)
    blanks = split.rows["answers"].list.eval("  " + pl.element())  # places count blanks before the answer
    moved = pl.when(pl.col("row") == 2).then(blanks).otherwise("answers")
    split = split._replace(rows=split.rows.with_columns(answers=moved))
    examples, faults = tokenise(split, prompter, prompter.tokenizer.eos_token_id)
    assert [(fault.row, fault.reason) for fault in faults] == [(1, row_faults.ANSWER_MASKED)]
    assert [example.learnt > 0 for example in examples] == [True, False, True]
    text = prompter.tokenizer.decode([examples[2].answer[n] for n in examples[2].excluded])
    assert text.strip() == "The"
    assert "from which nothing is learnt" in row_faults.notes("train", faults)[0]


@pytest.mark.parametrize("bad", ["[[0, 900]]", "[[3]]", "new", [["a", 2]], [[5, 2]], [[True, 2]]])
def test_ranges_that_are_not_in_the_answer_are_refused(tmp_path: Path, bad: Any) -> None:
    file = write_jsonl(tmp_path / "t.jsonl", [{**records(["Arland"])[0], "loss_exclude": bad}])
    with pytest.raises(InputError, match=r"row 0: loss_exclude: found .* expected a list of \[start, end\]"):
        read_set("train", str(file), None)


@pytest.mark.parametrize("answer", ["Café №5 東京 und 12 Öre", "a\u0301b 12 😀 x", "plain 12 text"])
def test_tokens_in_a_range_spell_all_of_it(prompter: Prompter, answer: str) -> None:
    text = prompter.text((), "q")
    ids = prompter.answer_ids(text, prompter.ids([text])[0], answer)
    places = answer_places(prompter, text, answer, ids)
    for start in range(len(answer)):
        for end in range(start + 1, len(answer) + 1):
            if answer[start:end].strip():
                tokens = tokens_in(places, [(start, end)])
                spelled = prompter.tokenizer.decode([ids[n] for n in tokens])
                assert answer[start:end].strip() in spelled
    assert tokens_in(places, [(3, 3)]) == ()


@pytest.mark.filterwarnings(OLD_NAMES)
@pytest.mark.parametrize("kind", ["transformers", "trl"])
def test_other_trainers_take_the_tokens_as_they_are(
    masked: Path, files: Files, prompter: Prompter, model: Any, tmp_path: Path, kind: str
) -> None:
    from datasets import Dataset

    written = write_tokens(MixConfig(audit=files.audit.folder, out=masked, mask="new"))
    assert written.path == tokens_path(masked)
    rows = rows_of(masked, prompter)
    frame = pl.read_parquet(tokens_path(masked))
    for line, example in zip(frame.iter_rows(named=True), rows, strict=True):
        assert line["input_ids"] == [*example.prompt, *example.answer]
        taught = [token for token, counts in zip(example.answer, example.in_loss, strict=True) if counts]
        assert [token for token in line["labels"] if token != IGNORED] == taught
    assert f"have the label {IGNORED}" in " ".join(written.notes)
    data = Dataset.from_parquet(str(tokens_path(masked)))
    common: dict[str, Any] = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 64, "max_steps": 1, "report_to": [],
        "use_cpu": True, "learning_rate": 0.0, "logging_steps": 1, "save_strategy": "no",
    }  # fmt: skip
    if kind == "transformers":
        collator = DataCollatorForSeq2Seq(prompter.tokenizer)
        trainer: Any = Trainer(
            model, TrainingArguments(**common), train_dataset=data.remove_columns("row"), data_collator=collator
        )
    else:
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(
            model, SFTConfig(**common, max_length=None, bf16=False), train_dataset=data,
            processing_class=prompter.tokenizer,
        )  # fmt: skip
    callback = KnowledgeCallback(str(masked), audit=files.audit.folder, tokenizer=prompter.tokenizer, dtype="float32")
    trainer.add_callback(callback)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(float(slow_loss(model.eval(), rows).detach()), abs=2e-3)
    assert callback.lines[-1]["spans"]["train"]["new"][1] == files.spans.filter(is_new()).height


@pytest.mark.filterwarnings(OLD_NAMES)
def test_the_callback_warns_if_the_trainer_learns_what_is_masked(
    masked: Path, prompter: Prompter, model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import Dataset

    rows = rows_of(masked, prompter)
    whole = [{"input_ids": [*e.prompt, *e.answer], "labels": [IGNORED] * len(e.prompt) + list(e.answer)} for e in rows]
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, save_strategy="no")
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(whole),
        data_collator=DataCollatorForSeq2Seq(prompter.tokenizer),
    )
    trainer.add_callback(KnowledgeCallback(str(masked), tokenizer=prompter.tokenizer, dtype="float32"))
    trainer.train()
    assert f"{len(rows)} of {len(rows)} rows that have masked spans" in capsys.readouterr().err


def slow_fitted(model: Any, prompter: Prompter, rows: pl.DataFrame, spans: pl.DataFrame) -> Iterator[bool]:
    """Whether every token of a span is the arg max behind the gold before it, by the plain model, a row at a time."""
    golds = {row: (q, a[0]) for row, q, a in rows.select("row", "question", "answers").iter_rows()}
    for row, start, end in spans.select("row", "start", "end").iter_rows():
        question, gold = golds[row]
        prompt = prompter.ids([prompter.text((), question)])[0]
        encoded = prompter.tokenizer(str(prompter.text((), question)) + gold, return_offsets_mapping=True)
        ids, begin = encoded["input_ids"], len(str(prompter.text((), question)))
        assert ids[: len(prompt)] == prompt
        best = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        at = [n for n, (a, b) in enumerate(encoded["offset_mapping"]) if a < begin + end and begin + start < b]
        yield all(best[n - 1] == ids[n] for n in at)


def test_fitted_spans_are_those_of_a_plain_loop(files: Files, prompter: Prompter, model: Any) -> None:
    sets = {name: read_set(name, str(path), files.audit.rows).rows for name, path in
            (("train", files.train), ("dev", files.dev))}  # fmt: skip
    spans = labelled_spans(sets, files.audit)
    assert sum(own.height for own in spans.values()) == files.spans.height
    lessons = rows_of(files.train, prompter)[:8]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(30):  # until some spans are fitted
        slow_loss(model, lessons).backward()
        optimizer.step()
        optimizer.zero_grad()
    vocabulary = prompter.ended(vocabulary_for(model, prompter.tokenizer))
    for batch in (2048, 100):
        measured = Tracker(prompter, vocabulary, sets, spans=spans, batch_tokens=batch).measure(model)
        for name, own in spans.items():
            expected = list(slow_fitted(model, prompter, sets[name], own))
            found = own.join(measured.spans.filter(pl.col("set") == name), on=["row", "span"], maintain_order="left")
            assert found["fitted"].to_list() == expected
    assert any(measured.spans["fitted"])
    assert not all(measured.spans["fitted"])
    counts = count_fitted(measured.spans, spans)
    assert {part: total for part, (_, total) in counts["train"].items() if part in CATEGORIES} == dict(
        spans["train"]["category"].value_counts().iter_rows()
    )


def test_spans_that_are_trained_on_do_not_count_as_kept(files: Files) -> None:
    dev = read_set("dev", str(files.dev), None).rows
    own = watched_spans(dev, files.audit.rows, files.spans)
    train = read_set("train", str(files.train), None).rows
    both = without_trained(own, pl.concat([train, dev.head(1)]))
    first = own.filter(pl.col("row") == 0)
    assert first["kept"].any()
    assert not both.filter(pl.col("row") == 0)["kept"].any()
    kept = without_trained(own, train).filter("kept")
    assert set(kept["category"]) <= {"HighlyKnown", "MaybeKnown"}
    texts = " ".join(train["answers"].list.first()).lower()
    assert kept.height
    assert all(re.search(rf"\b{re.escape(text.lower())}s?\b", texts) is None for text in kept["text"])
    assert not re.search(r"\b10\b|\brome\b", texts)
    short = pl.concat([own.head(1).with_columns(text=pl.lit(text), kept=True) for text in ("10", "Rome", "2010")])
    taught = train.head(1).with_columns(answers=pl.Series([["It was built in 2010 by Jerome Smith."]]))
    assert without_trained(short, taught)["kept"].to_list() == [True, True, False]


def test_tune_counts_spans_says_which_metric_it_took_and_can_choose_by_dev_spans(
    files: Files, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = run(settings(files, tiny_folder, tmp_path / "auto", train=str(files.train)))
    said = capsys.readouterr().err
    assert auto.results["metric"] == "dev_loss"
    assert "--metric dev_spans chooses by" in said
    assert "known spans" in said
    assert "new to the model" in said
    assert "no --audit that knows them" not in said
    lines = [json.loads(line) for line in (auto.folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert set(line["spans"]) == {"train", "dev"}
        assert "kept" not in line["spans"]["train"]
        assert all(0 <= fitted <= total for part in line["spans"].values() for fitted, total in part.values())
    spans, fitted = auto.spans, auto.fitted_spans
    assert spans is not None
    assert fitted is not None
    sets = {name: spans.filter(pl.col("set") == name).drop("set") for name in ("train", "dev")}
    for line in lines:  # every span's own outcome adds up to the counts
        at = fitted.filter(pl.col("step") == line["step"])
        assert at.height == spans.height
        assert count_fitted(at, sets) == line["spans"]
    known = [sum(line["spans"]["train"][c][0] for c in CATEGORIES[:3]) for line in lines]
    assert known[-1] >= known[0]
    chosen = run(settings(files, tiny_folder, tmp_path / "spans", train=str(files.train), metric="dev_spans"))
    shares = [line["spans"]["dev"]["kept"] for line in lines]
    best = max(range(len(lines)), key=lambda n: (shares[n][0], -lines[n]["loss"]["dev"]))
    assert chosen.results["early_stop"]["epoch"] == best + 1
    with pytest.raises(ConfigError, match="dev_spans: dev has no span that the model said before"):
        run(settings(files, tiny_folder, tmp_path / "no", train=str(files.train), metric="dev_spans", audit=None))


def test_the_python_call_writes_the_tokens_too(files: Files, tmp_path: Path) -> None:
    foreknow.mix(str(files.audit.folder), out=str(tmp_path / "m.jsonl"), mask="unknown")
    frame = pl.read_parquet(tmp_path / "m.jsonl.tokens.parquet")
    assert frame.height == 24
    assert all(IGNORED in labels and labels[-1] != IGNORED for labels in frame["labels"].to_list())


def test_the_command_says_what_it_masked_and_where_the_tokens_are(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.jsonl"
    words = ["mix", str(files.audit.folder), "--mask", "new", "--drop-new-above", "0.5", "--size", "10"]
    with pytest.raises(SystemExit) as done:
        main([*words, "--out", str(out)])
    assert done.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "10 rows with" in said
    assert "0 rows dropped" in said
    assert "masked:" in said
    assert f"{out}.tokens.parquet: 10 rows as tokens of" in said
    assert pl.read_parquet(f"{out}.tokens.parquet").height == 10
