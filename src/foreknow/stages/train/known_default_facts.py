"""Finds which of the packaged facts a model knows: each model is asked once, and the outcome is kept in a cache.

Asked are the `ASKED` most popular facts (`data/builtin/default_facts.py`), behind `canary_check.SHOTS` exemplars in the
form in which the run trains. The cache lies in the user's cache folder, by the fingerprint of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.data.builtin.default_facts import RELATIONS, compile_facts
from foreknow.io.remote_paths import cache_folder
from foreknow.io.run_dir import fingerprint, write_frame
from foreknow.stages.train.canary_check import SHOTS, CanaryCheck
from foreknow.stages.train.curves import CANARIES
from foreknow.stages.train.known_candidates import ROWS, Candidates

ASKED: Final = 400
"""How many packaged facts each model is asked once."""
PILOT: Final = 40
"""How many packaged facts are asked first; a model that knows none of them is asked no more."""
_VERSION: Final = 1
"""Raise this when the same model would know other facts: cached outcomes of another number are not used."""


class KnownFacts(NamedTuple):
    """Holds the packaged facts that a model knows, how many it was asked, and whether that was read from the cache."""

    rows: pl.DataFrame
    asked: int
    cached: bool


def packaged_candidates() -> Candidates:
    """Return the `ASKED` most popular packaged facts, as many of each relation; compiled once and cached."""
    packages = sorted({name.strip() for relation in RELATIONS for name in relation.package.split(",")})
    path = cache_folder() / CANARIES / f"facts-{fingerprint([_VERSION, ASKED, *map(_version, packages)])[7:23]}.parquet"
    rows = _cached(path)
    if rows is None:
        each = -(-ASKED // len(RELATIONS))
        place = pl.int_range(pl.len()).over("relation")
        popular = compile_facts().sort("popularity", descending=True, nulls_last=True, maintain_order=True)
        popular = popular.with_columns(place=place).filter(pl.col("place") < each).sort("place", "relation").head(ASKED)
        rows = popular.with_row_index("row").select(**{name: _own(name, popular.columns) for name in ROWS})
        _keep_in_cache(path, rows)
    return Candidates(rows.with_columns(source=pl.lit("packaged facts")), "packaged facts")


def known_packaged(
    rows: pl.DataFrame,
    model: str,
    prompt: Any,
    check: Callable[[pl.DataFrame], CanaryCheck],
    spellings: Callable[[CanaryCheck], dict[int, int]],
) -> KnownFacts:
    """Ask a model packaged facts, and keep in the user's cache which of them it knows.

    A model that knows none of the first `PILOT` is not asked the others. `rows`: the facts (`ROWS`). `model`: the
    fingerprint of the model. `prompt`: what else decides the answers (the prompt's form, the dtype). `check` prepares
    rows to be asked; `spellings` asks them (`CanaryCheck.spellings`).
    """
    key = fingerprint([_VERSION, SHOTS, PILOT, model, prompt, fingerprint(rows)])
    path = cache_folder() / CANARIES / f"known-{key[7:23]}.parquet"
    cached = _cached(path)
    if cached is not None:
        return KnownFacts(cached, rows.height if cached.height else min(PILOT, rows.height), True)
    known, asked = rows.clear(), 0
    for part in (rows.head(PILOT), rows) if rows.height else ():
        asking = check(part)
        right = spellings(asking)
        own = asking.rows.filter(pl.col("row").is_in(list(right))).with_columns(before=pl.lit(True))
        known, asked = asking.with_own_spelling(own, right).select(*ROWS), part.height
        if known.is_empty():
            break
    _keep_in_cache(path, known)
    return KnownFacts(known, asked, False)


def _own(name: str, columns: Sequence[str]) -> pl.Expr:
    known = name in columns or name == "row"
    return (pl.col(name).cast(ROWS[name]) if known and name != "source" else pl.lit(None, ROWS[name])).alias(name)


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def _cached(path: Path) -> pl.DataFrame | None:
    """Read a cached frame of `ROWS`; None if it is missing or not whole, so that it is made again."""
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):
        return None
    return frame if dict(frame.schema) == ROWS else None


def _keep_in_cache(path: Path, frame: pl.DataFrame) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_frame(path, frame)
    except Exception:
        return
