"""A checkpoint that is not wholly its model is refused with its tensors' names, wherever a model is loaded."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import foreknow
from builders import Weights, edited, load, refusal
from conftest import fact_rows
from foreknow import cli
from foreknow.errors import ModelError
from foreknow.models import checkpoint_check, model_checks
from foreknow.models.resolve import resolve

LAST = "model.layers.1.mlp.down_proj.weight"


def sharded(source: Path, folder: Path, count: int = 3) -> Path:
    """The same model in shards with an index."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    placed = {name: names[at % count] for at, name in enumerate(sorted(weights))}
    for file in names:
        part = {name: weights[name] for name, where in placed.items() if where == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def rename(weights: Weights, change: Callable[[str], str]) -> None:
    for name in list(weights):
        weights[change(name)] = weights.pop(name)


# what a checkpoint lacks, holds besides, or has in another shape


def test_missing_tensors_are_named_and_counted(tiny_folder: Path, tmp_path: Path) -> None:
    told = refusal(edited(tiny_folder, tmp_path / "one", lambda w: w.pop(LAST)))
    assert f"the checkpoint lacks 1 tensor of the model: {LAST}." in told
    assert "Layers of which other tensors are there lack these: they were not saved whole" in told

    def half(weights: Weights) -> None:
        for name in [name for name in weights if name.startswith("model.layers.1.")]:
            del weights[name]

    told = refusal(edited(tiny_folder, tmp_path / "half", half))
    assert "the checkpoint lacks 9 tensors of the model: model.layers.1.input_layernorm.weight, " in told
    assert " and 5 more" in told
    assert "config.json names 2 layers of LlamaForCausalLM, and the weights have fewer" in told


def test_a_config_of_fewer_layers_does_not_cut_the_model_short(tiny_folder: Path, tmp_path: Path) -> None:
    told = refusal(edited(tiny_folder, tmp_path / "m", num_hidden_layers=1))
    assert "m: the checkpoint holds 9 tensors that the model lacks: model.layers.1.input_layernorm.weight" in told
    assert "config.json names 1 layers of LlamaForCausalLM, and the weights have more" in told


def test_tensors_of_another_shape_are_named_with_both(tiny_folder: Path, tmp_path: Path) -> None:
    def grown(weights: Weights) -> None:
        table = weights["model.embed_tokens.weight"]
        weights["model.embed_tokens.weight"] = torch.cat([table, table[:3]])

    told = refusal(edited(tiny_folder, tmp_path / "m", grown))
    assert (
        "m: the checkpoint holds 1 tensor of another shape: model.embed_tokens.weight [423, 64], expected [420, 64]"
        in told
    )
    assert "config.json says vocab_size 420" in told


@pytest.mark.parametrize("prefix", sorted(checkpoint_check.WRAPPERS))
def test_a_wrappers_prefix_is_named_with_what_to_do(tiny_folder: Path, tmp_path: Path, prefix: str) -> None:
    told = refusal(edited(tiny_folder, tmp_path / "m", lambda w: rename(w, lambda name: f"{prefix}{name}")))
    assert f"The names begin with {prefix!r}: " in told
    assert "the checkpoint lacks" in told


def test_names_without_the_bodys_prefix_are_those_of_the_same_model(tiny_folder: Path, tmp_path: Path) -> None:
    """`LlamaModel` saves them so; transformers knows which they are."""
    bare = edited(tiny_folder, tmp_path / "m", lambda w: rename(w, lambda name: name.removeprefix("model.")))
    sound, found = load(tiny_folder).model.state_dict(), load(bare).model.state_dict()
    assert all(torch.equal(found[name], values) for name, values in sound.items())


def test_weights_that_were_not_merged_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    def unmerged(weights: Weights) -> None:
        weights["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.zeros(4, 64)
        weights["model.layers.0.self_attn.q_proj.lora_B.default.weight"] = torch.zeros(64, 4)

    assert "LoRA weights that were not merged" in refusal(edited(tiny_folder, tmp_path / "m", unmerged))


# tied weights and buffers


def test_a_tied_head_may_be_absent_and_an_untied_one_may_not(tiny_folder: Path, tmp_path: Path) -> None:
    assert "lm_head.weight" not in load_file(tiny_folder / "model.safetensors")
    load(tiny_folder)
    told = refusal(edited(tiny_folder, tmp_path / "untied", tie_word_embeddings=False))
    assert "the checkpoint lacks 1 tensor of the model: lm_head.weight." in told
    assert "Without its output head it is no language model" in told


def test_embeddings_may_be_saved_under_the_heads_name(tiny_folder: Path, tmp_path: Path) -> None:
    def moved(weights: Weights) -> None:
        weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")

    found = load(edited(tiny_folder, tmp_path / "m", moved)).model
    assert torch.equal(found.model.embed_tokens.weight, load(tiny_folder).model.model.embed_tokens.weight)


def test_two_tables_that_differ_under_a_config_that_ties_them_are_both_used(tiny_folder: Path, tmp_path: Path) -> None:
    def two(weights: Weights) -> None:
        weights["lm_head.weight"] = -weights["model.embed_tokens.weight"]

    folder = edited(tiny_folder, tmp_path / "m", two)
    loaded = load(folder)
    assert any("ties the output head to the embeddings" in note for note in loaded.notes)
    ids = torch.tensor([[5, 6, 7]])
    sound = load(tiny_folder).model(ids).logits
    assert torch.allclose(loaded.model(ids).logits, -sound, atol=1e-5)
    loaded.model.save_pretrained(tmp_path / "again")  # a copy that is saved keeps both
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.allclose(again(ids).logits, -sound, atol=1e-5)


def test_both_tables_missing_is_no_tie(tiny_folder: Path, tmp_path: Path) -> None:
    told = refusal(edited(tiny_folder, tmp_path / "m", lambda w: w.pop("model.embed_tokens.weight")))
    assert "model.embed_tokens.weight" in told


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(8), None),
        ("model.layers.0.attn.masked_bias", torch.tensor(-1e4), "buffers that older versions saved"),
        ("model.layers.0.attn.bias", torch.ones(1, 1, 16, 16), "buffers that older versions saved"),
        ("v_head.summary.weight", torch.ones(1, 64), "a value head"),
        ("mtp.layers.0.weight", torch.ones(4), "multi-token prediction"),
        ("model.layers.0.self_attn.k_scale", torch.ones(1), "scales of a quantised cache"),
    ],
)
def test_what_changes_no_answer_is_left_out_and_noted(
    tiny_folder: Path, tmp_path: Path, name: str, values: torch.Tensor, why: str | None
) -> None:
    loaded = load(edited(tiny_folder, tmp_path / "m", lambda w: w.update({name: values})))
    assert why is None or any(why in note for note in loaded.notes)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.model(ids).logits, load(tiny_folder).model(ids).logits)


