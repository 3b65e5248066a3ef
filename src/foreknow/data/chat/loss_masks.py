"""Marks that say whether a trainer learns from a turn (`weight: 0`, `train: false`, `masked: true`), by any name. Pure.

Who reads which: `weight` OpenAI, Mistral and Together; `train`, `training` or any other name that
`message_field_training` gives, and `train_detail`, axolotl; `loss` ms-swift and ChatGLM; `loss_mask` and `trainable`
verl; `masked` torchtune. TRL and LLaMA-Factory read none of them. (docs/chats.md)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

WEIGHT: Final = "weight"
"""The mark that is written where a chat has none."""
MARKS: Final = "loss_mask"
"""The list of marks that is written beside turns that have none of their own."""
_LEARNT: Final = (
    *("weight", "train", "training", "trained", "trainable", "is_trained", "train_on_turn", "train_on", "do_train"),
    *("loss", "loss_mask", "loss_weight", "loss_scale", "compute_loss", "calculate_loss", "use_loss", "has_loss"),
    *("learn", "learnable", "supervise", "supervised"),
)
"""Marks that say that a turn is learnt: it is not where they are false or 0."""
_LEFT_OUT: Final = (
    *("masked", "mask", "is_masked", "mask_loss", "ignore", "ignored", "ignore_loss", "no_loss", "skip_loss"),
    *("no_train", "skip_training", "exclude_from_loss", "context_only"),
)
"""Marks that say that a turn is not learnt: it is not where they are true."""
_DETAILS: Final = ("train_detail", "training_detail")
"""Marks of pieces of a turn: a turn that is learnt in part has no answer that can be told apart."""
_LISTED: Final = (MARKS, "train_mask", "loss_masks", "trainable", "turn_weights", "weights")
"""Marks of a whole chat: one for each of its turns, or for each of the assistant's."""
_FALSE: Final = ("false", "no", "off", "0", "0.0")
_TRUE: Final = ("true", "yes", "on", "1", "1.0")


def is_masked(turn: Mapping[str, object], learnt: Collection[str] = ()) -> bool:
    """Whether a turn is marked not to be learnt from. A mark that is null, or no truth value, says nothing.

    `learnt`: keys that say the opposite in this chat (`mask_means_learnt`).
    """
    for key, value in turn.items():
        name = key.lower() if isinstance(key, str) else ""
        says_learnt = name in _LEARNT or name in learnt
        if (says_learnt or name in _LEFT_OUT) and _truth(value) is not says_learnt and _truth(value) is not None:
            return True
        if name in _DETAILS and isinstance(value, Sequence) and not isinstance(value, str):
            pieces = [piece for piece in value if isinstance(piece, Mapping)]
            if any(_truth(piece.get("train")) is False for piece in pieces):
                return True
    return False


def mask_means_learnt(turns: Sequence[tuple[str, Mapping[str, object]]]) -> tuple[str, ...]:
    """`mask` where a chat's own turns tell that 1 means "learnt": the user's turns have 0, an assistant's has 1.

    `turns`: role and turn. Elsewhere `mask` means "not learnt", as `masked` does.
    """
    marks = [(role, _truth(turn.get("mask"))) for role, turn in turns]
    users = [truth for role, truth in marks if role == "user" and truth is not None]
    return ("mask",) if users and not any(users) and ("assistant", True) in marks else ()


def is_masked_record(record: Mapping[str, object]) -> bool:
    """Whether a chat as a whole is marked so: by a truth value, for a number may count anything."""
    marks = {key: value for key, value in record.items() if key != WEIGHT and _is_truth(value)}
    return is_masked(marks)


def listed_marks(record: Mapping[str, object], roles: Sequence[str]) -> list[bool] | None:
    """By turn, whether a list beside the chat masks it (`"loss_mask": [0, 1]`); None where there is no such list.

    `roles`: those of the chat's turns. The list has a mark for every turn, or for every turn of the assistant.
    """
    for name in _LISTED:
        value = record.get(name)
        if not isinstance(value, list | tuple) or not value:
            continue
        marks = [_truth(mark) for mark in value]
        if len(marks) == len(roles):
            return [mark is False for mark in marks]
        if len(marks) == roles.count("assistant"):
            own = iter(marks)
            return [role == "assistant" and next(own) is False for role in roles]
    return None


def mark_of(turns: Sequence[Mapping[str, object]], learnt: Collection[str] = ()) -> tuple[str, object]:
    """The mark to write on a turn that is not to be learnt: the one that the chat uses, with its kind of value."""
    for turn in turns:
        for key, value in turn.items():
            name = key.lower() if isinstance(key, str) else ""
            if name not in _LEARNT and name not in _LEFT_OUT:
                continue
            if value is not None and _truth(value) is None and not isinstance(value, int | float):
                continue
            samples = (other.get(key) for other in turns)
            return key, _same_kind_of_value(
                next((sample for sample in samples if sample is not None), 0), name in _LEFT_OUT and name not in learnt
            )
    return WEIGHT, 0


def _same_kind_of_value(sample: object, value: bool) -> object:
    """A truth value of the same kind as another one."""
    if isinstance(sample, str):
        return str(value).lower() if sample.lower() not in ("0", "1") else str(int(value))
    if isinstance(sample, bool):
        return value
    return float(value) if isinstance(sample, float) else int(value)


def _truth(value: object) -> bool | None:
    """True or false, where a value says either; a number is true unless it is 0 or less."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value > 0 if value == value else None  # noqa: PLR0124
    if isinstance(value, str):
        text = value.strip().lower()
        return True if text in _TRUE else False if text in _FALSE else None
    return None


def _is_truth(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))
