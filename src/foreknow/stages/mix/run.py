"""Writes the training set that `foreknow mix` makes from an audit's folder, in the input's layout, and its manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from foreknow.config import AuditConfig, MixConfig
from foreknow.config.shared import DataSettings
from foreknow.data.chat.turn_labels import own_names
from foreknow.data.dataset import Dataset
from foreknow.data.load import read_data
from foreknow.data.spans.schema import count_spans, span_labels
from foreknow.errors import InputError, RunFolderError
from foreknow.io.run_dir import with_checksum, write_json, write_whole
from foreknow.settings import read_settings
from foreknow.stages.audit.result import LONG_LABELS, AuditResult, open_audit
from foreknow.stages.mix.sampling import Mix, draw_mix, manifest_path, read_manifest, sha256_of
from foreknow.stages.mix.span_edits import LOSS_EXCLUDE, check_places, moved_entries
from foreknow.stages.mix.span_mix import draw_span_mix
from foreknow.version import __version__


class MixFiles(NamedTuple):
    """Holds the path of a written training set, the mix it is made of, and the audit's rows it was drawn from."""

    path: Path
    mix: Mix
    audited: pl.DataFrame


def write_mix(config: MixConfig) -> MixFiles:
    """Draw the set that `config` asks for, write it, and write its manifest last.

    A file that was made with the same settings is written again with the same bytes. Any other file is overwritten
    only with `force`. Raises InputError if the audit is not finished, or if the set cannot be filled; the message
    gives the numbers. Raises RunFolderError if another file stands at `config.out` and `force` is not set.
    """
    audit = open_audit(config.audit)
    manifest = json.loads((audit.folder / "manifest.json").read_text(encoding="utf-8"))
    variant = read_manifest(config.known_of) if config.known_of else None
    if config.draws_long_answers:
        if audit.spans is not None:
            check_places(dict(audit.rows.select("row", "answer").drop_nulls().iter_rows()), audit.spans, config.audit)
        mix = draw_span_mix(audit.rows, audit.spans, config, manifest)
    else:
        mix = draw_mix(audit.rows, config, manifest, variant)
    annotated, turns = _annotated(audit)
    if LOSS_EXCLUDE in annotated.columns and (config.mask or config.cut or config.idk):
        raise InputError(
            f"{config.audit}: its file has a column {LOSS_EXCLUDE!r} already, so it was masked before; audit and mix "
            "the file that was not"
        )
    mix = mix._replace(notes=(*mix.notes, *_turn_notes(annotated, mix.rows["row"], turns)))
    mix.manifest["turns"] = turns
    labels = mix.labels.select("row", *(n for n in mix.labels.columns if n not in ("row", *annotated.columns)))
    values, own_spans = _moved_spans(mix, annotated.columns), _moved_own_spans(mix, annotated)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    mix.manifest["foreknow"] = __version__

    def write(part: Path) -> None:
        annotated.write(labels, part, mix.answers, config.out.name, values, own_spans)
        mix.manifest["sha256"] = sha256_of(part)  # hash what this run wrote, even if the file is replaced right after
        _check_target(config, mix)
        manifest_path(config.out).unlink(missing_ok=True)  # a file without a manifest is not finished

    write_whole(config.out, write)
    write_json(manifest_path(config.out), with_checksum(mix.manifest))
    return MixFiles(config.out, mix, audit.rows)


def _moved_spans(mix: Mix, columns: Sequence[str]) -> dict[int, dict[str, object]]:
    """Return, by row whose answer is cut, the spans that are left of it and their counts, by the file's columns.

    What the audit says of the whole answer (`LONG_LABELS`) is null: it does not hold for what is left.
    """
    if mix.cut is None:
        return {}
    rows = pl.Series("row", list(mix.cut.answers), dtype=pl.Int64)
    left = mix.cut.left.filter(pl.col("row").is_in(rows.implode()))
    counts = count_spans(rows, left).join(span_labels(left), on="row", how="left", maintain_order="left")
    names = own_names([name for name in counts.columns if name != "row"], columns)
    whole = dict.fromkeys(own_names(LONG_LABELS, columns).values())
    return {
        line["row"]: {ours: line[name] for name, ours in names.items()} | whole for line in counts.iter_rows(named=True)
    }


