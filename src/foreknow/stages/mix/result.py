"""The result of a mix: a written training set, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from foreknow import notebook
from foreknow.data.row_reader import batches_of
from foreknow.errors import ConfigError
from foreknow.io.sources import source_of
from foreknow.stages.finished_run import copy_to, to_pandas

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class MixResult:
    """A written training set.

    `path`: the file, in the layout of the audited rows. `rows`: the drawn rows (`sampling.MIX`). `manifest`: the
    contents of `FILE.manifest.json`. `notes`: lines that say what was done. `keep`: the temporary folder around the
    file, if the call named no `out`.
    """

    path: Path
    rows: pl.DataFrame
    manifest: Mapping[str, Any]
    notes: tuple[str, ...]
    keep: Any = field(default=None, compare=False)

    def records(self) -> list[dict[str, Any]]:
        """Return the rows of the file as dictionaries, with their own keys and the category, for any trainer."""
        return [dict(record) for _, batch, _ in batches_of(source_of(str(self.path))) for record in batch.records]

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows of the file as a pandas table."""
        return to_pandas(self.records())

    def save(self, path: str | PathLike[str]) -> MixResult:
        """Copy the file, and what stands beside it, to `path`; return the result that reads it there.

        Raises RunFolderError if something stands there already, ConfigError for another suffix.
        """
        target, suffix = Path(path), "".join(self.path.suffixes)
        if not target.name.endswith(suffix):
            raise ConfigError(f"save: found {target.name}, expected a name that ends in {suffix}, as the audited rows")
        beside = sorted(file for file in self.path.parent.glob(f"{self.path.name}.*") if file.is_file())
        copy_to(self.path, target)
        for file in beside:
            copy_to(file, target.with_name(target.name + file.name.removeprefix(self.path.name)))
        return replace(self, path=target, keep=None)

    def __repr__(self) -> str:
        return f"MixResult({self._sentence()}; {self._where()})"

    def _repr_html_(self) -> str:
        notes = [notebook.note(text) for text in self.notes]
        shares = self._shares()
        return notebook.card(
            "training set",
            self._sentence(),
            notebook.bar(shares) if shares else "",
            *notes,
            notebook.note(self._where()),
        )

    def _shares(self) -> dict[str, float]:
        categories = self.rows["category"].drop_nulls()
        return {name: count / len(categories) for name, count in categories.value_counts().rows()}

    def _sentence(self) -> str:
        shares = notebook.shares_text(self._shares())
        return f"{self.rows.height:,} rows{': ' if shares else ''}{shares}"

    def _where(self) -> str:
        return str(self.path) if self.keep is None else f"{self.path}, temporary: save(path) keeps it"
