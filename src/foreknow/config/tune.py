"""The settings of `foreknow tune`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from foreknow.config.shared import (
    BASE,
    BOS,
    CHAT_TEMPLATE,
    DRY_RUN,
    MATCH,
    MODEL,
    NULL_WORDS,
    OUT,
    STRICT_ROWS,
    TEMPLATES,
    TRUST_REMOTE_CODE,
    TUNE_PROMPT,
    TURNS,
    BadRows,
    ColumnMap,
    FileMap,
    NullWords,
    Numbers,
    Turns,
    YesNoAuto,
    count_or,
)
from foreknow.errors import ConfigError
from foreknow.settings import COMMON, FILE_ONLY, Group, Settings


def layer_range(setting: str) -> tuple[int, int] | None:
    """Return the first and the last layer of a setting `layers:A-B`, or None for another setting.

    Raises ValueError if it is not two numbers in order.
    """
    if not setting.startswith("layers:"):
        return None
    match = re.fullmatch(r"layers:(\d+)-(\d+)", setting)
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError(f"found {setting!r}, expected layers:A-B with A <= B, such as layers:0-5")
    return int(match[1]), int(match[2])


class TuneConfig(Settings):
    """Settings of `foreknow tune`. Epochs, batch size and learning rate follow from rows and model unless given.

    The preset `paper` takes the paper's (section 3); dropout defaults to the paper's in any case.
    """

    train: Annotated[str, Group.DATA, COMMON] = Field(
        description="The data file to train on, such as one that 'foreknow mix' wrote."
    )
    dev: Annotated[str, Group.DATA, COMMON] = Field(
        "0.1",
        description="The data file that chooses the best epoch, or the share of TRAIN's rows to hold out for it.",
    )
    test: Annotated[FileMap, Group.DATA, COMMON] = Field(
        {}, description="Another data file to measure after each epoch, as NAME=FILE; repeatable."
    )
    out: Annotated[Path | None, Group.OUTPUT, COMMON] = Field(None, description=OUT)
    model: Annotated[str, Group.MODEL, COMMON] = Field("smollm2-135m", description=MODEL)
    base: Annotated[str | None, Group.MODEL] = Field(None, description=BASE)
    audit: Annotated[Path | None, Group.DATA, COMMON] = Field(
        None,
        description="A finished audit, which gives rows without a category column their category, and long answers the "
        "labels of their spans.",
    )
    force: Annotated[bool, Group.DATA] = Field(
        False, description="Continue even if the audit, the mix or --base belongs to another model than this one."
    )
    allow_overlap: Annotated[bool, Group.DATA] = Field(
        False, description="Continue even if rows of the training file also stand in the dev or a test file."
    )
    method: Annotated[Literal["full", "lora"], Group.TRAINING, COMMON] = Field(
        "full", description="full trains every weight; lora trains low-rank adapters (PEFT)."
    )
    preset: Annotated[Literal["auto", "paper"], Group.TRAINING, COMMON] = Field(
        "auto",
        description="What sets --epochs, --batch-size and --learning-rate: the rows and the model, or the paper.",
    )
    epochs: Annotated[int | None, Group.TRAINING, COMMON] = Field(
        None, ge=1, description="How often to train on every row (default: by --preset)."
    )
    learning_rate: Annotated[float | Literal["auto"] | None, Group.TRAINING, COMMON] = Field(
        None,
        description="The learning rate, or auto, which tries three first (default: by --preset).",
    )
    middle_rate: Annotated[float | None, Group.TRAINING, FILE_ONLY] = Field(
        None,
        gt=0,
        description="The middle one of the rates that --learning-rate auto tries (default: by --preset); only a "
        "settings file can give it.",
    )
    batch_size: Annotated[int | None, Group.TRAINING, COMMON] = Field(
        None, ge=1, description="How many rows go into one optimizer step (default: by --preset)."
    )
    dropout: Annotated[float, Group.TRAINING] = Field(
        0.05, ge=0, lt=1, description="The dropout rate in training, for every dropout layer that the model has."
    )
    weight_decay: Annotated[float, Group.TRAINING] = Field(0.0, ge=0, description="The weight decay of AdamW.")
    warmup: Annotated[float, Group.TRAINING] = Field(
        0.0, ge=0, description="Raise the learning rate over this many steps; below 1, over this share of all steps."
    )
    max_grad_norm: Annotated[float, Group.TRAINING] = Field(
        1.0, ge=0, description="Clip the gradients to this norm (0: never)."
    )
    lora_rank: Annotated[int, Group.TRAINING] = Field(16, ge=1, description="The rank of the LoRA adapters.")
    lora_alpha: Annotated[int, Group.TRAINING] = Field(
        32, ge=1, description="The scale of the LoRA adapters, which multiplies them by alpha / rank."
    )
    lora_targets: Annotated[tuple[str, ...], Group.TRAINING] = Field(
        ("all-linear",), description="The names of the layers that get a LoRA adapter."
    )
    trainable: Annotated[str, Group.TRAINING] = Field(
        "all",
        description="Which weights --method full trains: all, attention, mlp, or layers:A-B (layers A to B, counted "
        "from 0). Training fewer is no remedy against forgetting.",
    )
    canaries: Annotated[str, Group.TRAINING] = Field(
        "auto",
        description="The known facts to watch besides your sets: auto takes packaged facts that the model knows (it is "
        "asked 400 once), else HighlyKnown rows of --audit; or a data file; or none.",
    )
    watch_known: Annotated[FileMap, Group.DATA] = Field(
        {},
        description="A data file of facts that the model knows, to watch as canaries are, as NAME=FILE; repeatable.",
    )
    made_up_subjects: Annotated[int, Group.TRAINING] = Field(
        40,
        ge=0,
        description="Ask so many questions about subjects that do not exist, before and after training (0: none; none "
        "either with --canaries none).",
    )
    replay: Annotated[float, Group.TRAINING, COMMON] = Field(
        0.0,
        ge=0,
        lt=1,
        description="Add rows that the model knows to each batch, up to this share of it (0.5: one for each row).",
    )
    replay_from: Annotated[str | None, Group.DATA] = Field(
        None,
        description="The data file whose rows --replay and --kl take (default: rows of --audit, else "
        "packaged facts that the model knows, else rows that it makes up).",
    )
    kl: Annotated[float, Group.TRAINING, COMMON] = Field(
        0.0,
        ge=0,
        description="Hold the model to its predictions before training on other rows: the weight of the KL divergence "
        "in the loss, such as 10.",
    )
    kl_rows: Annotated[Literal["auto", "all", "known"], Group.TRAINING] = Field(
        "auto",
        description="The rows of --audit at which --kl holds the model: all that are in no set, or the HighlyKnown "
        "ones of them (auto: all; known with --replay, which learns their answers).",
    )
    kl_exemplars: Annotated[YesNoAuto, Group.TRAINING] = Field(
        "auto",
        description="Take the predictions to which --kl holds the model from prompts with exemplars (auto: where the "
        "model before training answers more of the rows so, as base models do).",
    )
    kl_teacher: Annotated[Literal["base", "known-epoch"], Group.TRAINING] = Field(
        "base",
        description="The model to whose predictions --kl holds: base, before training; known-epoch, after an epoch on "
        "HighlyKnown rows, with which training then begins.",
    )
    known_late: Annotated[float, Group.TRAINING] = Field(
        0.0,
        ge=0,
        le=1,
        description="Train on the file's HighlyKnown rows in this last share of the steps only (KnownPatch; 0: "
        "throughout).",
    )
    loss_weights: Annotated[Literal["file", "flow"], Group.TRAINING] = Field(
        "file",
        description="How rows weigh in the loss: as the column weight says (file), or also by the model's loss on them "
        "before training, easy ones more (flow).",
    )
    average: Annotated[Numbers, Group.TRAINING] = Field(
        (),
        description="After training, also measure the weights this far on the way from before to after training, such "
        "as 0.5,0.7,0.85,1, and save the best as averaged/.",
    )
    patience: Annotated[int | None, Group.TRAINING] = Field(
        None,
        ge=0,
        description="Stop after this many epochs in which --metric did not improve (0: never; default: 3 where "
        "--preset auto chooses the epochs, else never).",
    )
    stop_fitted: Annotated[float | None, Group.TRAINING] = Field(
        None,
        gt=0,
        le=1,
        description="Stop after the first epoch at which this share of the measured train rows is fitted.",
    )
    metric: Annotated[str, Group.TRAINING] = Field(
        "auto",
        description="The metric that chooses the best epoch: auto takes dev_em where dev's rows can tell epochs apart, "
        "else, and for long answers, dev_loss; dev_spans is the share of spans inside dev's long answers that the "
        "model said before training and still says; an unknown name is an error that lists them.",
    )
    eval_steps: Annotated[tuple[int, ...], Group.TRAINING] = Field(
        (), description="Also measure after these steps of the first epoch (0: before training)."
    )
    watch_rows: Annotated[int | Literal["auto", "all"], Group.TRAINING] = Field(
        "auto",
        description="Measure at most this many rows of train and of each test set after each epoch, drawn at random: a "
        "number, all, or auto (a third of the training rows, at least 200; all of them at the best and the last "
        "epoch). Dev is always measured whole.",
    )
    match: Annotated[Literal["strict", "lenient"], Group.PROTOCOL] = Field("strict", description=MATCH)
    prompt_template: Annotated[Path | None, Group.PROTOCOL] = Field(None, description=TUNE_PROMPT)
    chat_template: Annotated[YesNoAuto, Group.PROTOCOL] = Field("auto", description=CHAT_TEMPLATE)
    bos: Annotated[YesNoAuto, Group.PROTOCOL] = Field("auto", description=BOS)
    map: Annotated[ColumnMap, Group.DATA] = Field(
        {}, description="Which column of the files holds what: question=q,answer=a."
    )
    templates: Annotated[Path | None, Group.DATA] = Field(None, description=TEMPLATES)
    group_by: Annotated[str | None, Group.DATA] = Field(
        None, description="The column whose values the report compares (default: the relation)."
    )
    turns: Annotated[Turns, Group.DATA] = Field("all", description=TURNS)
    null_words: Annotated[NullWords, Group.DATA] = Field("leave-out", description=NULL_WORDS)
    strict_rows: Annotated[bool, Group.DATA] = Field(False, description=STRICT_ROWS)
    bad_rows: Annotated[BadRows, Group.DATA] = Field(
        "refuse",
        description="What happens to rows that teach nothing (the answer is cut away or gives no token, the chat "
        "template refuses the row): refuse the file, or skip them. Both count and list them.",
    )
    trust_remote_code: Annotated[bool, Group.MODEL] = Field(False, description=TRUST_REMOTE_CODE)
    dtype: Annotated[str, Group.MODEL] = Field(
        "auto", description="Compute in auto, bfloat16 or float32; the weights stay float32."
    )
    device: Annotated[str, Group.MODEL] = Field("auto", description="Compute on auto, cpu, cuda, cuda:1, mps, ...")
    micro_batch_tokens: Annotated[int | None, Group.SPEED] = Field(
        None,
        ge=1,
        description="How many tokens to train on at once (default: 2048; on a GPU 16384); this changes the memory that "
        "a run needs, not its method.",
    )
    batch_tokens: Annotated[int | None, Group.SPEED] = Field(
        None, ge=1, description="How many tokens to measure at once (default: 2048; on a GPU 16384)."
    )
    save_every: Annotated[int | None, Group.OUTPUT] = Field(
        None, ge=1, description="Save a checkpoint every this many steps, besides the one after each epoch."
    )
    keep: Annotated[Literal["best", "last", "both"], Group.OUTPUT, COMMON] = Field(
        "best",
        description="Which weights to keep: of the best epoch (early_stop/), of the last (convergence/), or both.",
    )
    report_to: Annotated[tuple[str, ...], Group.OUTPUT] = Field(
        (), description="The trackers that transformers reports to: tensorboard, wandb, ..."
    )
    seed: Annotated[int, Group.TRAINING] = Field(
        0, ge=0, description="The seed that orders the rows, draws dropout and starts new weights."
    )
    dry_run: Annotated[bool, Group.OUTPUT, COMMON] = Field(False, description=DRY_RUN)

    @property
    def uses_chat_template(self) -> bool:
        """Whether prompts go through the chat template, once `auto` is resolved (`chat_templates.choose_template`)."""
        return self.chat_template == "yes"

    @field_validator("dtype")
    @classmethod
    def _trainable_dtype(cls, value: str) -> str:
        if value not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"found {value!r}, expected auto, float32 or bfloat16")
        return value

    @field_validator("test", "watch_known")
    @classmethod
    def _names_of_sets(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name in ("train", "dev", "canaries") or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"found the name {name!r}, expected letters, digits, '-' and '_', not train, dev or canaries"
                )
        return value

    @model_validator(mode="after")
    def _different_names(self) -> TuneConfig:
        if both := sorted({*self.test} & {*self.watch_known}):
            raise ValueError(f"--watch-known: found the name {both[0]!r}, which a --test set has too; choose another")
        return self

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        if value is None or value == "auto":
            return value
        try:
            rate = float(value)
        except (TypeError, ValueError):
            rate = 0.0
        if not rate > 0 or isinstance(value, bool):
            raise ValueError(f"found {value!r}, expected auto or a number above 0")
        return rate

    @field_validator("watch_rows", mode="before")
    @classmethod
    def _number_of_rows(cls, value: Any) -> Any:
        return count_or(value, "auto", "all")

    @field_validator("trainable")
    @classmethod
    def _parts(cls, value: str) -> str:
        if value not in ("all", "attention", "mlp") and layer_range(value) is None:
            raise ValueError(f"found {value!r}, expected all, attention, mlp or layers:A-B")
        return value

    @field_validator("average")
    @classmethod
    def _alphas(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < alpha <= 1 for alpha in value):
            raise ValueError(f"found {', '.join(map(str, value))}, expected numbers above 0, and at most 1")
        return tuple(sorted(set(value)))

    @field_validator("eval_steps")
    @classmethod
    def _steps(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(step < 0 for step in value):
            raise ValueError(f"found {min(value)}, expected steps from 0 on")
        return tuple(sorted(set(value)))


def held_out_share(dev: str) -> float | None:
    """Return the share of rows that `--dev` asks to hold out, or None if it names a file.

    Raises ConfigError for a number that is not between 0 and 1.
    """
    try:
        share = float(dev)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise ConfigError(f"--dev {dev}: expected a file, or a share of the rows between 0 and 1, such as 0.1")
    return share
