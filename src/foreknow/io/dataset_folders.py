"""Folders as Hugging Face writes them: find their data files, the split of each, and the metadata files.

    save_to_disk   state.json names the shards of a data set; with dataset_dict.json, a folder for each split
    datasets cache owner___name/config/version/hash/name-train.arrow with dataset_info.json
    hub cache      datasets--owner--name/snapshots/REVISION/..., the revision of refs/main
    hub download   README.md names configs and their files

Ambiguous folders raise InputError: several configs, a missing shard, rows selected by an indices mapping.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

import polars as pl

from foreknow.errors import InputError
from foreknow.io import yaml_text
from foreknow.io.quoting import quoted

Json = object
_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"
_DERIVED = re.compile(r"(^|/)(cache-[0-9a-f]{8,}[^/]*|indices|_indices[^/]*|tmp[^/]*)\.arrow$")
"""Arrow files that are not data: results of `map` and mappings of indices."""
_SHARD = re.compile(r"(.*?)-(\d{5})-of-(\d{5})(\.[^/]*)$")


class FolderPlan(NamedTuple):
    """A folder's data files, the split of each by name, notes for the user, and metadata files to rewrite."""

    files: tuple[str, ...]
    splits: Mapping[str, str]
    notes: tuple[str, ...] = ()
    sidecars: tuple[str, ...] = ()


def snapshot_of(path: Path) -> tuple[Path, str]:
    """Resolve a folder of the hub's cache to its snapshot, with a note; any other folder is returned unchanged."""
    caches = sorted(each.name for each in path.glob("datasets--*") if each.is_dir())
    if not path.name.startswith("datasets--") and caches:
        if len(caches) > 1:
            shown_names = ", ".join(caches[:6])
            raise InputError(
                f"{path}: the hub's cache, with {len(caches)} data sets: {shown_names}. Name one: {path / caches[0]}"
            )
        path = path / caches[0]
    if path.name.startswith("models--"):
        raise InputError(f"{path}: a model in the hub's cache, expected a data set. Give it with --model.")
    snapshots = path / "snapshots"
    if not snapshots.is_dir() or not ((path / "refs").is_dir() or (path / "blobs").is_dir()):
        return path, ""
    revisions = sorted(each.name for each in snapshots.iterdir() if each.is_dir())
    main = path / "refs" / "main"
    revision = main.read_text("utf-8", "replace").strip() if main.is_file() else ""
    if revision in revisions:
        others = f", of {len(revisions)} revisions" if len(revisions) > 1 else ""
        return snapshots / revision, f"the hub's cache at refs/main, {revision[:12]}{others}"
    if len(revisions) == 1:
        return snapshots / revisions[0], f"the hub's cache at its only revision, {revisions[0][:12]}"
    shown_names = ", ".join(revisions[:4]) or "none"
    raise InputError(
        f"{path}: the hub's cache with the revisions {shown_names}, and refs/main names none of them. "
        f"Name one: {snapshots / (revisions[0] if revisions else 'REVISION')}"
    )


def plan_of(
    names: Sequence[str], read: Callable[[str], bytes], where: str, *, is_data: Callable[[str], bool]
) -> FolderPlan:
    """Which of the files `names` are data. `is_data`: whether a name alone says so. Raises InputError."""
    data = [name for name in names if is_data(name) and not _DERIVED.search(name) and "incomplete" not in name]
    unfinished = sorted(name for name in names if ".incomplete" in name or "/incomplete" in name)
    plan_of_saved = _plan_save_to_disk(names, read, where)
    if plan_of_saved is not None:
        return plan_of_saved
    plan_of_cached = _plan_datasets_cache(data, names, read, where)
    if plan_of_cached is not None:
        return plan_of_cached
    plan = _plan_readme_configs(data, names, read, where) or FolderPlan(tuple(data), {})
    notes = list(plan.notes) + _missing_shards(plan.files)
    if unfinished:
        notes.append(f"left out: {len(unfinished)} files of unfinished downloads")
    return plan._replace(notes=tuple(notes))


def _read_json(read: Callable[[str], bytes], name: str) -> Json:
    try:
        return json.loads(read(name))
    except (ValueError, RecursionError):
        return None


