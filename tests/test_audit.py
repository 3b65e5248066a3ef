"""The audit end to end, on the tiny model: outputs, interruption, refusal, and every message for bad input."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import foreknow
from builders import write_jsonl
from conftest import Cli, fact_rows
from foreknow.categories import CATEGORIES
from foreknow.inference.engine import PackedEngine
from foreknow.inference.loglikelihood import LongScorer
from foreknow.io import run_dir
from foreknow.stages.audit import run as audit_run


@pytest.fixture(scope="session")
def finished(tiny_folder: Path, facts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audits") / "first"
    foreknow.audit(str(facts_file), model=str(tiny_folder), out=str(out), dtype="float32", chunk_rows=8, shots=2)
    return out


def settings(tiny_folder: Path) -> list[object]:
    return ["--model", tiny_folder, "--dtype", "float32", "--chunk-rows", 8, "--shots", 2]


def test_every_output_is_there(finished: Path, facts_file: Path, tiny_folder: Path) -> None:
    names = {p.name for p in finished.iterdir() if p.name != ".lock"}
    assert names == {
        *("config.yaml", "exemplars.json", "rows.parquet", "probes.parquet", "annotated.jsonl"),
        *("summary.json", "report.html", "manifest.json"),
    }
    audit = foreknow.open_audit(finished)
    rows, summary = audit.rows, audit.summary
    contract = ["row", "relation", "subject", "question", "answer", "p_greedy", "p_sampled", "p_sampled_width", "p_hit"]
    assert {*contract, "p_hit_upper", "category", "model_answer", "flags"} <= set(rows.columns)
    assert rows["row"].to_list() == list(range(48))
    assert set(rows["category"]) <= set(CATEGORIES)
    assert rows["category"].n_unique() >= 2
    assert {"row", "exemplar_set", "greedy_correct", "p_correct", "p_correct_upper", "replaced_shots"} <= set(
        audit.probes.columns
    )
    assert audit.probes.height == 48 * 10
    keys = {"rows", "categories", "expected_categories", "majority_floor", "protocol", "model", "seconds"}
    assert {*keys, "rows_per_second"} <= set(summary)
    assert set(summary["categories"]) == {"overall", "by_relation", "rows_by_relation"}
    for shares in (summary["categories"]["overall"], summary["expected_categories"]):
        assert list(shares) == list(CATEGORIES)
        assert sum(shares.values()) == pytest.approx(1)
    assert summary["model"]["folder"] == str(tiny_folder)
    shown = json.loads((finished / "exemplars.json").read_text())
    assert set(shown) == {"capital", "river"}
    assert [len(s) for s in shown["capital"]] == [2] * 10
    assert set(shown["capital"][0][0]) == {"question", "answer"}
    annotated = [json.loads(line) for line in (finished / "annotated.jsonl").read_text().splitlines()]
    originals = [json.loads(line) for line in facts_file.read_text().splitlines()]
    assert [{k: a[k] for k in o} for a, o in zip(annotated, originals, strict=True)] == originals
    assert [a["category"] for a in annotated] == rows["category"].to_list()
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["identity"]["model"] == summary["model"]["fingerprint"]


def test_any_prompt_can_be_rebuilt_from_the_folder(finished: Path, tiny_folder: Path) -> None:
    """rows + exemplars.json + replaced_shots give the prompt; real generation behind it gives the recorded answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    audit = foreknow.open_audit(finished)
    sets = json.loads((finished / "exemplars.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    for row in audit.rows.sample(6, seed=0).to_dicts():
        probe = audit.probes.row(by_predicate=(pl.col("row") == row["row"]) & (pl.col("exemplar_set") == 0), named=True)
        shots = list(sets[row["relation"]][0])
        for s in probe["replaced_shots"]:
            shots[s["slot"]] = s
        prompt = "".join(f"Q: {s['question']}\nA: {s['answer']}\n" for s in shots) + f"Q: {row['question']}\nA:"
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        answer = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).split("\n")[0].strip()
        said = row["model_answer"]
        assert answer.startswith(said[:-1].strip()) if said.endswith("\u2026") else answer == said
        assert (answer == row["answer"]) == probe["greedy_correct"]


def test_a_row_is_flagged_only_where_its_prompts_show_its_answer_to_another_question(finished: Path) -> None:
    audit, sets = foreknow.open_audit(finished), json.loads((finished / "exemplars.json").read_text())
    for row in audit.rows.to_dicts():
        shown = []
        for probe in audit.probes.filter(pl.col("row") == row["row"]).to_dicts():
            shots = list(sets[row["relation"]][probe["exemplar_set"]])
            for other in probe["replaced_shots"]:
                shots[other["slot"]] = other
            shown += [shot["answer"] for shot in shots]
        assert ("answer_in_exemplars" in row["flags"]) == (row["answer"] in shown)
    assert "seen_in_exemplars" in audit.summary["flags"]
    assert "answer_in_exemplars" not in audit.summary["flags"], "all 48 answers differ"


def test_the_same_command_again_does_nothing(run: Cli, finished: Path, facts_file: Path, tiny_folder: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in finished.iterdir() if p.name != ".lock"}
    code, out, err = run("audit", facts_file, "--out", finished, *settings(tiny_folder))
    assert code == 0
    assert "complete; nothing to do" in err
    assert out.splitlines()[-2] == f"report: {finished / 'report.html'}"
    assert {p.name: p.stat().st_mtime_ns for p in finished.iterdir() if p.name != ".lock"} == before


def test_other_settings_in_the_same_folder_are_refused(
    run: Cli, finished: Path, facts_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    code, _, err = run("audit", facts_file, "--out", finished, *settings(tiny_folder), "--top-k", 7)
    assert code == 2
    assert "top_k: 40 -> 7" in err
    changed = tmp_path / "facts.jsonl"
    changed.write_text(facts_file.read_text().replace("Avens", "Avenz"))
    code, _, err = run("audit", changed, "--out", finished, *settings(tiny_folder))
    assert code == 2
    assert "data: " in err


def test_the_gate_is_told_after_all_is_written(run: Cli, finished: Path, facts_file: Path, tiny_folder: Path) -> None:
    base = ["audit", facts_file, "--out", finished, *settings(tiny_folder), "--max-unknown"]
    code, out, err = run(*base, 0.01)
    assert code == 3
    assert re.search(r"--max-unknown 0.01: \d+\.\d% of the labelled rows are Unknown", err)
    assert out.splitlines()[-1].startswith("report: ")
    assert run(*base, 1.0)[0] == 0


def test_limit_spreads_over_groups(run: Cli, facts_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    code, _, _ = run("audit", facts_file, "--out", tmp_path / "a", *settings(tiny_folder), "--limit", 10)
    assert code == 0
    rows = foreknow.open_audit(tmp_path / "a").rows
    assert rows.group_by("group").len().sort("group").rows() == [("capital", 5), ("river", 5)]
    annotated = (tmp_path / "a" / "annotated.jsonl").read_text().splitlines()
    assert len(annotated) == 48
    assert sum(json.loads(line)["category"] is not None for line in annotated) == 10


def test_dry_run_writes_nothing(run: Cli, facts_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("audit", facts_file, "--out", tmp_path / "a", *settings(tiny_folder), "--dry-run")
    assert code == 0
    assert not (tmp_path / "a").exists()
    found = dict(re.split(r":\s+", line, maxsplit=1) for line in out.splitlines())
    assert found["rows"] == "48"
    assert found["prompts"] == "480"
    assert int(found["tokens"].replace(",", "")) > 480 * 5
    assert float(found["seconds"]) > 0
    assert float(found["memory gib"]) > 0


START = [sys.executable, "-c", "from foreknow.cli import main; main()"]


def _started(words: list[object]) -> subprocess.Popen[str]:
    command = [*START, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for_chunks(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(list((out / ".chunks").glob("*.cost.parquet"))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_killed_or_interrupted_it_goes_on_to_the_same_bytes(
    run: Cli, finished: Path, facts_file: Path, tiny_folder: Path, tmp_path: Path, how: signal.Signals, code: int
) -> None:
    out = tmp_path / "a"
    # one chunk a group of four rows, so that there is something to interrupt
    words = ["audit", facts_file, "--out", out, *settings(tiny_folder)]
    process = _started(words)
    _wait_for_chunks(out, 2, process)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    if how is not signal.SIGKILL:
        assert "interrupted; the same command goes on" in err
        assert "Traceback" not in err
    done = len(list((out / ".chunks").glob("*.cost.parquet")))
    assert not (out / "manifest.json").exists()
    assert 2 <= done < 6
    again, _, err = run(*words)
    assert again == 0
    assert f"{done} of 6 chunks are finished; going on" in err
    for name in ("rows.parquet", "probes.parquet", "annotated.jsonl", "exemplars.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_folder_held_by_another_run_is_refused(run: Cli, facts_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with run_dir.lock_run_dir(tmp_path / "a"):
        process = _started(["audit", facts_file, "--out", tmp_path / "a", *settings(tiny_folder)])
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "held by another run" in err


def test_a_full_disk_is_one_line_and_loses_nothing(
    run: Cli, finished: Path, facts_file: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, kept = tmp_path / "a", run_dir.write_whole
    words = ["audit", facts_file, "--out", out, *settings(tiny_folder)]

    def full(path: Path, write: Callable[[Path], object]) -> None:
        if path.name.startswith("000003"):
            with run_dir._disk_errors(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        kept(path, write)

    monkeypatch.setattr(run_dir, "write_whole", full)
    code, _, err = run(*words)
    assert code == 1
    assert "the disk is full; finished chunks are kept" in err
    assert "Traceback" not in err
    monkeypatch.setattr(run_dir, "write_whole", kept)
    code, _, err = run(*words)
    assert code == 0
    assert "3 of 6 chunks are finished" in err
    assert (out / "rows.parquet").read_bytes() == (finished / "rows.parquet").read_bytes()


def test_out_of_memory_halves_the_batch_and_is_recorded(
    run: Cli, facts_file: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PackedEngine.open

    def tight(self: PackedEngine, *given: object) -> object:
        if self.batch_tokens > 512:
            raise MemoryError
        return real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(PackedEngine, "open", tight)
    code, _, err = run("audit", facts_file, "--out", tmp_path / "a", *settings(tiny_folder), "--limit", 8)
    assert code == 0
    assert "out of memory: going on with 512 tokens" in err
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["chunks_with_halved_batches"] == 1
    monkeypatch.setattr(PackedEngine, "open", lambda *_: (_ for _ in ()).throw(MemoryError()))
    code, _, err = run("audit", facts_file, "--out", tmp_path / "b", *settings(tiny_folder), "--limit", 8)
    assert code == 1
    assert "out of memory; finished chunks are kept. Lower --chunk-rows" in err


def test_the_sampled_protocol_gives_the_same_outputs(
    run: Cli, finished: Path, facts_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    words = [*settings(tiny_folder), "--limit", 8, "--samples", 4, "--exemplar-sets", 3]
    code, _, _ = run("audit", facts_file, "--out", tmp_path / "s", *words, "--protocol", "sampled")
    assert code == 0
    code, _, _ = run("audit", facts_file, "--out", tmp_path / "e", *words)
    assert code == 0
    drawn, exact = foreknow.open_audit(tmp_path / "s"), foreknow.open_audit(tmp_path / "e")
    assert drawn.rows.schema == exact.rows.schema
    assert drawn.rows["p_greedy"].equals(exact.rows["p_greedy"])
    assert drawn.rows["model_answer"].equals(exact.rows["model_answer"])
    assert drawn.summary["protocol"]["engine"] == "generate"
    assert set((drawn.probes["p_correct"] * 4).unique()) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_compare(run: Cli, finished: Path, facts_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    found = foreknow.compare(str(finished), str(finished))
    assert found.summary["same"] == found.summary["compared"] == 48
    code, out, _ = run("compare", finished, finished, "--out", tmp_path / "moves.csv")
    assert code == 0
    assert "same 48" in out
    assert pl.read_csv(tmp_path / "moves.csv").height == 48
    run("audit", facts_file, "--out", tmp_path / "b", *settings(tiny_folder), "--limit", 8)
    code, _, err = run("compare", finished, tmp_path / "b")
    assert code == 2
    assert "hold different rows (48 and 8)" in err
    run("audit", facts_file, "--out", tmp_path / "c", *settings(tiny_folder), "--temperature", 0.7)
    code, _, err = run("compare", finished, tmp_path / "c")
    assert code == 2
    assert "different protocols: protocol.temperature: 0.5 -> 0.7" in err
    code, _, err = run("compare", finished, tmp_path)
    assert code == 2
    assert "not a finished audit" in err


def test_report_without_rows(run: Cli, finished: Path) -> None:
    code, out, _ = run("report", finished, "--no-rows")
    assert code == 0
    page = Path(out.strip().removeprefix("report: ")).read_text()
    assert "What is the capital of Arland?" not in page
    run("report", finished)
    assert "What is the capital of Arland?" in (finished / "report.html").read_text()


def test_a_config_file_and_a_prompt_template(run: Cli, facts_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.yaml").write_text('shot: "{question} = {answer}\\n"\ntarget: "{question} ="\n')
    (tmp_path / "audit.yaml").write_text(
        f"data: {facts_file}\nmodel: {tiny_folder}\nout: {tmp_path / 'x'}\nlimit: 6\nexemplar_sets: 2\n"
        f"prompt_template: {tmp_path / 'prompt.yaml'}\n"
    )
    code, _, _ = run("audit", "--config", tmp_path / "audit.yaml", "--limit", 4, "--out", tmp_path / "y")
    assert code == 0
    summary = foreknow.open_audit(tmp_path / "y").summary
    assert summary["rows"] == 4
    assert summary["protocol"]["prompt"] == "{question} = {answer}\n{question} ="
    assert "limit: 4" in (tmp_path / "y" / "config.yaml").read_text()


def test_odd_rows_are_kept_flagged_and_counted(run: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    rows = fact_rows()[:10]
    odd = [
        {"question": "What is the capital of Nowhere?", "answer": None},
        {"question": "", "answer": "Avens"},
        {"question": "What is the capital of Longland?", "answer": "word " * 60},
        dict(rows[0]),
        {**rows[1], "answer": "Callow"},
        {"question": "What is the capital of Hugeland?", "answer": "x" * 1_000_000},
    ]
    out = tmp_path / "a"
    code, text, _ = run("audit", write_jsonl(tmp_path / "f.jsonl", [*rows, *odd]), "--out", out, *settings(tiny_folder))
    assert code == 0
    assert "2 rows have answers longer than 32 tokens and get no category" in text
    found = foreknow.open_audit(out).rows
    assert found.height == 16
    flags = dict(found.select("row", "flags").iter_rows())
    assert "no_answer" in flags[10]
    assert "no_question" in flags[11]
    assert "long_answer" in flags[12]
    assert "long_answer" in flags[15]
    assert "duplicate" in flags[13]
    assert "conflicting" in flags[1]
    assert "conflicting" in flags[14]
    unlabelled = found.filter(pl.col("category").is_null())["row"].to_list()
    assert unlabelled == [10, 11, 12, 15]
    summary = foreknow.open_audit(out).summary
    assert summary["labelled"] == 12
    assert summary["flags"]["long_answer"] == 2


def test_a_relation_with_too_few_exemplars_borrows(run: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    rows = [
        *fact_rows()[:12],
        {"question": "Who wrote Odd?", "answer": "Avens", "relation": "author", "subject": "Odd"},
    ]
    out = tmp_path / "a"
    code, _, err = run(
        "audit", write_jsonl(tmp_path / "f.jsonl", rows), "--out", out, "--model", tiny_folder, "--dtype", "float32"
    )
    assert code == 0
    assert "group 'author' has 1 possible exemplars, needs 5: drawn from all groups instead" in err
    found = foreknow.open_audit(out).rows
    assert "few_exemplars" in found.row(12, named=True)["flags"]
    assert found["category"].null_count() == 0


BAD = {
    "a missing file": (None, [], "no such file"),
    "an empty file": (b"", [], "empty"),
    "broken JSON": (b'{"question": "a", "answer": "b"}\n{"question": \n', [], ".jsonl:2"),
    "not UTF-8": (b'{"question": "caf\xe9", "answer": "b"}\n', [], "UTF-8"),
    "no known columns": (b'{"foo": "a", "bar": "b"}\n', [], "--map"),
    "a column that is not there": (b'{"question": "a", "answer": "b"}\n', ["--group-by", "topic"], "topic"),
    "a mapped column that is not there": (b'{"question": "a", "answer": "b"}\n', ["--map", "question=q"], "'q'"),
    "no usable row": (b'{"question": "a", "answer": ""}\n', [], "none of the 1 rows"),
    "too few exemplars": (b'{"question": "a", "answer": "b"}\n', [], "a prompt of 4 shots needs 5"),
    "a bad number": (b'{"question": "a", "answer": "b"}\n', ["--temperature", "0"], "--temperature: found 0.0"),
    "a bad flag": (b"", ["--tempreature", "1"], "--tempreature"),
    "a bad dtype": (b'{"question": "a", "answer": "b"}\n', ["--dtype", "int8"], "expected auto"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_or_two_lines(run: Cli, tiny_folder: Path, tmp_path: Path, name: str) -> None:
    content, words, expected = BAD[name]
    path = tmp_path / "f.jsonl"
    if content is not None:
        path.write_bytes(content)
    code, _, err = run("audit", path, "--model", tiny_folder, "--out", tmp_path / "a", *words)
    assert code == 2, err
    message = err[err.index("foreknow: ") :]
    assert expected in message
    assert len(message.strip().splitlines()) <= 2
    assert "Traceback" not in err


def test_an_unknown_model(run: Cli, facts_file: Path, tmp_path: Path) -> None:
    code, _, err = run("audit", facts_file, "--model", "nobody/nothing", "--out", tmp_path / "a")
    assert code == 2
    assert "--model nobody/nothing: not a folder here and not in the hub's cache, and HF_HUB_OFFLINE is set" in err
    assert "smollm2-135m, gemma3-270m" in err
    code, _, err = run("audit", facts_file, "--model", tmp_path / "nothing", "--out", tmp_path / "a")
    assert code == 2
    assert "no such folder or file" in err
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    code, _, err = run("audit", facts_file, "--model", tmp_path / "broken.gguf", "--out", tmp_path / "a")
    assert code == 2
    assert "broken.gguf: cannot be read as GGUF (19 bytes): it is cut short or damaged" in err


def test_a_folder_that_is_not_a_run_is_left_alone(
    run: Cli, facts_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    code, _, err = run("audit", facts_file, "--out", tmp_path / "precious", *settings(tiny_folder))
    assert code == 2
    assert "not empty and not a run of foreknow" in err


def test_chat_template_needs_one(run: Cli, facts_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    code, _, err = run("audit", facts_file, "--out", tmp_path / "a", *settings(tiny_folder), "--chat-template", "yes")
    assert code == 2
    assert "no chat template" in err


def test_an_architecture_the_packed_pass_does_not_fit_is_audited_all_the_same(
    run: Cli, finished: Path, facts_file: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foreknow.inference.packed_attention import UnsupportedModel
    from foreknow.inference.packed_model import PackedModel

    def refuse(*_: object) -> None:
        raise UnsupportedModel("made up")

    monkeypatch.setattr(PackedModel, "verify", refuse)
    out = tmp_path / "a"
    code, _, err = run("audit", facts_file, "--out", out, *settings(tiny_folder), "--limit", 12)
    assert code == 0
    assert "plain forward passes, about ten times slower: made up" in err
    both = foreknow.open_audit(finished).rows.join(foreknow.open_audit(out).rows, on="row", suffix="_plain")
    assert both.height == 12
    assert both["category"].equals(both["category_plain"].alias("category"))


def test_scoring_long_answers_counts_in_the_time_an_audit_took(
    run: Cli, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = fact_rows()[:20]
    for row in rows[:3]:
        row["answer"] = " and ".join([str(row["answer"])] * 30)
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    score, scored = LongScorer.score, []

    def slow(self: LongScorer, rows: pl.DataFrame) -> pl.DataFrame:
        if len(scored) == 2:
            scored.append(0)
            raise KeyboardInterrupt
        scored.append(rows.height)
        time.sleep(0.2)
        return score(self, rows)

    monkeypatch.setattr(LongScorer, "score", slow)
    monkeypatch.setattr(audit_run, "LONG_ROWS", 1)
    words = ("audit", data, "--out", tmp_path / "a", *settings(tiny_folder), "--samples", 4)
    assert run(*words)[0] == 130
    assert run(*words)[0] == 0
    assert scored == [1, 1, 0, 1]
    summary = foreknow.open_audit(tmp_path / "a").summary
    probing = summary["labelled"] / summary["rows_per_second"]
    assert summary["labelled"] == 17
    assert summary["seconds"] >= probing + 0.6


NO_OP = """
import sys
from foreknow.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""


def test_a_finished_audit_is_told_to_be_finished_without_torch(
    run: Cli, facts_file: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    words = ["audit", str(facts_file), "--model", str(tiny_folder), "--exemplar-sets", "2", "--shots", "2"]
    words += ["--limit", "4", "--out", str(tmp_path / "a")]
    code, _, err = run(*words)
    assert code == 0, err
    done = subprocess.run([sys.executable, "-c", NO_OP, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "this audit is complete; nothing to do" in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
