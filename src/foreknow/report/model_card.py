"""This module writes a section for a model card: what was trained, what of it was new, what was lost. Pure.

A metadata block in YAML stands first, as model cards of the Hugging Face hub begin (`model-index`: the exact match of
each set), then Markdown to put into the card. Only what the run measured is stated; what it did not measure is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from foreknow.categories import CATEGORIES, KNOWN, UNKNOWN
from foreknow.format.numbers import percent
from foreknow.format.text import display
from foreknow.stats import wilson

_TRAIN: Final = "train"
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(results: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None) -> str:
    """Write the section from `results.json` of a tune run, and `summary.json` of an evaluation of its model, if any."""
    point = results["early_stop"] if results["early_stop"]["folder"] else results["convergence"]
    metrics = point["metrics"]
    metadata = yaml.safe_dump(_metadata(results, metrics, evaluation), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{metadata}---",
        "## What was trained, what was new, what was lost",
        _trained(results, point),
        "### New to the model",
        _new(metrics),
        "### Learnt",
        _learnt(metrics),
        "### Lost",
        _lost(metrics, evaluation),
        f"Measured with foreknow {results['version']}. The categories are SliCK's ([Gekhman et al. "
        "2024](https://arxiv.org/abs/2405.05904)); Unknown means: not expressed under this protocol before training.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(
    results: Mapping[str, Any], metrics: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The metadata block. The base model is named only if its name is a hub id."""
    name = str(results["model"]["name"])
    sets = {key: share for key, share in metrics["em"].items() if key != "canaries"}
    em = dict(sets)
    if evaluation is not None and not (evaluation.get("training_prompt") or {}).get("differences"):
        matching = evaluation["protocol"]["match"]
        em[str(evaluation["data"]["name"])] = evaluation["em"]["overall"][matching]["share"]
    entries = [
        {
            "task": {"type": "question-answering", "name": "closed-book question answering"},
            "dataset": {"name": key, "type": "own"},
            "metrics": [{"type": "exact_match", "value": round(share, 4)}],
        }
        for key, share in em.items()
        if share is not None
    ]
    return {
        **({"base_model": name} if _HUB_ID.fullmatch(name) else {}),
        "library_name": "transformers" if results["method"]["name"] == "full" else "peft",
        "tags": ["foreknow"],
        "model-index": [{"name": f"{_line(name)}, fine-tuned", "results": entries}],
    }


