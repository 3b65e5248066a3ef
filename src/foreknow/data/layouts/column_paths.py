"""Columns by name, or by a path into objects: `data.q` is the key `q` of the column `data`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

Record = Mapping[str, object]


def field_of(record: Record, name: str) -> object:
    """The value of a column, or at a path into one; None where there is none. A column of that very name wins."""
    if name in record or "." not in name:
        return record.get(name)
    found: object = record
    for key in name.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def has_field(record: Record, name: str) -> bool:
    """Whether a record has a column, or a path into one, whatever its value."""
    if name in record:
        return True
    found: object = record
    for key in name.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return False
        found = found[key]
    return "." in name


def with_field(record: Record, name: str, value: object) -> dict[str, object]:
    """The record with another value in a column, or at a path into one."""
    if name in record or "." not in name:
        return {**record, name: value}
    first, _, rest = name.partition(".")
    inner = record.get(first)
    return {**record, first: with_field(inner if isinstance(inner, Mapping) else {}, rest, value)}
