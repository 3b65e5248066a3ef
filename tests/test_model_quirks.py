"""Models as they are met: what is no causal LM, or lacks something, is named in a line with what to do."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import foreknow
from builders import load
from foreknow.config import TuneConfig
from foreknow.errors import ConfigError, ForeknowError, MissingExtra, ModelError, UsageError
from foreknow.models import hub, quantization
from foreknow.models.resolve import resolve
from foreknow.settings import settings_of
from foreknow.stages.train import run as train_run

SMALL: dict[str, Any] = {
    "vocab_size": 420, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
PROTOCOL: dict[str, Any] = {"shots": 1, "exemplar_sets": 2, "dtype": "float32", "device": "cpu"}


def format_hub_error(name: Path | str, kind: type[ForeknowError] = ModelError, **given: Any) -> str:
    """What is said of a model before any weight is read; a line or two, with no traceback."""
    with pytest.raises(kind) as caught:
        resolve(str(name), **given)
    assert isinstance(caught.value, UsageError)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def told(folder: Path, **config: Any) -> Path:
    """A folder's config with other settings; None takes one out."""
    path = folder / "config.json"
    found = json.loads(path.read_text()) | config
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return folder


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "m"))


def saved(model: Any, tiny_folder: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


# folders that are no model


def files(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}" if name.endswith(".json") else "x")

    return make


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (files(), "the folder has no config.json; expected a model saved by save_pretrained"),
    "a diffusion pipeline": (files("model_index.json", "unet/config.json"), "a diffusion pipeline"),
    "DeepSpeed ZeRO": (files("zero_to_fp32.py", "global_step10/mp_rank_00_model_states.pt"), "python zero_to_fp32.py"),
    "FSDP": (files("pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata"), "accelerate merge-weights"),
    "distributed checkpoint": (files("__0_0.distcp", ".metadata"), "an FSDP checkpoint, whose weights lie in parts"),
    "a trainer's output": (
        files("checkpoint-50/config.json", "checkpoint-500/config.json", "trainer_state.json"), "checkpoint-500",
    ),
    "an optimizer only": (files("optimizer.pt", "scheduler.pt", "trainer_state.json"), "and without the model"),
    "one level down": (files("final/config.json", "README.md"), "the model lies one level down; name "),
    "GGUF files": (files("a-Q4_K_M.gguf", "b-Q8_0.gguf"), "GGUF files; name one of them: "),
    "Meta's own": (files("consolidated.00.pth", "params.json", "tokenizer.model"), "in Meta's or Mistral's own layout"),
    "Mistral's own": (files("consolidated.safetensors", "params.json"), "in Meta's or Mistral's own layout"),
    "ONNX": (files("onnx/model.onnx", "tokenizer.json"), "an ONNX export"),
    "OpenVINO": (files("openvino_model.xml", "openvino_model.bin"), "an export for another runtime"),
    "TensorFlow": (files("tf_model.h5"), "weights of TensorFlow or Flax, which transformers 5 does not load"),
    "Flax": (files("flax_model.msgpack"), "weights of TensorFlow or Flax"),
    "pickled": (files("pytorch_model.pth"), "weights pickled by torch under their own name"),
    "weights alone": (files("weights.safetensors"), "weights under another name: weights.safetensors"),
    "the hub's cache": (files("snapshots/abc/config.json", "refs/main"), "a folder of the hub's cache"),
    "a tokenizer": (files("tokenizer.json", "tokenizer_config.json"), "a tokenizer without its model"),
    "a run": (files("manifest.json", "rows.parquet"), "a run's folder, not a model"),
    "a tune run": (files("early_stop/config.json", "convergence/config.json"), "a run of foreknow tune; name "),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_a_folder_that_is_no_model_is_named(kind: str, tmp_path: Path) -> None:
    make, words = FOLDERS[kind]
    (tmp_path / "m").mkdir()
    make(tmp_path / "m")
    said = format_hub_error(tmp_path / "m")
    assert "m: the folder has no config.json" in said
    assert words in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tf_model.h5", "weights of TensorFlow or Flax"),
        ("flax_model.msgpack", "weights of TensorFlow or Flax"),
        ("onnx/model.onnx", "an ONNX export"),
        ("model-Q8_0.gguf", "GGUF files; name one of them"),
        ("model.fp16.safetensors", "its weights are of a variant, model.fp16.safetensors"),
        ("diffusion_pytorch_model.safetensors", "weights under another name"),
        ("pytorch_model.pt", "weights pickled by torch under their own name"),
        ("global_step5/x.pt", "a DeepSpeed ZeRO checkpoint"),
        ("checkpoint-5/config.json", "the output of a trainer, whose checkpoints lie inside; name one, such as "),
    ],
)
def test_a_config_without_weights_that_are_read(folder: Path, name: str, words: str) -> None:
    (folder / "model.safetensors").unlink()
    assert "the folder has no weights" in format_hub_error(folder)
    files(name)(folder)
    assert words in format_hub_error(folder)


