"""An adapter's folder is a model for every verb; one that does not fit its base is refused with its tensors' names."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import foreknow
from builders import Weights, edited, load, refusal
from conftest import fact_rows
from foreknow import cli
from foreknow.config import AuditConfig, EvaluateConfig, TuneConfig
from foreknow.errors import ConfigError, MissingExtra, ModelError
from foreknow.models.fingerprints import fingerprint
from foreknow.models.resolve import resolve
from foreknow.settings import settings_of
from foreknow.stages.audit import reload
from foreknow.stages.audit.compare import compare_audits
from foreknow.stages.audit.estimate import estimate
from foreknow.stages.evaluate import run as evaluate_run
from foreknow.stages.train import run as train_run

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

PROTOCOL: dict[str, Any] = {"shots": 2, "exemplar_sets": 2, "dtype": "float32", "device": "cpu"}


def adapter(base: Path, folder: Path, config: Any = None, *, train: bool = True) -> Path:
    """An adapter of a model, saved by PEFT; `train`: some of its numbers are not as they began."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    config = config or peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    made = peft.get_peft_model(model, config)
    if train:
        with torch.no_grad():
            for weights in made.parameters():
                if weights.requires_grad:
                    weights.add_(torch.randn_like(weights) * (1.0 if "adalora" in str(config).lower() else 0.05))
    made.save_pretrained(folder)
    return folder


