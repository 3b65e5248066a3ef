"""Checks which labels are left in the batches of a user's own trainer, after its data set, template and collator.

Each row is collated alone and its labels are counted as the loss sees them: the first label of a sequence is not
predicted, and -100 is no label. A row without labels teaches nothing, whatever the cause: an all-zero
`assistant_masks`, a response mark that was not found, or a length at which the answer is cut away. At most `MOST` rows
are read, spread over the data set. The check leaves all random states as they are.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from foreknow.stages.train.row_faults import RowFault

MOST: Final = 2000
"""The largest number of rows that are checked."""
IGNORED: Final = -100
"""The label of tokens that the loss ignores."""
_MASKS: Final = ("assistant_masks", "assistant_mask", "assistant_tokens_mask", "completion_mask", "loss_mask")
"""Names of data set columns that say which tokens are learnt."""
_LENGTHS: Final = ("max_length", "max_seq_length", "cutoff_len")
"""Names of trainer arguments that give the length, in tokens, at which a row is cut."""


class LabelReport(NamedTuple):
    """Holds what was found in `looked` of a trainer's `total` rows (None if the total is not known).

    Rows are named by their index in the trainer's data set. `faults`: rows that have no label. `cut`: rows whose answer
    is cut before its end. `endless`: rows that have an end-of-sequence token that is not a label. `why_not`: why no row
    could be checked; empty if some were.
    """

    looked: int
    total: int | None
    faults: list[RowFault]
    cut: list[int]
    endless: list[int]
    why_not: str = ""

    @property
    def notes(self) -> list[str]:
        """Return lines about everything but the rows without a label."""
        if self.why_not:
            return [f"warning: the trainer's labels could not be looked at before training: {self.why_not}"]
        lines = []
        if self.total is None or self.looked < self.total:
            of = "its rows, the first of them" if self.total is None else f"the trainer's {self.total:,} rows, spread"
            lines.append(f"labels: {self.looked:,} of {of} were looked at")
        if self.cut:
            lines.append(
                f"warning: {len(self.cut):,} rows of the trainer are cut within their answer, first row {self.cut[0]}: "
                "their ends are not learnt; raise its max_length"
            )
        if self.endless and len(self.endless) == self.looked:
            lines.append(
                "warning: the end-of-sequence token is a label in no row of the trainer, though it ends them (its "
                "collator masks it where it is the padding token too): the model will not learn to end an answer"
            )
        return lines


def check_labels(loader: Any, arguments: Any, ends: Sequence[int]) -> LabelReport:
    """Check the labels of a trainer's data loader. `arguments`: the trainer's. `ends`: ids that end an answer."""
    data, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if data is None or collate is None:
        return _not_checked("it has no data loader with a data set and a collator")
    sized = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if not sized and not type(data).__module__.startswith("datasets."):
        return _not_checked("its data set can be read only once")
    total = len(data) if sized else None
    length = next((n for name in _LENGTHS if isinstance(n := getattr(arguments, name, None), int)), None)
    faults: list[RowFault] = []
    cut: list[int] = []
    endless: list[int] = []
    looked = 0
    with _preserve_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, row in _rows(data, total):
            try:
                batch = collate([dict(row) if isinstance(row, Mapping) else row])
            except Exception as error:
                # the collator is the user's code, and may need more than one row
                return _not_checked(f"its collator takes no single row ({type(error).__name__}: {str(error)[:80]})")
            labels = tensor_of(batch, "labels")
            if labels is None:
                return _not_checked("its batches have no 'labels'")
            looked += 1
            faults += _faults(place, row, batch, labels, length)
            if _is_cut(batch, labels, length, ends):
                cut.append(place)
            if _is_endless(batch, labels, ends):
                endless.append(place)
    return LabelReport(looked, total, faults, cut, endless)


def collated_rows(loader: Any, most: int) -> Iterator[tuple[Any, Any]]:
    """Yield at most `most` rows of a data loader, spread over its data set, each with the batch of that row alone.

    The iterator ends at the first row that the collator cannot collate alone. It yields nothing if the loader has no
    collator, or no data set with a length and indices.
    """
    data: Any = getattr(loader, "dataset", None)
    collate = getattr(loader, "collate_fn", None)
    if collate is None or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return
    with _preserve_random_state():
        for _, row in _rows(data, len(data), most):
            try:
                batch = collate([dict(row) if isinstance(row, Mapping) else row])
            except Exception:  # the collator is the user's code; `check_labels` reports that it takes no single row
                return
            yield row, batch


def _not_checked(why: str) -> LabelReport:
    return LabelReport(0, None, [], [], [], why)


def _rows(data: Any, total: int | None, most: int = MOST) -> Iterator[tuple[int, Any]]:
    if total is None:
        yield from enumerate(islice(iter(data), most))
        return
    step = max(total / most, 1.0)
    for n in range(min(total, most)):
        place = int(n * step)
        yield place, data[place]


def _faults(place: int, row: Any, batch: Mapping[str, Any], labels: Tensor, length: int | None) -> list[RowFault]:
    """Return one fault for each text without a label in a row; a packed row holds several texts."""
    flat = labels.reshape(-1)
    texts = split_texts(row, batch, flat)
    if all(bool((text[1:] != IGNORED).any()) for text in texts):
        return []
    masked = [name for name in _MASKS if isinstance(row, Mapping) and name in row and not np.any(row[name])]
    ids = tensor_of(batch, "input_ids")
    if masked:
        reason = f"its {masked[0]!r} is all zeros: no {{% generation %}} in the chat template, or nothing in it"
    elif length is not None and ids is not None and ids.numel() >= length:
        reason = f"it is cut at {length:,} tokens, before any token of an answer"
    else:
        reason = "all its labels are -100"
    empty = sum(not bool((text[1:] != IGNORED).any()) for text in texts)
    return [RowFault(place, "no_label_left", reason if len(texts) == 1 else f"{reason} (packed)")] * empty


def split_texts(row: Any, batch: Mapping[str, Any], flat: Tensor) -> list[Tensor]:
    """Split the labels or the ids of a row (`flat`, shape [tokens]) into its texts; a packed row holds several."""
    lengths = row.get("seq_lengths") if isinstance(row, Mapping) else None
    if lengths is not None and 0 < sum(lengths) <= len(flat):
        return list(flat[: sum(lengths)].split(list(map(int, lengths))))
    places = tensor_of(batch, "position_ids")
    if places is not None and places.numel() == len(flat):
        starts = (places.reshape(-1) == 0).nonzero().flatten().tolist()
        sizes = [end - begin for begin, end in zip(starts, [*starts[1:], len(flat)], strict=True)]
        if starts[:1] == [0] and (texts := [part for part in flat.split(sizes) if len(part) > 1]):
            return texts  # texts of one token are left out, since padding has position 0 everywhere
    return [flat]


def _is_cut(batch: Mapping[str, Any], labels: Tensor, length: int | None, ends: Sequence[int]) -> bool:
    ids = tensor_of(batch, "input_ids")
    if length is None or ids is None or ids.numel() < length or ids.numel() != labels.numel():
        return False
    return int(labels.reshape(-1)[length - 1]) not in (IGNORED, *ends)


def _is_endless(batch: Mapping[str, Any], labels: Tensor, ends: Sequence[int]) -> bool:
    ids, mask = tensor_of(batch, "input_ids"), tensor_of(batch, "attention_mask")
    if ids is None or mask is None or ids.shape != labels.shape or mask.shape != ids.shape:
        return False
    attended = mask.reshape(-1).nonzero().flatten()
    if len(attended) < 2 or not bool((labels != IGNORED).any()):
        return False
    last = int(attended[-1])
    return int(ids.reshape(-1)[last]) in ends and int(labels.reshape(-1)[last]) == IGNORED


def tensor_of(batch: Mapping[str, Any], name: str) -> Tensor | None:
    """Return a column of a batch as a tensor, or None if the batch does not have it."""
    value = batch.get(name) if hasattr(batch, "get") else None
    return None if value is None else torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value)


@contextlib.contextmanager
def _preserve_random_state() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
