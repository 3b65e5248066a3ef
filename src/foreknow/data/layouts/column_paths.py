"""Columns by name, or by a path into objects: `data.q` is the key `q` of the column `data`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

Record = Mapping[str, object]


def field_of(record: Record, name: str) -> object:
    """The value of a column, or at a path into one; None where there is none. A column of that very name wins."""
    if name in record or "." not in name:
        return record.get(name)
    value: object = record
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def has_field(record: Record, name: str) -> bool:
    """Whether a record has a column, or a path into one, whatever its value."""
    if name in record:
        return True
    value: object = record
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return "." in name


def with_field(record: Record, name: str, value: object) -> dict[str, object]:
    """The record with another value in a column, or at a path into one."""
    if name in record or "." not in name:
        return {**record, name: value}
    first, _, rest = name.partition(".")
    inner = record.get(first)
    return {**record, first: with_field(inner if isinstance(inner, Mapping) else {}, rest, value)}