def merged(base: Path, of: Path, folder: Path) -> Path:
    """The same adapter merged into its base by PEFT, saved as a whole model."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft.PeftModel.from_pretrained(model, of).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lora(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(tiny_folder, tmp_path_factory.mktemp("adapters") / "lora")


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merged(tiny_folder, lora, tmp_path_factory.mktemp("adapters") / "merged")


@pytest.fixture(scope="module")
def audited(lora: Path, facts_file: Path, tmp_path_factory: pytest.TempPathFactory) -> foreknow.AuditResult:
    out = tmp_path_factory.mktemp("audits") / "lora"
    return foreknow.audit(str(facts_file), model=str(lora), out=str(out), **PROTOCOL)


# every verb


def test_an_audit_of_an_adapter_names_it_and_its_base(
    audited: foreknow.AuditResult, lora: Path, tiny_folder: Path
) -> None:
    told = audited.summary["model"]
    assert (told["name"], told["folder"]) == ("lora", str(lora))
    assert told["base"] == {"name": "tiny", "fingerprint": fingerprint(tiny_folder), "folder": str(tiny_folder)}
    assert told["fingerprint"] not in (fingerprint(tiny_folder), fingerprint(lora))
    assert told["note"] == f"LORA adapter on tiny ({fingerprint(tiny_folder)[:19]})"
    manifest = json.loads((audited.folder / "manifest.json").read_text())
    assert manifest["model"]["base"]["fingerprint"] == fingerprint(tiny_folder)
    assert manifest["identity"]["model"] == told["fingerprint"]
    assert audited.summary["protocol"]["engine"] == "packed"
    assert "LORA adapter on tiny" in (audited.folder / "report.html").read_text()


def test_what_answers_is_the_adapter_and_not_its_base(
    audited: foreknow.AuditResult, tiny_folder: Path, facts_file: Path, tmp_path: Path
) -> None:
    base = foreknow.audit(str(facts_file), model=str(tiny_folder), out=str(tmp_path / "base"), **PROTOCOL)
    assert not base.probes["p_correct"].equals(audited.probes["p_correct"])


def test_an_adapter_and_its_merged_model_say_the_same_of_every_row(
    audited: foreknow.AuditResult, whole: Path, facts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = foreknow.audit(str(facts_file), model=str(whole), out=str(tmp_path / "merged"), **PROTOCOL)
    found = compare_audits(audited, other).summary
    assert (found["compared"], found["same"]) == (48, 48)
    both = audited.probes.join(other.probes, on=("row", "exemplar_set"), suffix="_merged")
    assert float((both["p_correct"] - both["p_correct_merged"]).abs().max()) < 1e-4  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="0"):
        cli.main(["compare", str(audited.folder), str(other.folder)])
    assert "better known 0   same 48   less known 0" in capsys.readouterr().out


def test_a_badly_merged_model_is_told_from_its_adapter(
    audited: foreknow.AuditResult, whole: Path, facts_file: Path, tmp_path: Path
) -> None:
    """Merged with another scale, as reported of public tools: rows move, and `compare` counts them."""
    base = AutoModelForCausalLM.from_pretrained(resolve(str(whole)).folder, dtype=torch.float32)
    with torch.no_grad():
        for name, weights in base.named_parameters():
            if "layers" in name and weights.ndim == 2:
                weights.mul_(1.5)
    base.save_pretrained(tmp_path / "bad")
    AutoTokenizer.from_pretrained(whole).save_pretrained(tmp_path / "bad")
    other = foreknow.audit(str(facts_file), model=str(tmp_path / "bad"), out=str(tmp_path / "audit"), **PROTOCOL)
    assert compare_audits(audited, other).summary["same"] < 48


def test_an_audit_of_an_adapter_is_taken_up_again_with_it(
    audited: foreknow.AuditResult, lora: Path, facts_file: Path, tmp_path: Path
) -> None:
    with reload.reload_audit(audited) as again:
        assert again.loaded.fingerprint == audited.summary["model"]["fingerprint"]
        held, expected = again.loaded.model.state_dict(), load(lora).model.state_dict()
        assert any("lora_B" in name for name in held)
        assert all(torch.equal(held[name], values) for name, values in expected.items())
    copied = shutil.copytree(lora, tmp_path / "lora")
    audit = foreknow.audit(str(facts_file), model=str(copied), out=str(tmp_path / "a"), **{**PROTOCOL, "limit": 4})
    changed = load_file(copied / "adapter_model.safetensors")
    save_file({name: values * 2 for name, values in changed.items()}, copied / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="is not the model that"), reload.reload_audit(audit):
        pass


def test_a_dry_run_and_generated_answers_take_an_adapter_too(lora: Path, facts_file: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"data": str(facts_file), "model": str(lora), **PROTOCOL, "limit": 6}
    assert estimate(settings_of(AuditConfig, given))["rows"] == 6
    out = {"out": tmp_path / "a", "protocol": "sampled", "samples": 2}
    found = foreknow.audit(str(facts_file), **{k: v for k, v in given.items() if k != "data"}, **out)
    assert found.rows["category"].is_not_null().all()


def test_evaluate_names_both(lora: Path, facts_file: Path, tiny_folder: Path, tmp_path: Path) -> None:
    given = {"data": str(facts_file), "model": str(lora), "out": tmp_path / "e", "dtype": "float32", "device": "cpu"}
    told = evaluate_run.run(settings_of(EvaluateConfig, given)).summary["model"]
    assert (told["name"], told["method"], told["base"]["name"]) == ("lora", "adapter", "tiny")
    assert told["base"]["fingerprint"] == fingerprint(tiny_folder)


def tune_settings(model: Path, data: Path, out: Path, **given: Any) -> TuneConfig:
    common = {"train": str(data), "dev": str(data), "allow_overlap": True, "epochs": 1, "keep": "both"}
    return settings_of(
        TuneConfig, {**common, "dtype": "float32", "device": "cpu", "model": str(model), "out": out, **given}
    )


def test_training_goes_on_from_an_adapter(
    lora: Path, facts_file: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = train_run.run(tune_settings(lora, facts_file, tmp_path / "t", method="lora", learning_rate=1e-3))
    told = capsys.readouterr().err
    assert "training goes on from the adapter lora (LORA, rank 4, alpha 8, dropout 0, " in told
    assert "--lora-rank, --lora-alpha, --lora-targets and --dropout do not apply" in told
    assert done.results["model"]["base"]["name"] == "tiny"
    before, after = (load_file(f / "adapter_model.safetensors") for f in (lora, done.folder / "convergence"))
    assert set(before) == set(after)
    assert all(not torch.equal(before[name], after[name]) for name in before if "lora_B" in name)
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert moved < 0.05  # a few steps from where it was, not from the start
    beside = json.loads((done.folder / "convergence/foreknow.json").read_text())
    assert beside["base"] == {"name": "tiny", "fingerprint": fingerprint(tiny_folder), "folder": str(tiny_folder)}
    found = resolve(str(done.folder / "convergence"))
    assert (found.name, found.folder) == ("t/convergence", tiny_folder)


def test_every_weight_of_an_adapter_is_not_trained(lora: Path, facts_file: Path, tmp_path: Path) -> None:
    message = r"an adapter of tiny, found with --method full\. Use --method lora, which goes on .* or merge it"
    with pytest.raises(ConfigError, match=message):
        train_run.run(tune_settings(lora, facts_file, tmp_path / "t"))
    assert not (tmp_path / "t" / "config.yaml").exists()


def test_a_study_of_an_adapter_audits_and_trains_it(lora: Path, facts_file: Path, tmp_path: Path) -> None:
    from foreknow.stages.study import run as study_run
    from foreknow.stages.study.settings import StudyConfig

    rows = [{k: v for k, v in r.items() if k != "split"} for r in fact_rows()]
    data = tmp_path / "facts.jsonl"
    data.write_text(
        "".join(json.dumps({**r, "split": ("train", "dev", "test")[n % 3]}) + "\n" for n, r in enumerate(rows))
    )
    given: dict[str, Any] = {
        "data": str(data), "model": str(lora), "out": tmp_path / "s", "unknown": (0.5,), "known": False, "only": (),
        "natural": False, "idk": (), "p_true": False, "fixed_epochs": (), "audit": PROTOCOL,
        "tune": {"epochs": 1, "dtype": "float32", "device": "cpu"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="found with --method full"):
        study_run.run(settings_of(StudyConfig, given))
    assert not (tmp_path / "s" / "audit").exists()
    tune = {"tune": {**given["tune"], "method": "lora"}}
    done = study_run.run(settings_of(StudyConfig, {**given, **tune, "size": 4}))
    told = json.loads((done.folder / "audit/summary.json").read_text())["model"]
    assert told["base"]["name"] == "tiny"
    assert done.results.height


# which base


def test_base_is_named_where_it_is_not_found(lora: Path, tiny_folder: Path, facts_file: Path, tmp_path: Path) -> None:
    lost = edited(lora, tmp_path / "lost", base_model_name_or_path="/nowhere/gone")
    assert "an adapter of /nowhere/gone, which is not here; name its base with --base MODEL" in refusal(lost)
    assert load(lost, base=str(tiny_folder)).fingerprint
    assert "is a whole model, not an adapter; leave --base out" in refusal(tiny_folder, base=str(tiny_folder))
    assert "an adapter itself, not a whole model" in refusal(lora, base=str(lora))
    out = tmp_path / "audit"
    given = ["--limit", "4", "--shots", "1", "--exemplar-sets", "1", "--device", "cpu"]
    command = ["audit", str(facts_file), "--model", str(lost), "--base", str(tiny_folder), "--out", str(out), *given]
    with pytest.raises(SystemExit, match="0"):
        cli.main(command)
    assert foreknow.open_audit(out).summary["model"]["base"]["name"] == "tiny"
    with reload.reload_audit(foreknow.open_audit(out)):
        pass


def test_what_is_wrong_with_a_base_is_told_of_the_adapter(lora: Path, tiny_folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_folder, tmp_path / "base")
    (broken / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes()[:999])
    told = refusal(edited(lora, tmp_path / "a", base_model_name_or_path=str(broken)))
    assert f"an adapter of {broken}: " in told
    assert "model.safetensors" in told


def test_the_commit_that_an_adapter_names_is_asked_of_the_hub(
    lora: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def download(name: str, revision: str | None = None, **_: Any) -> str:
        asked.append((name, revision))
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    resolve(str(edited(lora, tmp_path / "a", base_model_name_or_path="owner/base", revision="abc123")))
    assert asked == [("owner/base", "abc123")]


# adapters that do not fit


def test_adapters_whose_tensors_are_not_their_settings_are_refused(lora: Path, tmp_path: Path) -> None:
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    told = refusal(edited(lora, tmp_path / "less", lambda w: w.pop(first)))
    assert "does not fit tiny: the adapter lacks 1 tensor that its settings ask for: " in told
    assert "layers.0.self_attn.q_proj.lora_A.weight" in told
    extra = {first.replace("layers.0", "layers.9"): torch.zeros(4, 64)}
    told = refusal(edited(lora, tmp_path / "more", lambda w: w.update(extra)))
    assert "the adapter holds 1 tensor that the base has no place for: " in told
    assert "layers.9.self_attn.q_proj.lora_A.weight" in told
    told = refusal(edited(lora, tmp_path / "other", r=8))
    assert "tensors of another shape: " in told
    assert "lora_A.weight [4, 64], expected [8, 64]" in told
    told = refusal(edited(lora, tmp_path / "module", target_modules=["nothing"]))
    assert "cannot be put on tiny: " in told


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_adapter_that_is_no_numbers_is_refused(lora: Path, tmp_path: Path, value: float) -> None:
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    told = refusal(edited(lora, tmp_path / "a", lambda w: w[name].view(-1)[:1].fill_(value)))
    assert f"1 of 28 adapter tensors hold NaN or infinite numbers: {name}" in told


def test_an_adapter_of_empty_tensors_was_saved_in_parts(lora: Path, tmp_path: Path) -> None:
    def empty(weights: Weights) -> None:
        for name in weights:
            weights[name] = torch.zeros(0)

    assert "28 of its tensors are empty: " in refusal(edited(lora, tmp_path / "a", empty))


def test_an_adapter_that_changes_nothing_is_warned_of(
    tiny_folder: Path, facts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = adapter(tiny_folder, tmp_path / "fresh", train=False)
    given = {**PROTOCOL, "limit": 4}
    audit = foreknow.audit(str(facts_file), model=str(folder), out=str(tmp_path / "a"), **given)
    warning = "warning: the adapter changes nothing: every lora_B is zero"
    assert warning in capsys.readouterr().err
    assert warning in audit.summary["model"]["note"]


def kinds() -> dict[str, Any]:
    """Adapters of layers, of several kinds."""
    common: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    return {
        "dora": peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], use_dora=True, **common),
        "rslora": peft.LoraConfig(r=4, target_modules=["q_proj"], use_rslora=True, **common),
        "rank_pattern": peft.LoraConfig(r=4, target_modules=["q_proj"], rank_pattern={"q_proj": 2}, **common),
        "embeddings": peft.LoraConfig(r=4, target_modules=["embed_tokens", "v_proj"], **common),
        "norms": peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"], **common),
        "tokens": peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 7], **common),
        "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **common),
        "loha": peft.LoHaConfig(r=2, target_modules=["q_proj"], **common),
        "adalora": peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10, **common),
    }


@pytest.mark.parametrize("kind", list(kinds()))
def test_every_kind_of_adapter_answers_as_peft_has_it(
    kind: str, tiny_folder: Path, frame: pl.DataFrame, tmp_path: Path
) -> None:
    folder = adapter(tiny_folder, tmp_path / kind, kinds()[kind])
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    expected = peft.PeftModel.from_pretrained(base, folder).eval()
    ids = torch.tensor([[5, 3, 7, 40]])
    loaded = load(folder)
    assert torch.allclose(loaded.model(ids).logits, expected(input_ids=ids).logits, atol=1e-6)
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    assert not torch.allclose(loaded.model(ids).logits, plain(ids).logits, atol=1e-4)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(r) + "\n" for r in fact_rows()[:8]))
    audit = foreknow.audit(str(rows), model=str(folder), out=str(tmp_path / "audit"), **PROTOCOL)
    assert audit.rows["category"].is_not_null().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "a PROMPT_TUNING adapter; expected one of layers"),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}, "a PREFIX_TUNING adapter; expected one of layers"),
        ({"peft_type": "P_TUNING", "num_virtual_tokens": 4}, "a P_TUNING adapter; expected one of layers"),
        ({"peft_type": "XLORA", "hidden_size": 8, "adapters": {}}, "a XLORA adapter; expected one of layers"),
        ({"peft_type": "WONDER"}, "adapter_config.json cannot be read: "),
        ({"alora_invocation_tokens": [1, 2]}, "an activated LoRA"),
    ],
)
def test_adapters_that_change_more_than_layers_are_refused_by_name(
    lora: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(lora, tmp_path / "a")
    told = {"task_type": "CAUSAL_LM", "base_model_name_or_path": "x"}
    told |= {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]} if "peft_type" not in settings else {}
    (folder / "adapter_config.json").write_text(json.dumps(told | settings))
    assert message in refusal(folder)


def test_a_module_to_save_that_is_not_there_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = adapter(tiny_folder, tmp_path / "a", kinds()["norms"])
    told = refusal(edited(folder, tmp_path / "b", lambda w: w.pop("base_model.model.model.norm.weight")))
    assert "does not fit tiny: the adapter lacks " in told
    assert "model.norm.weight" in told


def test_an_adapter_with_added_tokens_brings_their_embeddings(tiny_folder: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_tokens(["Zweibrücken", "Saarlouis"])
    model.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(0)
    made = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    made.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "a")
    loaded = load(edited(tmp_path / "a", tmp_path / "found", base_model_name_or_path=str(tiny_folder)))
    assert any("the adapter brings embeddings of 422 tokens; the base has 420" in note for note in loaded.notes)
    ids = torch.tensor([[5, 420, 421]])
    assert torch.allclose(loaded.model(ids).logits, made(input_ids=ids).logits, atol=1e-6)

    def without(weights: Weights) -> None:
        for name in [name for name in weights if "embed" in name or "lm_head" in name]:
            del weights[name]

    told = refusal(edited(tmp_path / "found", tmp_path / "lost", without))
    assert "its tokenizer has 422 tokens and its embeddings 420 rows" in told


def test_a_folder_with_both_is_ambiguous(lora: Path, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "both")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(lora / name, folder / name)
    assert "the folder holds a whole model and an adapter (adapter_config.json)" in refusal(folder)


def test_without_peft_it_is_named(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    original = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"an adapter needs PEFT: pip install 'foreknow\[train\]'"):
        resolve(str(lora))


def test_vllm_is_not_given_the_base_alone(lora: Path, facts_file: Path, tmp_path: Path) -> None:
    given = {**PROTOCOL, "limit": 2, "protocol": "sampled", "generator": "vllm"}
    with pytest.raises(ConfigError, match="--generator vllm: found an adapter, expected a whole model"):
        foreknow.audit(str(facts_file), model=str(lora), out=str(tmp_path / "a"), **given)