def _moved_own_spans(mix: Mix, annotated: Dataset) -> dict[int, list[object]]:
    """Return, by row whose answer is cut, what is left of the spans that the user's own column has."""
    ours = own_names(["spans"], annotated.columns).get("spans")
    theirs = {layout.columns.get("spans") for layout in annotated.layouts.values()} - {None, ours}
    if mix.cut is None or not theirs:
        return {}
    answers = mix.cut.answers
    cut = annotated.rows.filter(pl.col("row").is_in(list(answers)), pl.col("spans").is_not_null())
    return {
        row: moved_entries(json.loads(spans), texts[0], answers[row], mix.cut.moves[row])
        for row, spans, texts in cut.select("row", "spans", "answers").iter_rows()
    }


def _turn_notes(facts: Dataset, rows: pl.Series, turns: str) -> list[str]:
    """Return lines that tell a user how to train on chats that have only some of their answers in the set."""
    if in_part := len(facts.in_part(rows)):
        return [
            f"{in_part:,} {'chat has' if in_part == 1 else 'chats have'} only some of their answers in the set: they "
            "end with the last of these, and the others are marked not to be learnt (weight: 0, or the file's own "
            "mark). foreknow tune, OpenAI and Mistral read weight, axolotl the key that "
            "message_field_training names; TRL and LLaMA-Factory read no mark and would learn all: for them audit with "
            "--turns last"
        ]
    chosen = facts.rows.filter(pl.col("row").is_in(rows.implode()))
    assistant = pl.col("context").list.eval(pl.element().struct.field("role") == "assistant").list.any()
    if turns == "last" and (earlier := chosen.filter(assistant.fill_null(False)).height):
        return [
            f"{earlier:,} {'chat has' if earlier == 1 else 'chats have'} earlier answers, to which --turns last gave"
            " no label: train on last answers only (foreknow tune --turns last; LLaMA-Factory: mask_history; TRL: "
            "prompt and completion)"
        ]
    return []


def _annotated(audit: AuditResult) -> tuple[Dataset, str]:
    """Read the audit's annotated file with the audit's own settings; return it and its `turns` setting.

    `turns` says which turns of a chat are rows. Raises InputError if the audit does not have exactly one such file.
    """
    paths = sorted(audit.folder.glob("annotated*"))
    if len(paths) != 1:
        raise InputError(f"{audit.folder}: found {len(paths)} annotated files, expected one; run the audit again")
    settings = read_settings(audit.folder, needed=True)
    same = {name: settings[name] for name in DataSettings.model_fields if name in settings and name != "data"}
    if AuditConfig(**settings).data == "facts":
        same = {"group_by": "relation"}
    config = DataSettings(**{**same, "data": str(paths[0])})
    return read_data(config), config.turns


def _check_target(config: MixConfig, mix: Mix) -> None:
    """Raise RunFolderError if `config.out` holds a file that this mix did not write, unless `force` is set.

    A file without a manifest passes if it has the same bytes: an earlier run of this mix was then killed before it
    wrote the manifest.
    """
    if config.force or not config.out.exists():
        return
    if not manifest_path(config.out).is_file():
        if config.out.is_file() and sha256_of(config.out) == mix.manifest["sha256"]:
            return
        raise RunFolderError(f"{config.out}: exists and was not made by foreknow mix; choose another --out, or --force")
    before = {k: v for k, v in read_manifest(config.out, check=False).items() if k not in ("foreknow", "sha256")}
    manifest = {k: v for k, v in mix.manifest.items() if k not in ("foreknow", "sha256")}
    if before != json.loads(json.dumps(manifest)):
        raise RunFolderError(f"{config.out}: made with other settings; choose another --out, or --force")
