"""A loaded model: it is asked where it lies, gets the labels of its folder, and is left exactly as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import foreknow
from conftest import fact_rows
from foreknow.errors import ConfigError, ModelError
from foreknow.models.fingerprints import fingerprint as folder_fingerprint
from foreknow.models.in_memory import fingerprint, unchanged_folder

# raised by PEFT and transformers among themselves
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

FACTS = fact_rows()
SMALL: dict[str, Any] = {"shots": 2, "exemplar_sets": 2, "limit": 12}
LABELS = ("row", "category", "p_greedy", "p_sampled", "p_hit", "model_answer")


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)


def state_of(model: Any) -> dict[str, Any]:
    """Everything that asking could change in a model, and torch's random state."""
    return {
        "modes": [module.training for module in model.modules()],
        "modules": [(name, type(module), id(module)) for name, module in model.named_modules()],
        "weights": {
            n: (p.data_ptr(), p.dtype, p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()
        },
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "buffers": {name: (id(buffer), buffer.is_inference()) for name, buffer in model.named_buffers()},
        "hooks": [list(module._forward_hooks) + list(module._backward_hooks) for module in model.modules()],
        "attention": model.config._attn_implementation,
        "random": torch.get_rng_state(),
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def step(model: Any, tokenizer: Any, optimizer: Any, row: dict[str, Any]) -> float:
    """One step of plain training."""
    ids = tokenizer(f"{row['question']} {row['answer']}", return_tensors="pt")["input_ids"]
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def test_a_loaded_model_gets_the_labels_of_its_folder(tiny_folder: Path, model: Any, tokenizer: Any) -> None:
    ours = foreknow.audit(FACTS, model=model, tokenizer=tokenizer, **SMALL)
    theirs = foreknow.audit(FACTS, model=tiny_folder, dtype="float32", **SMALL)
    assert ours.rows.select(LABELS).equals(theirs.rows.select(LABELS))
    assert ours.summary["protocol"]["engine"] == theirs.summary["protocol"]["engine"] == "packed"
    about = ours.summary["model"]
    assert (about["name"], about["folder"], about["note"]) == ("tiny (in memory)", None, "a model in memory")
    assert "tiny (in memory)" in (ours.folder / "config.yaml").read_text()
    assert about["fingerprint"] == theirs.summary["model"]["fingerprint"]  # still what lies in its folder


def test_a_model_counts_as_its_folder_only_while_it_is_what_lies_there(tiny_folder: Path, tokenizer: Any) -> None:
    stored = folder_fingerprint(tiny_folder)
    for dtype in (torch.float32, torch.bfloat16):
        assert unchanged_folder(AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype), tokenizer) == stored
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    weights = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        own = weights[3, 4].clone()
        weights[3, 4] += 1e-4
        assert unchanged_folder(model, tokenizer) is None
        weights[3, 4] = own
        assert unchanged_folder(model, tokenizer) == stored
    model.config.rms_norm_eps = 1e-3
    assert unchanged_folder(model, tokenizer) is None
    other = AutoTokenizer.from_pretrained(tiny_folder)
    other.add_tokens(["another"])
    assert unchanged_folder(AutoModelForCausalLM.from_pretrained(tiny_folder), other) is None


@pytest.mark.parametrize("protocol", ["exact", "sampled"])
def test_asking_leaves_a_model_in_training_as_it_was(protocol: Any, model: Any, tokenizer: Any) -> None:
    model.train()
    model.model.layers[0].eval()  # a mode of its own
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    seen: list[int] = []
    model.model.norm.register_forward_hook(lambda *_: seen.append(1))
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    torch.manual_seed(7)
    before = state_of(model)
    foreknow.audit(FACTS, model=model, tokenizer=tokenizer, protocol=protocol, samples=2, **SMALL)
    assert same(before, state_of(model))
    assert seen  # hooks stay, and see the passes


def test_training_goes_on_as_if_nobody_had_asked(tiny_folder: Path, tokenizer: Any) -> None:
    losses: dict[bool, list[float]] = {}
    for asks in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).train()
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses[asks] = []
        for row in FACTS[:3]:
            losses[asks].append(step(model, tokenizer, optimizer, row))
            if asks:
                foreknow.audit(FACTS, model=model, tokenizer=tokenizer, **{**SMALL, "limit": 4})
    assert losses[True] == losses[False]


