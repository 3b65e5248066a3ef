"""The licence of every runtime dependency, told from its metadata and held against a list of allowed ones.

    python tools/licences.py          writes docs/licences.md; `make licences`
    python tools/licences.py --check  writes nothing; fails where the page is not what it would be

Runtime: what foreknow requires, alone or with any extra but `dev`, and all that these require. Everything must be
installed. A licence is, in this order: the `License-Expression` field; a `License` field that is an SPDX id or one of
`SPELLINGS`; a classifier that names one licence; a decision in `licences.toml`. Fails on a licence that is unknown or
not allowed, on a decision that the metadata made needless, and on a direct dependency without a reason.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution
from pathlib import Path
from typing import Final, NamedTuple

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from closure import ROOT, Need, extras, installed, needed

PAGE: Final = ROOT / "docs" / "licences.md"
RULES: Final = ROOT / "tools" / "licences.toml"
SPELLINGS: Final = {
    "2-clause bsd": "BSD-2-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "isc license": "ISC",
    "mit license": "MIT",
}
"""How `License` fields spell what is one SPDX id."""
CLASSIFIERS: Final = {
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
"""Classifiers that name one licence. `BSD License` does not: it may have two clauses, three or four."""
TOKEN: Final = re.compile(r"\(|\)|[^\s()]+")


PROSE: Final = """# Licences of the runtime dependencies

foreknow is Apache-2.0. It ships none of the {count} packages below; pip installs them. Written by `make licences` from
the metadata of what is installed, for foreknow with every extra but `dev`, at the versions of `constraints.txt`.

| package | version | licence | why |
|---|---|---|---|
{rows}

## What is allowed

| licence | decision |
|---|---|
{allowed}

Anything else fails `make licences` and the tests: GPL, AGPL, licences that bar a use, and unknown ones. Of an `OR` one
side must be allowed, of an `AND` both.

## Where the metadata say too little

| package | licence | read off |
|---|---|---|
{decided}

## Beyond the metadata

- The Linux wheels of numpy and scipy carry OpenBLAS (BSD-3-Clause), GCC's runtime libraries (GPL-3.0-or-later WITH
  GCC-exception-3.1) and libquadmath (LGPL-2.1-or-later), unchanged, as shared libraries of their own. Using them so
  puts no duty on foreknow. Who passes those wheels on passes these licences on.
- A CUDA build of torch brings NVIDIA's libraries (`nvidia-*`, under NVIDIA's own terms) and triton. They are not in the
  table: a CPU build needs none of them, and foreknow runs on one.
- Licences of code compiled into a wheel from elsewhere (Rust crates, C++ libraries) are not read here beyond that.
- Licences of the packaged models: `foreknow models`. Of the facts that data packages carry, and of other data:
  [data.md](data.md) and the manifest that `foreknow data` writes.
