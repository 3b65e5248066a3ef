"""The evaluation end to end, on the tiny model: against plain generation, the tracker, a tune run and an audit."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import foreknow
from builders import write_jsonl
from conftest import fact_rows
from foreknow.categories import CATEGORIES
from foreknow.config import EvaluateConfig, TuneConfig
from foreknow.data.exact_match import Accepted, answer_of
from foreknow.data.load import read_data
from foreknow.errors import ConfigError, ForeknowError, InputError, ModelError, ResourceError, RunFolderError
from foreknow.inference.generate import Generator
from foreknow.io.run_dir import RunDir
from foreknow.models import loading
from foreknow.models.resolve import Resolved, resolve
from foreknow.prompts.prompt_template import Prompter, Template, read_template
from foreknow.report.model_card import model_card
from foreknow.settings import settings_of
from foreknow.stages.evaluate import generate
from foreknow.stages.evaluate import run as evaluate_run
from foreknow.stages.evaluate.metrics import ANSWERED, BASE_RIGHT
from foreknow.stages.evaluate.result import EvaluateResult, open_evaluation
from foreknow.stages.evaluate.tables import em_table, summary_lines
from foreknow.stages.train import run as train_run
from foreknow.stages.train.result import TrainResult
from foreknow.stages.train.tracker import Tracker, vocabulary_for
from foreknow.stages.train.training_examples import TRAINING
from test_numbers import ODD
from test_numbers import broken as broken_model

Make = Callable[..., EvaluateConfig]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompt that the tiny model knows."""
    path = tmp_path_factory.mktemp("templates") / "known.yaml"
    path.write_text(yaml.safe_dump({"target": "Q: {question}\nA:"}))
    return path


@pytest.fixture(scope="session")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The facts with aliases, golds in another case (right leniently only), a long gold, and one row of no use."""
    rows: list[dict[str, Any]] = [{k: v for k, v in r.items() if k != "popularity"} for r in fact_rows()]
    for n, row in enumerate(rows):
        gold = str(row.pop("answer"))
        row["answers"] = [gold.upper()] if n % 3 == 0 else ["nothing of the sort", gold] if n % 3 == 1 else [gold]
    rows[5]["answers"].append("a very long answer that takes many more tokens than any other one here")
    return write_jsonl(tmp_path_factory.mktemp("rows") / "spelled.jsonl", [*rows, {"question": "no answer"}])


@pytest.fixture(scope="session")
def make(tiny_folder: Path, spelled: Path, template: Path) -> Make:
    def make(out: Path | None, **given: Any) -> EvaluateConfig:
        base = {
            "model": str(tiny_folder), "data": str(spelled), "out": out, "prompt_template": template,
            "dtype": "float32", "device": "cpu", "batch_rows": 7, "chunk_rows": 16,
        }  # fmt: skip
        return settings_of(EvaluateConfig, {**base, **given})

    return make


@pytest.fixture(scope="session")
def audited(tiny_folder: Path, spelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audits") / "base"
    foreknow.audit(str(spelled), model=str(tiny_folder), out=str(out), dtype="float32", shots=2, exemplar_sets=4)
    return out


@pytest.fixture(scope="session")
def finished(make: Make, audited: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateResult:
    return evaluate_run.run(make(tmp_path_factory.mktemp("evaluations") / "first", audit=audited))


@pytest.fixture(scope="session")
def tuned(
    tiny_folder: Path, template: Path, facts_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TrainResult]:
    """A short run of `tune` in the tiny model's own prompt; it learns to end its answers."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = [{k: r[k] for k in ("question", "answer", "relation")} for r in fact_rows()]
    train, dev = write_jsonl(folder / "train.jsonl", rows[:40]), write_jsonl(folder / "dev.jsonl", rows[:8])

    def make(name: str, **given: Any) -> TrainResult:
        base = {
            "train": str(train), "dev": str(dev), "test": [f"ood={write_jsonl(folder / 'ood.jsonl', rows[40:])}"],
            "out": folder / name, "model": str(tiny_folder), "prompt_template": template, "dtype": "float32",
            "device": "cpu", "epochs": 8, "learning_rate": 4e-3, "batch_size": 10, "dropout": 0.0,
            "allow_overlap": True, "keep": "both",
        }  # fmt: skip
        return train_run.run(settings_of(TuneConfig, {**base, **given}))

    return make


