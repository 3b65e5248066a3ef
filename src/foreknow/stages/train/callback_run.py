"""Writes the run folder and the page of a training that another trainer did and KnowledgeCallback watched.

DIR/config.yaml metrics.jsonl outcomes.parquet rows.parquet results.json manifest.json (last) report.html

The folder is one of `foreknow tune` without weights, which the trainer keeps itself: `open_train` opens it, and
`foreknow report` writes its page again. It grows with every evaluation. A trainer that resumes from a checkpoint goes
on where the checkpoint was saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from foreknow.data.schema import GOLD
from foreknow.errors import RunFolderError
from foreknow.io.run_dir import RunDir, fingerprint, lock_run_dir, write_frame, write_json
from foreknow.models.versions import library_versions
from foreknow.stages.train import curves, selection
from foreknow.stages.train.curves import CANARIES, TRAIN, Line
from foreknow.stages.train.dataset import ceiling
from foreknow.stages.train.eval_callback import write_lines
from foreknow.stages.train.page import write_page
from foreknow.stages.train.result import OUTCOMES, WATCHED, TrainResult, outcomes_at, read_metrics
from foreknow.version import __version__

SETTINGS: Final = {
    "num_train_epochs": "epochs",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "seed": "seed",
}
"""Settings of a trainer that `foreknow tune` has too, and what they are called there."""
METRIC: Final = "dev_em"


class CallbackRun:
    """The run folder of a callback. `path`: the folder. `config`: settings of the training, as `tune` names them."""

    def __init__(self, path: Path, config: Mapping[str, Any], sets: Mapping[str, pl.DataFrame], *, lenient: bool):
        self.path, self.config, self.sets, self.lenient = path, dict(config), sets, lenient

    def start(self, step: int) -> list[Line]:
        """Open the folder at the begin of training and return its evaluations up to `step`, where training goes on.

        Raises RunFolderError if the folder has a finished run or other files, or one of another training.
        """
        with lock_run_dir(self.path) as folder:
            if folder.manifest is not None:
                raise RunFolderError(f"{self.path}: has a finished run already; choose another out=, or delete it")
            rows = {name: fingerprint(rows.select("row", "question", "answers")) for name, rows in self.sets.items()}
            folder.open_run({"rows": rows, "lenient": self.lenient}, self.config)
            lines = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
            write_lines(self.path, lines)
            for chunk in folder.chunks.glob("*.outcomes.parquet"):
                if int(chunk.name.split(".")[0]) not in {line["step"] for line in lines}:
                    chunk.unlink()
            return lines

    def add(self, lines: list[Line], outcomes: pl.DataFrame) -> None:
        """Write an evaluation, the last of `lines`. `outcomes`: those of its rows (`tracker.OUTCOMES`)."""
        line = lines[-1]
        RunDir(self.path).save_chunk(line["step"], "outcomes", outcomes_at(line, outcomes, lenient=self.lenient))
        write_lines(self.path, lines)

    def finish(
        self, lines: Sequence[Line], model: Mapping[str, Any], method: Mapping[str, Any], known: Mapping[str, Any]
    ) -> Path | None:
        """Write the results and the page at the end of training, and return the page's path.

        `model`: its name. `method`: how rows are asked and trained. `known`: what the results say of the facts watched
        besides the rows (`KnownRows.results`). Returns None, and leaves the folder unfinished, if
        no epoch has ended.
        """
        early = selection.best(lines, self._metric(lines)) if curves.epochs(lines) else None
        if early is None:
            return None
        with lock_run_dir(self.path) as folder:
            write_frame(self.path / "outcomes.parquet", folder.load_chunks("outcomes", OUTCOMES))
            write_frame(self.path / "rows.parquet", self._rows())
            write_json(self.path / "results.json", {**self._results(lines, early, model, method), **known})
            folder.finish(
                {
                    "foreknow": __version__,
                    "stage": "tune",
                    "model": dict(model),
                    "metrics": fingerprint(list(lines)),
                    "versions": library_versions(),
                },
                (
                    *("config.yaml", "metrics.jsonl", "outcomes.parquet", "rows.parquet", "canaries.parquet"),
                    "results.json",
                ),
            )
        return write_page(TrainResult(self.path))

    def _metric(self, lines: Sequence[Line]) -> str:
        """Return the metric that chooses the best epoch on the page: EM on dev, else on the first set, else train."""
        names = [name for name in lines[-1]["em"] if name != CANARIES]
        if "dev" in names:
            return METRIC
        return f"{names[0]}_em" if names else "train_fitted"

    def _rows(self) -> pl.DataFrame:
        own = ("row", "group", "category", "question")
        return pl.concat([rows.select(*own, set=pl.lit(name), answer=GOLD) for name, rows in self.sets.items()]).select(
            *WATCHED
        )

    def _results(
        self, lines: Sequence[Line], early: Line, model: Mapping[str, Any], method: Mapping[str, Any]
    ) -> dict[str, Any]:
        last, metric = curves.epochs(lines)[-1], self._metric(lines)
        points = {
            name: {"epoch": line["epoch"], "step": line["step"], "metrics": line, "folder": None}
            for name, line in (("early_stop", early), ("convergence", last))
        }
        data = {
            name: {"file": self.config.get(name), "rows": rows.height, "watched": rows.height, "skipped": 0}
            for name, rows in self.sets.items()
        }
        return {
            "metric": metric,
            "chooser": selection.chooser(lines, metric),
            "epochs": last["epoch"],
            "steps": last["step"],
            **points,
            "overfitting_epoch": curves.overfitting_epoch(lines),
            "ceiling": ceiling(self.sets[TRAIN])[0],
            "model": dict(model),
            "method": dict(method),
            "data": {name: {**of, "fingerprint": fingerprint(self.sets[name])} for name, of in data.items()},
            "config": self.config,
            "version": __version__,
        }


def training_settings(arguments: Any, match: str, files: Mapping[str, str]) -> dict[str, Any]:
    """Return what a trainer's arguments say that a page of `tune` shows. `files`: the watched files, by set."""
    settings = {ours: getattr(arguments, theirs) for theirs, ours in SETTINGS.items() if hasattr(arguments, theirs)}
    batch = getattr(arguments, "train_batch_size", None)
    if isinstance(batch, int):
        settings["batch_size"] = (
            batch * getattr(arguments, "gradient_accumulation_steps", 1) * getattr(arguments, "world_size", 1)
        )
    return {**files, **settings, "match": match, "keep": "none"}
