"""Estimates what a run would cost by training and measuring for a short time."""

from __future__ import annotations

import logging
import math
import time
from typing import Any, Final

import torch

from foreknow.config import TuneConfig
from foreknow.distributed import process_group
from foreknow.errors import (
    ConfigError,
)
from foreknow.format.numbers import duration
from foreknow.stages.train import canaries, replay_choice
from foreknow.stages.train.answer_loss import base_of, open_pass
from foreknow.stages.train.batches import micro_batches
from foreknow.stages.train.canary_check import SHOTS
from foreknow.stages.train.inputs import read_inputs
from foreknow.stages.train.known_default_facts import ASKED
from foreknow.stages.train.rate_trials import FACTORS, format_cost, trial_steps
from foreknow.stages.train.setup import AUTO, set_up_run, training_plan
from foreknow.stages.train.tokenized_inputs import tokenize_inputs
from foreknow.stages.train.tracker import Tracker, vocabulary_for
from foreknow.stages.train.training_model import load_training_model

logger = logging.getLogger(__name__)

FACT_TOKENS: Final = 30
"""About how many tokens a watched fact has, question and answer; exemplars add as many each."""


def estimate(config: TuneConfig) -> dict[str, Any]:
    """Estimate what a run would cost by training and measuring for a short time. Writes nothing.

    Watched facts are counted by their usual length and number, at most a third of an epoch, and the points of
    `--average` as one measurement each. Raises ConfigError if a launcher started several processes.
    """
    import psutil

    with process_group.process_group(config.device):
        if process_group.is_distributed():
            raise ConfigError("--dry-run measures one process; start it without the launcher")
    inputs = read_inputs(config)
    config, resolved_model, device, dtype, reason, _ = set_up_run(config, inputs)
    if reason:
        logger.info(reason)
    tokenized = tokenize_inputs(config, inputs, resolved_model)
    inputs = tokenized.inputs
    for note in tokenized.notes:
        logger.info(note)
    training_model = load_training_model(config, device, dtype)
    plan = training_plan(config)
    burst = micro_batches(tokenized.examples[: plan.batch_size], int(config.micro_batch_tokens or 2048))[:2]
    with open_pass(training_model.model, [min(tokenized.examples, key=lambda e: e.length)]) as (losses, _):
        training_model.model.train()
        for _ in range(2):  # the first pass builds kernels, so only the second one is timed
            began = time.monotonic()
            with torch.autocast(device, torch.bfloat16, enabled=training_model.autocast):
                for part in burst:
                    losses.losses(part)[1].mean().backward()
            pass_seconds = time.monotonic() - began
    tokens = sum(example.length for example in tokenized.examples)
    token_seconds = pass_seconds / sum(e.length for part in burst for e in part)
    training = token_seconds * tokens
    if replay_choice.uses_pool(config):  # the known rows of a batch are taken to be as long as the new ones
        training /= 1 - (config.replay or replay_choice.EQUAL)
    sample_rows = {name: rows.sample(min(rows.height, 64), seed=0) for name, rows in inputs.rows.items()}
    base = base_of(training_model.model)
    vocabulary, lenient = tokenized.prompter.ended(vocabulary_for(base, tokenized.tokenizer)), config.match == "lenient"
    batch = int(config.batch_tokens or 2048)
    measure = Tracker(tokenized.prompter, vocabulary, sample_rows, lenient=lenient, batch_tokens=batch)
    model = training_model.mirror.of(base) if training_model.mirror else base
    for _ in range(2):
        began = time.monotonic()
        measure(model)
        measured = time.monotonic() - began
    rows = sum(frame.height for frame in inputs.rows.values())
    measuring = measured / measure.count * rows
    at_points = 2 * measured / measure.count * sum(frame.height for frame in inputs.remaining_rows.values())
    trainable = sum(p.numel() for p in training_model.model.parameters() if p.requires_grad)
    steps = math.ceil(len(tokenized.examples) / plan.batch_size)
    asking, watching = 0.0, 0.0
    if config.canaries != "none":
        question = FACT_TOKENS * token_seconds / canaries.BACKWARD
        asking = ASKED * (1 + SHOTS) * question if config.canaries == "auto" else 0.0
        watching = min(canaries.WATCHED * question, canaries.SHARE_OF_EPOCH * (training + measuring))
    whole = asking + (training + measuring + watching) * plan.epochs + len(config.average) * (measuring + watching)
    whole += at_points
    if replay_choice.has_known_epoch(config):  # about as many rows as the training file has
        whole += token_seconds * tokens
    if config.learning_rate == AUTO:
        logger.info(format_cost(plan.learning_rate, steps * plan.epochs))
        whole += len(FACTORS) * (training * trial_steps(steps * plan.epochs) / steps + measuring)
    return {
        "rows": len(tokenized.examples),
        "epochs": plan.epochs,
        "steps": steps * plan.epochs,
        "tokens_per_epoch": tokens,
        "measured_rows_per_epoch": rows,
        "trained_weights": trainable,
        "disk_gib": round(8 * 4 * trainable / 2**30, 2),
        "memory_gib": round(psutil.Process().memory_info().rss / 2**30, 2),
        "seconds_training_an_epoch": round(training, 1),
        "seconds_measuring_an_epoch": round(measuring, 1),
        "seconds_measuring_all_rows_at_two_epochs": round(at_points, 1),
        "seconds_asking_once_for_this_model": round(asking, 1),
        "seconds_watching_known_facts_an_epoch": round(watching, 1),
        "seconds": round(whole, 1),
        "time": duration(whole),
    }