def _plan_save_to_disk(names: Sequence[str], read: Callable[[str], bytes], where: str) -> FolderPlan | None:
    """The files of a data set written by `save_to_disk`: the shards that each state.json names."""
    known, files, sidecars = set(names), [], []
    splits: dict[str, str] = {}
    for name in sorted(names):
        if PurePosixPath(name).name != _STATE:
            continue
        state = _read_json(read, name)
        if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
            continue
        folder = PurePosixPath(name).parent
        skips = any(isinstance(file, dict) and file.get("skip") for file in state["_data_files"])
        if state.get("_indices_data_files") or state.get("_indices_files") or skips:
            raise InputError(
                f"{where}: {name} says that rows are chosen by a mapping of indices, which is not followed. Open it "
                "with datasets.load_from_disk and save it again."
            )
        entries = [file.get("filename") if isinstance(file, dict) else None for file in state["_data_files"]]
        listed = [(folder / str(entry)).as_posix() for entry in entries]
        if missing := next((each for each in listed if each not in known), None):
            raise InputError(f"{where}: {name} names the file {quoted(missing)}, which is not there. Fetch it.")
        files += listed
        split = folder.name if (folder.parent / _DICT).as_posix() in known else state.get("_split")
        if isinstance(split, str) and split:
            splits |= dict.fromkeys(listed, split)
        sidecars += [each for each in (name, (folder / _INFO).as_posix()) if each in known]
    for name in names:
        if PurePosixPath(name).name == _DICT:
            content = _read_json(read, name)
            folder = PurePosixPath(name).parent
            splits_listed = content.get("splits") if isinstance(content, dict) else None
            for split in splits_listed if isinstance(splits_listed, list) else []:
                if not any(PurePosixPath(each).parent == folder / str(split) for each in files):
                    raise InputError(f"{where}: {name} names the split {quoted(split)}, whose folder is not there.")
            sidecars.append(name)
    if not files:
        return None
    return FolderPlan(tuple(files), splits, ("a data set as save_to_disk writes it",), tuple(sidecars))


def _plan_datasets_cache(
    data: Sequence[str], names: Sequence[str], read: Callable[[str], bytes], where: str
) -> FolderPlan | None:
    """The files of a data set in the cache of `datasets`: Arrow files beside a dataset_info.json."""
    arrows = [name for name in data if name.endswith(".arrow")]
    known = set(names)
    folders = {
        PurePosixPath(name).parent for name in arrows if (PurePosixPath(name).parent / _INFO).as_posix() in known
    }
    if not folders or len(arrows) < len(data):
        return None
    if len(folders) > 1:
        raise _several_configs_error(sorted(folder.as_posix() for folder in folders), where)
    folder = folders.pop()
    info = _read_json(read, (folder / _INFO).as_posix())
    splits = info.get("splits") if isinstance(info, dict) else None
    split_of = {}
    for name in arrows:
        for split in splits if isinstance(splits, dict) else {}:
            if re.search(rf"-{re.escape(split)}(-\d+-of-\d+)?\.arrow$", name):
                split_of[name] = split
    notes = ("the cache of datasets", *_missing_shards(arrows))
    return FolderPlan(tuple(arrows), split_of, notes)


def _plan_readme_configs(
    data: Sequence[str], names: Sequence[str], read: Callable[[str], bytes], where: str
) -> FolderPlan | None:
    """The files of the one config that README.md names, or of its default one."""
    if "README.md" not in names:
        return None
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", read("README.md")[:1_000_000].decode("utf-8", "replace"), re.DOTALL)
    try:
        card = yaml_text.loads(head.group(1)) if head else None
    except ValueError:
        return None
    listed = card.get("configs") if isinstance(card, dict) else None
    configs = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    files = {str(each.get("config_name", "default")): _files_of(each, data) for each in configs}
    files = {name: matches for name, matches in files.items() if matches}
    if not files:
        note = "README.md names files for its configs, and none of them is here: every data file is read"
        return FolderPlan(tuple(data), {}, (note,)) if configs and data else None
    if len(files) == 1:
        name = next(iter(files))
        note = f"the config {name!r} of README.md" if len(files[name]) < len(data) else ""
        return FolderPlan(tuple(sorted(files[name])), files[name], (note,) if note else ())
    default = [str(each.get("config_name")) for each in configs if each.get("default") is True] or ["default"]
    if default[0] in files:
        others = ", ".join(name for name in files if name != default[0])
        note = f"the default config {default[0]!r} of README.md; not read: {others}"
        return FolderPlan(tuple(sorted(files[default[0]])), files[default[0]], (note[:300],))
    raise _several_configs_error(list(files), where)


