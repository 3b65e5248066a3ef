"""Processors and versions of torch that lack what the fast path takes: forced here, whatever machine this runs on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import foreknow
from foreknow import progress
from foreknow.inference import prepacked_linear
from foreknow.inference.packed_attention import ATTENTION
from foreknow.models import bfloat16_speed, loading, private_api
from foreknow.stages.train.tracker import EvalModelCopy

UNSUPPORTED = "mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx_ne_convert or avx512bw"


def reorder(weight: Tensor, batch: int) -> Tensor:
    return weight.clone()


def pointwise(x: Tensor, weight: Tensor, bias: Any, after: str, scalars: list[Any], algorithm: str) -> Tensor:
    out = nn.functional.linear(x, weight, bias)
    if after == "swish":
        return nn.functional.silu(out)
    return nn.functional.gelu(out, approximate=algorithm) if after == "gelu" else out


def binary(x: Tensor, other: Tensor, weight: Tensor, bias: Any, how: str) -> Tensor:
    assert how == "mul"
    return nn.functional.linear(x, weight, bias) * other


class Pointwise:
    """torch's operator, which has another one as its attribute."""

    def __init__(self, call: Callable[..., Tensor] = pointwise, **overloads: Callable[..., Tensor]):
        self.call = call
        vars(self).update(overloads)

    def __call__(self, *given: Any) -> Tensor:
        return self.call(*given)


def operators(**changed: Any) -> SimpleNamespace:
    """torch's operators in Python, which work on any processor; `None` leaves one out."""
    usual = {"_reorder_linear_weight": reorder, "_linear_pointwise": Pointwise(binary=binary)}
    return SimpleNamespace(**{name: op for name, op in {**usual, **changed}.items() if op is not None})


def raising(error: Exception) -> Callable[..., Tensor]:
    def op(*_: Any) -> Tensor:
        raise error

    return op


def wrong(x: Tensor) -> Tensor:
    """One number in a thousand is another one."""
    out = x.clone().flatten()
    out[::1000] += 3 * out.float().std() + 1
    return out.view(x.shape)


NOTHING_WORKS = {
    "the processor lacks it": operators(_reorder_linear_weight=raising(RuntimeError(UNSUPPORTED))),
    "no operators at all": SimpleNamespace(),
    "no reordering": operators(_reorder_linear_weight=None),
    "no product": operators(_linear_pointwise=None),
    "reordering takes one argument": operators(_reorder_linear_weight=lambda weight: weight),
    "product takes three arguments": operators(_linear_pointwise=Pointwise(lambda x, _w, _b: x, binary=binary)),
    "not for this dtype": operators(_linear_pointwise=Pointwise(raising(NotImplementedError()), binary=binary)),
    "wrong numbers": operators(_linear_pointwise=Pointwise(lambda *g: wrong(pointwise(*g)), binary=binary)),
    "not a number": operators(_linear_pointwise=Pointwise(lambda *g: pointwise(*g) * torch.nan, binary=binary)),
    "another dtype": operators(_linear_pointwise=Pointwise(lambda *g: pointwise(*g).float(), binary=binary)),
    "another shape": operators(_linear_pointwise=Pointwise(lambda *g: pointwise(*g)[..., :1], binary=binary)),
    "a weight in another order": operators(_reorder_linear_weight=lambda w, _: w.flip(0).contiguous()),
}
"""Operators with which no layer can be laid out."""
ONLY_GATES_FAIL = {
    "no binary": operators(_linear_pointwise=Pointwise()),
    "binary takes three arguments": operators(_linear_pointwise=Pointwise(binary=lambda x, _other, _w: x)),
    "binary adds": operators(
        _linear_pointwise=Pointwise(binary=lambda x, o, w, b, _: nn.functional.linear(x, w, b) + o)
    ),
    "activation left out": operators(
        _linear_pointwise=Pointwise(lambda x, w, b, *_: nn.functional.linear(x, w, b), binary=binary)
    ),
    "activation not known": operators(
        _linear_pointwise=Pointwise(
            lambda x, w, b, after, *more: (
                pointwise(x, w, b, after, *more) if after == "none" else raising(RuntimeError(f"unknown {after}"))()
            )
        )
    ),
}
"""Operators that lay out single layers, but not the feed-forward part as one."""


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_ONCE", set())