"""

APART: Final = ("dev", "vllm")
"""Extras not looked at: tools, and vLLM, whose CUDA libraries install on machines with a GPU only."""


class Rules(NamedTuple):
    """What `licences.toml` says: allowed ids, decided packages, reasons."""

    allowed: dict[str, str]
    decided: dict[str, dict[str, str]]
    why: dict[str, str]


class Line(NamedTuple):
    """One dependency: name, version without a local label, SPDX expression, why it is needed."""

    name: str
    version: str
    licence: str
    why: str


class Found(NamedTuple):
    """The table of what is installed, what is wrong with it, and what is needed but not installed."""

    table: list[Line]
    faults: list[str]
    missing: list[str]


def rules(file: Path = RULES) -> Rules:
    """The rules, read."""
    return Rules(**tomllib.loads(file.read_text(encoding="utf-8")))


def stated(distribution: Distribution) -> str | None:
    """The SPDX expression that a distribution's metadata state; None where they name no one licence."""
    metadata = distribution.metadata
    if expression := metadata.get_all("License-Expression"):
        return _spdx(expression[0])
    field = " ".join(" ".join(metadata.get_all("License") or []).split())
    if found := SPELLINGS.get(field.lower()) or _spdx(field):
        return found
    named = {c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License :: ")}
    ids = {CLASSIFIERS.get(c) for c in named}
    return ids.pop() if len(ids) == 1 else None


def _spdx(text: str) -> str | None:
    try:
        return canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        return None


def permitted(expression: str, allowed: Iterable[str]) -> bool:
    """Can a package of this SPDX expression be taken under allowed licences only? AND binds tighter than OR."""
    tokens = TOKEN.findall(expression)
    known = set(allowed)

    def either() -> bool:
        found = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            found = both() or found
        return found

    def both() -> bool:
        found = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            found = one() and found
        return found

    def one() -> bool:
        if tokens[0] == "(":
            tokens.pop(0)
            found = either()
            tokens.pop(0)
            return found
        licence = tokens.pop(0)
        if tokens and tokens[0] == "WITH":
            licence = f"{licence} WITH {tokens[1]}"
            del tokens[:2]
        return licence in known

    return either()


def runtime(have: Mapping[str, Distribution]) -> tuple[dict[str, Need], dict[str, set[str]]]:
    """What foreknow needs, with any extra but those set `APART`; which extras ask for each direct dependency."""
    declared = {extra: wanted for extra, wanted in extras().items() if extra not in APART}
    needs = needed([r for wanted in declared.values() for r in wanted], "foreknow", have)
    asking: dict[str, set[str]] = {name: set() for name in needs}
    for extra, wanted in declared.items():
        for name in needed(wanted, "foreknow", {}):
            asking[name].add(extra)
    return needs, asking


def found(have: Mapping[str, Distribution], by: Rules) -> Found:
    """Every runtime dependency, looked at."""
    needs, asking = runtime(have)
    table: list[Line] = []
    faults: list[str] = []
    missing: list[str] = []
    for name, need in sorted(needs.items()):
        if need.distribution is None:
            missing.append(f"{name}, needed by {', '.join(sorted(need.needed_by))}, is not installed")
            continue
        licence, fault = judged(name, stated(need.distribution), by)
        faults += [fault] if fault else []
        if asking[name] and name not in by.why:
            faults.append(f"{name}: say in tools/licences.toml, [why], what foreknow uses it for")
        version = need.distribution.version.partition("+")[0]
        table.append(Line(name, version, licence, reason(need, asking[name], by)))
    return Found(table, faults, missing)


def judged(name: str, found: str | None, by: Rules) -> tuple[str, str]:
    """The licence of a package whose metadata state `found`, and what is wrong with it ("" if nothing is)."""
    decided = by.decided.get(name, {}).get("licence")
    if found and decided:
        return found, f"{name}: its metadata now state {found}; drop its line from tools/licences.toml, [decided]"
    licence = found or decided
    if licence is None:
        return (
            "unknown",
            f"{name}: its metadata name no one licence; read its licence file and decide in tools/licences.toml",
        )
    if not permitted(licence, by.allowed):
        return (
            licence,
            f"{name}: {licence} is not allowed by tools/licences.toml; do without {name}, or decide and say why",
        )
    return licence, ""


def reason(need: Need, asking: set[str], by: Rules) -> str:
    """Why a package is needed: what foreknow does with it and under which extras, or who needs it."""
    if not asking:
        return f"by {', '.join(sorted(need.needed_by))}"
    named = ", ".join(f"`{e}`" for e in sorted(asking - {""}))
    return by.why.get(need.name, "") + (f" (extra {named})" if "" not in asking else "")


def page(table: Iterable[Line], by: Rules) -> str:
    """The text of docs/licences.md."""
    rows = list(table)
    return PROSE.format(
        count=len(rows),
        rows="\n".join(f"| {row.name} | {row.version} | {row.licence} | {row.why} |" for row in rows),
        allowed="\n".join(f"| {licence} | {why} |" for licence, why in by.allowed.items()),
        decided="\n".join(f"| {name} | {d['licence']} | {d['read']} |" for name, d in by.decided.items()),
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="List and check the licences of all runtime dependencies.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where docs/licences.md differs")
    chosen = parser.parse_args()
    by = rules()
    table, faults, missing = found(installed(), by)
    faults += [f"{fault}: its licence is unknown" for fault in missing]
    if not faults and chosen.check and page(table, by) != PAGE.read_text(encoding="utf-8"):
        faults.append("docs/licences.md is not what the installed packages say: write it anew with `make licences`")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        return 1
    if not chosen.check:
        PAGE.write_text(page(table, by), encoding="utf-8")
    print(f"{len(table)} runtime dependencies, every licence known and allowed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
