"""Trains with transformers' Trainer, with our batches, our loss, and checkpoints that a killed run cannot damage.

The rows of a step depend only on the seed and the step. They are cut into micro-batches under a token budget, and the
gradients of the micro-batches add up to that of the whole batch. The loss is the mean over the batch's target tokens,
as in transformers.Trainer; each token counts with its row's weight, and those of `loss_exclude` do not count. The
learning rate is constant after the warmup, as in the paper. Several processes share the rows of each step, and the mean
is taken over the rows of all processes.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from foreknow.errors import ConfigError, NotFinite
from foreknow.io.disk_space import disk_full_errors
from foreknow.models.quiet import quiet
from foreknow.progress import Meter
from foreknow.stages.train.answer_loss import Pass, base_of, cross_entropy, run_as_forward
from foreknow.stages.train.batches import micro_batches, shares, step_rows
from foreknow.stages.train.checkpoints import complete, prune
from foreknow.stages.train.kl_loss import KlTerm
from foreknow.stages.train.known_late import KnownLate
from foreknow.stages.train.replay import ReplayPlan, is_replay
from foreknow.stages.train.setup import training_plan
from foreknow.stages.train.training_examples import TrainingExample

CHECKPOINTS: Final = ".checkpoints"
Scored = tuple[list[TrainingExample], Tensor]
"""Rows in the order in which they were computed, and their losses or logits."""
_ADVICE: Final = "Lower --learning-rate, try --dtype float32, or look at these rows"


class EvalHook(Protocol):
    """Measures the model at an evaluation; see `eval_callback.py`. `lines`: what it has measured so far."""

    lines: list[dict[str, Any]]

    def __call__(self, trainer: FactTrainer) -> tuple[Mapping[str, float], bool]:
        """Measure the model; return the metrics by name, and whether training should stop here."""
        ...


@dataclass
class Tally:
    """Holds the loss since the epoch began, summed over target tokens, and their number, both weighted by row.

    `loss` and `tokens` are of the rows of the training file, `replay_loss` and `replay_tokens` of the rows that
    `--replay` adds. `kl` and `kl_tokens`: the divergences that `--kl` adds, and how many tokens they are of.
    """

    loss: float = 0.0
    tokens: float = 0.0
    replay_loss: float = 0.0
    replay_tokens: float = 0.0
    kl: float = 0.0
    kl_tokens: float = 0.0

    @property
    def mean(self) -> float | None:
        """Return the mean loss of a target token in nats; None before the first step."""
        return self.loss / self.tokens if self.tokens else None

    @property
    def means(self) -> dict[str, float]:
        """Return the mean loss of a replayed token and the mean divergence, in nats, as far as there are any."""
        parts = {"replay": (self.replay_loss, self.replay_tokens), "kl": (self.kl, self.kl_tokens)}
        return {name: total / tokens for name, (total, tokens) in parts.items() if tokens}


class FactTrainer(Trainer):
    """Trains on `examples`; see the top of this file. `autocast`: compute in bf16 while the weights stay float32."""

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
        replay: ReplayPlan | None = None,
        kl: KlTerm | None = None,
        late: KnownLate | None = None,
    ):
        """Prepare the training.

        `replay`: the rows that join every batch. `kl`: a term of the loss for these rows. `late`: which of `examples` a
        step takes, if HighlyKnown rows come late.
        """
        self.replay, self.kl, self.late = replay, kl, late
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
        """Return the number of passes over the rows so far; it is an int at the end of a pass."""
        whole, rest = divmod(self.state.global_step, self.steps_per_epoch)
        return whole + rest / self.steps_per_epoch if rest else whole

    @property
    def within_epoch(self) -> bool:
        """Return whether training is inside an epoch, that is, the last step was not the last of an epoch."""
        return self.state.global_step % self.steps_per_epoch != 0

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader that yields one number a step; `get_batch_samples` replaces it with the step's rows."""
        # without its own generator, the loader would draw from the generator that dropout uses
        return DataLoader(self.train_dataset, batch_size=1, generator=torch.Generator())  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """Return the rows of the next step."""
        del num_batches, device
        next(epoch_iterator)
        config = self.config
        step = self.state.global_step
        if self.late is not None:
            places = self.late.rows(step)
        else:
            places = step_rows(config.seed, step, len(self.examples), self.batch_size)
        batch = [self.examples[place] for place in places]
        return [batch + (self.replay.examples(step) if self.replay else [])], None

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Compute the gradients of a whole batch, one micro-batch after the other; return the batch's loss.

        Raises NotFinite if the loss is not finite, or if the loss of the first step is exactly 0.
        """
        del num_items_in_batch
        model.train()
        batch: list[TrainingExample] = inputs
        self.rows = [example.row for example in batch if not is_replay(example)]
        own = Tally(
            tokens=sum(e.weight * e.learnt for e in batch if not is_replay(e)),
            replay_tokens=sum(e.weight * e.learnt for e in batch if is_replay(e)),
            kl_tokens=sum(sum(self.kl.counted(e)) for e in batch) if self.kl else 0,
        )
        whole = sum(example.weight * example.learnt for example in batch)
        total = torch.zeros((), device=self.args.device)
        device, several = self.args.device.type, process_group.is_distributed()
        tokens = int(self.config.micro_batch_tokens or 2048)
        parts = (
            shares(batch, tokens, process_group.world_size())[process_group.rank()]
            if several
            else micro_batches(batch, tokens)
        )
        bad: list[int] = []
        # one context for all micro-batches casts the weights once a step; FSDP frees them, so they are not cached there
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast, cache_enabled=not self.is_fsdp_enabled):
            for n, part in enumerate(parts):
                with self._meeting(model, n == len(parts) - 1):
                    ordered, losses, divergences = self._losses(model, part)
                    weights = torch.tensor([w for e in ordered for w in e.token_weights], device=losses.device)
                    loss = (losses * weights).sum() / max(whole, 1e-12)
                    if self.kl is not None and divergences is not None:
                        loss = loss + self.kl.weight * divergences.sum() / max(own.kl_tokens, 1)
                    if not bool(loss.isfinite()):
                        bad += _not_finite(ordered, losses)
                        if not several:
                            self._stop(f"the loss is {float(loss.detach())}", bad)
                    with torch.autocast(device, enabled=False):
                        # the wrappers divide by the number of processes, so multiply by it
                        self.accelerator.backward(loss * process_group.world_size() if several else loss)
                total += loss.detach()
                if self.replay is not None:
                    _add_parts(own, ordered, (losses * weights).detach(), divergences)
        if several:
            total.fill_(process_group.totals([float(total)])[0])
            if not bool(total.isfinite()):  # true in all processes if it is in one, so that all of them stop
                bad_counts = process_group.totals([row in bad for row in self.rows])
                rows = [row for row, times in zip(self.rows, bad_counts, strict=True) if times]
                self._stop(f"the loss is {float(total)}", rows or self.rows)
        if float(total) == 0 and whole > 0 and not self.tally.tokens and self.state.global_step == 0:
            self._stop(
                "the loss of the first step is exactly 0: nothing would be learnt",
                self.rows,
                "Look at these rows: nothing of their answers may reach the loss",
            )
        if self.replay is None:
            own.loss = float(total) * whole
        elif several:
            own.loss, own.replay_loss, own.kl = process_group.totals([own.loss, own.replay_loss, own.kl])
        self.tally = Tally(**{name: value + getattr(own, name) for name, value in vars(self.tally).items()})
        self.meter.advance(len(self.rows))
        return total

    def _losses(
        self, model: nn.Module, part: Sequence[TrainingExample]
    ) -> tuple[list[TrainingExample], Tensor, Tensor | None]:
        """Compute the losses of a micro-batch.

        With `--kl`, also return the divergences from the teacher, if the micro-batch has rows of the pool.
        """
        if self.kl is not None and any(is_replay(example) for example in part):
            rows, logits = self._forward(model, self.losses.logits, part)
            return rows, cross_entropy(logits, rows), self.kl.divergences(logits, rows)
        return *self._forward(model, self.losses.losses, part), None

    def _forward(
        self, model: nn.Module, compute: Callable[[Sequence[TrainingExample]], Scored], part: Sequence[TrainingExample]
    ) -> Scored:
        """Compute losses or logits of a micro-batch; with several processes, in the forward pass of their wrapper."""
        if not process_group.is_distributed():
            return compute(part)
        ordered: list[TrainingExample] = []

        def work() -> Tensor:
            part_rows, values = compute(part)
            ordered.extend(part_rows)
            return values

        return ordered, run_as_forward(model, work)

    def _meeting(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which processes synchronize gradients only for the last micro-batch of a step.
        Under FSDP they are synchronized for every micro-batch, since no process holds whole gradients.
        """
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
        rows = [row for row in rows if row >= 0] or self.rows  # those below 0 are replayed
        rows_text = ", ".join(map(str, sorted(rows)[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        step, of = self.state.global_step + 1, int(self.state.global_step / self.steps_per_epoch) + 1
        raise NotFinite(
            f"{what} at step {step} (epoch {of}), rows {rows_text} of {self.config.train}: stopped before the weights "
            f"took it in.\n{advice}, and choose another --out"
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the model, and report the metrics to the trackers (`report_to`) and the callbacks."""
        outcome, stop = self.watch(self)
        metrics = {f"eval_{name}": value for name, value in outcome.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_training_stop = self.control.should_training_stop or stop
        if not self.within_epoch:
            self.tally = Tally()
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0, because the operations are not counted."""
        del inputs
        return 0

    def whole_weights(self) -> dict[str, Tensor] | None:
        """Gather all weights in the first process under FSDP; return None without FSDP, where each process has them.

        Every process must call this.
        """
        if not self.is_fsdp_enabled:
            return None
        weights: dict[str, Tensor] = self.accelerator.get_state_dict(self.model)
        tied = base_of(self.model).all_tied_weights_keys  # gathering makes tied weights look like separate ones
        return {name: value for name, value in weights.items() if name not in tied}

    def load_again(self, path: Path) -> None:
        """Load the weights of a checkpoint after which no training is left to do."""
        if not self.is_fsdp_enabled:
            self._load_from_checkpoint(str(path))
        elif (
            process_group.is_main_process()
        ):  # nothing has sharded the model yet, so it is whole, and the first process saves it
            weights = torch.load(path / f"{FSDP_MODEL_NAME}.bin", map_location="cpu", weights_only=True)
            base_of(self.model).load_state_dict(weights)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as transformers does; under FSDP do nothing: weights are saved with the optimizer's state."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save weights and configuration only, because the tokenizer and the settings are in the run folder."""
        del state_dict
        model: Any = self.model
        with quiet():
            model.save_pretrained(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        began = time.monotonic()
        path = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with disk_full_errors(str(path), "the checkpoint before it and the best weights so far are kept"):
            super()._save_checkpoint(model, trial)
            process_group.barrier()  # wait until each process has written its random states
            if process_group.is_main_process():
                note = {"tally": vars(self.tally), "lines": self.watch.lines}
                complete(path, self.state.global_step, note)
        if process_group.is_main_process():
            prune(path.parent, path)
        self.saving += time.monotonic() - began


class QuietTrainer(FactTrainer):
    """Trains beside the run itself: it measures and saves nothing on the way."""

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure nothing."""
        return {}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        del model, trial


class _Flow(TrainerCallback):
    """Lets the trainer measure and save at the end of every epoch and after the steps that the settings name."""

    def __init__(self, trainer: FactTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args
        if self.trainer.within_epoch:  # `on_epoch_end` measures and saves after the last step of an epoch
            config = self.trainer.config
            first = state.global_step < self.trainer.steps_per_epoch
            control.should_evaluate = first and state.global_step in config.eval_steps
            control.should_save = config.save_every is not None and state.global_step % config.save_every == 0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, state
        control.should_evaluate = control.should_save = True


def arguments(config: TuneConfig, folder: Path, steps: int, device: str) -> TrainingArguments:
    """Turn `config` into transformers' training arguments. `steps`: the number of optimizer steps of all epochs."""
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
        training_arguments.mixed_precision = "no"  # --dtype sets the precision, not the launcher
    training_arguments._n_gpu = min(training_arguments.n_gpu, 1)  # else the model is copied to every visible GPU
    return training_arguments


def set_dropout(model: Any, share: float) -> str:
    """Set the dropout of all modules that have one to `share` and return a line that names them.

    Raises ConfigError if no module has a dropout and `share` > 0.
    """
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


def _add_parts(tally: Tally, rows: Sequence[TrainingExample], losses: Tensor, divergences: Tensor | None) -> None:
    """Add the weighted losses of a micro-batch to the tally, those of the pool's rows apart, and the divergences."""
    replayed = torch.tensor([is_replay(example) for example in rows for _ in example.answer], device=losses.device)
    tally.loss += float(losses[~replayed].sum())
    tally.replay_loss += float(losses[replayed].sum())
    tally.kl += float(divergences.detach().sum()) if divergences is not None else 0.0


def _not_finite(rows: Sequence[TrainingExample], losses: Tensor) -> list[int]:
    """Return the numbers of the rows whose loss is not finite, or of all rows if only the sum is not finite."""
    bad: list[int] = []
    with contextlib.suppress(RuntimeError):
        parts = losses.detach().split([len(example.answer) for example in rows])
        bad = [example.row for example, part in zip(rows, parts, strict=True) if not bool(part.isfinite().all())]
    return bad or [example.row for example in rows]
