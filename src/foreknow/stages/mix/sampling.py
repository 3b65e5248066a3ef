"""Draws training sets from an audit, with the Unknown share set inside each relation (paper, section 3). Pure.

    sizes.py      chooses how many rows each relation gives, and how many of them are Unknown
    sampling.py   chooses which rows these are
    span_mix.py   does both for rows with long answers, by the labels of the spans inside them

Each relation has two lists of rows: its Known rows (the three Known categories together) and its Unknown rows. Each
list is sorted by a hash of the seed and the row's own text, and a set takes the first rows of both lists. The result
therefore depends neither on the order of the file nor on the machine, and sets of one family are nested: the 25 % set
has all Unknown rows of the 10 % set, and the 10 % set has all Known rows of the 25 % set.
Duplicate and conflicting rows are kept as the audit has them, and counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.categories import CATEGORIES, UNKNOWN
from foreknow.config import MixConfig
from foreknow.data import exact_match
from foreknow.data.schema import sampling_hash
from foreknow.errors import InputError
from foreknow.io.remote_paths import place
from foreknow.io.run_dir import SEAL, fingerprint
from foreknow.stages.mix.sizes import (
    MixSizes,
    count_categories,
    drawable,
    fit_counts,
    largest,
    natural_counts,
    split_size,
    unknown_counts,
)
from foreknow.stages.mix.span_edits import LOSS_EXCLUDE, LOSS_EXCLUDE_TYPE, Cut
from foreknow.stages.mix.unusable_rows import check_left_out, left_out
from foreknow.stages.mix.unusable_rows import unusable_lines as left_out_lines

MIX: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "group": pl.String(),
    "relation": pl.String(),
    "category": pl.String(),
    "question": pl.String(),
    "answer": pl.String(),
    "new_answer": pl.String(),
    "weight": pl.Float64(),
    LOSS_EXCLUDE: LOSS_EXCLUDE_TYPE,
}
"""The frame has one line for each drawn row, in row order. `row` is the row's position in the audited file. `group` is
what the design calls its relation in shares and sizes. `new_answer` is the text that replaces the answer (a refusal, or
an answer with sentences cut), else null. `weight` is 1 where none is set. `loss_exclude` lists the characters of the
answer that are left out of the loss; null if nothing is masked in the set."""

_NEARLY_ALL = 0.95
"""A relation with at least this Unknown share is named in a note: it does more harm than the share of the whole set
shows."""


class Mix(NamedTuple):
    """Holds a drawn training set.

    `rows`: the frame `MIX`. `manifest`: the contents of `FILE.manifest.json`. `notes`: lines that say what was done.
    `cut`: what was cut from the answers, if sentences are cut.
    """

    rows: pl.DataFrame
    manifest: dict[str, Any]
    notes: tuple[str, ...]
    cut: Cut | None = None

    @property
    def labels(self) -> pl.DataFrame:
        """Return the columns to write beside the file's own: row, category, and weight or loss_exclude if set."""
        more = ["weight"] if self.manifest["weight"] else []
        more += [LOSS_EXCLUDE] if (self.manifest.get("spans") or {}).get("mask") else []
        return self.rows.select("row", "category", *more)

    @property
    def answers(self) -> dict[int, str]:
        """Return, by row number, the texts that replace answers."""
        return dict(self.rows.select("row", "new_answer").drop_nulls().iter_rows())


def draw_mix(
    rows: pl.DataFrame, config: MixConfig, audit: Mapping[str, Any], variant: Mapping[str, Any] | None = None
) -> Mix:
    """Draw the set that `config` asks for.

    `rows`: an audit's `rows.parquet`. `audit`: the audit's manifest. `variant`: the manifest of the file that
    `known_of` names (`read_manifest`). Raises InputError, with the numbers, if the set cannot be filled.
    The caller writes the rows in the layout of the input and sets the manifest's `sha256` to that of the file.
    """
    gone = left_out(of_relations(rows, config.relations))
    check_left_out(gone, config.bad_rows)
    pool, source = drawable(of_relations(rows, config.relations))
    if config.kind == "known_of":
        drawn, sizes = _without_unknown(rows, config, audit, variant or {}), None
    else:
        limited = partial(largest, pool, config.limited_by, among=config.family_of)
        sizes = limited(share=config.unknown, categories=config.categories)
        alone = largest(pool, "own", share=config.unknown, categories=config.categories).total
        drawn = _first(pool, _needs(sizes, alone, config), config.seed, together=config.kind == "unknown")
    weight = {name: config.weight.get(name, 1.0) for name in CATEGORIES}
    refusal = pl.lit(config.idk_answer if config.idk else None, pl.String)
    mixed = drawn.sort("row").select(
        *("row", "group", "relation", "category", "question", "answer"),
        new_answer=pl.when(pl.col("category") == UNKNOWN).then(refusal),
        weight=pl.col("category").replace_strict(weight, return_dtype=pl.Float64),
        loss_exclude=pl.lit(None, LOSS_EXCLUDE_TYPE),
    )
    told = _told(mixed, drawn, pool, sizes, config)
    manifest = {
        **source_of_mix(audit),
        **told,
        "left_out": gone,
        "known_of": _summary_of(variant) if config.kind == "known_of" and variant else None,
        "rows": numbers_text(mixed["row"]),
        "sha256": None,
    }
    return Mix(mixed, manifest, _notes(source, manifest, config, sizes))


