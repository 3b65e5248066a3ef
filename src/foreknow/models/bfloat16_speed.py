"""Measures in which dtype this processor multiplies matrices faster.

A processor may have instructions for bfloat16 that are slower than those for float32: on a Xeon with AVX-512 and no
matrix tiles, float32 products took 0.6 of the time. With tiles, bfloat16 takes a quarter. So the choice is measured.
"""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

TOKENS: Final = 512
WIDTH: Final = 1024
"""The product that is timed: [TOKENS, WIDTH] by [WIDTH, WIDTH], like one layer of a small model."""
ROUNDS: Final = 5
LEAST_GAIN: Final = 1.25
"""How many times as fast bfloat16 must be to be chosen: float32 is the more exact, and a near tie must not flip."""


@cache
def is_bfloat16_faster() -> bool:
    """Return whether products in bfloat16 are at least `LEAST_GAIN` times as fast as in float32; takes 0.1 s once.

    The rounds of both take turns and the best of each counts, so that other work on the machine weighs on both alike.
    """
    import torch

    best = {torch.bfloat16: float("inf"), torch.float32: float("inf")}
    with torch.inference_mode():
        operands = {dtype: _operands(dtype) for dtype in best}
        for _ in range(ROUNDS):
            for dtype, (x, weight) in operands.items():
                began = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                best[dtype] = min(best[dtype], time.perf_counter() - began)
    return best[torch.bfloat16] * LEAST_GAIN <= best[torch.float32]


def _operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    x, weight = (torch.ones(rows, WIDTH, dtype=dtype) for rows in (TOKENS, WIDTH))
    torch.nn.functional.linear(x, weight)  # the first call of a shape makes its kernel
    return x, weight
