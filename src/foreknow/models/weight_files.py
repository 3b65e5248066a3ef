"""Reads which tensors a model folder's weight files list, from the files' headers, without loading weights.

Loaders do not compare the files with each other: they take a tensor that two shards hold from the last shard, and skip
a shard that the index does not name. So the files are checked against each other here first.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

from foreknow.errors import ModelError
from foreknow.io.run_dir import read_json

SHOWN: Final = 4
"""The number of names that a message lists before it counts the rest."""
SINGLE: Final = ("model.safetensors", "pytorch_model.bin")
"""A whole model in one file, in the order in which transformers takes them; `NAME.index.json` names its shards."""

_BYTES: Final = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}


class Tensor(NamedTuple):
    """A tensor's entry in a header: `dtype` by safetensors' name, `begin` and `end` as byte offsets in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class WeightFiles(NamedTuple):
    """The files of a model's weights, and the tensors in their headers; pickled weights (.bin) have no header.

    `note`: a remark on the choice of files, such as a second set of weights that is not used.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    note: str | None = None


def names_of(names: Iterable[str], limit: int = SHOWN) -> str:
    """Return the first names of a list in order, and the number of further ones."""
    ordered = sorted(names)
    rest = len(ordered) - limit
    return ", ".join(ordered[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def count_of(tensors: Sequence[object]) -> str:
    """Return how many tensors, in words: 1 tensor, 2 tensors."""
    return f"{len(tensors):,} tensor{'s' * (len(tensors) != 1)}"


def weight_files(folder: Path) -> tuple[tuple[Path, ...], str | None]:
    """Return the weight files that transformers would read in a folder, and a note; empty if there are none.

    Raises ModelError for an index that is damaged, or that names files which are not there.
    """
    config = read_json(folder / "config.json") or {}
    configured = config.get("transformers_weights")
    candidates = [name for stem in SINGLE for name in (stem, f"{stem}.index.json")]
    candidates = [configured, *candidates] if isinstance(configured, str) else candidates
    present = [name for name in candidates if (folder / name).is_file()]
    if not present:
        return (), None
    first, *others = present
    rivals = [name for name in others if Path(name).suffix == ".json" and name.startswith(first.partition(".")[0])]
    note = (
        f"the weights are those of {first}; {rivals[0]} beside it names others, which are not used" if rivals else None
    )
    if not first.endswith(".index.json"):
        return (folder / first,), note
    weight_map = _weight_map(folder / first)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        tensor_count = sum(name in missing for name in weight_map.values())
        raise ModelError(
            f"{folder / first}: {len(missing):,} of {len(names):,} shards are not there: {names_of(missing)} "
            f"({tensor_count:,} of {len(weight_map):,} tensors); copy or download them again"
        )
    return tuple(folder / name for name in names), note


def read_weight_files(folder: Path) -> WeightFiles:
    """Return a folder's weight files with their tensors. Raises ModelError where they cannot be those of one model."""
    files, note = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix != ".safetensors":
            _check_pickled(file)
            continue
        for name, tensor in read_header(file).items():
            if name in tensors and not _same(tensors[name], tensor):
                raise ModelError(
                    f"{folder}: {tensors[name].file.name} and {file.name} both hold {name}, with different values; "
                    "keep the shards of one save"
                )
            tensors[name] = tensor
    _check_index(folder, files, tensors)
    empty = [name for name, tensor in tensors.items() if 0 in tensor.shape]
    if empty:
        raise ModelError(
            f"{folder}: {len(empty):,} of {len(tensors):,} tensors are empty: {names_of(empty)}. Weights that lie in "
            "parts on several processes (FSDP, DeepSpeed ZeRO-3) were saved by one; gather them before saving"
        )
    return WeightFiles(files, tensors, note)


def read_header(file: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file. Raises ModelError where the file is cut short or not safetensors."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        if start.startswith(b"version "):
            raise ModelError(f"{file}: a Git LFS pointer, not the weights; run git lfs pull there")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 1 < length <= size - 8:
            raise ModelError(
                f"{file}: not a whole safetensors file ({size:,} bytes, its header {length:,}); copy or download it "
                "again"
            )
        try:
            header = json.loads(opened.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            tensors = {name: _tensor(file, 8 + length, entry) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{file}: its header is damaged; copy or download it again") from None
    end = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if end > size:
        cut = [name for name, tensor in tensors.items() if tensor.end > size]
        raise ModelError(
            f"{file}: cut short: found {size:,} bytes, expected {end:,} ({names_of(cut)}); copy or download it again"
        )
    wrong = [
        name
        for name, stored in tensors.items()
        if (n := _BYTES.get(stored.dtype)) and stored.end - stored.begin != n * prod(stored.shape)
    ]
    if wrong:
        raise ModelError(f"{file}: its header is damaged: {names_of(wrong)} have not the bytes of their shape")
    return tensors


def _tensor(file: Path, start: int, entry: Mapping[str, Any]) -> Tensor:
    begin, end = entry["data_offsets"]
    if begin < 0 or end < begin:
        raise ValueError(entry)
    return Tensor(file, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), start + begin, start + end)


def _same(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors hold the same bytes."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with first.file.open("rb") as first_file, second.file.open("rb") as second_file:
        first_file.seek(first.begin)
        second_file.seek(second.begin)
        remaining = first.end - first.begin
        while remaining > 0:
            size = min(remaining, 1 << 22)
            if first_file.read(size) != second_file.read(size):
                return False
            remaining -= size
    return True


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index}: not an index of weights (no weight_map); copy or download it again") from None
    if not names or any(Path(file).name != file for file in names.values()):
        raise ModelError(f"{index}: its weight_map names no files of this folder; copy or download it again")
    return names


def _check_index(folder: Path, files: tuple[Path, ...], tensors: Mapping[str, Tensor]) -> None:
    """Compare the index with its shards. Raises ModelError for tensors that it lists and the shards lack."""
    index = folder / "model.safetensors.index.json"
    if not tensors or not index.is_file() or files == (folder / "model.safetensors",):
        return
    listed = _weight_map(index)
    missing = [name for name in listed if name not in tensors]
    if missing:
        raise ModelError(
            f"{index}: lists {count_of(missing)} that its shards do not hold: {names_of(missing)}; the shards are not "
            "those of this index, copy or download them again"
        )


def _check_pickled(file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(64)
    if start.startswith(b"version "):
        raise ModelError(f"{file}: a Git LFS pointer, not the weights; run git lfs pull there")
    if not start.startswith((b"PK", b"\x80")):
        raise ModelError(
            f"{file}: not weights saved by torch ({file.stat().st_size:,} bytes); copy or download it again"
        )