@pytest.fixture(scope="session")
def whole(tuned: Callable[..., TrainResult]) -> TrainResult:
    return tuned("whole")


@pytest.fixture(scope="session")
def adapted(tuned: Callable[..., TrainResult]) -> TrainResult:
    return tuned("lora", method="lora", lora_rank=4, lora_alpha=8, learning_rate=1e-3, epochs=2)


def one_by_one(folder: Path, rows: pl.DataFrame, target: str) -> list[str | None]:
    """What the model says by `generate` as it comes, one row at a time, without padding; None if it goes on."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    found = []
    for question in rows["question"]:
        ids = tokenizer(target.replace("{question}", question), return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=16, do_sample=False, pad_token_id=0)[0, ids["input_ids"].shape[1] :]
        ended = tokenizer.eos_token_id in made or "\n" in tokenizer.decode(made)
        found.append(answer_of(tokenizer.decode(made, skip_special_tokens=True)) if ended else None)
    return found


def outputs(folder: Path) -> dict[str, bytes]:
    """What a run computed; the seconds it took are left out."""
    summary = json.loads((folder / "summary.json").read_text())
    kept = {k: v for k, v in summary.items() if "second" not in k}
    manifest = json.loads((folder / "manifest.json").read_text())
    told = {k: v for k, v in manifest.items() if k not in ("files", "seal")}  # they speak of the summary's bytes
    rows = (folder / "rows.parquet").read_bytes()
    return {"rows.parquet": rows, "manifest": json.dumps(told).encode(), "summary": json.dumps(kept).encode()}


def test_every_output_is_there(finished: EvaluateResult, audited: Path, tiny_folder: Path) -> None:
    names = {p.name for p in finished.folder.iterdir() if p.name != ".lock"}
    assert names == {"config.yaml", "rows.parquet", "summary.json", "manifest.json", "report.html"}
    rows, summary = finished.rows, finished.summary
    assert dict(rows.schema) == ANSWERED
    assert rows["row"].to_list() == list(range(48))
    assert (summary["rows"], summary["skipped"], summary["labelled"]) == (48, 1, 48)
    assert set(summary["em"]) == {"overall", "by_category", "by_relation", "by_split"}
    assert set(summary["em"]["by_relation"]) == {"capital", "river"}
    assert set(summary["em"]["by_split"]) == {"dev", "train"}
    assert summary["model"]["folder"] == str(tiny_folder)
    assert summary["audit"]["folder"] == str(audited)
    assert summary["protocol"]["prompt"] == "Q: {question}\nA:"
    assert summary["rows_per_second"] > 0
    strict, lenient = (summary["em"]["overall"][kind]["count"] for kind in ("strict", "lenient"))
    assert (strict, lenient) == (rows["correct"].sum(), rows["correct_lenient"].sum())
    assert 5 < strict < lenient < 48
    assert open_evaluation(finished.folder).summary == summary


def test_it_says_what_plain_generation_says(finished: EvaluateResult, tiny_folder: Path) -> None:
    rows = finished.rows
    expected = one_by_one(tiny_folder, rows, "Q: {question}\nA:")
    # batches of seven rows of unlike lengths, padded at their left
    assert [None if text.endswith("\u2026") else text for text in rows["prediction"]] == expected
    assert sum(text is not None for text in expected) > 40
    columns = ("prediction", "answers", "ended", "correct", "correct_lenient")
    for said, answers, ended, *right in rows.select(*columns).iter_rows():
        assert right == [ended and Accepted.of(answers).right(said, mode) for mode in ("strict", "lenient")]


@pytest.mark.parametrize("text", [TRAINING, Template(target="Q: {question}\nA:")], ids=["paper", "known"])
@pytest.mark.parametrize("point", ["base", "early_stop", "convergence"])
def test_the_tracker_sees_what_generation_says(
    point: str, text: Template, whole: TrainResult, tiny_folder: Path, spelled: Path, make: Make, tmp_path: Path
) -> None:
    folder = tiny_folder if point == "base" else whole.folder / point
    file = tmp_path / "template.yaml"
    file.write_text(yaml.safe_dump({"target": text.target}))
    generated = evaluate_run.run(make(tmp_path / "a", model=str(folder), prompt_template=file)).rows
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    rows = evaluate_run.read_inputs(make(None)).rows
    tracked = Tracker(Prompter(tokenizer, text), vocabulary_for(model, tokenizer), {"rows": rows}, lenient=True)(model)
    assert tracked["row"].to_list() == generated["row"].to_list() == list(range(48))
    assert tracked["correct"].to_list() == generated["correct"].to_list()
    assert tracked["lenient"].to_list() == generated["correct_lenient"].to_list()
    assert text is TRAINING or 5 < tracked["correct"].sum() < tracked["lenient"].sum() < 48


@pytest.mark.parametrize("name", ["early_stop", "convergence"])
def test_a_tuned_model_scores_what_its_run_measured(
    name: str, whole: TrainResult, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make(tmp_path / "a", model=str(whole.folder / name), data=whole.results["data"]["train"]["file"])
    found = evaluate_run.run(config).summary
    counts = whole.results[name]["metrics"]["counts"]["train"]
    assert found["em"]["overall"]["strict"]["count"] == counts["correct"] > 5
    assert found["model"]["name"] == f"whole/{name}"
    assert found["model"]["base"]["fingerprint"] == whole.results["model"]["fingerprint"]
    assert "another prompt" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT reads an old name
def test_an_adapter_scores_what_its_run_measured(
    adapted: TrainResult, make: Make, audited: Path, tmp_path: Path
) -> None:
    folder = adapted.folder / "convergence"
    found = evaluate_run.run(make(tmp_path / "a", model=str(folder), data=adapted.results["data"]["train"]["file"]))
    assert found.summary["em"]["overall"]["strict"]["count"] == adapted.metrics[-1]["counts"]["train"]["correct"] > 5
    of = found.summary["model"]
    assert (of["method"], of["base"]["fingerprint"]) == ("adapter", adapted.results["model"]["fingerprint"])
    # not what its base says, and the base's audit is its own
    every = evaluate_run.run(make(tmp_path / "b", model=str(folder), audit=audited)).rows
    base = evaluate_run.run(make(tmp_path / "c")).rows
    assert (every["prediction"] != base["prediction"]).any()
    assert every["category"].null_count() == 0


def test_without_its_base_an_adapter_is_refused_and_base_names_it(
    adapted: TrainResult, tiny_folder: Path, make: Make, tmp_path: Path
) -> None:
    folder = copy(adapted.folder / "convergence", tmp_path / "moved")
    for name, change in (
        ("foreknow.json", lambda told: told["base"].update(name="gone", folder="/nowhere/gone")),
        ("adapter_config.json", lambda told: told.update(base_model_name_or_path="/nowhere/gone")),
    ):
        told = json.loads((folder / name).read_text())
        change(told)
        (folder / name).write_text(json.dumps(told))
    with pytest.raises(ModelError, match=r"adapter_config.json: sha256 .* take its line out of foreknow.json"):
        evaluate_run.run(make(tmp_path / "a", model=str(folder)))
    about = json.loads((folder / "foreknow.json").read_text())
    del about["files"]["adapter_config.json"]
    (folder / "foreknow.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"an adapter of gone, which is not here; name its base with --base MODEL$"):
        evaluate_run.run(make(tmp_path / "a", model=str(folder)))
    found = resolve(str(folder), base=str(tiny_folder))
    assert found.folder == tiny_folder
    other = copy(tiny_folder, tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "max_length": 77}))
    with pytest.raises(ModelError, match=r"is another model \(sha256:\w+\.\.\.\); name the right one"):
        resolve(str(folder), base=str(other))
    assert resolve(str(folder), base=str(other), force=True).folder == other


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_that_does_not_fit_its_base_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path / "a")
    for name, change in (("deeper", {"num_hidden_layers": 3, "layer_types": None}), ("wider", {"hidden_size": 96})):
        config = type(model.config)(**{**model.config.to_dict(), **change})
        type(model)(config).save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / name)
        found = resolve(str(tmp_path / "a"), base=str(tmp_path / name))
        expected = (
            "does not fit .*deeper: the adapter lacks \\d+ tensors"
            if name == "deeper"
            else "cannot be put on .*wider: "
        )
        with pytest.raises(ModelError, match=expected) as error:
            loading.load_resolved_model(found, dtype="float32", device="cpu")
        assert len(str(error.value).splitlines()) == 1


def test_rows_are_compared_with_the_audits(finished: EvaluateResult, audited: Path) -> None:
    before = foreknow.open_audit(audited).rows.filter(pl.col("category").is_not_null())
    rows = finished.rows.join(before.select("row", was="category", p="p_greedy", base="model_answer"), on="row")
    assert rows.filter(pl.col("category") != pl.col("was")).is_empty()
    assert rows.filter(pl.col("base_p_greedy") != pl.col("p")).is_empty()
    assert rows.filter(pl.col("base_answer") != pl.col("base")).is_empty()
    assert rows["category"].n_unique() >= 2
    moves = finished.summary["moves"]
    was, now = rows["p"] >= BASE_RIGHT, rows["correct"]
    assert moves["overall"]["correct_to_wrong"]["count"] == int((was & ~now).sum())
    assert moves["overall"]["wrong_to_correct"]["count"] == int((~was & now).sum())
    highly = rows.filter(pl.col("was") == "HighlyKnown")
    assert (moves["lost"]["count"], moves["lost"]["rows"]) == (int((~highly["correct"]).sum()), highly.height)
    assert highly.height > 0
    assert moves["overall"]["base_correct"]["count"] == int(was.sum()) > 0


def test_rows_in_another_file_are_found_by_question_and_gold(
    finished: EvaluateResult,
    audited: Path,
    spelled: Path,
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [json.loads(line) for line in spelled.read_text().splitlines()][:48]
    some = [{"question": r["question"], "answer": r["answers"], "relation": r["relation"]} for r in rows[::-3]]
    file = write_jsonl(tmp_path / "some.jsonl", [*some, {"question": "Who is new?", "answer": ["Nobody"]}])
    found = evaluate_run.run(make(tmp_path / "a", data=str(file), audit=audited))
    assert "labels 16 of 17 rows (by question and gold)" in capsys.readouterr().err
    columns = ["question", "category", "base_p_greedy", "base_answer"]
    same = finished.rows.filter(pl.col("question").is_in(found.rows["question"].implode())).select(columns)
    known = found.rows.filter(pl.col("question") != "Who is new?").select(columns)
    assert known.sort("question").equals(same.sort("question"))
    assert found.rows["category"][-1] is None


def test_an_annotated_file_brings_its_own_categories(
    finished: EvaluateResult, audited: Path, make: Make, tmp_path: Path
) -> None:
    found = evaluate_run.run(make(tmp_path / "a", data=str(audited / "annotated.jsonl")))
    assert found.rows.equals(finished.rows)
    assert found.summary["categories_from"] == "the column 'category', which labels 48 of 48 rows"
    assert found.summary["moves"] == finished.summary["moves"]


def test_a_mixed_file_has_categories_and_no_probe(make: Make, tmp_path: Path) -> None:
    rows = [{**r, "category": CATEGORIES[n % 4]} for n, r in enumerate(fact_rows())]
    found = evaluate_run.run(make(tmp_path / "a", data=str(write_jsonl(tmp_path / "mix.jsonl", rows)))).summary
    assert found["moves"]["overall"]["compared"] == 0
    assert found["moves"]["lost"]["rows"] == found["moves"]["gained"]["rows"] == 12
    # a column of that name with other words in it is not ours
    rows = [{**r, "category": "geography"} for r in fact_rows()]
    found = evaluate_run.run(make(tmp_path / "b", data=str(write_jsonl(tmp_path / "other.jsonl", rows)))).summary
    assert found["moves"] is None
    assert found["em"]["by_category"] == {}


def test_a_finished_run_is_not_run_again_and_another_is_refused(
    finished: EvaluateResult,
    make: Make,
    audited: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "load_resolved_model", never)
    before = outputs(finished.folder)
    again = evaluate_run.run(make(finished.folder, audit=audited))
    assert "this evaluation is complete; nothing to do" in capsys.readouterr().err
    assert outputs(again.folder) == before
    with pytest.raises(RunFolderError, match=r'match: "strict" -> "lenient"'):
        evaluate_run.run(make(finished.folder, match="lenient"))
    with pytest.raises(RunFolderError, match=r"categories: "):
        evaluate_run.run(make(finished.folder))


@pytest.mark.parametrize("part", ["predictions", "predictions_cost"])
def test_killed_it_goes_on_and_ends_in_the_same_bytes(
    part: str, finished: EvaluateResult, make: Make, audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, asked = RunDir.save_chunk, []

    def killed(self: RunDir, number: int, kind: str, frame: pl.DataFrame) -> None:
        if (number, kind) == (1, part):
            raise KeyboardInterrupt
        keep(self, number, kind, frame)

    monkeypatch.setattr(RunDir, "save_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run.run(make(tmp_path / "a", audit=audited))
    assert not (tmp_path / "a" / "manifest.json").exists()
    monkeypatch.setattr(RunDir, "save_chunk", keep)
    whole = generate.generate_answers
    monkeypatch.setattr(
        generate, "generate_answers", lambda g, rows, done: asked.append(len(rows)) or whole(g, rows, done)
    )
    done = evaluate_run.run(make(tmp_path / "a", audit=audited))
    assert asked == [16, 16]
    assert outputs(done.folder) == outputs(finished.folder)


def test_out_of_memory_halves_the_batch(
    finished: EvaluateResult, make: Make, audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, most = Generator.answers, [3]

    def small(self: Generator, prompts: Any, max_new: int, draws: int | None) -> Any:
        if len(prompts) > most[0]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(self, prompts, max_new, draws)

    monkeypatch.setattr(Generator, "answers", small)
    done = evaluate_run.run(make(tmp_path / "a", audit=audited))
    assert done.rows.equals(finished.rows)
    assert json.loads((done.folder / "manifest.json").read_text())["chunks_with_halved_batches"] == 3
    most[0] = 0
    with pytest.raises(ResourceError, match="out of memory with one row at a time; finished chunks are kept"):
        evaluate_run.run(make(tmp_path / "b", audit=audited))


@pytest.mark.usefixtures("unchecked_weights")
def test_rows_whose_logits_are_not_finite_are_in_no_figure_and_it_says_so(
    finished: EvaluateResult, make: Make, tiny_folder: Path, spelled: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in spelled.read_text().splitlines()]
    for n in (4, 20):
        rows[n]["question"] = f"{ODD} {rows[n]['question']}"
    data, folder = write_jsonl(tmp_path / "odd.jsonl", rows), broken_model(tmp_path / "m", tiny_folder, math.nan)
    found = evaluate_run.run(make(tmp_path / "a", model=str(folder), data=str(data)))
    odd = found.rows.filter(pl.col("row").is_in([4, 20]))
    for column in ("prediction", "ended", "correct", "correct_lenient", "refused"):
        assert odd[column].is_null().all(), column
    other = pl.col("row").is_in([4, 20]).not_()
    same = ["row", "prediction", "ended", "correct", "correct_lenient", "refused"]
    assert found.rows.filter(other).select(same).equals(finished.rows.filter(other).select(same))
    assert (found.summary["rows"], found.summary["not_finite"]) == (46, 2)
    assert found.summary["em"]["overall"]["strict"]["rows"] == 46
    answers = found.summary["answers"]
    assert answers["correct"] + answers["wrong"] + answers["refused"] == 46
    assert finished.summary["not_finite"] == 0
    assert any("2 rows are in no figure: the model's logits were not finite" in s for s in summary_lines(found.summary))
    page = html.unescape((found.folder / "report.html").read_text())
    assert "The figures here leave out 2 rows, because the model's logits were not finite" in page


@pytest.mark.usefixtures("unchecked_weights")
def test_a_model_that_never_gives_a_distribution_has_no_figures(make: Make, tiny_folder: Path, tmp_path: Path) -> None:
    folder = broken_model(tmp_path / "m", tiny_folder, math.nan, "head")
    found = evaluate_run.run(make(tmp_path / "a", model=str(folder)))
    assert (found.summary["rows"], found.summary["not_finite"]) == (0, 48)
    assert found.summary["em"]["overall"]["strict"]["share"] is None
    assert (found.folder / "report.html").is_file()
    assert em_table(found.summary)["EM"].to_list()[0] == "-"
    assert any("48 rows are in no figure" in line for line in summary_lines(found.summary))


def test_an_answer_that_has_not_ended_is_wrong(finished: EvaluateResult, make: Make, tmp_path: Path) -> None:
    found = evaluate_run.run(make(tmp_path / "a", max_new_tokens=1))
    assert found.summary["em"]["overall"]["lenient"]["count"] == 0
    assert found.summary["answers"]["not_ended"] == 48
    # what is said is read on all the same
    assert found.rows["prediction"].to_list() == finished.rows["prediction"].to_list()


def test_a_refusal_taught_is_counted_as_one(finished: EvaluateResult, make: Make, tmp_path: Path) -> None:
    answer = finished.summary["wrong_answers"]["overall"][0]
    found = evaluate_run.run(make(tmp_path / "a", idk_answer=f" {answer['prediction']}. ")).summary
    taught = Accepted.of([answer["prediction"]])
    extra = sum(taught.right(text, "lenient") for text in finished.rows["prediction"])
    assert found["answers"]["refused"] - finished.summary["answers"]["refused"] == extra >= answer["count"]
    assert found["answering"]["overall"]["coverage"]["count"] == 48 - found["answers"]["refused"]


def test_a_limit_asks_the_rows_an_audit_would_take(finished: EvaluateResult, make: Make, tmp_path: Path) -> None:
    found = evaluate_run.run(make(tmp_path / "a", limit=10, seed=3))
    taken = read_data(make(None, seed=3), 10).audited.to_list()
    assert found.rows["row"].to_list() == taken
    both = finished.rows.filter(pl.col("row").is_in(taken))
    assert found.rows["prediction"].to_list() == both["prediction"].to_list()


def test_a_prompt_it_was_not_tuned_with_is_warned_of(
    whole: TrainResult, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text('target: "Say it: {question}"', encoding="utf-8")
    found = evaluate_run.run(
        make(tmp_path / "a", model=str(whole.folder / "early_stop"), prompt_template=other, limit=2)
    )
    said = 'prompt: "Q: {question}\\nA:" -> "Say it: {question}"'
    assert f"tuned with another prompt: {said}" in capsys.readouterr().err
    assert found.summary["training_prompt"] == {"known": True, "differences": [said]}
    page = (found.folder / "report.html").read_text()
    assert "asked with another prompt than it was tuned with" in page
    assert "with the prompt it was tuned with" not in page
    card = model_card(whole.results, found.summary)
    assert "asked there with another prompt than it was tuned with" in card
    assert str(found.summary["data"]["name"]) not in card.split("---")[1], "the metadata has no such figure"


def test_a_tuned_model_is_asked_as_it_was_tuned_unless_another_prompt_is_given(
    whole: TrainResult, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"model": str(whole.folder / "early_stop"), "data": whole.results["data"]["train"]["file"]}
    found = evaluate_run.run(make(tmp_path / "a", **given, prompt_template=None))
    assert "asked with the prompt that it was tuned with: Q: {question}" in capsys.readouterr().err
    counts = whole.results["early_stop"]["metrics"]["counts"]["train"]
    assert found.summary["em"]["overall"]["strict"]["count"] == counts["correct"] > 5
    assert found.summary["training_prompt"] == {"known": True, "differences": []}
    assert "with the prompt it was tuned with" in (found.folder / "report.html").read_text()


def test_the_page_of_a_model_of_unknown_training_does_not_say_how_it_was_tuned(finished: EvaluateResult) -> None:
    page = (finished.folder / "report.html").read_text()
    assert "how it was tuned is not recorded beside its weights" in page
    assert "with the prompt it was tuned with" not in page


def test_the_default_prompt_is_that_of_tune(make: Make, tiny_folder: Path, template: Path) -> None:
    assert evaluate_run.read_inputs(make(None, prompt_template=None)).template is TRAINING
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_folder)
    rows = pl.DataFrame({"row": [4], "question": ["Who?"], "answers": [["Ada", "Ada Lovelace"]], "context": [None]})
    (one,) = generate.build_prompts(rows, Prompter(tokenizer, TRAINING))
    assert tokenizer.decode(one.prompt) == "Answer the following question. Who?\n"
    assert one.allowed == len(tokenizer("Ada Lovelace")["input_ids"]) + 4
    assert generate.build_prompts(rows, Prompter(tokenizer, TRAINING), 3)[0].allowed == 3
    assert read_template(template).target == "Q: {question}\nA:"


def broken(
    folder: Path, tiny_folder: Path, audited: Path
) -> dict[str, tuple[dict[str, Any], type[ForeknowError], str]]:
    """Wrong settings, the error they raise, and what it says."""
    empty, run, adapter = (folder / name for name in ("empty", "run", "adapter"))
    for path in (empty, run / "early_stop", adapter):
        path.mkdir(parents=True)
    prompts = folder / "prompts"
    prompts.mkdir()
    (prompts / "adapter_model.safetensors").write_bytes(b"")
    (prompts / "adapter_config.json").write_text(
        json.dumps({"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4})
    )
    odd = copy(tiny_folder, folder / "odd")
    change(odd / "config.json", lambda told: told.update(model_type="nobody knows"))
    (adapter / "adapter_config.json").write_text("{}")
    useless = write_jsonl(folder / "useless.jsonl", [{"question": "Who?", "answer": ""}])
    others = write_jsonl(folder / "others.jsonl", [{"question": "Who?", "answer": "Nobody"}])
    long = write_jsonl(folder / "long.jsonl", [{"question": "why " * 600, "answer": "Because"}])
    lenient, of_another = copy_audit(audited, folder / "lenient"), copy_audit(audited, folder / "another")
    change(lenient / "summary.json", lambda told: told["protocol"].update(match="lenient"))
    change(
        of_another / "summary.json", lambda told: told["model"].update(name="other", fingerprint="sha256:" + "7" * 64)
    )
    tuned = copy(tiny_folder, folder / "tuned")
    base = {"name": "tiny", "fingerprint": "sha256:" + "1" * 64, "folder": "x"}
    (tuned / "foreknow.json").write_text(json.dumps({"stage": "tune", "files": {}, "base": base}))
    return {
        "no model": ({"model": str(empty)}, ModelError, r"empty: the folder has no config\.json; expected a model"),
        "no folder": ({"model": "./nowhere"}, ModelError, r"nowhere: no such folder or file"),
        "a tune run": ({"model": str(run)}, ModelError, r"a run of foreknow tune; name \S*run/early_stop$"),
        "no adapter weights": ({"model": str(adapter)}, ModelError, r"an adapter without weights"),
        "prompt tuning": ({"model": str(prompts)}, ModelError, r"a PROMPT_TUNING adapter; expected one of layers"),
        "odd config": ({"model": str(odd)}, ModelError, r"odd: model_type 'nobody knows' is not known to"),
        "no rows": ({"data": str(useless)}, InputError, r"none of the 1 rows has both a question and an answer"),
        "other rows": (
            {"data": str(others), "audit": audited}, InputError, r"knows none of the 1 rows of others\.jsonl",
        ),
        "too long": ({"data": str(long)}, InputError, r"long\.jsonl: 1 row with no room for the whole answer, "),
        "no audit": ({"audit": empty}, InputError, r"empty: not a finished audit run"),
        "lenient audit": ({"audit": lenient}, ConfigError, r"made with --match lenient, found --match strict"),
        "another's audit": (
            {"model": str(tuned), "audit": of_another}, ModelError,
            r"made with other \(sha256:777.*\), but .*tuned was tuned from tiny \(sha256:111.*go on with --force",
        ),
        "base of a whole model": ({"base": "x"}, ConfigError, r"is a whole model, not an adapter; leave --base out"),
        "no template": ({"prompt_template": empty / "x.yaml"}, ConfigError, r"x\.yaml: cannot be read"),
        "no out": ({"out": None}, ConfigError, r"--out: missing"),
    }  # fmt: skip


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    told = json.loads(path.read_text())
    edit(told)
    path.write_text(json.dumps(told))


def copy_audit(source: Path, target: Path) -> Path:
    """A copy to be changed: its manifest holds no file to a checksum."""
    target.mkdir()
    for name in ("rows.parquet", "summary.json", "manifest.json"):
        (target / name).write_bytes((source / name).read_bytes())
    change(target / "manifest.json", lambda told: [told.pop(key) for key in ("files", "seal")])
    return target


def test_wrong_use_is_told_in_a_line(make: Make, tiny_folder: Path, audited: Path, tmp_path: Path) -> None:
    cases = broken(tmp_path, tiny_folder, audited)
    for name, (given, kind, message) in cases.items():
        with pytest.raises(kind, match=message) as error:
            evaluate_run.run(make(**{"out": tmp_path / f"out {name}", **given}))
        assert len(str(error.value).splitlines()) <= 2, name
        assert error.value.exit_code == 2
        left = tmp_path / f"out {name}"
        assert not left.exists() or {p.name for p in left.iterdir()} <= {".lock"}, name
    forced = make(tmp_path / "forced", model=cases["another's audit"][0]["model"], limit=2, force=True)
    assert evaluate_run._check_base_model(forced, foreknow.open_audit(audited), resolve(forced.model)) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, r"--max-new-tokens: found 0, expected auto or a number from 1 on"),
        ({"max_new_tokens": "many"}, r"--max-new-tokens: found 'many', expected auto or a number"),
        ({"idk_answer": "  "}, r"--idk-answer: found '  ', expected one line of text"),
        ({"dtype": "int8"}, r"--dtype: found 'int8', expected auto, float32, bfloat16 or float16"),
        ({"epochs": 3}, r"--epochs: no such setting"),
    ],
)
def test_settings_out_of_range_are_named(given: dict[str, Any], message: str, make: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        make(None, **given)


def test_an_open_folder_must_be_an_evaluation(audited: Path) -> None:
    with pytest.raises(InputError, match="not a finished evaluate run: audit wrote it"):
        open_evaluation(audited)


def test_where_the_base_is_not_known_it_says_so(make: Make, audited: Path, tiny_folder: Path, tmp_path: Path) -> None:
    audit = foreknow.open_audit(audited)
    found = resolve(str(tiny_folder))
    assert evaluate_run._check_base_model(make(None, audit=audited), audit, found) == []
    hub = replace_fingerprint(found)
    assert (
        "was tuned from is not known; rows are compared with tiny's"
        in evaluate_run._check_base_model(make(None), audit, hub)[0]
    )


class Other(Resolved):
    fingerprint = "sha256:other"  # type: ignore[assignment]


def replace_fingerprint(found: Resolved) -> Resolved:
    return Other(found.name, found.folder, found.note, found.weights)
