"""The locks of `requirements/`: every package of a path with the sha256 of every file of its release.

    python tools/lock.py make [--venv .venv] [--supply .venv-supply] [--build WHEEL]   asks the index; `make lock`
    python tools/lock.py check                                                         asks nobody
    python tools/lock.py torch                                                         installs torch, checked

    demo.lock     foreknow[facts] and what builds it         versions of constraints.txt
    test.lock     foreknow[facts,dev] and what builds it     versions of constraints.txt
    torch.lock    torch alone                                version of constraints.txt
    supply.lock   requirements/supply.in                     versions installed in .venv-supply

torch stands alone because which of its files is right is a matter of the machine (CPU, CUDA), which the user's pip
configuration says and a lock cannot: pip would prefer a file whose hash it was given to the one it was configured to
take. So torch is fetched as pip is configured to, its file is compared with `torch.lock`, and only then installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution
from pathlib import Path
from typing import Final, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from closure import ROOT, Need, build, extras, installed, marker, needed

LOCKS: Final = ROOT / "requirements"
PINS: Final = ROOT / "constraints.txt"
EXTRAS: Final = {"demo": ("", "facts"), "test": ("", "facts", "dev")}
APART: Final = "torch"
ENTRY: Final = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>.*?))?(?: \\)?$")
HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class LockError(Exception):
    """A lock that cannot be made, or does not fit; says what to do."""


class Entry(NamedTuple):
    """One package of a lock."""

    name: str
    version: str
    hashes: frozenset[str]
    marker: str = ""
    via: tuple[str, ...] = ()


def pins(text: str) -> dict[str, str]:
    """`name==version` lines, by canonical name. Raises LockError at a line that is anything else."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, version = line.partition(";")[0].strip().partition("==")
        if not equals:
            raise LockError(f"constraints.txt, line {number}: expected name==version, found {line.strip()!r}")
        found[canonicalize_name(name)] = version
    return found


def entries(text: str) -> list[Entry]:
    """A lock's text, read."""
    found: list[Entry] = []
    for line in text.splitlines():
        if head := ENTRY.match(line):
            name = canonicalize_name(head["name"])
            found.append(Entry(name, head["version"], frozenset(), (head["marker"] or "").strip()))
        elif hashes := HASH.findall(line):
            found[-1] = found[-1]._replace(hashes=found[-1].hashes | set(hashes))
    return found


def written(lock: Iterable[Entry], about: str) -> str:
    """A lock's text; `about` is its first line."""
    lines = [f"# {about}", "# Made by `make lock`; not edited by hand."]
    for entry in sorted(lock):
        lines.append(f"{entry.name}=={entry.version}{f' ; {entry.marker}' if entry.marker else ''} \\")
        lines += [f"    --hash=sha256:{h} \\" for h in sorted(entry.hashes)]
        lines[-1] = lines[-1].removesuffix(" \\")
        lines += [f"    # via {', '.join(entry.via)}"] if entry.via else []
    return "\n".join(lines) + "\n"


def path_of(name: str, have: Mapping[str, Distribution]) -> dict[str, Need]:
    """What the path `demo` or `test` needs: the project with its extras, and what builds it."""
    declared = extras()
    roots = [r for extra in EXTRAS[name] for r in declared[extra]]
    return needed([*roots, *build()], "foreknow", have)


def pinned(needs: Mapping[str, Need], versions: Mapping[str, str], where: str) -> list[Entry]:
    """The needs at their pinned versions, without hashes. Raises LockError naming what has no pin."""
    if missing := sorted(set(needs) - set(versions)):
        raise LockError(f"{where} has no version of {', '.join(missing)}: install and pin what is missing")
    return [
        Entry(n.name, versions[n.name], frozenset(), marker(n.places), tuple(sorted(n.needed_by)))
        for n in needs.values()
    ]


def faults(
    locks: Mapping[str, list[Entry]], versions: Mapping[str, str], have: Mapping[str, Distribution]
) -> list[str]:
    """What is wrong with the locks `demo`, `test` and `torch`, held against the pins and against what is needed."""
    found = []
    for name in EXTRAS:
        wanted = {e.name: e for e in pinned(path_of(name, have), versions, "constraints.txt") if e.name != APART}
        locked = {e.name: e for e in locks[name]}
        found += [f"{name}.lock lacks {n}" for n in sorted(set(wanted) - set(locked))]
        found += [f"{name}.lock has {n}, which is not needed" for n in sorted(set(locked) - set(wanted))]
        for n in sorted(set(wanted) & set(locked)):
            if locked[n].version != wanted[n].version:
                found.append(f"{name}.lock has {n} {locked[n].version}, constraints.txt {wanted[n].version}")
            if locked[n].marker != wanted[n].marker:
                found.append(f"{name}.lock needs {n} where {locked[n].marker!r}, found {wanted[n].marker!r}")
    if not any(e.version == versions[APART] for e in locks[APART]):
        found.append(f"{APART}.lock lacks {APART} {versions[APART]} of constraints.txt")
    found += [f"{name}.lock: {e.name} has no hash" for name, lock in locks.items() for e in lock if not e.hashes]
    return found


def read(names: Iterable[str]) -> dict[str, list[Entry]]:
    """The locks of these names. Raises LockError if one is not there."""
    found = {}
    for name in names:
        file = LOCKS / f"{name}.lock"
        if not file.is_file():
            raise LockError(f"{file.relative_to(ROOT)} is not there: make it with `make lock`")
        found[name] = entries(file.read_text(encoding="utf-8"))
    return found