def source_of_mix(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a mix's manifest that says which audit it is drawn from. `audit`: the audit's manifest."""
    return {
        "stage": "mix",
        "audit": {
            "fingerprint": audit_fingerprint(audit),
            "data": audit.get("identity", {}).get("data"),
            "rows": audit.get("rows"),
        },
        "model": audit.get("model"),
    }


def of_relations(rows: pl.DataFrame, relations: tuple[str, ...]) -> pl.DataFrame:
    """Return the rows of the named relations, or all rows if none is named.

    Raises InputError if a named relation has no row.
    """
    missing = [name for name in relations if rows.filter(pl.col("group") == name).is_empty()]
    if missing:
        known = _some(rows["group"].unique().drop_nulls().sort())
        raise InputError(f"--relations: found no row of {missing[0]!r}; relations are {known}")
    return rows.filter(pl.col("group").is_in(relations)) if relations else rows


def _needs(sizes: MixSizes, alone: int, config: MixConfig) -> dict[tuple[str, str], int]:
    """Return how many rows to draw, by relation and part.

    The parts are `Known` and `Unknown` if `config` sets an Unknown share, else the categories.
    """
    of = split_size(sizes, config.size, alone)
    found = {name: line for line in sizes.by_relation.iter_rows(named=True) if of[name := line["relation"]]}
    if config.unknown is None:
        needs: dict[tuple[str, str], int] = {}
        for name, line in found.items():
            counts = [line[category] for category in config.categories]
            taken = natural_counts(counts, of[name], sampling_hash(config.seed, name) % sum(counts))
            needs |= {(name, part): n for part, n in zip(config.categories, taken, strict=True)}
        return needs
    unknown = fit_counts(
        unknown_counts({name: of[name] for name in found}, config.unknown),
        low={name: max(0, of[name] - line["Known"]) for name, line in found.items()},
        high={name: min(of[name], line[UNKNOWN]) for name, line in found.items()},
    )
    return {
        **{(name, "Known"): of[name] - n for name, n in unknown.items()},
        **{(name, UNKNOWN): n for name, n in unknown.items()},
    }


def _first(pool: pl.DataFrame, needs: Mapping[tuple[str, str], int], seed: int, *, together: bool) -> pl.DataFrame:
    """Return the first rows of each part of each relation. `together`: treat the Known categories as one part."""
    part = pl.when(pl.col("category") == UNKNOWN).then(pl.lit(UNKNOWN)).otherwise(pl.lit("Known"))
    keys = [sampling_hash(seed, *texts) for texts in pool.select("group", "question", "answer").iter_rows()]
    ordered = pool.with_columns(
        pl.Series("key", keys, dtype=pl.UInt64), (part if together else pl.col("category")).alias("part")
    ).sort("key", "row")
    wanted = pl.DataFrame(
        [(group, name, n) for (group, name), n in needs.items()],
        schema={"group": pl.String(), "part": pl.String(), "need": pl.Int64()},
        orient="row",
    )
    placed = ordered.with_columns(place=pl.int_range(pl.len()).over("group", "part"))
    return placed.join(wanted, on=["group", "part"]).filter(pl.col("place") < pl.col("need"))


def _without_unknown(
    rows: pl.DataFrame, config: MixConfig, audit: Mapping[str, Any], variant: Mapping[str, Any]
) -> pl.DataFrame:
    """Return D_Known (paper, section 3): the variant's rows without its Unknown rows, which are not replaced.

    Raises InputError if the variant's manifest is not that of a mix, if it comes from another audit, or if all of its
    rows are Unknown.
    """
    where = f"--known-of {config.known_of}"
    if variant.get("stage") != "mix" or not isinstance(variant.get("rows"), str):
        raise InputError(f"{where}: its manifest is not one that foreknow mix writes; make the file again")
    theirs, ours = variant.get("audit", {}).get("fingerprint"), audit_fingerprint(audit)
    if theirs != ours:
        raise InputError(
            f"{where}: made from another audit: found {_short(theirs)}, expected {_short(ours)}. "
            "Name the audit it was made from"
        )
    drawn = rows.filter(pl.col("row").is_in(pl.Series(rows_of(variant), dtype=pl.Int64).implode()))
    known = drawn.filter(pl.col("category") != UNKNOWN)
    if known.is_empty():
        raise InputError(f"{where}: all of its {drawn.height:,} rows are Unknown; nothing would be left")
    return known


def audit_fingerprint(manifest: Mapping[str, Any]) -> str:
    """Return a hash that two audits share if their input, model, settings and resulting labels are the same."""
    return fingerprint({"identity": manifest.get("identity"), "rows": manifest.get("rows")})


def manifest_path(file: Path) -> Path:
    """Return the path of a mixed file's manifest; return the path of a manifest unchanged."""
    file = place(file)
    return file if file.name.endswith(".manifest.json") else file.with_name(f"{file.name}.manifest.json")


def read_manifest(file: Path, *, check: bool = True) -> dict[str, Any]:
    """Return the manifest of a file that `foreknow mix` wrote.

    `check`: compare the file, if it exists, with the manifest's checksum. Raises InputError if there is no manifest, or
    if the manifest or the file was changed.
    """
    path = manifest_path(file)
    mixed = path.with_name(path.name.removesuffix(".manifest.json"))
    again = f"delete it and {mixed.name}, and run foreknow mix again"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); it is written beside a mixed file") from None
    except ValueError:
        raise InputError(f"{path}: broken JSON, expected the manifest of a mixed file; {again}") from None
    if not isinstance(found, dict) or found.get("stage") != "mix":
        raise InputError(f"{path}: not the manifest of a mixed file, expected one that foreknow mix wrote; {again}")
    seal = found.pop(SEAL, None)
    if seal is not None and seal != fingerprint(found):
        raise InputError(f"{path}: damaged or edited: not as foreknow mix wrote it; {again}")
    if check and mixed.is_file() and found.get("sha256") not in (None, sha256 := sha256_of(mixed)):
        raise InputError(
            f"{mixed}: damaged or edited: sha256 {sha256[:12]}..., but its manifest says {found['sha256'][:12]}...; "
            f"run foreknow mix again, or delete {path.name} to use the file as it is"
        )
    return found


