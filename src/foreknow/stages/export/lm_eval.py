"""The rows of a finished audit as tasks of EleutherAI's lm-evaluation-harness: the rows, and the YAML. Pure.

A category is a task, and a group holds all of them. A prompt is one text in the row, so that the harness asks what
foreknow asks: behind an exemplar set of the audit (`few-shot`), or in the format of `tune` and `evaluate` (`tune`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import polars as pl

from foreknow.categories import CATEGORIES
from foreknow.prompts.few_shot import Exemplar
from foreknow.stages.audit.explain import shown_exemplars

Form = Literal["few-shot", "tune"]
Render = Callable[[Sequence[Exemplar], str], str]
"""Writes a prompt from exemplars and a question."""

EXTRA_TOKENS: Final = 5
"""A right answer may have as many tokens more than its longest spelling as in the probe (`prompt_builder.py`), and one
for the blank that some tokenizers put before a text."""
METRICS: Final = ("exact_match", "exact_match_lenient", "exact_match_in_audit")


@dataclass(frozen=True)
class LmEvalTask:
    """One task: the rows of a category. `lines`: what its JSONL file holds. `most_tokens`: how long an answer may be.

    `metrics`: those of `METRICS` that its rows have.
    """

    name: str
    category: str
    lines: tuple[dict[str, Any], ...]
    most_tokens: int
    metrics: tuple[str, ...]

    @property
    def data_file(self) -> str:
        """Return the name of its JSONL file."""
        return f"{snake_case(self.category)}.jsonl"


def snake_case(category: str) -> str:
    """Return a category's name as part of a task's: HighlyKnown is highly_known."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", category).lower()


def task_name(text: str) -> str:
    """Return a name that the harness takes for a task: lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "audit"


def rows_to_export(rows: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the labelled rows whose prompts the run folder can write again, and how many others there are, by reason.

    `rows`: those of `rows.parquet`, and of `facts.parquet` if the audit has short facts.
    """
    behind_turns = pl.col("flags").list.contains("context").fill_null(False)
    reason = (
        pl.when(pl.col("category").is_null())
        .then(pl.lit("not labelled by the audit"))
        .when(behind_turns)
        .then(pl.lit("asked behind a system's text or earlier turns, which the run folder does not hold"))
    )
    marked = rows.with_columns(left_out=reason)
    counts = marked.drop_nulls("left_out").group_by("left_out").len().sort("left_out")
    return marked.filter(pl.col("left_out").is_null()).drop("left_out"), dict(counts.iter_rows())


def few_shot_lines(
    rows: pl.DataFrame, probes: pl.DataFrame, exemplars: Mapping[str, Any], exemplar_set: int, render: Render
) -> list[dict[str, Any]]:
    """Return a line for each row, asked behind an exemplar set of the audit, with what the audit found there.

    `exemplars`: the contents of `exemplars.json`. `probes`: all of the audit's.
    """
    own = probes.filter(pl.col("exemplar_set") == exemplar_set).select("row", "greedy_correct", "replaced_shots")
    found = {row: (correct, replaced) for row, correct, replaced in own.iter_rows()}
    lines = []
    for row in rows.iter_rows(named=True):
        correct, replaced = found[row["row"]]
        shots = shown_exemplars(exemplars[row["group"]][exemplar_set], replaced or ())
        lines.append(_line(row, render(shots, row["question"])) | {"exact_match_in_audit": correct})
    return lines


def tune_lines(rows: pl.DataFrame, render: Render) -> list[dict[str, Any]]:
    """Return a line for each row, asked without exemplars."""
    return [_line(row, render((), row["question"])) for row in rows.iter_rows(named=True)]


def _line(row: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    return {
        "row": row["row"],
        "category": row["category"],
        "question": row["question"],
        "prompt": prompt,
        "gold": row["answers"][0],
        "answers": list(row["answers"]),
    }


def tasks_of(name: str, lines: Sequence[dict[str, Any]], longest_answer: int) -> list[LmEvalTask]:
    """Return a task for each category that has rows. `longest_answer`: the audit's `max_answer_tokens`."""
    tasks = []
    for category in CATEGORIES:
        own = tuple(line for line in lines if line["category"] == category)
        if own:
            # no tokenizer is asked: an answer has at most as many tokens as bytes
            longest = max(len(text.strip().encode()) for line in own for text in line["answers"])
            metrics = METRICS if "exact_match_in_audit" in own[0] else METRICS[:2]
            most = min(longest, longest_answer) + EXTRA_TOKENS
            tasks.append(LmEvalTask(f"{name}_{snake_case(category)}", category, own, most, metrics))
    return tasks


def task_yaml(task: LmEvalTask, group: str) -> str:
    """Return a task's YAML file. It is written by hand: `!function` is a tag of the harness alone."""
    metrics = "".join(
        f"  - metric: {metric}\n    aggregation: mean\n    higher_is_better: true\n" for metric in task.metrics
    )
    return (
        f"# The {task.category} rows of {group}; written by foreknow export lm-eval.\n"
        f"task: {task.name}\n"
        "custom_dataset: !function utils.read_rows\n"
        f"dataset_kwargs:\n  file: {task.data_file}\n"
        "test_split: test\n"
        "output_type: generate_until\n"
        "num_fewshot: 0 # the exemplars, if any, are in the prompt\n"
        "doc_to_text: prompt\n"
        "doc_to_target: gold\n"
        "process_results: !function utils.process_results\n"
        "generation_kwargs:\n"
        '  until: ["\\n"]\n'
        "  do_sample: false\n"
        f"  max_gen_toks: {task.most_tokens}\n"
        f"metric_list:\n{metrics}"
        "metadata:\n  version: 1.0\n"
    )


def group_yaml(group: str, tasks: Sequence[LmEvalTask]) -> str:
    """Return the YAML file of the group: all categories, and the mean over all rows."""
    names = "".join(f"  - {task.name}\n" for task in tasks)
    metrics = "".join(f"  - metric: {metric}\n    weight_by_size: true\n" for metric in tasks[0].metrics)
    return (
        "# One task for each category of the audit; written by foreknow export lm-eval.\n"
        f"group: {group}\n"
        f"task:\n{names}"
        f"aggregate_metric_list:\n{metrics}"
        "metadata:\n  version: 1.0\n"
    )
