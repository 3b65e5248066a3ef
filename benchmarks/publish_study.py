"""Copy what a study measured to a folder that can be published: `foreknow report` on a copy of it makes its page again.

    python benchmarks/publish_study.py runs/gemma --out docs/studies/gemma --settings study.yaml

Left behind are the rows, the audit, the sets and the runs, which hold other people's texts. Paths of this machine are
shortened to their last part, and the manifest is sealed again. A study that is run in a copy of the folder adds seeds.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from cyclopts import App, Parameter

from foreknow.io.run_dir import MANIFEST, SEAL, checksums_of, read_checked, with_checksum, write_json, write_text

KEPT: Final = (
    *("claims.json", "linear_model.json", "results.parquet", "outcomes.parquet", "ptrue.parquet", "relations.csv"),
    *("scorecard.json", "comparison.json", "recipe.yaml", "costs.parquet", "known.parquet", "points.parquet"),
    *("retrieval.json", "tables"),
)
PATH: Final = re.compile(r"(?:/|\.\./)[^\s'\"]*/([\w.-]+)")
app = App(help=__doc__)


@app.default
def publish(
    run: Annotated[Path, Parameter(help="the study's folder")],
    *,
    out: Annotated[Path, Parameter(help="the folder to write")],
    settings: Annotated[Path | None, Parameter(help="the study's settings file, kept as study.yaml")] = None,
) -> None:
    """Write the folder, and name each file that still holds an absolute path."""
    manifest = read_checked(run / MANIFEST)
    if manifest is None:
        raise SystemExit(f"{run}: no finished study")
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (run / name).is_dir():
            shutil.copytree(run / name, out / name, dirs_exist_ok=True)
        elif (run / name).is_file():
            shutil.copyfile(run / name, out / name)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    write_text(out / "config.yaml", yaml.safe_dump(_short(config), sort_keys=False))
    if settings is not None:
        shutil.copyfile(settings, out / "study.yaml")
    kept = {name: value for name, value in _short(manifest).items() if name != SEAL}
    kept["files"] = checksums_of(out, (*manifest.get("files", {}), "config.yaml"))
    write_json(out / MANIFEST, with_checksum(kept))
    for file in sorted(out.glob("*.*")):
        if file.suffix in (".json", ".yaml", ".csv") and PATH.search(file.read_text(encoding="utf-8")):
            print(f"{file}: still holds a path")


def _short(value: Any) -> Any:
    """Return `value` with every path of more than one part in its texts as its last part."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_short(one) for one in value]
    return PATH.sub(r"\1", value) if isinstance(value, str) else value


if __name__ == "__main__":
    app()
