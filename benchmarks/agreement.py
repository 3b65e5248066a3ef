"""Does the exact probe agree with real generation? Rows of the packaged facts, one model, one dtype.

    python benchmarks/agreement.py --model smollm2-135m --dtype float32 --greedy 208 --sampled 48 --out FILE.json

Greedy: each row and exemplar set, the probe's decision against a generated answer; every difference is listed
with the gap between the two largest logits where the paths part. Sampled: 16 drawn answers a prompt against
the probe's probabilities: randomised probability-integral transform of each row's hits under the
Poisson-binomial the probe states, its Kolmogorov-Smirnov p-value, z of all hits, and the categories.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy import stats

from foreknow.config import AuditConfig
from foreknow.data.exact_match import Accepted
from foreknow.data.schema import chunks, take
from foreknow.inference import slick
from foreknow.inference.generate import Generator, Sampler, exact_head
from foreknow.progress import meter
from foreknow.stages.audit.executor import AuditContext
from foreknow.stages.audit.setup import open_context, read_input, with_batch_sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--greedy", type=int, default=208)
    parser.add_argument("--sampled", type=int, default=48)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = with_batch_sizes(
        AuditConfig(data="facts", model=args.model, dtype=args.dtype, limit=args.greedy), "cpu", "", Path()
    )
    with open_context(config, read_input(config)) as context:
        began = time.monotonic()
        probed = [context.probing.prober.probe(c) for c in chunks(context.plan.rows, 64)]
        seconds = time.monotonic() - began
    probes = pl.concat([c.probes for c in probed])
    answers = pl.concat([c.answers for c in probed])
    result: dict[str, Any] = {"model": args.model, "dtype": args.dtype, "probe_seconds": seconds}
    with exact_head(context.loaded.model):
        result["greedy"] = greedy(context, probes, answers, args.batch)
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False))
        if args.sampled:
            result["sampled"] = sampled(context, probes, args.sampled, args.batch)
            args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False))
    print(json.dumps({k: v for k, v in result.items() if k != "differences"}, indent=1, ensure_ascii=False))


def greedy(context: AuditContext, probes: pl.DataFrame, answers: pl.DataFrame, batch: int) -> dict[str, Any]:
    """Every row and set: the probe's greedy decision against the generated answer's."""
    prober: Any = context.probing.prober
    generator = Generator(context.loaded.model, prober.vocabulary, prober.engine.sampling, batch)
    stated = {
        (r, j): (a, b)
        for r, j, a, b in probes.select("row", "exemplar_set", "greedy_correct", "greedy_lenient").iter_rows()
    }
    said = dict(answers.iter_rows())
    compared = right = 0
    differences, answers_apart = [], []
    began = time.monotonic()
    with meter("generating greedily", context.plan.rows.height) as done:
        for part in chunks(context.plan.rows, 16):
            rows, prompts = prober.prompts.build(part)
            pairs = [(r, j) for r in range(len(rows)) for j in range(len(prompts[r]))]
            longest = max(row.max_new for row in rows)
            made = generator.answers([prompts[r][j].ids for r, j in pairs], longest, None)
            for (r, j), ((path, _),) in zip(pairs, made, strict=True):
                row = rows[r]
                ended = len(path) <= row.max_new and generator.vocabulary.ended(path)
                answer = generator.vocabulary.said(path[: row.max_new])
                accepted = Accepted.of(row.answers)
                found = (
                    ended and accepted.right(answer, "strict"),
                    ended and accepted.right(answer, "lenient"),
                )
                compared += 1
                right += found[0]
                if found != stated[row.number, j]:
                    differences.append({
                        "row": row.number, "set": j, "probe": stated[row.number, j], "generated": found,
                        "answer": answer, "accepted": sorted(accepted.strict),
                        "smallest_gap": gap(context, prompts[r][j].ids, path),
                    })  # fmt: skip
                if j == 0 and answer != said[row.number]:
                    answers_apart.append({
                        "row": row.number, "probe": said[row.number], "generated": answer,
                        "smallest_gap": gap(context, prompts[r][j].ids, path),
                    })  # fmt: skip
            done.advance(part.height)
    return {
        "rows": context.plan.rows.height, "relations": context.plan.rows["group"].n_unique(), "compared": compared,
        "correct": right, "different": len(differences), "differences": differences,
        "model_answers_compared": len(said), "model_answers_different": answers_apart,
        "seconds": time.monotonic() - began,
    }  # fmt: skip


@torch.inference_mode()
def gap(context: AuditContext, prompt: tuple[int, ...], path: tuple[int, ...]) -> float:
    """The smallest gap between the two largest logits along a generated path: a near tie explains a difference."""
    logits = context.loaded.model(torch.tensor([[*prompt, *path]])).logits[0, len(prompt) - 1 : -1].float()
    top = logits.topk(2, dim=-1).values
    return float((top[:, 0] - top[:, 1]).min())


def sampled(context: AuditContext, probes: pl.DataFrame, count: int, batch: int) -> dict[str, Any]:
    """Draw for `count` rows and hold the hits against the stated probabilities."""
    prober: Any = context.probing.prober
    rows = take(context.plan.rows, count, 1)
    generator = Generator(context.loaded.model, prober.vocabulary, prober.engine.sampling, batch * 4)
    sampler = Sampler(prober.prompts, generator, prober.settings.samples, 0)
    began = time.monotonic()
    parts = []
    with meter("drawing samples", rows.height) as done:
        for part in chunks(rows, 8):
            parts.append(sampler.probe(part).probes)
            done.advance(part.height)
    drawn = pl.concat(parts)
    both = drawn.join(probes, on=["row", "exemplar_set"], suffix="_exact").sort("row", "exemplar_set")
    n = prober.settings.samples
    rng = np.random.default_rng(0)
    pits, hits, expected, variance = [], 0.0, 0.0, 0.0
    for _, of_row in both.group_by("row", maintain_order=True):
        p = of_row["p_correct_exact"].to_numpy()
        x = round(float((of_row["p_correct"] * n).sum()))
        hits, expected, variance = hits + x, expected + n * p.sum(), variance + n * (p * (1 - p)).sum()
        if 0.02 < p.mean() < 0.98:
            pmf = np.array([1.0])
            for q in p:
                pmf = np.convolve(pmf, stats.binom.pmf(np.arange(n + 1), n, q))
            pits.append(pmf[:x].sum() + rng.random() * pmf[x])
    exact = slick.label(probes.filter(pl.col("row").is_in(rows["row"].implode())), samples=n)
    real = slick.label(drawn, samples=n, sampled=True)
    labels = exact.join(real, on="row", suffix="_drawn")
    apart = labels.filter(pl.col("category") != pl.col("category_drawn"))
    by_luck = apart.filter((pl.col("p_greedy") == 0) & (pl.col("p_greedy_drawn") == 0) & (pl.col("p_hit") > 0))
    silent = labels.filter(pl.col("p_greedy") == 0)
    luck = pl.min_horizontal(pl.col("p_hit"), 1 - pl.col("p_hit"))
    return {
        "rows": rows.height, "draws": rows.height * drawn["exemplar_set"].n_unique() * n,
        "rows_between_0.02_and_0.98": len(pits),
        "ks_p_value": float(stats.kstest(pits, "uniform").pvalue), "pit": [round(float(u), 4) for u in pits],
        "hits": hits, "expected_hits": round(float(expected), 1),
        "z": float((hits - expected) / np.sqrt(variance)) if variance else 0.0,
        "confusion": {f"{a} -> {b}": c for a, b, c in labels.group_by("category", "category_drawn").len()
                      .sort("category", "category_drawn").iter_rows()},
        "categories_different": apart.height, "explained_by_p_hit": by_luck.height,
        "expected_by_p_hit": round(float(silent.select(luck.sum()).item()), 2),
        "apart": apart.select("row", "category", "category_drawn", "p_hit").to_dicts(),
        "greedy_different": int((both["greedy_correct"] != both["greedy_correct_exact"]).sum()),
        "seconds": time.monotonic() - began,
    }  # fmt: skip


if __name__ == "__main__":
    main()
