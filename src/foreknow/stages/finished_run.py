"""What the results of all stages have in common: a run folder, saving it, its page, its rows in pandas."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from foreknow.errors import ConfigError, InputError, MissingExtra, RunFolderError
from foreknow.io.remote import download
from foreknow.io.remote_paths import is_url
from foreknow.io.run_dir import not_finished, read_checked
from foreknow.notebook import ReportPage, report_page

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

Reading = TypeVar("Reading")


def read_by_stage(folder: str | Path, readers: Mapping[str, Callable[[Path], Reading]]) -> Reading:
    """Read the folder of a finished run with the reader of the stage that wrote it (`readers`: by the stage's name).

    Raises InputError for a folder that none of these stages finished, RunFolderError if its manifest was changed.
    """
    folder = download(folder)
    stage = (read_checked(folder / "manifest.json") or {}).get("stage")
    if stage not in readers:
        *first, last = readers
        raise InputError(not_finished(folder, f"{', '.join(first)} or {last}"))
    return readers[str(stage)](folder)


@dataclass(frozen=True, repr=False)
class FinishedRun:
    """A finished run: a view of its folder. Its properties read the folder's files when they are first used.

    `keep`: the temporary folder around `folder`, if the call named no `out`; it is removed with the last result that
    refers to it.
    """

    folder: Path
    keep: Any = field(default=None, compare=False)

    def save(self, path: str | PathLike[str]) -> Self:
        """Copy the run's folder to `path` and return the result that reads it there.

        Raises RunFolderError if something stands there already, ConfigError for a URL.
        """
        copy_to(self.folder, path)
        return replace(self, folder=Path(path), keep=None)

    def report(self) -> ReportPage:
        """Return the run's page: in a notebook it shows itself; its `path` can be opened in a browser."""
        return report_page(self.folder, self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._where()})"

    def _where(self) -> str:
        """Return where the folder is, in a few words."""
        return str(self.folder) if self.keep is None else f"{self.folder}, temporary: save(path) keeps it"


def copy_to(source: Path, path: str | PathLike[str]) -> Path:
    """Copy a file or folder to a place where nothing stands yet. Raises RunFolderError, ConfigError for a URL."""
    if is_url(fspath(path)):
        raise ConfigError(f"save: found {fspath(path)}, expected a local path; a call's out= may be a URL")
    target = Path(path)
    if target.exists() and not (target.is_dir() and source.is_dir() and not any(target.iterdir())):
        raise RunFolderError(f"{target}: exists already; save to another path, or delete it")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".lock"))
    else:
        shutil.copyfile(source, target)
    return target


def to_pandas(rows: pl.DataFrame | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a pandas table. Raises MissingExtra if pandas is not installed."""
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtra("to_pandas: needs pandas; pip install pandas, or use the Polars frame as it is") from None
    # not Polars' own to_pandas, which needs pyarrow too
    columns: Any = list(rows) if isinstance(rows, Sequence) else rows.to_dict(as_series=False)
    return pd.DataFrame(columns)
