"""How far apart models that speak and those that do not are: the figures of `models/fluency.py` (docs/model-checks.md).

    python benchmarks/fluency.py --models smollm2-135m gemma3-270m lab --out FILE.json

Each model as it is, and broken in every way that a checkpoint is met broken: random weights of the same shapes,
token ids permuted, another model's tokenizer, the head or one layer drawn anew, positions turned at another rate,
noise on all weights. Of each: the gain of its best language with several seeds of the shuffles, and whether a warning
is due.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foreknow.errors import ModelError
from foreknow.models import loading
from foreknow.models.fluency import LEAST, NO_GAIN, fluency_of
from foreknow.models.private_api import model_of_config

SEEDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "gemma3-270m", "lab"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    # the broken ones are computed in bfloat16, which moves a gain by 0.02 and is ten times faster here
    loaded = [loading.load_model(name, dtype="bfloat16", device="cpu") for name in args.models]
    lines: list[dict[str, Any]] = []
    print("| model | what was done to it | nats a token gained | share of surprise | best language | warning |")
    print("| --- | --- | --- | --- | --- | --- |")
    for one in loaded:
        for what, model, tokenizer in variants(one, loaded):
            line = {"model": one.name, "what": what, **measured(model, tokenizer)}
            lines.append(line)
            print(row(line), flush=True)
            args.out.write_text(json.dumps(lines, indent=1, ensure_ascii=False))


def row(line: dict[str, Any]) -> str:
    """A line of the table."""
    if line.get("refused"):
        return f"| {line['model']} | {line['what']} | - | - | - | refused: ids outside the embeddings |"
    nats = ", ".join(f"{gain:.2f}" for gain in line["nats"])
    shares = ", ".join(f"{share:.0%}" for share in line["shares"])
    warned = [share < LEAST for share in line["shares"]]
    due = "yes" if all(warned) else "by some seeds" if any(warned) else "no"
    best = ", ".join(dict.fromkeys(line["best"]))
    return f"| {line['model']} | {line['what']} | {nats} | {shares} | {best} | {due} |"


def measured(model: Any, tokenizer: Any) -> dict[str, Any]:
    """The best language's gain by seeds of the shuffles, and all languages' with the first."""
    try:
        began = time.monotonic()
        found = [fluency_of(model, tokenizer, seed=seed) for seed in range(SEEDS)]
        seconds = (time.monotonic() - began) / SEEDS
    except ModelError:
        return {"refused": True}
    best = [each.best or ("none", NO_GAIN) for each in found]
    return {
        "nats": [gain.nats for _, gain in best],
        "shares": [gain.share for _, gain in best],
        "best": [name for name, _ in best],
        "languages": [each.languages for each in found],
        "seconds": seconds,
    }


def variants(one: loading.Loaded, loaded: list[loading.Loaded]) -> Iterator[tuple[str, Any, Any]]:
    """What is done to a model, the model then, its tokenizer."""
    model, tokenizer = one.model, one.tokenizer
    yield "nothing, float32", loading.load_model(one.folder, dtype="float32", device="cpu").model, tokenizer
    yield "nothing, bfloat16", model, tokenizer
    for seed in range(3):
        yield f"random weights, seed {seed}", anew(model, seed), tokenizer
    for seed in range(3):
        yield f"token ids permuted, seed {seed}", permuted(model, seed), tokenizer
    for other in loaded:
        if other is not one:
            yield f"tokenizer of {other.name}", model, other.tokenizer
            if len(other.tokenizer) > model.get_input_embeddings().weight.shape[0]:
                yield (
                    f"tokenizer of {other.name}, embeddings repeated to its size",
                    widened(model, other),
                    other.tokenizer,
                )
    yield "a random head", with_random_head(model), tokenizer
    count = len(model.model.layers)
    for at in sorted({0, count // 2, count - 1}):
        yield f"layer {at} of {count} drawn anew", with_new_layers(model, [at]), tokenizer
    yield f"half of its {count} layers drawn anew", with_new_layers(model, range(0, count, 2)), tokenizer
    yield "rope_theta 10 times too large", turned(model, 10.0), tokenizer
    yield "rope_theta 10 times too small", turned(model, 0.1), tokenizer
    for share in (0.1, 0.3, 1.0):
        yield f"noise of {share:g} standard deviations on all weights", noisy(model, share), tokenizer


def anew(model: Any, seed: int) -> Any:
    """A model of the same shapes with the weights it would begin training with."""
    torch.manual_seed(seed)
    return model_of_config(model, model.dtype).eval()


@torch.no_grad()
def permuted(model: Any, seed: int) -> Any:
    """The same model with other ids for its tokens."""
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    weights = {id(w): w for w in (found.get_input_embeddings().weight, found.get_output_embeddings().weight)}
    order = torch.randperm(next(iter(weights.values())).shape[0], generator=generator)
    for weight in weights.values():  # one, where they are tied
        weight.copy_(weight[order].clone())
    return found


@torch.no_grad()
def widened(model: Any, other: loading.Loaded) -> Any:
    """The same model with its embeddings repeated, so that it runs with a larger tokenizer."""
    found = copy.deepcopy(model)
    size = max(len(other.tokenizer), other.model.get_input_embeddings().weight.shape[0])
    weight = found.get_input_embeddings().weight
    rows = torch.arange(size) % weight.shape[0]
    found.get_input_embeddings().weight = nn.Parameter(weight[rows].clone())
    found.get_input_embeddings().num_embeddings = size
    head = found.get_output_embeddings()
    head.weight = nn.Parameter(head.weight[rows].clone())
    return found


def with_random_head(model: Any) -> Any:
    """The same model with a head that was not trained, as where a tied head is taken for one of its own."""
    found = copy.deepcopy(model)
    old = found.get_output_embeddings()
    torch.manual_seed(0)
    head = nn.Linear(old.in_features, old.out_features, bias=False, dtype=old.weight.dtype)
    nn.init.normal_(head.weight, std=0.02)
    found.set_output_embeddings(head)
    return found.eval()


def with_new_layers(model: Any, which: Any) -> Any:
    """The same model with some layers as they would begin training."""
    found, fresh = copy.deepcopy(model), anew(model, 7)
    for at in which:
        found.model.layers[at].load_state_dict(fresh.model.layers[at].state_dict())
    return found


@torch.no_grad()
def turned(model: Any, factor: float) -> Any:
    """The same model with the base of its rotary positions multiplied."""
    found = copy.deepcopy(model)
    for module in found.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if "inv_freq" in name:
                count = buffer.shape[0]
                buffer.mul_(torch.tensor(factor) ** -(torch.arange(count) / count))
    return found


@torch.no_grad()
def noisy(model: Any, share: float) -> Any:
    """The same model with noise on every matrix."""
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for weight in found.parameters():
        if weight.ndim > 1:
            weight.add_(torch.randn(weight.shape, generator=generator).to(weight.dtype) * weight.std() * share)
    return found


if __name__ == "__main__":
    main()
