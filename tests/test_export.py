"""An audit's rows as tasks of lm-evaluation-harness: the same prompts, the same judgement, and the harness itself."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import foreknow
from builders import write_jsonl
from conftest import Cli, fact_rows
from foreknow.data.exact_match import Accepted, answer_of
from foreknow.errors import ConfigError, InputError, RunFolderError
from foreknow.stages.audit.result import AuditResult
from foreknow.stages.export import lm_eval_utils
from foreknow.stages.export.lm_eval import snake_case, task_name
from foreknow.stages.export.run import LmEvalExport, export_lm_eval

TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="aAtThHeEnN .,'’-éÉe\u0301\u200b\ufe0f\u0640ﬁ\n\t\u00a0Ⅳ½", max_size=14),
    st.sampled_from(
        ["The Beatles", "the", "U.S.", "a  b", "Ｔｏｋｙｏ", "İstanbul", "ß", "!?", "\u200b", "Å", "A\u030a"]
    ),
)


class _Tags(yaml.SafeLoader):
    """Reads `!function` as the text behind it."""


_Tags.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]


def read_tasks(folder: Path) -> dict[str, Any]:
    return {path.stem: yaml.load(path.read_text(encoding="utf-8"), _Tags) for path in folder.glob("*.yaml")}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def audit(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    """24 facts, some golds in capitals (right leniently only), some with an alias, one row behind a chat's turn."""
    folder = tmp_path_factory.mktemp("export")
    rows: list[dict[str, Any]] = [{k: r[k] for k in ("question", "answer", "relation")} for r in fact_rows()[::2]]
    for n, row in enumerate(rows):
        gold = str(row.pop("answer"))
        row["answers"] = [gold.upper()] if n % 4 == 0 else ["nothing of the sort", gold] if n % 4 == 1 else [gold]
    rows.append({"question": "no answer"})
    data = write_jsonl(folder / "my rows.jsonl", rows)
    return foreknow.audit(
        data, model=tiny_folder, out=folder / "run", exemplar_sets=3, shots=2, dtype="float32", device="cpu"
    )


@pytest.fixture
def export(audit: AuditResult, tmp_path: Path) -> LmEvalExport:
    return export_lm_eval(audit, tmp_path / "tasks")


@given(answers=st.lists(TEXTS, min_size=1, max_size=3), generated=TEXTS)
def test_the_exported_file_judges_as_foreknow_does(answers: list[str], generated: str) -> None:
    accepted = Accepted.of(answers)
    said = answer_of(generated)
    judged = lm_eval_utils.process_results({"answers": answers}, [generated])
    assert judged == {
        "exact_match": float(accepted.right(said, "strict")),
        "exact_match_lenient": float(accepted.right(said, "lenient")),
    }


@given(answer=TEXTS)
def test_an_answer_is_right_in_its_own_spelling(answer: str) -> None:
    """The property above would hold too if nothing were ever right."""
    whole = answer_of(answer)
    judged = lm_eval_utils.process_results({"answers": [whole, "other"]}, [f" {whole} \nQ: more"])
    assert judged["exact_match"] == judged["exact_match_lenient"] == float(bool(whole))


def test_the_exported_file_needs_nothing_of_foreknow() -> None:
    text = Path(lm_eval_utils.__file__).read_text(encoding="utf-8")
    assert "import foreknow" not in text
    assert "from foreknow" not in text


def test_prompts_answers_and_findings_are_those_of_the_audit(audit: AuditResult, export: LmEvalExport) -> None:
    lines = [line for path in export.folder.glob("*.jsonl") for line in read_lines(path)]
    labelled = audit.rows.filter(pl.col("category").is_not_null())
    assert len(lines) == labelled.height == export.rows
    probes = audit.probes.filter(pl.col("exemplar_set") == 0)
    correct = dict(probes.select("row", "greedy_correct").iter_rows())
    assert len(set(correct.values())) == 2
    for line in lines:
        explained = audit.explain(line["row"])
        assert line["prompt"] == explained.prompts[0]
        assert (line["category"], line["answers"]) == (explained.category, list(explained.answers))
        assert line["exact_match_in_audit"] is correct[line["row"]]
    assert export.left_out == {"not labelled by the audit": audit.rows.height - labelled.height}


def test_another_exemplar_set_is_another_prompt(audit: AuditResult, tmp_path: Path) -> None:
    export = export_lm_eval(audit, tmp_path / "tasks", exemplar_set=2, name="Set Two!")
    assert export.group == "foreknow_set_two"
    line = export.tasks[0].lines[0]
    assert line["prompt"] == audit.explain(line["row"]).prompts[2] != audit.explain(line["row"]).prompts[0]


def test_tasks_are_grouped_by_category_and_their_files_exist(export: LmEvalExport) -> None:
    tasks = read_tasks(export.folder)
    group = tasks.pop("foreknow_my_rows")
    assert group["task"] == [task.name for task in export.tasks] == sorted(tasks, key=group["task"].index)
    assert all(task["custom_dataset"] == "utils.read_rows" for task in tasks.values())
    for task in tasks.values():
        file = task["dataset_kwargs"]["file"]
        assert {snake_case(line["category"]) for line in read_lines(export.folder / file)} == {Path(file).stem}
        longest = max(len(text) for line in read_lines(export.folder / file) for text in line["answers"])
        assert longest < task["generation_kwargs"]["max_gen_toks"] <= longest + 5
        assert task["generation_kwargs"]["until"] == ["\n"]
        assert task["doc_to_text"] == "prompt"
        assert [m["metric"] for m in task["metric_list"]] == [m["metric"] for m in group["aggregate_metric_list"]]