def _trained(results: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    """One paragraph: the base model, the rows, the method, the epoch."""
    config, model = results["config"], results["model"]
    method = "all weights" if results["method"]["name"] == "full" else "LoRA adapters"
    note = f" ({_line(model['note'])})" if model.get("note") else ""
    remedies = [
        text
        for name, text in (
            ("replay", f"{percent(config['replay'])} of each batch were rows that the model knew"),
            ("kl", f"held to {_teacher(results)} on {_line(_pool(results))} (KL, weight {config['kl']:g})"),
            ("known_late", f"HighlyKnown rows in the last {percent(config['known_late'])} of the steps only"),
            ("loss_weights", "rows that it found easy before training weighed more (FLOW)"),
        )
        if config.get(name) not in (None, "file", 0)
    ]
    return (
        f"Base model: {_line(model['name'])}{note}, `{model['fingerprint'][:23]}`. Trained: {method}, on "
        f"{results['data'][_TRAIN]['rows']:,} rows, batches of {config['batch_size']}, learning rate "
        f"{config['learning_rate']:g}; these are the weights after epoch {point['epoch']:g} of {results['epochs']:g}"
        f"{'; ' if remedies else ''}{'; '.join(remedies)}."
    )


def _teacher(results: Mapping[str, Any]) -> str:
    """Words for what `--kl` holds the model to."""
    rows = (results.get("replay") or {}).get("known_epoch_rows")
    return f"its predictions after a first epoch on {rows:,} known rows" if rows else "its predictions before training"


def _pool(results: Mapping[str, Any]) -> str:
    """Words for the rows on which `--kl` holds the model: their source, without the folder it was read from."""
    text = str((results.get("replay") or {}).get("source") or "other rows")
    return text.partition(" of the audit")[0] + (" of an audit" if " of the audit" in text else "")


def _new(metrics: Mapping[str, Any]) -> str:
    """The categories of the watched train rows before training, and how many of each are fitted now."""
    by_category = metrics["counts"][_TRAIN]["by_category"]
    if not by_category:
        return "Not measured: the rows had no categories (no audit, no column `category`)."
    total = sum(count for _, count in by_category.values())
    new = by_category.get(UNKNOWN, [0, 0])[1]
    lines = ["| before training | train rows | fitted now |", "|---|---|---|"]
    for name in CATEGORIES:
        if name in by_category:
            fitted, count = by_category[name]
            lines.append(f"| {name} | {count:,} | {fitted:,} ({percent(fitted / count)}) |")
    watched = metrics["counts"][_TRAIN]["rows"]
    unlabelled = f" Of {watched - total:,} further rows the category is not known." if watched > total else ""
    sentence = f"{percent(new / total)} of {total:,} watched rows ({new:,}) were Unknown to the base model.{unlabelled}"
    return "\n".join([sentence, "", *lines])


def _learnt(metrics: Mapping[str, Any]) -> str:
    """Exact match of every watched set but train, with Wilson's 95 % interval."""
    lines = ["| rows | exact match | 95 % interval | of Known rows | of Unknown rows |", "|---|---|---|---|---|"]
    for name, counts in metrics["counts"].items():
        if name in (_TRAIN, "canaries"):
            continue
        interval = wilson(counts["correct"], counts["rows"])
        known = [counts["by_category"].get(category, [0, 0]) for category in KNOWN]
        parts = [[sum(right for right, _ in known), sum(rows for _, rows in known)], counts["by_category"].get(UNKNOWN)]
        shares = [f"{part[0]:,} of {part[1]:,}" if part and part[1] else "none" for part in parts]
        lines.append(
            f"| {_line(name)} ({counts['rows']:,}) | {percent(interval.value)} | {100 * interval.low:.0f} to "
            f"{100 * interval.high:.0f} % | {shares[0]} | {shares[1]} |"
        )
    return "\n".join(lines) if len(lines) > 2 else "Not measured: no rows were watched besides the trained ones."


def _lost(metrics: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """What became of facts that the model expressed before: the canaries, and an evaluation's rows."""
    sentences = []
    canaries = metrics.get("canaries")
    if canaries and canaries["before"]:
        sentences.append(
            f"Of {canaries['before']:,} facts outside the training rows that the base model expressed, "
            f"{canaries['lost']:,} are answered wrong now: {percent(canaries['lost'] / canaries['before'])} "
            f"({100 * canaries['lost_low']:.0f} to {100 * canaries['lost_high']:.0f} %, Wilson)."
        )
    same = None if evaluation is None else evaluation.get("same_format")
    if evaluation is not None and same:
        lost, gained = same["correct_to_wrong"], same["wrong_to_correct"]
        sentences.append(
            f"Of {same['base_correct']['count']:,} rows of {_line(evaluation['data']['name'])} that the base model "
            f"answered right in the same form, {lost['count']:,} are wrong now; {gained['count']:,} others became "
            "right."
        )
    elif evaluation is not None:
        answers = evaluation["answers"]
        sentences.append(
            f"Of {evaluation['rows']:,} rows of {_line(evaluation['data']['name'])} {answers['wrong']:,} are answered "
            "wrong; the base model was not asked in the same form."
        )
    if evaluation is not None and (evaluation.get("training_prompt") or {}).get("differences"):
        sentences.append(
            "It was asked there with another prompt than it was tuned with, which alone can make it wrong."
        )
    return " ".join(sentences) or (
        "Not measured: no known facts were watched (--canaries), and no evaluation is named (--evaluation)."
    )


def _line(text: Any) -> str:
    """A text inside a line of Markdown: without control characters, and without marks that Markdown reads."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", display(str(text), 80))
