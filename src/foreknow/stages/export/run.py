"""Writes an audit's rows into a folder that lm-evaluation-harness runs as it is (`lm_eval.py`).

DIR/foreknow_NAME.yaml foreknow_NAME_highly_known.yaml ... highly_known.jsonl ... utils.py
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from foreknow.errors import ConfigError, InputError, RunFolderError
from foreknow.io.run_dir import write_text
from foreknow.prompts.few_shot import Exemplar
from foreknow.prompts.prompt_template import Bos, Prompter, Template, read_template
from foreknow.settings import read_settings
from foreknow.stages.audit.result import AuditResult
from foreknow.stages.export import lm_eval_utils
from foreknow.stages.export.lm_eval import (
    Form,
    LmEvalTask,
    Render,
    few_shot_lines,
    group_yaml,
    rows_to_export,
    task_name,
    task_yaml,
    tasks_of,
    tune_lines,
)
from foreknow.stages.train.training_examples import TRAINING


@dataclass(frozen=True)
class LmEvalExport:
    """A written export. `folder`: where it lies. `group`: the harness's name for all its tasks.

    `left_out`: how many rows of the audit are not in it, by reason. `model_args`: the harness's argument that asks the
    audited model as the audit did; without the model's path where the audit has none.
    """

    folder: Path
    group: str
    tasks: tuple[LmEvalTask, ...]
    left_out: Mapping[str, int]
    model_args: str

    @property
    def rows(self) -> int:
        """Return the number of rows in all tasks."""
        return sum(len(task.lines) for task in self.tasks)

    @property
    def command(self) -> str:
        """Return a command that runs the tasks."""
        words = ["lm_eval", "--model", "hf", "--model_args", self.model_args, "--tasks", self.group]
        return shlex.join([*words, "--include_path", str(self.folder), "--log_samples", "--output_path", "results"])


def export_lm_eval(
    audit: AuditResult,
    out: Path,
    *,
    form: Form = "few-shot",
    exemplar_set: int = 0,
    prompt_template: Path | None = None,
    name: str | None = None,
) -> LmEvalExport:
    """Write the labelled rows of an audit as tasks of lm-evaluation-harness, one for each category.

    `form`: `few-shot` asks behind exemplar set `exemplar_set` of the audit, as the audit did; `tune` asks without
    exemplars, as `tune` trains and `evaluate` asks, in the format of `prompt_template` if one is given. `name`: the
    tasks' name (default: that of the data file). Raises ConfigError for settings that do not go together, InputError
    if no row can be exported, RunFolderError if `out` holds files of something else.
    """
    if form == "tune" and exemplar_set:
        raise ConfigError("--form tune asks without exemplars; found --exemplar-set, which goes with --form few-shot")
    if form == "few-shot" and prompt_template is not None:
        raise ConfigError("--prompt-template: found with --form few-shot, which asks as the audit did; use --form tune")
    rows, left_out = rows_to_export(_all_rows(audit))
    if rows.is_empty():
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        raise InputError(f"{audit.folder}: found no row to export: {reasons or 'the audit is empty'}")
    settings = read_settings(audit.folder, needed=True)
    if form == "tune":
        lines = tune_lines(rows, (read_template(prompt_template) if prompt_template else TRAINING).render)
    else:
        exemplars = json.loads((audit.folder / "exemplars.json").read_text(encoding="utf-8"))
        sets = min((len(of_group) for of_group in exemplars.values()), default=0)
        if not 0 <= exemplar_set < sets:
            raise ConfigError(f"--exemplar-set {exemplar_set}: the audit has the sets 0 to {sets - 1}")
        lines = few_shot_lines(rows, audit.probes, exemplars, exemplar_set, _render_of(audit))
    group = "foreknow_" + task_name(name or Path(str(settings["data"])).name.split(".")[0])
    tasks = tuple(tasks_of(group, lines, int(settings["max_answer_tokens"])))
    _write(out, group, tasks)
    return LmEvalExport(out, group, tasks, left_out, _model_args(audit, form))


def _all_rows(audit: AuditResult) -> pl.DataFrame:
    columns = ("row", "group", "question", "answers", "category", "flags")
    parts = [audit.rows.select(columns), *([] if audit.facts is None else [audit.facts.select(columns)])]
    return pl.concat(parts).sort("row")


def _render_of(audit: AuditResult) -> Render:
    """Return what writes a prompt as the audit did. Raises InputError if that needs a tokenizer that is gone."""
    manifest = json.loads((audit.folder / "manifest.json").read_text(encoding="utf-8"))
    template = Template(*manifest["identity"]["prompt_template"])
    protocol = audit.summary["protocol"]
    if not protocol["chat_template"]:
        return template.render
    from foreknow.models.loading import read_tokenizer  # keeps torch out

    folder = audit.summary["model"]["folder"]
    if not folder or not Path(folder).is_dir():
        raise InputError(
            f"{audit.folder}: asked through the chat template of {audit.summary['model']['name']}, whose folder "
            f"({folder}) is not here; export where the model lies, or take --form tune"
        )
    bos: Bos = protocol["bos"]
    prompter = Prompter(read_tokenizer(folder), template, True, bos)

    def render(shots: Sequence[Exemplar], question: str) -> str:
        return str(prompter.text(shots, question))

    return render


def _model_args(audit: AuditResult, form: Form) -> str:
    """Return the harness's --model_args: the model's folder, and the BOS and dtype of the audit."""
    protocol, manifest = audit.summary["protocol"], json.loads((audit.folder / "manifest.json").read_text("utf-8"))
    arguments = {"pretrained": audit.summary["model"]["folder"] or "MODEL"}
    if dtype := manifest["identity"].get("dtype"):
        arguments["dtype"] = dtype
    if form == "few-shot" and (protocol["bos"] != "auto" or protocol["chat_template"]):
        arguments["add_bos_token"] = str(bool(protocol["bos_in_prompt"]))
    return ",".join(f"{key}={value}" for key, value in arguments.items())


def _write(out: Path, group: str, tasks: Sequence[LmEvalTask]) -> None:
    """Write all files; what an earlier export wrote there is replaced. Raises RunFolderError for files of others."""
    files = {f"{task.name}.yaml": task_yaml(task, group) for task in tasks}
    files |= {task.data_file: "".join(_jsonl(task.lines)) for task in tasks}
    files[f"{group}.yaml"] = group_yaml(group, tasks)
    files["utils.py"] = Path(lm_eval_utils.__file__).read_text(encoding="utf-8")
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"--out {out}: is a file, expected a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / f"{group}.yaml").is_file():
        raise RunFolderError(f"--out {out}: holds files already, and no export of {group}; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    for stale in (*out.glob(f"{group}_*.yaml"), *out.glob("*_known.jsonl"), *out.glob("unknown.jsonl")):
        stale.unlink()
    for name, text in files.items():
        write_text(out / name, text)


def _jsonl(lines: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    return (json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