def test_an_export_is_replaced_and_other_files_are_not(audit: AuditResult, tmp_path: Path) -> None:
    out = tmp_path / "tasks"
    first = export_lm_eval(audit, out)
    (out / f"{first.group}_gone.yaml").write_text("task: gone\n")
    assert export_lm_eval(audit, out).group == first.group
    assert not (out / f"{first.group}_gone.yaml").exists()
    other = tmp_path / "other"
    other.mkdir()
    write_jsonl(other / "mine.jsonl", [{"a": 1}])
    with pytest.raises(RunFolderError, match="holds files already"):
        export_lm_eval(audit, other)


def test_settings_that_do_not_go_together_are_refused(audit: AuditResult, tmp_path: Path) -> None:
    template = tmp_path / "t.yaml"
    template.write_text("target: 'Q: {question}\\nA:'\n")
    for given_settings, message in (
        ({"exemplar_set": 3}, "has the sets 0 to 2"),
        ({"form": "tune", "exemplar_set": 1}, "without exemplars"),
        ({"prompt_template": template}, "use --form tune"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_lm_eval(audit, tmp_path / "no", **given_settings)  # type: ignore[arg-type]
    assert not (tmp_path / "no").exists()


def test_the_command_line_writes_tells_and_refuses(run: Cli, audit: AuditResult, tmp_path: Path) -> None:
    code, out, _ = run("export", "lm-eval", audit.folder, "--out", tmp_path / "tasks", "--form", "tune")
    assert code == 0
    assert f"--include_path {tmp_path / 'tasks'}" in out
    line = read_lines(next((tmp_path / "tasks").glob("*.jsonl")))[0]
    assert line["prompt"] == f"Answer the following question. {line['question']}\n"
    assert "exact_match_in_audit" not in line
    code, _, err = run("export", "lm-eval", tmp_path / "tasks", "--out", tmp_path / "more")
    assert (code, "not a finished audit" in err) == (2, True)


def test_rows_behind_a_chats_turns_are_left_out_and_counted(tiny_folder: Path, tmp_path: Path) -> None:
    chats = [
        {
            "messages": [
                {"role": "user", "content": str(row["question"])},
                {"role": "assistant", "content": str(row["answer"])},
                {"role": "user", "content": "Are you sure?"},
                {"role": "assistant", "content": "yes"},
            ]
        }
        for row in fact_rows()[:8]
    ]
    done = foreknow.audit(
        write_jsonl(tmp_path / "chats.jsonl", chats), model=tiny_folder, out=tmp_path / "run", exemplar_sets=1, shots=1,
        chat_template="no", dtype="float32", device="cpu",
    )  # fmt: skip
    export = export_lm_eval(done, tmp_path / "tasks")
    assert export.rows == 8
    assert [count for reason, count in export.left_out.items() if "earlier turns" in reason] == [8]


def test_an_audit_through_a_chat_template_exports_what_the_tokenizer_writes(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] | upper }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    data = write_jsonl(tmp_path / "rows.jsonl", [{k: r[k] for k in ("question", "answer")} for r in fact_rows()[:8]])
    done = foreknow.audit(
        data, model=folder, out=tmp_path / "run", exemplar_sets=1, shots=1, chat_template="yes", dtype="float32",
        device="cpu",
    )  # fmt: skip
    line = export_lm_eval(done, tmp_path / "tasks").tasks[0].lines[0]
    assert line["prompt"].startswith("U: What")
    assert line["prompt"].endswith(f"\nU: {line['question']}\nA:")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with pytest.raises(InputError, match="whose folder"):
        export_lm_eval(done, tmp_path / "again")


def test_names_of_tasks() -> None:
    assert snake_case("HighlyKnown") == "highly_known"
    assert task_name("My rows (2).v1") == "my_rows_2_v1"
    assert task_name("ナ") == "audit"


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed")
@pytest.mark.parametrize("form", ["few-shot", "tune"])
def test_the_harness_finds_what_foreknow_finds_row_by_row(
    form: str, audit: AuditResult, tiny_folder: Path, tmp_path: Path
) -> None:
    """The command that the export prints, as it is, from another folder."""
    template = tmp_path / "known.yaml"
    template.write_text("target: 'Q: {question}\\nA:'\n")
    if form == "tune":
        export = export_lm_eval(audit, tmp_path / "tasks", form="tune", prompt_template=template)
        evaluation = foreknow.evaluate(
            tiny_folder, audit.folder.parent / "my rows.jsonl", prompt_template=template, dtype="float32", device="cpu"
        )
        ours = {
            row: (c, lenient)
            for row, c, lenient in evaluation.rows.select("row", "correct", "correct_lenient").iter_rows()
        }
    else:
        export = export_lm_eval(audit, tmp_path / "tasks")
        probes = audit.probes.filter(pl.col("exemplar_set") == 0)
        ours = {row: (c, len_) for row, c, len_ in probes.select("row", "greedy_correct", "greedy_lenient").iter_rows()}
    (tmp_path / "elsewhere").mkdir()
    words = [sys.executable, "-m", *shlex.split(export.command), "--device", "cpu"]
    done = subprocess.run(
        words,
        check=False,
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    samples = [line for path in (tmp_path / "elsewhere").rglob("samples_*.jsonl") for line in read_lines(path)]
    theirs = {s["doc"]["row"]: (bool(s["exact_match"]), bool(s["exact_match_lenient"])) for s in samples}
    assert theirs == {row: ours[row] for row in theirs}
    assert len(theirs) == export.rows
    assert len({strict for strict, _ in theirs.values()}) == 2
