"""What a list of requirements needs, and what that needs: told from the metadata of what is installed.

Everything is decided for each of `PLACES`, the Pythons and systems the two README commands are for, and not only for
the machine at hand. The libraries a CUDA build of torch brings are left out: they are torch's affair, pinned by it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[1]
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
SYSTEMS: Final = {
    'sys_platform == "linux" and platform_machine == "x86_64"': ("linux", "Linux", "x86_64"),
    'sys_platform == "linux" and platform_machine == "aarch64"': ("linux", "Linux", "aarch64"),
    'sys_platform == "darwin"': ("darwin", "Darwin", "arm64"),
}
PLACES: Final = {
    (python, system): {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": platform,
        "platform_system": name,
        "platform_machine": machine,
    }
    for python in PYTHONS
    for system, (platform, name, machine) in SYSTEMS.items()
}
"""One marker environment for each Python and system."""
CUDA: Final = ("cuda-", "nvidia-", "triton")
"""Names that torch's CUDA builds require."""


@dataclass
class Need:
    """A package that is needed: in which of `PLACES`, with which extras, by which others; and what is installed."""

    name: str
    distribution: Distribution | None
    places: set[tuple[str, str]] = field(default_factory=set)
    extras: set[str] = field(default_factory=set)
    needed_by: set[str] = field(default_factory=set)


def installed(folders: Iterable[Path] | None = None) -> dict[str, Distribution]:
    """The distributions in these site-packages folders, else those this Python sees, by canonical name."""
    found = distributions() if folders is None else distributions(path=[str(f) for f in folders])
    return {canonicalize_name(d.name): d for d in found if d.name}


def extras(file: Path = ROOT / "pyproject.toml") -> dict[str, list[Requirement]]:
    """The project's extras and what each requires; `""` is what the project itself requires."""
    declared = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    lists = {"": declared["dependencies"], **declared.get("optional-dependencies", {})}
    return {extra: [Requirement(r) for r in wanted] for extra, wanted in lists.items()}


def build(file: Path = ROOT / "pyproject.toml") -> list[Requirement]:
    """What building the project requires."""
    return [Requirement(r) for r in tomllib.loads(file.read_text(encoding="utf-8"))["build-system"]["requires"]]


def needed(roots: Iterable[Requirement], by: str, have: Mapping[str, Distribution]) -> dict[str, Need]:
    """The closure of `roots` over all `PLACES`, by canonical name. `by`: who needs the roots.

    A package that is not installed is in it with `distribution=None`, and what it needs in turn is not known.
    """
    found: dict[str, Need] = {}
    queue = [(r, by, set(PLACES)) for r in roots]
    while queue:
        requirement, parent, places = queue.pop()
        name = canonicalize_name(requirement.name)
        asking = found[parent].extras if parent in found else set()
        places = {p for p in places if _holds(requirement, asking, PLACES[p])}
        if not places or (parent == "torch" and name.startswith(CUDA)):
            continue
        need = found.setdefault(name, Need(name, have.get(name)))
        need.needed_by.add(parent)
        if places <= need.places and requirement.extras <= need.extras:
            continue
        need.places |= places
        need.extras |= requirement.extras
        if need.distribution is not None:
            queue += [(Requirement(r), name, set(need.places)) for r in need.distribution.requires or []]
    return found


def _holds(requirement: Requirement, asking: set[str], place: Mapping[str, str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**place, "extra": extra}) for extra in (*asking, ""))


def marker(places: set[tuple[str, str]]) -> str:
    """The marker that holds in just these `PLACES`; "" for all of them."""
    systems = {python: tuple(s for s in SYSTEMS if (python, s) in places) for python in PYTHONS}
    same = set(systems.values())
    if len(same) == 1:
        return _systems(same.pop())
    terms = []
    for python, chosen in systems.items():
        if chosen:
            where = _systems(chosen)
            terms.append(f'python_version == "{python}"' + (f" and ({where})" if where else ""))
    return " or ".join(terms)


def _systems(chosen: tuple[str, ...]) -> str:
    return "" if len(chosen) == len(SYSTEMS) else " or ".join(f"({s})" for s in chosen)