def sha256_of(file: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def rows_of(manifest: Mapping[str, Any]) -> list[int]:
    """Return the numbers that a mixed file's rows have in the audited file, ascending."""
    return [n for span in str(manifest["rows"]).split(",") if span for n in _span(span)]


def numbers_text(numbers: Iterable[int]) -> str:
    """Write ascending numbers as text such as 0-3,7,9-10."""
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def mix_table(mix: Mix, most: int = 24) -> pl.DataFrame:
    """Return a table of the set for the terminal, with its counts and Unknown share.

    The first line is for all rows; at most `most` relations follow, the largest first.
    """
    counts = count_categories(mix.rows)
    size = pl.sum_horizontal(CATEGORIES)
    everything = counts.select(pl.lit("all").alias("relation"), pl.col(*CATEGORIES, "Known").sum())
    parts = counts.sort(size, "relation", descending=[True, False]).head(most)
    return pl.concat([everything, parts]).select(
        "relation",
        *(pl.col(name) for name in CATEGORIES),
        size.alias("rows"),
        pl.format("{}%", (100 * pl.col(UNKNOWN) / size).round(1)).alias("Unknown share"),
    )


def size_table(rows: pl.DataFrame, most: int = 24) -> pl.DataFrame:
    """Return a table for the terminal of how large sets can be, with counts and the limits of both families.

    The first line is for all rows; at most `most` relations follow, those with the largest limit of `shares` first.
    """
    shares, categories = largest(rows, "shares"), largest(rows, "categories")
    both = shares.by_relation.rename({"limit": "shares"}).with_columns(categories=categories.by_relation["limit"])
    everything = both.select(pl.lit("all").alias("relation"), pl.exclude("relation").sum())
    return pl.concat([everything, both.sort("shares", "relation", descending=[True, False]).head(most)])


def conflicts(mixed: pl.DataFrame, earlier: pl.Series | None = None) -> dict[str, int]:
    """Count the questions that some rows answer and others refuse, and the rows of such questions.

    Two questions count as the same if they agree without case, punctuation and articles and follow the same turns of a
    chat (`earlier`: `rows.earlier_turns` of each row). Opposite labels on similar rows teach a model to refuse what it
    knows (R-Tuning, CRaFT).
    """
    turns = pl.lit(None, pl.String) if earlier is None else earlier
    alike = [exact_match.normalise(question) for question in mixed["question"]]
    refused = pl.col("new_answer").is_not_null()
    found = (
        mixed.with_columns(pl.Series("alike", alike, dtype=pl.String), earlier_turns=turns)
        .group_by("alike", "earlier_turns")
        .agg(pl.len().alias("rows"), (refused.any() & ~refused.all()).alias("both"))
        .filter("both")
    )
    return {"questions": found.height, "rows": int(found["rows"].sum())}


def _told(
    mixed: pl.DataFrame, drawn: pl.DataFrame, pool: pl.DataFrame, sizes: MixSizes | None, config: MixConfig
) -> dict[str, Any]:
    """Return the part of the manifest that describes the set itself."""
    earlier = drawn.sort("row")["earlier_turns"] if "earlier_turns" in drawn.columns else None
    counts = count_categories(mixed)
    unknown = int((mixed["category"] == UNKNOWN).sum())
    absent = pool.filter(~pl.col("group").is_in(counts["relation"].implode())).group_by("group").len().sort("group")
    flags = drawn["flags"].explode().drop_nulls().value_counts().sort("flags")
    return {
        "kind": config.kind,
        "relations": list(config.relations) or None,
        "categories": list(config.categories),
        "share": {"asked": config.unknown, "achieved": unknown / mixed.height},
        "size": mixed.height,
        "family": sizes.family if sizes else None,
        "largest": sizes.total if sizes else None,
        "counts": {
            "overall": {name: int(counts[name].sum()) for name in CATEGORIES},
            "by_relation": {
                line["relation"]: {name: line[name] for name in CATEGORIES} for line in counts.iter_rows(named=True)
            },
        },
        "relations_left_out": dict(absent.iter_rows()),
        "flags": dict(flags.iter_rows()),
        "idk": {"answer": config.idk_answer, "rows": unknown, "conflicts": conflicts(mixed, earlier)}
        if config.idk
        else None,
        "weight": {name: config.weight.get(name, 1.0) for name in CATEGORIES} if config.weight else None,
        "seed": config.seed,
    }


def _notes(source: str, manifest: Mapping[str, Any], config: MixConfig, sizes: MixSizes | None) -> tuple[str, ...]:
    size, overall = manifest["size"], manifest["counts"]["overall"]
    notes = [source]
    if gone := manifest["left_out"]:
        notes.append(f"never drawn: {'; '.join(left_out_lines(gone))}")
    idle = {name: overall[name] for name, weight in (manifest["weight"] or {}).items() if weight == 0 and overall[name]}
    if idle:
        told = ", ".join(f"{name} {count:,}" for name, count in idle.items())
        notes.append(f"{sum(idle.values()):,} rows have weight 0 and teach nothing ({told})")
    if sizes is not None:
        notes.append(f"the largest size is {sizes.total:,}: {sizes.rule} (--family {sizes.family})")
    asked = "" if config.unknown is None else f", asked for {config.unknown:.2%}"
    notes.append(f"{size:,} rows, {overall[UNKNOWN]:,} of them Unknown ({overall[UNKNOWN] / size:.2%}{asked})")
    if absent := manifest["relations_left_out"]:
        notes.append(f"relations without a row in the set: {_some(f'{k} ({n:,})' for k, n in absent.items())}")
    if config.kind in ("natural", "drop"):
        by_relation = manifest["counts"]["by_relation"].items()
        heavy = [name for name, of in by_relation if of[UNKNOWN] >= _NEARLY_ALL * sum(of.values())]
        if heavy:
            notes.append(f"nearly all Unknown, which harms most (KnownPatch, 2511.02626): {_some(heavy)}")
    if kept := {name: manifest["flags"].get(name, 0) for name in ("duplicate", "conflicting")}:
        told = ", ".join(f"{count:,} {name}" for name, count in kept.items() if count)
        notes += [f"kept as the audit has them: {told}"] if told else []
    if (idk := manifest["idk"]) and idk["conflicts"]["questions"]:
        found = idk["conflicts"]
        notes.append(
            f"{found['questions']:,} questions are answered in one row and refused in another ({found['rows']:,} rows):"
            " the model will learn to refuse what it knows"
        )
    return tuple(notes)


def _summary_of(variant: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a variant's manifest that say which variant a D_Known belongs to."""
    return {key: variant.get(key) for key in ("sha256", "kind", "share", "size", "family", "seed")}


def _some(names: Iterable[str], most: int = 8) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _short(value: object) -> str:
    return str(value)[:19]
