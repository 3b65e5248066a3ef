"""YAML text read as plain values: no object of Python's, no value that grows beyond its text or holds itself. Pure."""

from __future__ import annotations

from typing import Any, Final

import yaml

LARGEST: Final = 100_000
"""Values a text may spell, each counted as often as it is named."""


class PlainLoader(yaml.SafeLoader):
    """Safe YAML without merge keys (`<<`): a few lines of them can grow beyond all memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave the keys as they stand: a merge key is then one that cannot be read."""


def loads(text: str) -> Any:
    """The value that the text spells; ValueError, in one line, where it spells none or one that grows."""
    try:
        value = yaml.load(text, Loader=PlainLoader)
        size = _size(value, {}, set())
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    except (RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        # the last three are how PyYAML fails on a value that its explicit tag does not fit (`!!int ''`)
        why = " ".join(str(error).split())[:120]
        raise ValueError(f"a value cannot be read ({type(error).__name__}{': ' if why else ''}{why})") from None
    if size > LARGEST:
        raise ValueError(f"its anchors grow to more than {LARGEST:,} values")
    return value


def _size(value: object, known: dict[int, int], above: set[int]) -> int:
    """How many values there are in all, one that is named twice counted twice."""
    if not isinstance(value, dict | list | set | tuple):
        return 1
    at = id(value)
    if at in above:
        raise ValueError("an anchor holds itself")
    if at not in known:
        above.add(at)
        inner = [*value, *value.values()] if isinstance(value, dict) else [*value]
        known[at] = 1 + sum(_size(each, known, above) for each in inner)
        above.remove(at)
    return known[at]
