"""Write data and models (the paper's data, PopQA, the packaged facts, the lab), and say what other machines take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

from cyclopts import Parameter, validators

from foreknow.console import print_table, print_written
from foreknow.errors import ConfigError
from foreknow.flags import whole
from foreknow.io.remote import download
from foreknow.io.remote_paths import place


def entityquestions(
    *,
    source: Annotated[str, Parameter(name="--from")] = "hub",
    out: Path,
    templates: Path | None = None,
    allow_different: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write ENTITYQUESTIONS as the paper split it: train, dev, test, test_ood.

    Parameters
    ----------
    source
        The published folder or zip, or 'hub' to fetch it.
    out
        The folder to write.
    templates
        A file with a question template for each relation; without it the published questions give the templates.
    allow_different
        Continue even if counts differ from the paper's; the manifest lists the differences.
    """
    from foreknow.data.builtin.export import write_entityquestions  # keeps polars out

    print_written(write_entityquestions(source, place(out), templates=templates, check=not allow_different))


def popqa(*, source: Annotated[str, Parameter(name="--from")] = "hub", out: Path) -> None:
    """Write PopQA as one file with subjects, relations and popularity.

    Parameters
    ----------
    source
        The published test.tsv, or 'hub' to fetch it.
    out
        The folder to write.
    """
    from foreknow.data.builtin.export import write_popqa  # keeps polars out

    print_written(write_popqa(source, place(out)))


def facts(*, out: Path) -> None:
    """Write the packaged facts: train, dev, test.

    Parameters
    ----------
    out
        The folder to write.
    """
    from foreknow.data.builtin.export import write_facts  # keeps polars out

    print_written(write_facts(place(out)))


def build(
    *,
    out: Path | None = None,
    subjects: Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=1, lte=20_000))] = 160,
    contested: Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=0, lte=100))] = 0,
    hidden: Annotated[int, Parameter(converter=whole, validator=validators.Number(gte=32, lte=1024))] = 128,
) -> None:
    """Train the lab's model and write it with its facts; minutes on two cores.

    Parameters
    ----------
    out
        The folder to write (default: the user's cache, where foreknow looks for the model 'lab').
    subjects
        How many subjects of each kind the world has; each subject has a fact in three relations. The model 'lab' has
        160. Name a model of another world by its folder, and its facts by facts.jsonl in that folder.
    contested
        Per cent of the facts told often, in relations whose subjects share answers, of which every second statement
        names another answer: such facts come out MaybeKnown or WeaklyKnown. The model 'lab' has none.
    hidden
        The width of the model, a multiple of 32; the model 'lab' has 128.
    """
    from foreknow.models.lab_model import build as build_lab  # keeps torch out
    from foreknow.models.lab_recipe import LAB  # keeps polars out

    if hidden % 32:
        raise ConfigError(f"--hidden {hidden}: expected a multiple of 32")
    world = replace(LAB.world, subjects=subjects, contested=contested)
    recipe = replace(LAB, world=world, hidden=hidden, intermediate=3 * hidden, heads=hidden // 32)
    print(f"built: {build_lab(None if out is None else place(out), recipe=recipe)}")


def models() -> None:
    """List the packaged models: size, licence, checksum, where they are kept."""
    from foreknow.models.packaged import packaged_table  # keeps polars out

    for line in packaged_table():
        print(f"{line['name']}{'  (default)' if line['default'] else ''}")
        for key in ("note", "download", "licence", "kept", "sha256"):
            print(f"  {key:<9} {line[key]}")
    print("lab: a small model that is trained here; see `foreknow lab build --help`.")
    print("Any folder saved by save_pretrained, .gguf file or hub id can stand in their place.")


def forecast(
    audit: Path,
    /,
    *,
    study: Path,
    unknown: float | None = None,
    fitted: Annotated[Optional[tuple[float, float]], Parameter(negative="")] = None,  # noqa: UP045
    force: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Tell what a mix of an AUDIT's rows would do to exact match, from a study of the same model.

    Parameters
    ----------
    audit
        A finished audit's folder.
    study
        A finished study's folder.
    unknown
        The share of Unknown rows in the mix (default: the share in the audit).
    fitted
        The shares of the Known and of the Unknown rows that training will fit (default: the usual ones of the study).
    force
        Continue even if the study trained another model.
    """
    from foreknow.io.run_dir import with_checksum, write_json  # keeps polars out
    from foreknow.stages.audit.result import open_audit  # keeps polars out
    from foreknow.stages.study.forecast import forecast_audit, forecast_table  # keeps polars out
    from foreknow.stages.study.result import open_study  # keeps polars out

    audit, study = download(audit), download(study)
    found = forecast_audit(open_audit(audit), open_study(study), unknown=unknown, fitted=fitted or (), force=force)
    print_table(forecast_table(found), f"forecast for {found['unknown']:.1%} Unknown rows")
    for name, of in found["left_out"].items():
        if of["rmse"] is not None:
            within = "" if of["coverage"] is None else f", {of['coverage']:.0%} of them inside their 95 % interval"
            print(f"{name}: variants left out of the study were told to {100 * of['rmse']:.1f} points{within}")
    write_json(audit / "forecast.json", with_checksum(found))
    print(f"json: {audit / 'forecast.json'}; foreknow report {audit} shows it on the audit's page")