def test_a_step_changes_the_fingerprint_and_nothing_else_does(model: Any, tokenizer: Any) -> None:
    first = fingerprint(model, tokenizer)
    tokenizer(["a", "b c d e f"], padding=False, truncation=True, max_length=3)
    assert fingerprint(model.train(), tokenizer) == first
    step(model, tokenizer, torch.optim.SGD(model.parameters(), lr=1e-4), FACTS[0])
    assert fingerprint(model, tokenizer) != first


def test_a_peft_model_is_asked_with_its_adapter(model: Any, tokenizer: Any) -> None:
    plain = foreknow.audit(FACTS, model=model, tokenizer=tokenizer, **SMALL)
    trained = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, target_modules="all-linear"))
    trained.train()
    with torch.no_grad():
        for name, weights in trained.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.5)
    before = state_of(trained)
    audit = foreknow.audit(FACTS, model=trained, tokenizer=tokenizer, **SMALL)
    assert same(before, state_of(trained))
    assert not audit.rows["p_sampled"].equals(plain.rows["p_sampled"])
    assert "PEFT adapter default" in audit.summary["model"]["note"]
    assert audit.summary["model"]["fingerprint"] != plain.summary["model"]["fingerprint"]
    with trained.disable_adapter():
        off = foreknow.audit(FACTS, model=trained, tokenizer=tokenizer, **SMALL)
    assert off.rows["p_sampled"].to_list() == pytest.approx(plain.rows["p_sampled"].to_list(), abs=1e-5)


def test_chances_are_measured_with_the_model_in_memory(model: Any, tokenizer: Any) -> None:
    audit = foreknow.audit(FACTS, model=model, tokenizer=tokenizer, chance=True, **SMALL)
    assert audit.chance is not None


def test_tune_trains_a_copy_and_evaluate_asks_both(model: Any, tokenizer: Any) -> None:
    audit = foreknow.audit(FACTS[:16] + FACTS[24:40], model=model, tokenizer=tokenizer, **{**SMALL, "limit": None})
    before = state_of(model)
    tuned = foreknow.tune(
        foreknow.mix(audit, natural=True), dev=FACTS[16:24], model=model, tokenizer=tokenizer, audit=audit, epochs=1,
        canaries="none",
    )  # fmt: skip
    assert same({**before, "random": 0}, {**state_of(model), "random": 0})
    assert (tuned.best / "model.safetensors").is_file()
    assert tuned.results["model"]["fingerprint"] == audit.summary["model"]["fingerprint"]
    evaluated = foreknow.evaluate(tuned, FACTS[24:32], audit=audit)
    assert evaluated.summary["rows"] == 8
    model.train()
    in_memory = foreknow.evaluate(model, FACTS[40:], tokenizer=tokenizer)
    assert model.training
    assert in_memory.summary["model"]["name"] == "tiny (in memory)"


def test_what_cannot_be_asked_is_refused(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokenizer: found none, expected the tokenizer of tiny"):
        foreknow.audit(FACTS, model=model)
    with pytest.raises(ConfigError, match="tokenizer: found a loaded tokenizer without a loaded model"):
        foreknow.audit(FACTS, model="lab", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="dtype='bfloat16': found with a model that is loaded already"):
        foreknow.audit(FACTS, model=model, tokenizer=tokenizer, dtype="bfloat16")
    with pytest.raises(ConfigError, match="ray=True: found with a model that is loaded already"):
        foreknow.audit(FACTS, model=model, tokenizer=tokenizer, ray=True)
    with pytest.raises(ModelError, match="its weights are float64"):
        foreknow.audit(FACTS, model=model.double(), tokenizer=tokenizer)
    prefix = get_peft_model(model.float(), PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2))
    with pytest.raises(ModelError, match="adapter adds a prompt"):
        foreknow.audit(FACTS, model=prefix, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="expected a whole model to train a copy of"):
        foreknow.tune(FACTS, model=get_peft_model(model, LoraConfig(target_modules="all-linear")), tokenizer=tokenizer)


def test_a_diverged_model_is_refused_and_left_as_it_was(model: Any, tokenizer: Any) -> None:
    model.train()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(ModelError, match="hold NaN or infinite numbers"):
        foreknow.audit(FACTS, model=model, tokenizer=tokenizer, **SMALL)
    assert model.training
