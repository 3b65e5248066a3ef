"""Damaged files: of a finished run whoever reads them names them; of an unfinished one the same command mends them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.harness import DAMAGES, Bench, Ended, clear, files_of, judged, out_name, result

pytestmark = pytest.mark.faults

ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "1"))
"""How often every file is damaged in every way, each time elsewhere."""


def readers(bench: Bench, stage: str, out: Path, to: Path) -> Iterator[tuple[str, list[str], Path | None]]:
    """(name, command, what it writes) of all that read a finished run of a stage."""
    if stage == "mix":
        words = bench.words("tune", to / "tune")
        yield "tune", [str(out) if word == str(bench.calm("mix").out) else word for word in words], to / "tune"
        return
    yield "again", bench.words(stage, out), out
    yield "report", ["report", str(out)], None
    if stage == "audit":
        audit = str(bench.calm("audit").out)
        for name in ("mix", "tune", "evaluate"):
            words = bench.words(name, to / out_name(name))
            yield name, [str(out) if word == audit else word for word in words], to / out_name(name)
        yield "compare", ["compare", str(out), audit], None
    if stage == "tune":
        words = bench.words("evaluate", to / "evaluate")
        yield "evaluate", [w.replace(str(bench.calm("tune").out), str(out)) for w in words], to / "evaluate"


def _same(bench: Bench, stage: str, reader: str, written: Path | None, ended: Ended, page: Path, whence: bool) -> bool:
    """Whether a reader that ended well came to what it comes to on an undamaged run."""
    if reader == "again":
        return written is not None and result(written) == bench.calm(stage).result
    if reader == "compare":
        return "better known 0" in ended.out and "less known 0" in ended.out
    if reader == "report":
        return page.read_bytes() == (bench.calm(stage).out / "report.html").read_bytes()
    assert written is not None
    ours, theirs = result(written), bench.calm(reader).result
    if not whence:  # that a file is a mix, or a model was tuned from another, is not known any more, and not told
        ours, theirs = ({k: v for k, v in of.items() if k not in TOLD} for of in (ours, theirs))
    return ours == theirs


TOLD = ("results.json", "summary.json")
"""Where a run says, beside its numbers, what it was given."""
ORIGINS = ("mixed.jsonl.manifest.json", "foreknow.json")
"""Files that hold others to their checksums; to delete one is how a user says that they were changed on purpose."""


def _unread(file: str) -> bool:
    """Files that are made from the others, for people, and that no command reads."""
    return file == "report.html" or file.startswith(("tables/", "runs/", "variants/")) or file in (
        "scorecard.json", "linear_model.json", "claims.json",
    )  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("stage", ["audit", "mix", "tune", "evaluate"])
def test_a_damaged_file_of_a_finished_run_is_named(bench: Bench, tmp_path: Path, stage: str, how: str) -> None:
    for number in range(ROUNDS):
        names = [p.relative_to(bench.calm(stage).out.parent) for p in files_of(bench.calm(stage).out)]
        for name in names:
            rng, place = random.Random(f"{stage} {name} {how} {number}"), tmp_path / f"{number}-{name.name}"
            out = bench.copy(stage, place)
            if _unread("/".join(name.parts[1:])):
                continue
            damaged = place / name
            DAMAGES[how](damaged, rng)
            told = {damaged.name, str(damaged.parent)}
            whence = how != "remove" or damaged.name not in ORIGINS
            every = list(readers(bench, stage, out, place / "read"))
            # those that do not read this file at all would only cost time
            for reader, words, written in [every[0], rng.choice(every[1:])] if len(every) > 1 else every:
                if reader == "report" and damaged.parent != out:
                    reader, words, written = every[-1]  # noqa: PLW2901  # a page does not read weights
                ended = bench.forge.run(words)
                page = out / "report.html"
                judged(
                    f"finished: {how}, then {reader}",
                    stage,
                    ended,
                    lambda r=reader, w=written, e=ended, p=page, o=whence: _same(bench, stage, r, w, e, p, o),
                    told,
                )
            shutil.rmtree(place)


@pytest.mark.parametrize("name", ["results.parquet", "outcomes.parquet", "manifest.json", "audit/rows.parquet"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_of_a_finished_study_is_named(bench: Bench, tmp_path: Path, name: str, how: str) -> None:
    out = bench.copy("study", tmp_path)
    DAMAGES[how](out / name, random.Random(name))
    ended = bench.forge.run(["report", str(out)])
    judged(f"finished: {how}, then report", "study", ended, lambda: False, {Path(name).name})
    if name in ("results.parquet", "outcomes.parquet"):
        (out / name).unlink(missing_ok=True)
        ended = bench.forge.run(bench.words("study", out))
        same = result(out) == bench.calm("study").result
        judged("named, deleted, again", "study", ended, lambda: same, set())


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("stage", ["audit", "tune", "evaluate", "study"])
def test_any_damaged_file_of_an_unfinished_run_is_done_again_or_named(
    bench: Bench, tmp_path: Path, stage: str, how: str
) -> None:
    """Where it is named, doing what the message says (deleting the run) leads to the result."""
    calm, rng = bench.calm(stage), random.Random(f"{stage} {how}")
    for number in range(ROUNDS):
        half = bench.half(stage, number)
        for path in rng.sample(files := files_of(half), min(3, len(files))):
            out = tmp_path / f"{number}-{path.name[:40]}" / out_name(stage)
            shutil.copytree(half, out)
            damaged = out / path.relative_to(half)
            DAMAGES[how](damaged, rng)
            ended = bench.forge.run(bench.words(stage, out))
            told = {damaged.name, str(damaged.parent)}
            met = judged(f"unfinished: {how}", stage, ended, lambda out=out: result(out) == calm.result, told)
            if met == "named":
                clear(out)
                ended = bench.forge.run(bench.words(stage, out))
                judged("named, deleted, again", stage, ended, lambda out=out: result(out) == calm.result, set())
            shutil.rmtree(out.parent)


# the model's cache


@pytest.fixture
def cached(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A .gguf file's name, and the folder it was converted to in a cache of its own."""
    from foreknow.models import checksums, gguf_conversion

    monkeypatch.setenv("FOREKNOW_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    folder = gguf_conversion.converted_folder(hashlib.sha256(b"GGUF").hexdigest())
    shutil.copytree(bench.model, folder)
    (folder / "foreknow.json").write_text(json.dumps({"files": checksums.checksums_of(folder)}))
    return gguf, folder


def _of_cached(bench: Bench, stage: str, out: Path, gguf: Path) -> list[str]:
    return [str(gguf) if word == str(bench.model) else word for word in bench.words(stage, out)]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("stage", ["audit", "tune"])
def test_a_damaged_model_in_the_cache_is_named(
    bench: Bench, cached: tuple[Path, Path], tmp_path: Path, stage: str, how: str
) -> None:
    """And when it is as it was, the same command goes on: the folder was not claimed for another model."""
    gguf, folder = cached
    out, env = tmp_path / stage, {"FOREKNOW_CACHE": str(tmp_path / "cache")}
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        whole = (folder / name).read_bytes()
        DAMAGES[how](folder / name, random.Random(name))
        ended = bench.forge.run(_of_cached(bench, stage, out, gguf), env=env)
        judged(f"cached model: {how}", stage, ended, lambda: False, {name, str(folder)})
        (folder / name).write_bytes(whole)
    ended = bench.forge.run(_of_cached(bench, stage, out, gguf), env=env)
    judged("cached model, mended", stage, ended, lambda: _measured_alike(bench, stage, out), set())


def _measured_alike(bench: Bench, stage: str, out: Path) -> bool:
    """Whether the rows are an undisturbed run's; what names the model differs, as it lies in a cache."""
    ours, theirs = result(out), bench.calm(stage).result
    measured = {"audit": ("rows.parquet", "probes.parquet"), "tune": ("outcomes.parquet", "metrics.jsonl")}[stage]
    return all(ours[name] == theirs[name] for name in measured)


@pytest.mark.parametrize("stage", ["audit", "tune"])
def test_the_cache_emptied_in_mid_run(bench: Bench, cached: tuple[Path, Path], tmp_path: Path, stage: str) -> None:
    gguf, folder = cached
    out, env = tmp_path / stage, {"FOREKNOW_CACHE": str(tmp_path / "cache")}
    running = bench.forge.start(_of_cached(bench, stage, out, gguf), env=env)
    shares = random.Random(stage)
    running.wait(shares.uniform(0.2, 0.7) * bench.calm(stage).seconds)
    shutil.rmtree(tmp_path / "cache")
    ended = running.end()
    judged(
        "cache emptied in mid-run",
        stage,
        ended,
        lambda: _measured_alike(bench, stage, out),
        {"m.gguf", str(folder)},
    )