def test_layers_counted_behind_the_last_are_for_prediction(tiny_folder: Path, tmp_path: Path) -> None:
    extra = {"model.layers.2.eh_proj.weight": torch.ones(4)}
    folder = edited(tiny_folder, tmp_path / "m", lambda w: w.update(extra), num_nextn_predict_layers=1)
    assert any("multi-token prediction" in note for note in load(folder).notes)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("model.layers.0.attn.bias", torch.ones(64)),  # no old mask: numbers that an attention with a bias would add
        ("model.layers.0.self_attn.q_proj.bias", torch.ones(64)),
        ("lm_head.bias", torch.ones(420)),
        ("model.layers.0.self_attn.q_norm.weight", torch.ones(16)),
        ("vision_tower.layers.0.weight", torch.ones(4)),  # of a model that has no images
    ],
)
def test_what_may_change_an_answer_is_not_left_out(
    tiny_folder: Path, tmp_path: Path, name: str, values: torch.Tensor
) -> None:
    told = refusal(edited(tiny_folder, tmp_path / "m", lambda w: w.update({name: values})))
    assert f"m: the checkpoint holds 1 tensor that the model lacks: {name}" in told


def test_a_reward_model_is_no_causal_lm_even_where_its_head_is_tied(tiny_folder: Path, tmp_path: Path) -> None:
    score = {"score.weight": torch.ones(1, 64)}
    folder = edited(tiny_folder, tmp_path / "m", lambda w: w.update(score))
    assert "score.weight is a head for classification or reward" in refusal(folder)
    folder = edited(
        tiny_folder, tmp_path / "n", lambda w: w.update(score), architectures=["LlamaForSequenceClassification"]
    )
    assert "LlamaForSequenceClassification, a classifier or reward model, which answers nothing" in refusal(folder)


