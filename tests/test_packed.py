"""The packed pass gives what the model's own forward pass gives, for every architecture and layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from builders import random_model
from foreknow.inference.lm_head import OutputHead
from foreknow.inference.packed_attention import UnsupportedModel
from foreknow.inference.packed_model import PackedModel
from foreknow.inference.packing import Segment, TokenTree, pack_segments, padded_rows

SMALL = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GATED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
WINDOW = {"sliding_window": 9, "head_dim": 8}
CONFIGS = {
    "llama": LlamaConfig(**GATED),
    "qwen2": Qwen2Config(**GATED),
    "qwen3": Qwen3Config(**GATED, head_dim=8),
    "phi3": Phi3Config(**GATED, bos_token_id=1, eos_token_id=2),
    "gemma3 with a window shorter than the prompt": Gemma3TextConfig(**GATED, **WINDOW, query_pre_attn_scalar=8),
    "gemma2 with soft caps": Gemma2Config(**GATED, **WINDOW, attn_logit_softcapping=3.0, final_logit_softcapping=4.0),
    "gpt2": GPT2Config(vocab_size=120, n_embd=32, n_layer=3, n_head=4, n_positions=128),
    "gpt-neox": GPTNeoXConfig(**SMALL, intermediate_size=48, max_position_embeddings=128),
}


@pytest.fixture(params=CONFIGS, scope="module")
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return random_model(CONFIGS[request.param])


def plain(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()


def close(ours: torch.Tensor, reference: torch.Tensor) -> None:
    torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-3 * float(reference.std()))


def draw(seed: int, count: int) -> list[int]:
    return torch.randint(3, 120, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_rows_of_any_length_behind_two_prefixes(model: PreTrainedModel) -> None:
    prompts = [draw(1, 11), draw(2, 17)]
    rows = [[draw(10 + i, n) for i, n in enumerate((1, 4, 7))], [draw(20 + i, n) for i, n in enumerate((5, 2))]]
    packed = PackedModel(model)
    with packed.attached():
        prefixes = packed.prefixes(prompts)
        states, _ = packed.forward(
            [
                Segment(p, [TokenTree.chain(r, range(len(r))) for r in some])
                for p, some in zip(prefixes, rows, strict=True)
            ]
        )
        ours = packed.head.full_logits(states)
    at = 0
    for prompt, some in zip(prompts, rows, strict=True):
        for row in some:
            close(ours[at : at + len(row)], plain(model, prompt + row)[len(prompt) :])
            at += len(row)
    assert at == ours.shape[0]


def test_a_tree_is_its_paths(model: PreTrainedModel) -> None:
    prompt, question = draw(3, 9), draw(4, 5)
    tree = TokenTree([*question, 7, 8, 9, 10], [-1, 0, 1, 2, 3, 4, 5, 4, 7], [4, 5, 6, 7, 8])
    paths = [[], [7], [7, 8], [9], [9, 10]]
    packed = PackedModel(model)
    with packed.attached():
        (prefix,) = packed.prefixes([prompt])
        states, _ = packed.forward([Segment(prefix, [tree, TokenTree.chain(draw(5, 3), [])])])
        ours = packed.head.full_logits(states)
    for line, path in zip(ours, paths, strict=True):
        close(line, plain(model, [*prompt, *question, *path])[-1])


def test_going_on_from_what_was_kept(model: PreTrainedModel) -> None:
    prompt, questions = draw(6, 12), [draw(7, 6), draw(8, 3), draw(9, 9)]
    packed = PackedModel(model)
    with packed.attached():
        (prefix,) = packed.prefixes([prompt])
        _, (first, second) = packed.forward(
            [
                Segment(prefix, [TokenTree.chain([*q, 5, 6], [0]) for q in questions[:2]]),
                Segment(prefix, [TokenTree.chain(questions[2], [0])]),
            ],
            keep=True,
        )
        past = [second[0].cut(9), first[1].cut(3)]
        states, _ = packed.forward(
            [Segment(prefix, [TokenTree.chain([11, 12], [1]), TokenTree.chain([13], [0])], past)]
        )
        ours = packed.head.full_logits(states)
    close(ours[0], plain(model, [*prompt, *questions[2], 11, 12])[-1])
    close(ours[1], plain(model, [*prompt, *questions[1], 13])[-1])


@given(st.integers(1, 300), st.integers(1, 400))
def test_long_rows_are_padded_by_a_quarter_at_most(rows: int, width: int) -> None:
    padded = padded_rows(rows, width)
    assert padded >= rows
    if width <= 32:
        assert padded % 8 == 0
        assert padded - rows < 8
    else:
        assert padded <= 1.25 * rows


def test_one_long_row_costs_one_row_of_attention(model: PreTrainedModel) -> None:
    """Its mask and scores have as many cells as the row has tokens, squared; and it is still computed right."""
    row, shots = draw(1, 90), draw(2, 10)
    batch = pack_segments([Segment(None, [TokenTree.chain(row, [])])], keep=False)
    (shape,), (group,) = batch.segments, batch.groups
    assert (shape.rows, shape.width, shape.keys) == (1, 92, 92)
    assert group.hidden.shape == (1, 92, 92)
    packed = PackedModel(model)
    with packed.attached():
        (prefix,) = packed.prefixes([shots])
        states, ((tokens,),) = packed.forward([Segment(prefix, [TokenTree.chain(row, range(90))])], keep=True)
        going_on = Segment(prefix, [TokenTree.chain([7, 8], [0, 1])], [tokens.cut(80)])
        assert pack_segments([going_on], keep=False).segments[0].rows == 1
        after, _ = packed.forward([going_on])
        ours, theirs = packed.head.full_logits(states), packed.head.full_logits(after)
    close(ours, plain(model, [*shots, *row])[10:])
    close(theirs, plain(model, [*shots, *row[:80], 7, 8])[-2:])


def test_a_cut_prefix_and_none(model: PreTrainedModel) -> None:
    prompt, row = draw(1, 20), draw(2, 4)
    packed = PackedModel(model)
    with packed.attached():
        (prefix,) = packed.prefixes([prompt])
        cut, _ = packed.forward([Segment(prefix.cut(13), [TokenTree.chain(row, range(4))])])
        bare, _ = packed.forward([Segment(None, [TokenTree.chain(row, range(4))])])
        ours = packed.head.full_logits(torch.cat([cut, bare]))
    close(ours[:4], plain(model, [*prompt[:13], *row])[13:])
    close(ours[4:], plain(model, row))


def test_the_model_is_left_as_it_was(model: PreTrainedModel) -> None:
    ids = draw(1, 8)
    before = plain(model, ids)
    packed = PackedModel(model)
    with packed.attached():
        packed.verify(ids[:4], ids[4:])
    assert model.config._attn_implementation != "foreknow_packed"
    torch.testing.assert_close(plain(model, ids), before)


def can_order() -> bool:
    """Whether this processor can do what ordered layers need, asked of torch itself."""
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.ones(16, 16, dtype=torch.bfloat16), 1024)
    except RuntimeError:
        return False
    return True


def test_ordered_bf16_layers_give_the_plain_layers_results() -> None:
    model = random_model(CONFIGS["llama"], torch.bfloat16)
    ids = draw(1, 30)
    reference = plain(model, ids)
    packed = PackedModel(model)
    with packed.attached():
        kinds = {type(m).__name__ for m in model.modules()}
        assert ("_PrepackedGate" in kinds) == can_order()
        states, _ = packed.forward([Segment(None, [TokenTree.chain(ids, range(len(ids)))])])
        ours = packed.head.full_logits(states)
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear
    assert float((ours - reference).abs().mean() / reference.std()) < 0.05


def test_an_architecture_that_does_not_follow_is_refused() -> None:
    class Stubborn(nn.Module):
        def forward(self, **_: object) -> object:
            raise TypeError("unexpected keyword argument 'packing'")

    model = random_model(CONFIGS["llama"])
    packed = PackedModel(model)
    packed.body = Stubborn()
    with packed.attached(), pytest.raises(UnsupportedModel, match="packing"):
        packed.verify([1, 2, 3], [4, 5])


def test_wrong_logits_are_noticed() -> None:
    model = random_model(CONFIGS["llama"])
    packed = PackedModel(model)
    packed.head.config.logit_scale = 3.0  # a scale the model itself does not apply
    with packed.attached(), pytest.raises(UnsupportedModel, match="differ"):
        packed.verify([1, 2, 3], [4, 5])


@given(st.integers(0, 2**31), st.integers(1, 60), st.sampled_from([8, 40, 300]))
@settings(max_examples=25, deadline=None)
def test_top_logits_in_bf16_are_the_float32_ones(seed: int, k: int, hidden: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(hidden, 5000, bias=False, dtype=torch.bfloat16)
    head.weight.data = torch.randn(5000, hidden, generator=generator).bfloat16()
    head.weight.data[17] = head.weight.data[4000]  # a true tie
    states = (torch.randn(9, hidden, generator=generator) * 3).bfloat16()
    ours = OutputHead(head, object())
    ids, values = ours.top(states, k)
    full = ours.full_logits(states)
    for line, line_ids, line_values in zip(full, ids, values, strict=True):
        kept = line_values > -torch.inf
        kth = line.topk(k).values[-1]
        # equal up to the order of summation: whoever is within rounding of the k-th may be in or out
        slack = 1e-4 * float(line.abs().max())
        assert set((line > kth + slack).nonzero()[:, 0].tolist()) <= set(line_ids[kept].tolist())
        assert bool((line[line_ids[kept]] >= kth - slack).all())
        torch.testing.assert_close(line[line_ids[kept]], line_values[kept], rtol=1e-4, atol=slack)
        assert line_values.tolist() == sorted(line_values.tolist(), reverse=True)
