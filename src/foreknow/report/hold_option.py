"""This module writes the option to teach facts without losing others, from a study of remedies if one lies beside.

A study counts if it is of the same model, by fingerprint, and its folder stands beside the run's (or holds the run).
Without one, the option has our own figures and published ones, with their sources, and the command of a study.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreknow.format.text import shown_path
from foreknow.report.audit_options import Option

TITLE = "Teach these rows and hold on to what the model knew"
MEASURED = (
    "On SmolLM2-135M plain training that learnt 95 % of 60 new facts kept 42 % of the known ones (31 to 52 %), with "
    "replay 80 % (71 to 89 %), and plain training with part of the way back 73 % (62 to 84 %); on other facts, held to "
    "what it says after an epoch on known rows (--kl 1 --kl-teacher known-epoch), 89 % (81 to 96 %); two seeds. On a "
    "model of a million weights: plain 18 %, replay 66 %, part of the way back 45 % (five seeds; docs/remedies.md has "
    "recipes that keep more there). No larger model was measured."
)
PUBLISHED = (
    "Published: replaying known rows, or the model’s own outputs, prevents nearly all forgetting (arXiv 2605.26097); a "
    "divergence term cuts what is lost on held-out facts from 15 % to 3 %, with the new ones still learnt (arXiv "
    "2604.15574). Both are as the authors report them."
)


def comparison_beside(folder: Path, fingerprint: str | None) -> dict[str, Any] | None:
    """Return `comparison.json` of a study of remedies of this model beside `folder`, with its `folder`; None if none.

    Of several, the one with the most seeds is taken. A file that cannot be read is passed over.
    """
    if fingerprint is None:
        return None
    places = [folder.parent / "comparison.json", *sorted(folder.parent.glob("*/comparison.json"))]
    studies = []
    for path in places:
        try:
            own: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            same = own["model"]["fingerprint"] == fingerprint
            whole = {"target", "recipe", "settings_file", "kept", "plain_kept", "seeds", "reason", "sets"} <= set(own)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if same and whole:
            studies.append({**own, "folder": str(path.parent)})
    return max(studies, key=lambda own: own["seeds"] or 0, default=None)


def hold_option(study: Mapping[str, Any] | None, *, tuned: bool) -> Option:
    """Return the option. `study`: see `comparison_beside`. `tuned`: whether DIR is a tune run, to be run with more."""
    tune = f"foreknow tune TRAIN {'--dev DEV ' if tuned else ''}--model MODEL --audit AUDIT"
    known = (
        "The other rows are those of the audit that are in none of your sets, else packaged facts that the model "
        "knows. NEW must be a new folder."
    )
    choose = "Choose it if these rows must be learnt and the old facts must stay."
    if study is not None and study["recipe"] is not None:
        recipe = shlex.quote(str(Path(_place(study)) / study["settings_file"]))
        command = f"{tune} --config {recipe} --out NEW"
        return Option(
            "hold",
            TITLE,
            f"A study of this model found the recipe that keeps the most: “{study['recipe']}”.",
            _evidence(study),
            choose,
            known,
            command,
            source=_source(study),
        )
    what = (
        "Train on as many rows that the model knows beside them, and go part of the way back to the weights before "
        "training."
    )
    first = "foreknow tune --config DIR/config.yaml --audit AUDIT" if tuned else tune
    command = f"{first} --replay 0.5 --average 0.7,0.8,0.9,1 --out NEW"
    measure = "foreknow study remedies DATA --model MODEL --out REMEDIES"
    if study is not None:
        return Option("hold", TITLE, what, str(study["reason"]), choose, known, command, source=_source(study))
    how = f"{known} The second command measures on your own model which recipe keeps the most (REMEDIES: a new folder)."
    return Option(
        "hold", TITLE, what, f"{MEASURED} {PUBLISHED}", choose, how, f"{command}\n{measure}", source="Our own runs"
    )


def _source(study: Mapping[str, Any]) -> str:
    return f"The study in {_place(study)}"


def _place(study: Mapping[str, Any]) -> str:
    return shown_path(study["folder"]) or Path(study["folder"]).name


def _evidence(study: Mapping[str, Any]) -> str:
    kept, plain = study["kept"], study["plain_kept"]
    interval = ""
    if kept["ci_low"] is not None:
        interval = f" ({100 * kept['ci_low']:.0f} to {100 * min(1.0, kept['ci_high']):.0f} %)"
    seeds = "1 seed" if study["seeds"] == 1 else f"{study['seeds']} seeds"
    text = (
        f"Where {100 * study['target']:.0f} % of {study['sets']['new']:,} new facts were learnt, it kept "
        f"{100 * kept['value']:.0f} %{interval} of {study['sets']['known']:,} known ones ({seeds})"
    )
    text += f"; plain training kept {100 * plain:.0f} %." if plain is not None else "."
    if study.get("alike"):
        text += f" Its runs cannot tell it from {', '.join(study['alike'])}."
    return text