# files


def test_shards_are_one_model(tiny_folder: Path, tmp_path: Path) -> None:
    whole, parts = load(tiny_folder).model.state_dict(), load(sharded(tiny_folder, tmp_path / "m")).model.state_dict()
    assert all(torch.equal(parts[name], values) for name, values in whole.items())


def test_a_lost_shard_is_named_with_what_it_held(tiny_folder: Path, tmp_path: Path) -> None:
    folder = sharded(tiny_folder, tmp_path / "m")
    (folder / "model-00002-of-00003.safetensors").unlink()
    told = refusal(folder)
    assert "1 of 3 shards are not there: model-00002-of-00003.safetensors (7 of 20 tensors)" in told


def test_an_index_that_lists_what_its_shards_lack_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = sharded(tiny_folder, tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["weight_map"]["model.layers.7.mlp.up_proj.weight"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(told))
    assert "lists 1 tensor that its shards do not hold: model.layers.7.mlp.up_proj.weight" in refusal(folder)


@pytest.mark.parametrize("same", [True, False])
def test_a_tensor_in_two_shards_is_one_where_they_agree(tiny_folder: Path, tmp_path: Path, same: bool) -> None:
    folder = sharded(tiny_folder, tmp_path / "m")
    first, second = (folder / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
    name, values = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: values if same else values + 1}, second, metadata={"format": "pt"})
    if same:
        load(folder)
    else:
        assert f"both hold {name}, with different values" in refusal(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], r"cut short: found [\d,]+ bytes, expected [\d,]+ \(model\."),
        (lambda raw: raw[:100], r"not a whole safetensors file \(100 bytes"),
        (lambda raw: raw[:4], r"not a whole safetensors file \(4 bytes"),
        (lambda _: b"", r"not a whole safetensors file \(0 bytes"),
        (lambda raw: raw[:8] + b"x" * (len(raw) - 8), r"its header is damaged"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", r"a Git LFS pointer"),
        (lambda _: b"<!DOCTYPE html><html>" * 9, r"not a whole safetensors file"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_named(
    tiny_folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelError, match=f"model.safetensors: {message}"):
        resolve(str(folder))  # before any run folder is claimed


def test_empty_tensors_are_those_of_one_process_of_several(tiny_folder: Path, tmp_path: Path) -> None:
    def partial(weights: Weights) -> None:
        for name in list(weights)[3:]:
            weights[name] = torch.zeros(0)

    told = refusal(edited(tiny_folder, tmp_path / "m", partial))
    assert "17 of 20 tensors are empty: " in told
    assert "FSDP, DeepSpeed ZeRO-3" in told


def test_a_second_set_of_weights_is_noted(tiny_folder: Path, tmp_path: Path) -> None:
    folder = sharded(tiny_folder, tmp_path / "m")
    shutil.copy(tiny_folder / "model.safetensors", folder / "model.safetensors")
    assert any(
        "the weights are those of model.safetensors; model.safetensors.index.json" in n for n in load(folder).notes
    )


def test_pickled_weights_are_held_against_the_model_too(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert torch.equal(load(folder).model.model.norm.weight, weights["model.norm.weight"])
    del weights[LAST]
    torch.save(weights, folder / "pytorch_model.bin")
    assert f"the checkpoint lacks 1 tensor of the model: {LAST}" in refusal(folder)
    (folder / "pytorch_model.bin").write_text("<html>")
    assert "pytorch_model.bin: not weights saved by torch (6 bytes)" in refusal(folder)


def test_experts_that_are_missing_in_the_middle_do_not_move_up(tmp_path: Path, tiny_folder: Path) -> None:
    """The loader stacks what it finds: with one lost and one too many, the shape is right and the weights are not."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=420, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    sound = tmp_path / "sound"
    MixtralForCausalLM(config).save_pretrained(sound)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(sound)
    load(sound)

    def moved(weights: Weights) -> None:
        for name in [name for name in weights if ".experts.1." in name]:
            weights[name.replace(".experts.1.", ".experts.4.")] = weights.pop(name)

    told = refusal(edited(sound, tmp_path / "moved", moved))
    assert "the checkpoint lacks experts of the model: " in told
    assert ".experts.1." in told

    def lost(weights: Weights) -> None:
        for name in [name for name in weights if ".experts.3." in name]:
            del weights[name]

    assert "of another shape: " in refusal(edited(sound, tmp_path / "lost", lost))


# numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [LAST, "model.norm.weight", "model.embed_tokens.weight"])
def test_weights_that_are_no_numbers_are_named(tiny_folder: Path, tmp_path: Path, name: str, value: float) -> None:
    def damaged(weights: Weights) -> None:
        weights[name].view(-1)[7] = value

    told = refusal(edited(tiny_folder, tmp_path / "m", damaged))
    assert f"1 of 20 tensors hold NaN or infinite numbers: {name}; the checkpoint is damaged" in told


def test_weights_too_large_for_the_dtype_are_told_from_damaged_ones(tiny_folder: Path, tmp_path: Path) -> None:
    def large(weights: Weights) -> None:
        weights[LAST][3, 5] = 1e6
        for name in weights:
            weights[name] = weights[name].to(torch.bfloat16)

    folder = edited(tiny_folder, tmp_path / "m", large)
    told = refusal(folder, dtype="float16")
    assert f"1 of 20 tensors do not fit into float16: {LAST} (they are BF16 in the checkpoint)" in told
    assert "use --dtype bfloat16 or float32" in told
    load(folder, dtype="bfloat16")
    load(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_a_number_is_seen_in_every_dtype(dtype: torch.dtype) -> None:
    values = torch.ones(1000).to(dtype)
    assert model_checks.is_finite(values)
    assert model_checks.is_finite(values[::3])
    if dtype != torch.float8_e4m3fn:  # which has no infinity
        assert not model_checks.is_finite(values.index_fill(0, torch.tensor([999]), math.inf))
    with_nan = torch.ones(1000)
    with_nan[500] = math.nan
    assert not model_checks.is_finite(with_nan.to(dtype))
    assert model_checks.is_finite(torch.ones(3, dtype=torch.int8))
    assert model_checks.is_finite(torch.empty(0))


def test_offloaded_weights_are_read_for_it(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device map the loader leaves parts on disk, unread; the check reads them as they will be used."""
    original = AutoModelForCausalLM.from_pretrained

    def on_disk(folder: str, **given: Any) -> Any:
        if given["device_map"] == "auto":
            parts = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", "model.layers.0"]
            given["device_map"] = {**dict.fromkeys(parts, "cpu"), "model.layers.1": "disk"}
            given["offload_folder"] = str(tmp_path / "offloaded")
        return original(folder, **given)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", on_disk)
    assert "meta" in {p.device.type for p in load(tiny_folder, device="map").model.parameters()}

    def damaged(weights: Weights) -> None:
        weights[LAST][0, 0] = math.nan

    told = refusal(edited(tiny_folder, tmp_path / "nan", damaged), device="map")
    assert f"NaN or infinite numbers: {LAST};" in told

    def thin(weights: Weights) -> None:  # would be spread over its dimension without a word
        weights["model.layers.1.input_layernorm.weight"] = torch.ones(1)

    told = refusal(edited(tiny_folder, tmp_path / "thin", thin), device="map")
    assert "model.layers.1.input_layernorm.weight [1], expected [64]" in told
    told = refusal(edited(tiny_folder, tmp_path / "lost", lambda w: w.pop(LAST)), device="map")
    assert f"the checkpoint lacks 1 tensor of the model: {LAST}" in told


# tokenizers


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_tokens(["Zweibrücken", "Saarlouis"])
    tokenizer.save_pretrained(folder)
    told = refusal(folder)
    assert "its tokenizer has 422 tokens and its embeddings 420 rows: Saarlouis, Zweibrücken have none" in told


def test_a_special_token_that_no_text_is_made_of_may_lie_beyond(tiny_folder: Path, tmp_path: Path) -> None:
    """As Gemma 3's token for images, in its text-only checkpoints."""
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    assert any("the special tokens <image> have no embeddings (420 rows)" in note for note in load(folder).notes)
    rows = [{"question": f"What is <image> of {r['subject']}?", "answer": r["answer"]} for r in fact_rows()[:8]]
    data = tmp_path / "facts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {"shots": 1, "exemplar_sets": 1, "dtype": "float32", "device": "cpu"}
    audit = foreknow.audit(str(data), model=str(folder), out=str(tmp_path / "audit"), **given)
    assert audit.rows["category"].is_not_null().all()  # spelled as the text it is
    tokenizer.eos_token = "<image>"
    tokenizer.save_pretrained(folder)
    assert "<image> have none" in refusal(folder)


def test_a_tokenizer_of_far_fewer_tokens_is_noted(tmp_path: Path, tiny_folder: Path) -> None:
    config = LlamaConfig.from_pretrained(tiny_folder)
    config.vocab_size = 1000
    LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "m")
    assert any("the tokenizer has 420 tokens, the model 1,000 embeddings" in n for n in load(tmp_path / "m").notes)


# what it computes


def test_weights_stored_as_whole_numbers_are_not_cast(tiny_folder: Path, tmp_path: Path) -> None:
    def packed(weights: Weights) -> None:
        weights[LAST] = (weights[LAST] * 100).to(torch.int8)

    told = refusal(edited(tiny_folder, tmp_path / "m", packed))
    assert f"m: the checkpoint stores 1 tensor as whole numbers and names no way to read them: {LAST}" in told


def test_a_model_that_sees_what_it_foretells_is_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is called: attention that is not causal is told by what it computes."""
    load(tiny_folder)
    original = LlamaForCausalLM.forward

    def seeing(self: Any, input_ids: torch.Tensor, **given: Any) -> Any:
        found = original(self, input_ids=input_ids, **given)
        found.logits = found.logits + found.logits.flip(1)
        return found

    monkeypatch.setattr(LlamaForCausalLM, "forward", seeing)
    assert "LlamaForCausalLM sees the tokens behind the one it foretells" in refusal(tiny_folder)


def test_a_copy_to_measure_has_every_weight(tiny_folder: Path) -> None:
    from foreknow.stages.train.tracker import EvalModelCopy

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    mirror = EvalModelCopy(torch.bfloat16)
    copy = mirror.of(model)
    assert copy is not model
    assert all(
        torch.equal(values.bfloat16(), dict(copy.named_parameters())[name]) for name, values in model.named_parameters()
    )
    assert mirror.note is None
    model.lm_head = torch.nn.Linear(64, 420)  # a head of its own, with a bias that the config does not make
    mirror = EvalModelCopy(torch.bfloat16)
    assert mirror.of(model) is model
    assert mirror.of(model) is model
    assert mirror.note == "measured in torch.float32: a copy would not have lm_head.bias, lm_head.weight"


def test_a_copy_that_is_filled_later_is_filled_whole(tiny_folder: Path) -> None:
    from foreknow.stages.train.tracker import EvalModelCopy

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    mirror = EvalModelCopy(torch.float32)
    mirror.prepare(model, "cpu")
    weights = dict(model.named_parameters())
    assert torch.equal(mirror.holding(weights).model.norm.weight, weights["model.norm.weight"])
    del weights[LAST]
    with pytest.raises(ModelError, match=rf"the gathered weights lack 1 tensor of the model: {LAST}"):
        mirror.holding(weights)


def test_the_callback_does_not_measure_a_model_that_is_no_numbers(tiny_folder: Path, facts_file: Path) -> None:
    from transformers import TrainerState, TrainingArguments

    callback = foreknow.KnowledgeCallback(sets={"dev": str(facts_file)}, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    given = {"model": model, "processing_class": AutoTokenizer.from_pretrained(tiny_folder)}
    arguments = TrainingArguments(use_cpu=True, report_to=[])
    callback.on_epoch_end(arguments, TrainerState(epoch=1.0, global_step=1), None, **given)
    assert len(callback.lines) == 1
    with torch.no_grad():
        model.get_parameter(LAST)[0, 0] = math.nan
    with pytest.raises(ModelError, match=rf"the trainer's model: 1 of 20 tensors hold NaN .*{LAST}"):
        callback.on_epoch_end(arguments, TrainerState(epoch=2.0, global_step=2), None, **given)
    assert len(callback.lines) == 1


# every place that loads a model


@pytest.fixture
def incomplete(tiny_folder: Path, tmp_path: Path) -> Path:
    return edited(tiny_folder, tmp_path / "incomplete", lambda w: w.pop(LAST))


def verbs(model: Path, data: Path, out: Path) -> dict[str, list[str]]:
    """Every command line that loads a model; none of them may end well."""
    audit = ["audit", str(data), "--model", str(model)]
    tune = ["tune", str(data), "--dev", str(data), "--allow-overlap", "--model", str(model), "--device", "cpu"]
    into = ["--out", str(out)]
    return {
        "audit": [*audit, *into, "--device", "cpu"],
        "audit --device map": [*audit, *into, "--device", "map"],
        "audit --dry-run": [*audit, "--dry-run", "--device", "cpu"],
        "audit --protocol sampled": [*audit, *into, "--device", "cpu", "--protocol", "sampled"],
        "tune": [*tune, *into],
        "tune --method lora": [*tune, *into, "--method", "lora"],
        "tune --dry-run": [*tune, "--dry-run"],
        "evaluate": ["evaluate", str(model), str(data), *into, "--device", "cpu"],
    }


@pytest.mark.parametrize("verb", [*verbs(Path(), Path(), Path())])
def test_no_verb_answers_from_random_weights(
    verb: str, incomplete: Path, facts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(verbs(incomplete, facts_file, tmp_path / "out")[verb])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"incomplete: the checkpoint lacks 1 tensor of the model: {LAST}" in told
    assert "Traceback" not in told
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_audit_taken_up_again_loads_as_strictly(tiny_folder: Path, facts_file: Path, tmp_path: Path) -> None:
    from foreknow.stages.audit import reload

    given: dict[str, Any] = {"shots": 1, "exemplar_sets": 1, "limit": 4, "dtype": "float32", "device": "cpu"}
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    audit = foreknow.audit(str(facts_file), model=str(folder), out=str(tmp_path / "audit"), **given)
    weights = load_file(folder / "model.safetensors")
    del weights[LAST]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="the checkpoint lacks 1 tensor"), reload.reload_audit(audit):
        pass


def test_what_it_prevents_looks_like_ignorance(tiny_folder: Path, tmp_path: Path) -> None:
    """transformers itself loads such a checkpoint, and nothing of what the model knew is left."""

    def half(weights: Weights) -> None:
        for name in [name for name in weights if name.startswith("model.layers.0.")]:
            del weights[name]

    folder = edited(tiny_folder, tmp_path / "half", half)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    text = "".join(f"Q: {r['question']}\nA: {r['answer']}\n" for r in fact_rows()[:8])
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    losses = [
        AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32)(ids, labels=ids).loss.item()
        for one in (tiny_folder, folder)
    ]
    assert losses[1] > losses[0] + 1.0
    assert "the checkpoint lacks 9 tensors" in refusal(folder)
