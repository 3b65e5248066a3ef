"""`--device mps`, where there is no such GPU: what is refused, which dtype is chosen, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from foreknow.errors import ModelError
from foreknow.models import loading
from foreknow.models.bfloat16_speed import is_bfloat16_faster
from foreknow.models.private_api import has_bfloat16_instructions


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="Apple's GPU is here")
def test_a_gpu_that_torch_does_not_offer_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"^--device mps: not usable here: ") as refusal:
        loading.resolve_device_dtype("mps", "auto")
    assert len(str(refusal.value).splitlines()) == 1


def test_a_gpu_that_torch_offers_is_taken_when_asked_for_and_not_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "empty", lambda *_, device: device)
    assert loading._choose_device("mps") == ("mps", "device mps: asked for")
    device, reason = loading._choose_device("auto")
    assert device == "cpu"
    assert "--device mps takes Apple's, which is not tried yet" in reason


def test_it_computes_in_float32_whatever_the_processor_has() -> None:
    assert loading._choose_dtype("auto", "mps") == ("float32", "dtype float32: no other was tried on mps")
    assert loading._choose_dtype("float16", "mps")[0] == "float16"
    faster = has_bfloat16_instructions() and is_bfloat16_faster()
    assert loading._choose_dtype("auto", "cpu")[0] == ("bfloat16" if faster else "float32")
