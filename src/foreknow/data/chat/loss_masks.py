"""Loss masks: keys that say whether a trainer learns from a turn (`weight: 0`, `train: false`, `masked: true`). Pure.

Which trainer reads which key: OpenAI, Mistral and Together read `weight`; axolotl reads `train_detail` and `train`,
`training` or the name in its setting `message_field_training`; ms-swift and ChatGLM read `loss`; verl reads `loss_mask`
and `trainable`; torchtune reads `masked`. TRL and LLaMA-Factory read none of them (docs/chats.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

WEIGHT: Final = "weight"
"""The key that is written into a chat that has none of its own."""
MARKS: Final = "loss_mask"
"""The column that is written beside a chat: a list with one mark per turn."""
_LEARNT: Final = (
    *("weight", "train", "training", "trained", "trainable", "is_trained", "train_on_turn", "train_on", "do_train"),
    *("loss", "loss_mask", "loss_weight", "loss_scale", "compute_loss", "calculate_loss", "use_loss", "has_loss"),
    *("learn", "learnable", "supervise", "supervised"),
)
"""Keys that are true if a trainer learns from the turn, and false or 0 if it does not."""
_LEFT_OUT: Final = (
    *("masked", "mask", "is_masked", "mask_loss", "ignore", "ignored", "ignore_loss", "no_loss", "skip_loss"),
    *("no_train", "skip_training", "exclude_from_loss", "context_only"),
)
"""Keys that are true if a trainer does not learn from the turn."""
_DETAILS: Final = ("train_detail", "training_detail")
"""Keys with a mark for each piece of a turn. A turn of which only a part is learnt cannot be used as an answer."""
_LISTED: Final = (MARKS, "train_mask", "loss_masks", "trainable", "turn_weights", "weights")
"""Columns with a list of marks for a chat: one per turn, or one per turn of the assistant."""
_FALSE: Final = ("false", "no", "off", "0", "0.0")
_TRUE: Final = ("true", "yes", "on", "1", "1.0")


def is_masked(turn: Mapping[str, object], learnt: Collection[str] = ()) -> bool:
    """Whether a key of a turn says that a trainer does not learn from it. Values that are no truth value are ignored.

    `learnt`: keys that mean the opposite in this chat (`mask_means_learnt`).
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
    """Return `("mask",)` if `mask: 1` means "learnt" in this chat: its user turns have 0 and an assistant turn has 1.

    `turns`: role and turn. In all other chats `mask` means "not learnt", as `masked` does, and the result is empty.
    """
    marks = [(role, _truth(turn.get("mask"))) for role, turn in turns]
    users = [truth for role, truth in marks if role == "user" and truth is not None]
    return ("mask",) if users and not any(users) and ("assistant", True) in marks else ()


def is_masked_record(record: Mapping[str, object]) -> bool:
    """Whether a key beside a chat masks all of it. Only truth values count, because a number can mean anything."""
    marks = {key: value for key, value in record.items() if key != WEIGHT and _is_truth(value)}
    return is_masked(marks)


def listed_marks(record: Mapping[str, object], roles: Sequence[str]) -> list[bool] | None:
    """For each turn, whether a list beside the chat masks it (`"loss_mask": [0, 1]`); None if there is no such list.

    `roles`: the roles of the chat's turns. The list has one mark per turn, or one per turn of the assistant.
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
    """The key and value that mask a turn: the key that the chat already uses, with a value of the same type."""
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
    """`value` in the type of `sample`: text, truth value or number."""
    if isinstance(sample, str):
        return str(value).lower() if sample.lower() not in ("0", "1") else str(int(value))
    if isinstance(sample, bool):
        return value
    return float(value) if isinstance(sample, float) else int(value)


def _truth(value: object) -> bool | None:
    """The truth value that a value stands for, None if it stands for none. A number is true if it is above 0."""
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