def test_a_file_in_the_folders_place(folder: Path, tmp_path: Path) -> None:
    assert "one file of weights, and no model folder" in format_hub_error(folder / "model.safetensors")
    assert f"name the folder: {folder}" in format_hub_error(folder / "model.safetensors")
    (tmp_path / "consolidated.00.pth").write_text("x")
    assert "one file of weights, and no model folder" in format_hub_error(tmp_path / "consolidated.00.pth")
    assert "no such folder or file" in format_hub_error("model.safetensors")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "config.json: not JSON"),
        ("[1]", "config.json: found a list, expected keys with values"),
        ("version https://git-lfs.github.com/spec/v1\n", "config.json: a Git LFS pointer"),
        ('{"dim": 4096, "n_layers": 32}', "its config.json has no model_type (found dim, n_layers)"),
    ],
)
def test_a_config_that_is_none(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_text(text)
    assert words in format_hub_error(folder)


# architectures


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
         "T5ForConditionalGeneration, an encoder-decoder"),
        ({"model_type": "bart", "architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True},
         "BartForConditionalGeneration, an encoder-decoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "a masked language model: an encoder"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "BertModel, an encoder (is_decoder is not set)"),
        ({"model_type": "roberta", "architectures": None}, "roberta, an encoder (is_decoder is not set)"),
        ({"model_type": "modernbert", "architectures": ["ModernBertModel"]}, "ModernBertModel, an encoder"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "a classifier or reward model"),
        ({"architectures": ["LlamaForTokenClassification"]}, "a token classifier"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "a model that marks answers in a text"),
        ({"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True},
         "an encoder-decoder"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "an image classifier"),
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, "CLIPModel (model_type clip) is no causal LM"),
    ],
)  # fmt: skip
def test_what_answers_nothing_is_named(folder: Path, config: dict[str, Any], words: str) -> None:
    said = format_hub_error(told(folder, **config))
    assert words in said