def check() -> None:
    """Hold the locks against constraints.txt and pyproject.toml. Raises LockError listing what differs."""
    if found := faults(read([*EXTRAS, APART]), pins(PINS.read_text(encoding="utf-8")), installed()):
        raise LockError("\n".join([*found, "make the locks anew with `make lock`"]))
    print("requirements/*.lock: the versions of constraints.txt, every one with its hashes")


def make(venv: Path, supply: Path, builds: Iterable[Path]) -> None:
    """Write every lock. Asks the index once for each package; downloads no package."""
    versions = pins(PINS.read_text(encoding="utf-8"))
    paths = {name: pinned(path_of(name, installed(_site(venv))), versions, "constraints.txt") for name in EXTRAS}
    tools = installed(_site(supply))
    asked = [Requirement(line) for line in (LOCKS / "supply.in").read_text(encoding="utf-8").splitlines() if line]
    found = {name: d.version for name, d in tools.items()}
    paths["supply"] = pinned(needed(asked, "supply.in", tools), found, str(supply))
    hashes = fetched({(e.name, e.version) for lock in paths.values() for e in lock})
    for name, lock in paths.items():
        whole = [e._replace(hashes=hashes[e.name, e.version]) for e in lock if e.name != APART]
        _write(name, whole, f"The {name} path: install with `pip install --require-hashes --no-deps -r`.")
    own = (APART, versions[APART])
    file = LOCKS / f"{APART}.lock"
    before = entries(file.read_text(encoding="utf-8")) if file.is_file() else []
    kept = [e.hashes for e in before if (e.name, e.version) == own]
    files = hashes[own].union(*kept, [sha256_of(wheel) for wheel in builds])
    _write(APART, [Entry(*own, files)], "What torch's file may be: PyPI's, and builds that were added. Not for pip.")


def fetched(wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], frozenset[str]]:
    """The sha256 of every file of each (name, version), as the index states them. Raises LockError if it has none."""
    from pypi_simple import PyPISimple

    configured = _pip("config", "get", "global.index-url").stdout.strip()
    found: dict[tuple[str, str], frozenset[str]] = {}
    with PyPISimple(configured) if configured else PyPISimple() as index:
        for name, version in sorted(wanted):
            files = [p for p in index.get_project_page(name).packages if p.version == version]
            found[name, version] = frozenset(p.digests["sha256"] for p in files if "sha256" in p.digests)
            if not found[name, version]:
                raise LockError(f"the index states no sha256 for {name} {version}")
    return found


def torch() -> None:
    """Install torch's file of the pinned version, if it is one that `torch.lock` lists or a build of the user's own.

    A file of just the pinned version must be listed. A version with a local label (`2.13.0+cpu`) cannot be PyPI's: it
    comes from where the user has pointed pip, so one that is not listed is named, and taken. Raises LockError.
    """
    version = pins(PINS.read_text(encoding="utf-8"))[APART]
    present = installed().get(APART)
    if present is not None and present.version.partition("+")[0] == version:
        return
    listed = frozenset().union(*(e.hashes for e in read([APART])[APART] if e.version == version))
    with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
        done = _pip("download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", scratch, f"{APART}=={version}")
        files = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not files:
            raise LockError(f"{APART}=={version} could not be fetched by pip: {done.stderr.strip()[-500:]}")
        print(judged(files[0].name, sha256_of(files[0]), listed))
        here = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": scratch}
        done = _pip("install", "--quiet", "--no-deps", "--no-index", f"{APART}=={version}", **here)
        if done.returncode != 0:
            raise LockError(f"{files[0].name} could not be installed by pip: {done.stderr.strip()[-500:]}")


def judged(file: str, found: str, listed: frozenset[str]) -> str:
    """One line on a file of torch that may be installed. Raises LockError if it must not be."""
    if found in listed:
        return f"{file}: sha256 as in requirements/{APART}.lock"
    if "+" in file.split("-")[1]:
        return f"{file}: not PyPI's, but what pip is configured to take; unchecked, sha256 {found}"
    raise LockError(
        f"{file}: its sha256 {found} is none of those in requirements/{APART}.lock; not installed. "
        f"If your index serves a build of its own that you trust, install {APART} by hand and run make again"
    )


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(name: str, lock: Iterable[Entry], about: str) -> None:
    (LOCKS / f"{name}.lock").write_text(written(lock, about), encoding="utf-8")


def _site(venv: Path) -> list[Path]:
    return sorted(venv.glob("lib/python3*/site-packages"))


def _pip(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make and check the locks of requirements/.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make", help="write the locks; asks the index")
    making.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where `make test` installed")
    making.add_argument("--supply", type=Path, default=ROOT / ".venv-supply", help="where supply.in is installed")
    making.add_argument("--build", type=Path, nargs="*", default=[], help="wheels of torch that are not PyPI's")
    verbs.add_parser("check", help="hold the locks against constraints.txt and pyproject.toml")
    verbs.add_parser("torch", help="install torch, its file checked")
    chosen = parser.parse_args()
    try:
        if chosen.verb == "make":
            make(chosen.venv, chosen.supply, chosen.build)
        elif chosen.verb == "check":
            check()
        else:
            torch()
    except LockError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
