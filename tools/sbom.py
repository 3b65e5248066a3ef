"""A CycloneDX 1.6 bill of materials of foreknow and what it needs to run, as installed.

    python tools/sbom.py --venv .venv --out runs/sbom.cdx.json      `make sbom`, with the Python of .venv-supply

cyclonedx-py reads the environment. Of what it finds, what foreknow and its extras but `dev` need is kept; a component
whose metadata name no one licence gets the decision of `licences.toml`. The file is checked against CycloneDX's schema
before it is written. Fails if something foreknow itself requires is not installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from packaging.utils import canonicalize_name

from closure import ROOT, extras, installed
from licences import rules, runtime

SPEC: Final = "1.6"


def of_environment(venv: Path) -> dict[str, Any]:
    """What cyclonedx-py says of an environment, the project as the root component."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    options = ["--mc-type", "library", "--spec-version", SPEC, "--output-file", "-", str(venv)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: cyclonedx-py could not read {venv}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def kept(bom: Mapping[str, Any], names: set[str], decided: Mapping[str, str]) -> dict[str, Any]:
    """The bill with the components of these canonical names only, and with the licences decided for some of them."""
    components = []
    for component in bom["components"]:
        name = canonicalize_name(component["name"])
        if name in names:
            licence = {"id": decided[name], "acknowledgement": "concluded"} if name in decided else None
            components.append({**component, "licenses": [{"license": licence}]} if licence else component)
    refs = {c["bom-ref"] for c in components} | {bom["metadata"]["component"]["bom-ref"]}
    edges = []
    for edge in bom["dependencies"]:
        if edge["ref"] in refs:
            behind = [ref for ref in edge.get("dependsOn", []) if ref in refs]
            edges.append({"ref": edge["ref"]} | ({"dependsOn": behind} if behind else {}))
    return {**bom, "components": components, "dependencies": edges}


def faults(text: str) -> list[str]:
    """Where a bill's text breaks CycloneDX's schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.from_version(SPEC)).validate_str(text)
    return [] if error is None else [str(error)[:500]]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a CycloneDX bill of materials of the runtime environment.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "sbom.cdx.json")
    chosen = parser.parse_args()
    have = installed(sorted(chosen.venv.glob("lib/python3*/site-packages")))
    needs, _ = runtime(have)
    names = {name for name, need in needs.items() if need.distribution is not None}
    bom = kept(of_environment(chosen.venv), names, {n: d["licence"] for n, d in rules().decided.items()})
    listed = {canonicalize_name(c["name"]) for c in bom["components"]}
    own = [canonicalize_name(r.name) for r in extras()[""] if r.marker is None or r.marker.evaluate()]
    if absent := sorted(set(own) - listed):
        print(f"error: {', '.join(absent)} should be installed in {chosen.venv} and is not", file=sys.stderr)
        return 1
    text = json.dumps(bom, indent=1) + "\n"
    if found := faults(text):
        print(f"error: not a CycloneDX {SPEC} bill: {found[0]}", file=sys.stderr)
        return 1
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(text, encoding="utf-8")
    print(f"{chosen.out}: {len(listed)} components, valid CycloneDX {SPEC}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
