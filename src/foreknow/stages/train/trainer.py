"""The trainer: transformers' own, with our batches, our loss and checkpoints that a kill cannot spoil.

A step's rows depend on the seed and the step alone. They are cut into micro-batches under a token budget whose
gradients add up to that of the whole batch: the mean loss over the batch's target tokens, as transformers.Trainer
has it (a row's weight counts its tokens so many times). Learning rate constant after the warmup (the paper's).
Several processes share the rows of each step, and the same mean is over all of theirs.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from foreknow.config import TuneConfig
from foreknow.distributed import process_group
from foreknow.errors import ConfigError, ForeknowError
from foreknow.io.disk_space import disk_full_errors
from foreknow.models.packaged import quiet
from foreknow.progress import Meter
from foreknow.stages.train.answer_loss import Pass, base_of, run_as_forward
from foreknow.stages.train.checkpoints import complete, prune
from foreknow.stages.train.dataset import TrainingExample, micro_batches, shares, step_rows
from foreknow.stages.train.setup import training_plan

CHECKPOINTS: Final = ".checkpoints"
_ADVICE: Final = "Lower --learning-rate, try --dtype float32, or look at these rows"


class NotFinite(ForeknowError):
    """A loss or gradient that is no number: training has stopped."""


class EvalHook(Protocol):
    """Measures the model at an evaluation; see `run.py`. `lines`: what it has measured so far."""

    lines: list[dict[str, Any]]

    def __call__(self, trainer: FactTrainer) -> tuple[Mapping[str, float], bool]:
        """Metrics by name, and whether training should stop here."""
        ...


@dataclass
class Tally:
    """The loss since the epoch began: summed over target tokens, and these tokens, by weight."""

    loss: float = 0.0
    tokens: float = 0.0

    @property
    def mean(self) -> float | None:
        """Mean loss of a target token; None before the first step."""
        return self.loss / self.tokens if self.tokens else None


class FactTrainer(Trainer):
    """Trains on `examples`; see the file's own text. `autocast`: compute in bf16, weights stay float32."""

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        examples: Sequence[TrainingExample],
        config: TuneConfig,
        losses: Pass,
        watch: EvalHook,
        meter: Meter,
        *,
        autocast: bool,
    ):
        self.examples, self.config, self.losses, self.watch, self.meter = examples, config, losses, watch, meter
        self.autocast = autocast
        self.batch_size = training_plan(config).batch_size
        self.steps_per_epoch = math.ceil(len(examples) / self.batch_size)
        self.tally = Tally()
        self.saving = 0.0
        self.rows: list[int] = []
        super().__init__(model, arguments, train_dataset=range(self.steps_per_epoch), callbacks=[_Flow(self)])
        self.remove_callback(PrinterCallback)

    @property
    def epoch(self) -> int | float:
        """Passes over the rows so far: a whole number at the end of one."""
        whole, rest = divmod(self.state.global_step, self.steps_per_epoch)
        return whole + rest / self.steps_per_epoch if rest else whole

    @property
    def within_epoch(self) -> bool:
        """Whether the last step was not an epoch's last."""
        return self.state.global_step % self.steps_per_epoch != 0

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One number a step; `get_batch_samples` puts the step's rows in its place."""
        # a generator of its own: the loader would draw from the one that dropout draws from
        return DataLoader(self.train_dataset, batch_size=1, generator=torch.Generator())  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The rows of the next step."""
        del num_batches, device
        next(epoch_iterator)
        config = self.config
        places = step_rows(config.seed, self.state.global_step, len(self.examples), self.batch_size)
        return [[self.examples[place] for place in places]], None

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Gradients of a whole batch, micro-batch by micro-batch; the batch's loss."""
        del num_items_in_batch
        model.train()
        batch: list[TrainingExample] = inputs
        self.rows = [example.row for example in batch]
        whole = sum(example.weight * len(example.answer) for example in batch)
        total = torch.zeros((), device=self.args.device)
        device, several = self.args.device.type, process_group.is_distributed()
        tokens = int(self.config.micro_batch_tokens or 2048)
        parts = (
            shares(batch, tokens, process_group.world_size())[process_group.rank()]
            if several
            else micro_batches(batch, tokens)
        )
        bad: list[int] = []
        # one context for all micro-batches: weights are cast once a step, but for FSDP, which lets go of them
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast, cache_enabled=not self.is_fsdp_enabled):
            for n, part in enumerate(parts):
                with self._meeting(model, n == len(parts) - 1):
                    ordered, losses = self._losses(model, part)
                    weights = torch.tensor([e.weight for e in ordered for _ in e.answer], device=losses.device)
                    loss = (losses * weights).sum() / max(whole, 1e-12)
                    if not bool(loss.isfinite()):
                        bad += _not_finite(ordered, losses)
                        if not several:
                            self._stop(f"the loss is {float(loss.detach())}", bad)
                    with torch.autocast(device, enabled=False):
                        # wrappers take the mean over processes
                        self.accelerator.backward(loss * process_group.world_size() if several else loss)
                total += loss.detach()
        if several:
            total.fill_(process_group.totals([float(total)])[0])
            if not bool(total.isfinite()):  # in one process or another: all of them stop here
                bad_counts = process_group.totals([row in bad for row in self.rows])
                rows = [row for row, times in zip(self.rows, bad_counts, strict=True) if times]
                self._stop(f"the loss is {float(total)}", rows or self.rows)
        if float(total) == 0 and whole > 0 and not self.tally.tokens and self.state.global_step == 0:
            self._stop(
                "the loss of the first step is exactly 0: nothing would be learnt",
                self.rows,
                "Look at these rows: nothing of their answers may reach the loss",
            )
        self.tally = Tally(self.tally.loss + float(total) * whole, self.tally.tokens + whole)
        self.meter.advance(len(batch))
        return total

    def _losses(self, model: nn.Module, part: Sequence[TrainingExample]) -> tuple[list[TrainingExample], Tensor]:
        """The losses of a micro-batch; of several processes, where their wrapper sees it."""
        if not process_group.is_distributed():
            return self.losses.losses(part)
        ordered: list[TrainingExample] = []

        def work() -> Tensor:
            part_rows, losses = self.losses.losses(part)
            ordered.extend(part_rows)
            return losses

        return ordered, run_as_forward(model, work)

    def _meeting(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients meet once a step; under FSDP with every micro-batch, since none is held whole."""
        if last or self.is_fsdp_enabled or not process_group.is_distributed():
            return contextlib.nullcontext()
        apart: contextlib.AbstractContextManager[Any] = self.accelerator.no_sync(model)
        return apart

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if not math.isfinite(float(norm)):
            self._stop(f"the gradient is {float(norm)}", self.rows)
        return norm

    def _stop(self, what: str, rows: Sequence[int], advice: str = _ADVICE) -> None:
        rows_text = ", ".join(map(str, sorted(rows)[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        step, of = self.state.global_step + 1, int(self.state.global_step / self.steps_per_epoch) + 1
        raise NotFinite(
            f"{what} at step {step} (epoch {of}), rows {rows_text} of {self.config.train}: stopped before the weights "
            f"took it in.\n{advice}, and choose another --out"
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the model and tell it to whatever listens (`report_to`)."""
        outcome, stop = self.watch(self)
        metrics = {f"eval_{name}": value for name, value in outcome.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_training_stop = self.control.should_training_stop or stop
        if not self.within_epoch:
            self.tally = Tally()
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        del inputs
        return 0

    def whole_weights(self) -> dict[str, Tensor] | None:
        """FSDP: all weights, in the first process; every one must ask. None where each process has them anyway."""
        if not self.is_fsdp_enabled:
            return None
        weights: dict[str, Tensor] = self.accelerator.get_state_dict(self.model)
        tied = base_of(self.model).all_tied_weights_keys  # gathered apart, they are no longer seen to be one
        return {name: value for name, value in weights.items() if name not in tied}

    def load_again(self, path: Path) -> None:
        """The weights of a checkpoint, where training is over."""
        if not self.is_fsdp_enabled:
            self._load_from_checkpoint(str(path))
        elif (
            process_group.is_main_process()
        ):  # the model is whole, since nothing has sharded it, and the first process saves it
            weights = torch.load(path / f"{FSDP_MODEL_NAME}.bin", map_location="cpu", weights_only=True)
            base_of(self.model).load_state_dict(weights)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers has it; under FSDP weights are saved with the optimizer's state."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Weights and configuration only: the tokenizer and settings are in the run folder."""
        del state_dict
        model: Any = self.model
        with quiet():
            model.save_pretrained(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        began = time.monotonic()
        path = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with disk_full_errors(str(path), "the checkpoint before it and the best weights so far are kept"):
            super()._save_checkpoint(model, trial)
            process_group.barrier()  # each process has written its random states
            if process_group.is_main_process():
                note = {"loss": self.tally.loss, "tokens": self.tally.tokens, "lines": self.watch.lines}
                complete(path, self.state.global_step, note)
        if process_group.is_main_process():
            prune(path.parent, path)
        self.saving += time.monotonic() - began


class _Flow(TrainerCallback):
    """When to measure and to save: at the end of every epoch, and after the steps that were asked for."""

    def __init__(self, trainer: FactTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args
        if self.trainer.within_epoch:  # an epoch's last step is measured and saved as the epoch's end
            config = self.trainer.config
            first = state.global_step < self.trainer.steps_per_epoch
            control.should_evaluate = first and state.global_step in config.eval_steps
            control.should_save = config.save_every is not None and state.global_step % config.save_every == 0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, state
        control.should_evaluate = control.should_save = True


def arguments(config: TuneConfig, folder: Path, steps: int, device: str) -> TrainingArguments:
    """What `config` comes to as transformers' training arguments; `steps`: of all epochs."""
    plan = training_plan(config)
    training_arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=plan.epochs,
        per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.warmup else "constant",
        warmup_steps=round(config.warmup if config.warmup >= 1 else config.warmup * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="steps" if config.report_to else "no",
        logging_steps=10,
        logging_nan_inf_filter=False,
        report_to=list(config.report_to),
        disable_tqdm=True,
        log_level="error",
        use_cpu=device == "cpu",
        remove_unused_columns=False,
    )
    if process_group.is_distributed():
        training_arguments.mixed_precision = "no"  # --dtype says what is computed in, not the launcher
    training_arguments._n_gpu = min(training_arguments.n_gpu, 1)  # else the model would be copied to every GPU in sight
    return training_arguments


def set_dropout(model: Any, share: float) -> str:
    """Set every dropout the model's modules know and say which; ConfigError if it knows none and `share` > 0."""
    counts: dict[str, int] = {}
    for module in base_of(model).modules():
        kind = type(module).__name__
        if isinstance(module, nn.Dropout):
            module.p = share
            counts["dropout layers"] = counts.get("dropout layers", 0) + 1
            continue
        for name, value in vars(module).items():
            if re.search(r"dropout|pdrop", name) and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(module, name, share)
                counts[f"{name} of {kind}"] = counts.get(f"{name} of {kind}", 0) + 1
    if share and not counts:
        raise ConfigError(
            f"--dropout {share}: no layer of {type(base_of(model)).__name__} knows dropout; use --dropout 0"
        )
    names = ", ".join(f"{name} ({count})" for name, count in counts.items())
    return f"dropout {share:g} in {names}" if share else "no dropout"


def _not_finite(rows: Sequence[TrainingExample], losses: Tensor) -> list[int]:
    """Numbers of the rows with a loss that is no number; all of them if only the sum is none."""
    bad: list[int] = []
    with contextlib.suppress(RuntimeError):
        parts = losses.detach().split([len(example.answer) for example in rows])
        bad = [example.row for example, part in zip(rows, parts, strict=True) if not bool(part.isfinite().all())]
    return bad or [example.row for example in rows]