def _several_configs_error(configs: Sequence[str], where: str) -> InputError:
    shown_names = ", ".join(configs[:8]) + (f" and {len(configs) - 8} more" if len(configs) > 8 else "")
    return InputError(f"{where}: found the configs {shown_names}. Name one: {where.rstrip('/')}/{configs[0]}")


def _files_of(config: Mapping[str, Json], data: Sequence[str]) -> dict[str, str]:
    """The data files that a config of a README names, with the split of each (nothing where none is named).

    Patterns are read as `datasets` reads them: `*` stays in one folder, `**` does not.
    """
    from fsspec.utils import glob_translate

    entries = config.get("data_files")
    listed = entries if isinstance(entries, list) else [entries]
    folder = str(config.get("data_dir") or "").strip("./")
    if entries is None:
        return {name: "" for name in data if not folder or name.startswith(f"{folder}/")}
    matches: dict[str, str] = {}
    for entry in listed:
        paths = entry.get("path") if isinstance(entry, dict) else entry
        split = str(entry.get("split") or "") if isinstance(entry, dict) else ""
        for pattern in paths if isinstance(paths, list) else [paths]:
            full = f"{folder}/{pattern}" if folder else str(pattern)
            regex = re.compile(glob_translate(full.removeprefix("./")))
            matches |= {name: split for name in data if regex.match(name)}
    return matches


def _missing_shards(files: Sequence[str]) -> list[str]:
    """A line for each set of shards that is incomplete."""
    here: dict[tuple[str, int, str], int] = {}
    for name in files:
        if match := _SHARD.match(name):
            key = (match[1], int(match[3]), match[4])
            here[key] = here.get(key, 0) + 1
    return [f"only {count} of the {of} shards of {name}" for (name, of, _), count in here.items() if count < of]


def sidecar(name: str, content: bytes, schema: Mapping[str, pl.DataType] | None) -> bytes:
    """Update a metadata file to a new schema; any other file is returned unchanged."""
    kind = PurePosixPath(name).name
    content_json = _read_json(lambda _: content, name)
    if not isinstance(content_json, dict) or schema is None:
        return content
    if kind == _INFO:
        declared = content_json.get("features")
        own = declared if isinstance(declared, dict) else {}
        content_json = {
            **content_json,
            "features": {column: _feature(own.get(column), dtype) for column, dtype in schema.items()},
        }
    elif kind == _STATE:
        seed = json.dumps([content_json.get("_fingerprint"), list(schema)]).encode()
        content_json = {**content_json, "_fingerprint": hashlib.blake2b(seed, digest_size=8).hexdigest()}
        if isinstance(content_json.get("_format_columns"), list):
            content_json["_format_columns"] = list(schema)
    else:
        return content
    return json.dumps(content_json, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace")


_NAMES: Final = {
    pl.String: "large_string", pl.Binary: "large_binary", pl.Boolean: "bool", pl.Null: "null", pl.Date: "date32",
    pl.Time: "time64[ns]",
}  # fmt: skip


def _feature(declared: Json, dtype: pl.DataType) -> Json:
    """The `datasets` feature of a column as Polars writes it. A declared ClassLabel is kept."""
    own = declared if isinstance(declared, dict) else {}
    if own.get("_type") == "ClassLabel" and dtype == pl.Int64:
        return own
    if isinstance(dtype, pl.Struct):
        return {field.name: _feature(own.get(field.name), _dtype_instance(field.dtype)) for field in dtype.fields}
    if isinstance(dtype, pl.List):
        return {"feature": _feature(own.get("feature"), _dtype_instance(dtype.inner)), "_type": "LargeList"}
    if isinstance(dtype, pl.Array):
        inner = _dtype_instance(dtype.inner) if len(dtype.shape) == 1 else pl.Array(dtype.inner, dtype.shape[1:])
        return {"feature": _feature(own.get("feature"), inner), "length": dtype.shape[0], "_type": "List"}
    return {"dtype": _dtype_name(dtype), "_type": "Value"}


def _dtype_name(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Datetime):
        zone = f", tz={dtype.time_zone}" if dtype.time_zone else ""
        return f"timestamp[{dtype.time_unit}{zone}]"
    if isinstance(dtype, pl.Duration):
        return f"duration[{dtype.time_unit}]"
    if isinstance(dtype, pl.Decimal):
        return f"decimal128({dtype.precision or 38}, {dtype.scale})"
    return _NAMES.get(type(dtype)) or str(dtype).lower()


def _dtype_instance(dtype: object) -> pl.DataType:
    return dtype() if isinstance(dtype, type) else dtype  # type: ignore[return-value]