def build(activation: str = "silu", bias: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, hidden_act=activation, mlp_bias=bias, attention_bias=bias,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    if bias:
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(weight)
    return model


def layers(model: nn.Module) -> set[str]:
    return {type(m).__name__ for m in model.modules()} & {"_PrepackedGate", "_PrepackedLinear", "LlamaMLP"}


IDS = torch.arange(1, 40)[None]


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("bias", [False, True])
def test_operators_that_work_are_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], activation: str, bias: bool
) -> None:
    model = build(activation, bias)
    before = model(IDS).logits
    monkeypatch.setattr(torch.ops, "mkldnn", operators())
    swapped = prepacked_linear.prepack_linears(model.model, model.config)
    assert layers(model) == {"_PrepackedGate", "_PrepackedLinear"}
    torch.testing.assert_close(model(IDS).logits, before)
    prepacked_linear.restore_linears(swapped)
    assert layers(model) == {"LlamaMLP"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", NOTHING_WORKS)
def test_without_the_operators_layers_stay_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = build()
    before = model(IDS).logits
    monkeypatch.setattr(torch.ops, "mkldnn", NOTHING_WORKS[name])
    for _ in range(3):
        assert prepacked_linear.prepack_linears(model.model, model.config) == []
    assert layers(model) == {"LlamaMLP"}
    assert torch.equal(model(IDS).logits, before)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bfloat16 layers are computed as torch has them, which is slower: ")
    assert len(line) < 300


@pytest.mark.parametrize("name", ONLY_GATES_FAIL)
def test_a_feed_forward_part_that_cannot_be_one_is_laid_out_layer_by_layer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = build()
    before = model(IDS).logits
    monkeypatch.setattr(torch.ops, "mkldnn", ONLY_GATES_FAIL[name])
    swapped = prepacked_linear.prepack_linears(model.model, model.config)
    assert layers(model) == {"LlamaMLP", "_PrepackedLinear"}
    torch.testing.assert_close(model(IDS).logits, before)
    prepacked_linear.restore_linears(swapped)
    assert layers(model) == {"LlamaMLP"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("some bfloat16 layers are computed as torch has them, which is slower: ")


def test_a_feed_forward_part_of_another_formula_is_not_taken_for_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    class OddMLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(16, 16).bfloat16() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(torch.sigmoid(self.gate_proj(x)) + self.up_proj(x))

    torch.manual_seed(1)
    body = nn.ModuleDict({"mlp": OddMLP()})
    x = torch.randn(2, 3, 16).bfloat16()
    before = body["mlp"](x)
    monkeypatch.setattr(torch.ops, "mkldnn", operators())
    prepacked_linear.prepack_linears(body, SimpleNamespace(hidden_act="silu"))
    assert type(body["mlp"]).__name__ == "OddMLP"
    torch.testing.assert_close(body["mlp"](x), before)


def test_an_operator_that_fails_for_one_shape_leaves_that_shape_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def picky(weight: Tensor, batch: int) -> Tensor:
        if weight.shape == (16, 32):  # keys and values
            raise RuntimeError("could not create a primitive descriptor")
        return weight.clone()

    model = build()
    monkeypatch.setattr(torch.ops, "mkldnn", operators(_reorder_linear_weight=picky))
    prepacked_linear.prepack_linears(model.model, model.config)
    attention = model.model.layers[0].self_attn
    assert type(attention.k_proj) is type(attention.v_proj) is nn.Linear
    assert type(attention.q_proj).__name__ == "_PrepackedLinear"
    assert "could not create a primitive descriptor" in capsys.readouterr().err


def test_damaged_weights_are_no_fault_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    model.model.layers[0].mlp.up_proj.weight.data[3] = torch.nan
    model.model.layers[1].self_attn.q_proj.weight.data[:] = torch.inf
    monkeypatch.setattr(torch.ops, "mkldnn", operators())
    prepacked_linear.prepack_linears(model.model, model.config)
    assert layers(model) == {"_PrepackedGate", "_PrepackedLinear"}


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("can't allocate memory")])
def test_want_of_memory_is_not_taken_for_a_missing_operator(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    model = build()
    seen: list[int] = []

    def third(weight: Tensor, batch: int) -> Tensor:
        seen.append(1)
        if len(seen) == 3:
            raise error
        return weight.clone()

    monkeypatch.setattr(torch.ops, "mkldnn", operators(_reorder_linear_weight=third))
    with pytest.raises(type(error)):
        prepacked_linear.prepack_linears(model.model, model.config)
    assert layers(model) == {"LlamaMLP"}, "the model is as it was"


@pytest.mark.parametrize(
    "fault",
    [
        NOTHING_WORKS["the processor lacks it"],
        NOTHING_WORKS["no operators at all"],
        NOTHING_WORKS["product takes three arguments"],
        NOTHING_WORKS["wrong numbers"],
        ONLY_GATES_FAIL["no binary"],
    ],
    ids=["processor", "missing", "signature", "numbers", "binary"],
)
def test_labels_are_those_of_the_plain_path(
    tmp_path: Path,
    tiny_folder: Path,
    facts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: SimpleNamespace,
) -> None:
    settings: dict[str, Any] = {"model": str(tiny_folder), "dtype": "bfloat16", "device": "cpu"}
    settings |= {"shots": 2, "exemplar_sets": 3, "limit": 24}
    with monkeypatch.context() as plainly:
        plainly.setattr("foreknow.inference.packed_model.prepack_linears", lambda *_: [])
        plain = foreknow.audit(str(facts_file), out=str(tmp_path / "plain"), **settings)
    capsys.readouterr()
    monkeypatch.setattr(torch.ops, "mkldnn", fault)
    found = foreknow.audit(str(facts_file), out=str(tmp_path / "fault"), **settings)
    assert found.rows.equals(plain.rows)
    assert plain.rows["category"].n_unique() > 1
    assert found.summary["protocol"]["engine"] == "packed"
    assert capsys.readouterr().err.count("are computed as torch has them") == 1


AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""What makes torch's libraries compute as on a processor that has AVX2 and no more."""


def test_an_audit_where_onednn_has_avx2_only(tmp_path: Path, tiny_folder: Path, facts_file: Path) -> None:
    code = f"""
import foreknow
from foreknow.progress import log_to_stderr
log_to_stderr()
for dtype in ("bfloat16", "auto"):
    done = foreknow.audit({str(facts_file)!r}, model={str(tiny_folder)!r}, out={str(tmp_path)!r} + "/" + dtype,
                          dtype=dtype, device="cpu", shots=2, exemplar_sets=2, limit=12)
    print(dtype, done.summary["protocol"]["dtype"], done.summary["labelled"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **AVX2}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["bfloat16 bfloat16 12", "auto float32 12"]
    assert done.stderr.count("are computed as torch has them") == 1
    assert "dtype float32: the processor has no instructions for bfloat16" in done.stderr
    assert "dtype bfloat16: asked for, though the processor has no instructions for it; float32 is" in done.stderr
    exact, rough = (pl.read_parquet(tmp_path / dtype / "rows.parquet") for dtype in ("auto", "bfloat16"))
    assert (exact["category"] == rough["category"]).mean() > 0.8


def query(answer: bool | Exception | None) -> Callable[..., bool]:
    def ask() -> bool:
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    return ask


@pytest.mark.parametrize(
    ("processor", "library", "dtype"),
    [
        (query(True), query(True), "bfloat16"),
        (query(False), query(True), "float32"),
        (query(True), query(False), "float32"),
        (query(True), None, "bfloat16"),
        (query(True), query(RuntimeError("not built in")), "bfloat16"),
        (query(True), lambda which: which, "bfloat16"),
        (lambda which: which, query(True), "capabilities"),
        (query(NotImplementedError()), query(True), "capabilities"),
        (None, query(True), "capabilities"),
        (None, query(False), "float32"),
    ],
)
def test_dtype_auto_asks_processor_and_library(
    monkeypatch: pytest.MonkeyPatch, processor: Any, library: Any, dtype: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(loading, "is_bfloat16_faster", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", operators(_is_mkldnn_bf16_supported=library))
    if processor is None:
        monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    else:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", processor)
    if dtype != "capabilities":
        capabilities = {"avx512_bf16": True} if dtype == "bfloat16" or processor is None else {}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        assert loading.resolve_device_dtype("auto", "auto") == ("cpu", dtype)
        return
    for there, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda it=there: {"avx512_bf16": it}, raising=False)
        assert loading.resolve_device_dtype("auto", "auto") == ("cpu", expected)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert loading.resolve_device_dtype("auto", "auto") == ("cpu", "float32")


@pytest.mark.parametrize(("gain", "dtype"), [(0.6, "float32"), (1.0, "float32"), (1.2, "float32"), (2.0, "bfloat16")])
def test_dtype_auto_takes_bfloat16_only_where_its_products_are_faster(
    monkeypatch: pytest.MonkeyPatch, gain: float, dtype: str
) -> None:
    clock = [0.0]

    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        clock[0] += 1 / gain if x.dtype == torch.bfloat16 else 1.0
        return x

    monkeypatch.setattr(torch.nn.functional, "linear", product)
    monkeypatch.setattr(bfloat16_speed.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(loading, "has_bfloat16_instructions", lambda: True)
    monkeypatch.setattr(loading, "is_bfloat16_faster", bfloat16_speed.is_bfloat16_faster.__wrapped__)
    chosen, reason = loading._choose_dtype("auto", "cpu")
    other = {"float32": "bfloat16", "bfloat16": "float32"}[dtype]
    assert chosen == dtype
    assert reason == f"dtype {dtype}: this processor multiplies matrices faster in it than in {other}"


def test_one_slow_round_does_not_choose_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 9.0, 9.0, 10.0] + [10.0, 10.2, 10.2, 11.2] * 9)  # bfloat16 9, float32 1; then 0.2 and 1
    monkeypatch.setattr(bfloat16_speed.time, "perf_counter", lambda: next(times))
    assert bfloat16_speed.is_bfloat16_faster.__wrapped__()


def test_the_attention_is_remembered_where_the_config_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    class Config:
        """A config without transformers' private attribute."""

    class Model:
        config, _supports_sdpa = Config(), True
        used = "sdpa"

        def set_attn_implementation(self, name: str) -> None:
            self.used = name

    model: Any = Model()
    assert private_api.attention_of(model) == "sdpa"
    private_api.set_attention(model, ATTENTION)
    assert private_api.attention_of(model) == model.used == ATTENTION
    del Model._supports_sdpa
    assert private_api.plain_attention(model) == "eager"


@pytest.fixture
def folder_model(tiny_folder: Path) -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    return found


@pytest.mark.parametrize("private", [None, lambda config: config])
def test_a_copy_is_made_without_the_private_constructor(
    folder_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, private: Any
) -> None:
    usual = EvalModelCopy(torch.bfloat16).of(folder_model)
    monkeypatch.setattr(type(folder_model), "_from_config", private)
    found = EvalModelCopy(torch.bfloat16).of(folder_model)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found(IDS).logits, usual(IDS).logits)


@pytest.mark.parametrize("resize", [None, lambda: None, raising(ValueError("poisoned"))])
def test_a_tokenizer_that_cannot_forget_is_read_all_the_same(resize: Any) -> None:
    model = SimpleNamespace() if resize is None else SimpleNamespace(_resize_cache=resize)
    private_api.disable_word_cache(SimpleNamespace(backend_tokenizer=SimpleNamespace(model=model)))
    private_api.disable_word_cache(SimpleNamespace())