def test_an_encoder_would_have_seen_the_answer(tiny_folder: Path, tmp_path: Path) -> None:
    """transformers loads BERT as a causal LM whose every position sees the ones behind it."""
    config = transformers.BertConfig(
        vocab_size=420, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    path = saved(transformers.BertForMaskedLM(config), tiny_folder, tmp_path / "bert")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    first, second = (model(torch.tensor([[5, 6, last]])).logits[0, 0] for last in (7, 8))
    assert not torch.allclose(first, second)
    assert "an encoder" in format_hub_error(path)


def test_a_decoder_of_the_same_kind_is_audited(tiny_folder: Path, facts_file: Path, tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=420, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        is_decoder=True, max_position_embeddings=256,
    )  # fmt: skip
    path = saved(transformers.BertLMHeadModel(config), tiny_folder, tmp_path / "bert")
    audit = foreknow.audit(str(facts_file), model=str(path), out=str(tmp_path / "a"), limit=4, **PROTOCOL)
    assert audit.rows["category"].is_not_null().all()


def test_an_embedding_model_is_named(folder: Path) -> None:
    files("modules.json", "1_Pooling/config.json")(folder)
    assert "a sentence-transformers embedding model" in format_hub_error(folder)


def test_a_model_type_of_a_newer_transformers_names_it(folder: Path) -> None:
    installed = importlib.metadata.version("transformers")
    said = format_hub_error(told(folder, model_type="llama9", transformers_version="99.1.0.dev0"))
    assert f"model_type 'llama9' is not known to transformers {installed}; it was saved by 99.1.0.dev0: " in said
    assert "pip install -U 'transformers>=99.1.0'" in said
    said = format_hub_error(told(folder, model_type="llama9", transformers_version="4.30.0"))
    assert f"is not known to transformers {installed} (it was saved by 4.30.0): pip install -U transformers" in said


# text models of larger ones


def multimodal() -> dict[str, Any]:
    """Tiny models that take images too, and have a text model that transformers knows alone."""
    text = {**SMALL, "head_dim": 8, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    return {
        "gemma3": lambda: transformers.Gemma3ForConditionalGeneration(
            transformers.Gemma3Config(
                text_config={**text, "sliding_window": 16}, vision_config=vision, mm_tokens_per_image=4,
            )
        ),
        "llava": lambda: transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(
                text_config={"model_type": "llama", **text},
                vision_config={"model_type": "clip_vision_model", **vision},
                image_token_index=419,
            )
        ),
        "mistral3": lambda: transformers.Mistral3ForConditionalGeneration(
            transformers.Mistral3Config(
                text_config={"model_type": "mistral", **text},
                vision_config={"model_type": "pixtral", "head_dim": 8, **vision}, image_token_index=419,
            )
        ),
        "idefics3": lambda: transformers.Idefics3ForConditionalGeneration(
            transformers.Idefics3Config(
                text_config={"model_type": "llama", **text}, vision_config=vision, image_token_id=419, scale_factor=1,
            )
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(multimodal()))
def test_the_text_model_inside_answers_as_the_whole(
    kind: str, tiny_folder: Path, facts_file: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    whole = multimodal()[kind]().eval()
    path = saved(whole, tiny_folder, tmp_path / kind)
    loaded = load(path)
    assert any(f"the text model of a {kind} checkpoint; images and sound are left out" in n for n in loaded.notes)
    ids = torch.randint(0, 400, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(loaded.model(ids).logits, whole(input_ids=ids).logits, atol=1e-5)
    assert not any("vision" in name for name, _ in loaded.model.named_parameters())
    loaded.model.save_pretrained(tmp_path / "again")
    AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "again").model(ids).logits, loaded.model(ids).logits)
    audit = foreknow.audit(str(facts_file), model=str(path), out=str(tmp_path / "a"), limit=4, **PROTOCOL)
    assert audit.rows["category"].is_not_null().all()
    assert audit.summary["protocol"]["engine"] == "packed"


def test_a_text_model_inside_that_lacks_tensors_is_refused_too(tiny_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = saved(multimodal()["llava"](), tiny_folder, tmp_path / "llava")
    weights = load_file(path / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layers.1.mlp.down_proj.weight") and "vision" not in name)
    del weights[lost]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensor of the model: model\.layers\.1\.mlp\.down_proj\.weight"):
        load(path)


def test_a_larger_model_whose_text_alone_has_no_class_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    text = {**SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    config = transformers.Qwen2VLConfig(
        text_config=text, vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
    )
    path = saved(transformers.Qwen2VLForConditionalGeneration(config), tiny_folder, tmp_path / "qwen")
    with pytest.raises(
        ModelError, match=r"qwen2_vl takes images or sound too, and transformers \S+ has no class"
    ) as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1


# quantised checkpoints


QUANTISED: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes 4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4 bits: pip install bitsandbytes"),
    "bitsandbytes 8": ({"load_in_8bit": True}, "bitsandbytes, 8 bits: pip install bitsandbytes"),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits: pip install optimum gptqmodel"),
    "awq": ({"quant_method": "awq", "bits": 4}, "awq, 4 bits: pip install gptqmodel"),
    "compressed-tensors": ({"quant_method": "compressed-tensors"}, "pip install compressed-tensors"),
    "hqq": ({"quant_method": "hqq", "nbits": 4}, "pip install hqq"),
    "quanto": ({"quant_method": "quanto", "weights": "int8"}, "pip install optimum-quanto"),
    "torchao": ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "pip install torchao"),
    "aqlm": ({"quant_method": "aqlm"}, "pip install 'aqlm[gpu,cpu]'"),
    "auto-round": ({"quant_method": "intel/auto-round", "bits": 4}, "pip install auto-round"),
    "quark": ({"quant_method": "quark"}, "pip install amd-quark"),
    "exl2": ({"quant_method": "exl2", "bits": 4.0}, "ExLlamaV2 loads it, transformers does not"),
    "modelopt": ({"quant_method": "modelopt"}, "transformers does not"),
    "wonder": ({"quant_method": "wonder"}, "quantised with wonder, which transformers "),
    "mlx": ({"group_size": 64, "bits": 4}, "quantised for MLX"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(QUANTISED))
def test_a_quantised_checkpoint_names_the_package_it_takes(
    kind: str, folder: Path, facts_file: Path, tmp_path: Path
) -> None:
    config, words = QUANTISED[kind]
    path = told(folder, **{"quantization" if kind == "mlx" else "quantization_config": config})
    with pytest.raises((MissingExtra, ModelError)) as caught:
        foreknow.audit(str(facts_file), model=str(path), out=str(tmp_path / "a"), limit=2, **PROTOCOL)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2
    assert not (tmp_path / "a" / "config.yaml").exists()


def test_every_method_of_the_installed_transformers_is_known() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    ours = {*quantization.METHODS, "bitsandbytes_4bit", "bitsandbytes_8bit", "gguf"}
    assert set(AUTO_QUANTIZER_MAPPING) <= ours


def test_settings_of_an_inner_text_model_count(folder: Path) -> None:
    found = quantization.quantization_of(told(folder, text_config={"quantization_config": {"quant_method": "awq"}}))
    assert found is not None
    assert found.method == "awq"


def test_full_tuning_of_a_quantised_checkpoint_is_refused_with_the_alternative(
    folder: Path, facts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "_is_installed", lambda _: True)  # as if the package were installed
    path = told(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    given: dict[str, Any] = {
        "train": str(facts_file), "dev": str(facts_file), "allow_overlap": True, "model": str(path),
        "out": tmp_path / "t", "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"quantised with gptq, 4 bits: its weights cannot all be trained\. Use --method lora"
    ):
        train_run.run(settings_of(TuneConfig, given))
    assert not (tmp_path / "t" / "config.yaml").exists()


def test_weights_in_eight_bits_are_unpacked_where_no_package_is_needed(
    tiny_folder: Path, facts_file: Path, tmp_path: Path
) -> None:
    """float8 with a scale for each block, as DeepSeek has it: on a processor transformers unpacks it."""
    path = Path(shutil.copytree(tiny_folder, tmp_path / "fp8"))
    weights = load_file(path / "model.safetensors")
    sound = dict(weights)
    for name in list(weights):
        if name.endswith("proj.weight"):
            scale = weights[name].abs().max() / 448
            weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
            rows, columns = (-(-n // 128) for n in sound[name].shape)
            weights[f"{name}_scale_inv"] = scale.expand(rows, columns).contiguous()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    told(
        path,
        quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    )
    loaded = load(path)
    assert "quantised weights: fp8" in loaded.notes
    for name, values in loaded.model.named_parameters():
        if name in sound:
            assert torch.allclose(values.float(), sound[name], atol=0.1 * float(sound[name].abs().max())), name
    audit = foreknow.audit(str(facts_file), model=str(path), out=str(tmp_path / "a"), limit=6, **PROTOCOL)
    assert audit.rows["category"].is_not_null().all()


# tokenizers


def test_a_pad_token_that_is_the_end_changes_nothing(tiny_folder: Path, facts_file: Path, tmp_path: Path) -> None:
    """Masks, not ids, say what is padding: answers of rows of many lengths are those of each row alone."""
    path = Path(shutil.copytree(tiny_folder, tmp_path / "m"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(path)
    audits = [
        foreknow.audit(
            str(facts_file), model=str(one), out=str(tmp_path / f"{protocol}-{one.name}"), limit=12, protocol=protocol,
            samples=2, **PROTOCOL,
        )
        for protocol in ("exact", "sampled")
        for one in (tiny_folder, path)
    ]  # fmt: skip
    for with_none, with_end in (audits[:2], audits[2:]):
        assert with_end.probes.equals(with_none.probes)
        assert with_end.rows["model_answer"].equals(with_none.rows["model_answer"])


def test_a_model_without_a_tokenizer_is_named(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(
        ModelError, match=r"the folder has no tokenizer \(tokenizer\.json\); copy the tokenizer's files"
    ):
        load(folder)


def test_a_damaged_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ModelError, match=r"m: its tokenizer cannot be loaded: ") as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tokenizer_of_python_only_is_used(tiny_folder: Path, facts_file: Path, tmp_path: Path) -> None:
    """vocab.json and merges.txt, as older checkpoints have them."""
    path = tmp_path / "gpt2"
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=420, n_positions=512, n_embd=32, n_layer=1, n_head=2, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    spec = json.loads((tiny_folder / "tokenizer.json").read_text())["model"]
    (path / "vocab.json").write_text(json.dumps(spec["vocab"]))
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["merges"]]
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    (path / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>", "bos_token": "<|end|>", "unk_token": "<|end|>"}
        )
    )
    audit = foreknow.audit(str(facts_file), model=str(path), out=str(tmp_path / "a"), limit=4, **PROTOCOL)
    assert audit.rows["category"].is_not_null().all()


# the hub


def response(status: int) -> Any:
    import httpx2

    return httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/api/models/owner/m"))


def raised(kind: type[Exception], status: int | None = None) -> Exception:
    try:
        return kind("no", response=response(status)) if status else kind("no")
    except TypeError:
        return kind("no", response(status or 404))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            raised(GatedRepoError, 403),
            r"a gated model of the hub: accept its licence at https://huggingface\.co/owner/m",
        ),
        (raised(RepositoryNotFoundError, 404), r"the hub has no such model, or it is private: check the spelling"),
        (raised(RevisionNotFoundError, 404), r"but not in that revision"),
        (raised(DisabledRepoError, 403), r"the hub has switched this model off"),
        (raised(HfHubHTTPError, 401), r"the hub does not take the token in HF_TOKEN"),
        (raised(HfHubHTTPError, 403), r"the hub refuses access with this token"),
        (raised(HfHubHTTPError, 429), r"the hub asks to wait \(too many requests\)"),
        (raised(HfHubHTTPError, 503), r"the hub did not give it \(status 503\): try again later"),
        (LocalEntryNotFoundError("not here"), r"the hub could not be reached \(.*\): check the network or a proxy"),
        (TimeoutError("timed out"), r"the hub could not be reached \(timed out\)"),
        (ConnectionError("refused"), r"the hub could not be reached \(refused\)"),
        (OSError(28, "No space left on device"), r"No space left on device"),
        (ValueError("odd"), r"the hub did not give it: odd"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_refuses_is_a_line_with_what_to_do(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(_: str, local_files_only: bool = False, **__: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: ["model.safetensors"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match=f"--model owner/m: .*{words}") as caught:
        resolve("owner/m")
    assert str(caught.value).splitlines()[1] == "Packaged models, which need no hub: smollm2-135m, gemma3-270m, lab"


def test_offline_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        resolve("owner/m")
    assert "and HF_HUB_OFFLINE is set" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("smollm2-135", "smollm2-135m"), ("SmolLM2-135M", "smollm2-135m"), ("smolm2-135m", "smollm2-135m"),
     ("gemma3-270", "gemma3-270m"), ("gemma-3-270m", "gemma3-270m"), ("labs", "lab")],
)  # fmt: skip
def test_a_misspelt_packaged_name_is_corrected_without_the_hub(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the hub was asked")

    def download(_: str, local_files_only: bool = False, **__: Any) -> str:
        assert local_files_only
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", asked)
    assert f"no such folder or packaged model; did you mean {meant}?" in format_hub_error(name)
    assert hub.closest_name("gpt2", ["smollm2-135m", "gemma3-270m", "lab"]) is None


@pytest.mark.parametrize("broken_off", [False, True])
def test_half_a_snapshot_is_fetched_again(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_off: bool
) -> None:
    """A cache that holds a model's config alone, as a look at its tokenizer leaves it, or some of its shards."""
    half = Path(shutil.copytree(tiny_folder, tmp_path / "half"))
    weights = (half / "model.safetensors").rename(half / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": weights.name, "b": "model-00002-of-00002.safetensors"}}
    (half / "model.safetensors.index.json").write_text(json.dumps(index))
    if not broken_off:
        weights.unlink()
    asked = []

    def download(_: str, local_files_only: bool = False, **__: Any) -> str:
        asked.append(local_files_only)
        return str(half if local_files_only else tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: ["model.safetensors"])
    assert resolve("owner/m").folder == tiny_folder
    assert asked == [True, False]


def test_each_kind_of_decoder_is_loaded_whole_or_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """Legacy buffers, fused projections, tied and untied heads: none of them is refused for what it is."""
    torch.manual_seed(0)
    common = {"vocab_size": 420, "bos_token_id": 0, "eos_token_id": 0}
    made = {
        "gpt2": transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, **common)),
        "neox": transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(
                hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, **common,
            )
        ),
        "opt": transformers.OPTForCausalLM(
            transformers.OPTConfig(
                hidden_size=32, num_hidden_layers=1, ffn_dim=32, num_attention_heads=2, word_embed_proj_dim=32,
                max_position_embeddings=256, pad_token_id=0, **common,
            )
        ),
        "phi3": transformers.Phi3ForCausalLM(transformers.Phi3Config(**{**SMALL, **common, "pad_token_id": 0})),
        "mixtral": transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**{**SMALL, **common, "num_local_experts": 2})
        ),
        "qwen3": transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**SMALL, **common, "head_dim": 8})),
        "bloom": transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=2, **common)),
    }  # fmt: skip
    ids = torch.tensor([[5, 6, 7, 8]])
    for name, model in made.items():
        path = saved(model.eval(), tiny_folder, tmp_path / name)
        with torch.no_grad():
            assert torch.allclose(load(path).model(ids).logits, model(ids).logits, atol=1e-5), name
        weights = load_file(path / "model.safetensors")
        lost = sorted(weights)[-1]
        del weights[lost]
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"the checkpoint lacks|of another shape|not be loaded"):
            load(path)
