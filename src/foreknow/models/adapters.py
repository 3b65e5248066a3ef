"""Reads PEFT adapters, checks that they fit their base model, and puts them on it.

An adapter of `foreknow tune` names its base in `foreknow.json`, other adapters in `adapter_config.json`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from foreknow.errors import MissingExtra, ModelError, first_line
from foreknow.models.model_checks import is_finite
from foreknow.models.packaged import PACKAGED
from foreknow.models.quiet import quiet
from foreknow.models.weight_files import SHOWN, count_of, names_of, read_header

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ABOUT: Final = "foreknow.json"
_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX: Final = "base_model.model."
_UNFIT: Final = {
    "XLORA": "it mixes adapters while it runs",
    "POLY": "it mixes adapters by task",
    "ADAPTION_PROMPT": "it adds a prompt to each layer",
    "CPT": "it adds a prompt",
}
"""The kinds of adapter that change more than layers, so that they do not work inside the model alone."""
_SIZES: Final = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch.Size\(\[(.*?)\]\) from checkpoint, the shape in "
    r"current model is torch.Size\(\[(.*?)\]\)\.?"
)
"""torch's message about a tensor of another shape."""
_RESIZED: Final = re.compile(
    r"(embed_tokens|wte|embed_in|word_embeddings|lm_head|embed_out)\.(modules_to_save\.)?weight$"
)


class AdapterConfig(NamedTuple):
    """An adapter's config. `kind`: LORA, IA3, ...; `base`: its base model's name or path; `revision`: the base's on
    the hub; `settings`: adapter_config.json."""

    kind: str
    base: str
    revision: str | None
    settings: Mapping[str, Any]


def about(folder: Path) -> dict[str, Any]:
    """Return the content of foreknow.json beside a saved model; empty if there is none."""
    try:
        content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_adapter(called: str, folder: Path) -> AdapterConfig:
    """Read the settings of an adapter.

    Raises ModelError where it lacks weights or does not work inside a model alone, MissingExtra without PEFT.
    """
    weights = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not weights:
        raise ModelError(f"{called}: an adapter without weights (adapter_model.safetensors)")
    try:
        from peft import PeftConfig
    except ImportError:
        raise MissingExtra(f"{called}: an adapter needs PEFT: pip install 'foreknow[train]'") from None
    try:
        settings: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        with capture_warnings():
            read = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        # its file can raise anything: report it in one line
        raise ModelError(f"{called}: adapter_config.json cannot be read: {first_line(error)}") from None
    kind = str(getattr(read.peft_type, "value", read.peft_type))
    if read.is_prompt_learning or kind in _UNFIT:
        why = _UNFIT.get(kind, "it adds a prompt")
        raise ModelError(f"{called}: a {kind} adapter; expected one of layers, such as LORA ({why})")
    if settings.get("alora_invocation_tokens"):
        raise ModelError(f"{called}: an activated LoRA, which acts behind its own words only; expected a plain LORA")
    if weights[0].suffix == ".safetensors":
        empty = [name for name, one in read_header(weights[0]).items() if 0 in one.shape]
        if empty:
            raise ModelError(
                f"{called}: {len(empty):,} of its tensors are empty: {names_of(empty)}. Weights that lie in parts on "
                "several processes (FSDP, DeepSpeed ZeRO-3) were saved by one; gather them before saving"
            )
    revision = settings.get("revision")
    return AdapterConfig(
        kind,
        str(settings.get("base_model_name_or_path") or ""),
        revision if isinstance(revision, str) else None,
        settings,
    )


def base_of(folder: Path, adapter: AdapterConfig) -> str | None:
    """Return the base that an adapter names: a packaged model, a local folder, or a hub id; None if it is none."""
    known = about(folder).get("base") or {}
    if known.get("name") in PACKAGED:
        return str(known["name"])
    for place in (known.get("folder"), adapter.base):
        if place and (Path(place).expanduser() / "config.json").is_file():
            return str(place)
    is_hub_id = adapter.base.count("/") == 1 and adapter.base[0] not in "./~"
    return adapter.base if is_hub_id or adapter.base in PACKAGED else None


def attach(
    called: str, base: str, model: PreTrainedModel, folder: Path, *, trainable: bool = False
) -> tuple[Any, list[str]]:
    """Put an adapter on its base (`base`: its name); return PEFT's model around it, and notes.

    Raises ModelError, naming tensors, where the adapter lacks some that its settings ask for, holds others, has
    other shapes, or holds NaN.
    """
    from peft import PeftConfig, get_peft_model
    from peft.utils import load_peft_weights

    try:
        weights: dict[str, torch.Tensor] = load_peft_weights(str(folder), device="cpu")
    except Exception as error:
        raise ModelError(f"{called}: its weights cannot be read: {first_line(error)}") from None
    _check_numbers(called, weights)
    notes = _resize(called, base, model, weights)
    try:
        with capture_warnings():
            config = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = not trainable
            config.base_model_name_or_path = base
            peft_model: Any = get_peft_model(model, config)
            result = peft_model.load_adapter(
                str(folder), "default", is_trainable=trainable, torch_device=str(next(model.parameters()).device)
            )
    except KeyError as error:
        raise ModelError(f"{called}: does not fit {base}: the adapter lacks {error}") from None
    except Exception as error:
        # PEFT raises many kinds of error for an adapter of another base: report it in one line
        raise ModelError(f"{called}: cannot be put on {base}: {_format_misfit(error)}") from None
    missing = [name.replace(".default", "") for name in result.missing_keys]
    unexpected = [name.replace(".default", "") for name in result.unexpected_keys]
    if missing or unexpected:
        problems = []
        if missing:
            problems.append(f"the adapter lacks {count_of(missing)} that its settings ask for: {names_of(missing)}")
        if unexpected:
            problems.append(
                f"the adapter holds {count_of(unexpected)} that the base has no place for: {names_of(unexpected)}"
            )
        raise ModelError(f"{called}: does not fit {base}: {'; '.join(problems)}")
    if idle := _idle_warning(weights):
        notes.append(idle)
    return peft_model, notes


@contextmanager
def capture_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collect PEFT's warnings in a list instead of printing them."""
    with quiet(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def _check_numbers(called: str, weights: Mapping[str, Any]) -> None:
    bad = [name for name, values in weights.items() if not is_finite(values)]
    if bad:
        raise ModelError(
            f"{called}: {len(bad):,} of {len(weights):,} adapter tensors hold NaN or infinite numbers: "
            f"{names_of(bad)}; its training diverged, or the file is damaged"
        )


def _idle_warning(weights: Mapping[str, Any]) -> str | None:
    """Return a warning about a LoRA that changes nothing, as all its second matrices are zero; None otherwise."""
    second = [values for name, values in weights.items() if re.search(r"lora_(B|embedding_B)(\.|$)", name)]
    only_lora = all("lora_" in name for name in weights)
    if second and only_lora and not any(bool(values.any()) for values in second):
        return "warning: the adapter changes nothing: every lora_B is zero; was it trained, and saved whole?"
    return None


def _resize(called: str, base: str, model: PreTrainedModel, weights: Mapping[str, Any]) -> list[str]:
    """Resize the base's embeddings for an adapter that was trained with added tokens; return notes.

    Raises ModelError where the adapter holds only one of two embedding tables that are not tied.
    """
    rows = {
        name: int(values.shape[0]) for name, values in weights.items() if _RESIZED.search(name) and values.ndim == 2
    }
    inputs: Any = model.get_input_embeddings()
    table: torch.Tensor = inputs.weight
    before = int(table.shape[0])
    resized = {name: n for name, n in rows.items() if n != before}
    if not resized:
        return []
    size = max(resized.values())
    head: Any = model.get_output_embeddings()
    tied = head is not None and head.weight is table
    kinds = {"head" if re.search(r"(lm_head|embed_out)\.", name) else "embeddings" for name in resized}
    if set(resized.values()) != {size} or (not tied and kinds != {"head", "embeddings"}):
        raise ModelError(
            f"{called}: does not fit {base}: it was trained with {size:,} tokens, the base has "
            f"{before:,}, and it holds {names_of(resized)} only: save it with save_embedding_layers=True"
        )
    model.resize_token_embeddings(size, mean_resizing=False)
    return [f"the adapter brings embeddings of {size:,} tokens; the base has {before:,}"]


def _format_misfit(error: Exception) -> str:
    """Return PEFT's error about an adapter that does not fit its base; torch's lines about shapes become one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    sizes = [line for line in lines if line.startswith("size mismatch")]
    if not sizes:
        return first_line(error)
    differences = [_SIZES.sub(r"\1 [\2], expected [\3]", line) for line in sizes[:SHOWN]]
    rest = f" and {len(sizes) - SHOWN:,} more" if len(sizes) > SHOWN else ""
    names = "; ".join(differences).replace(".default", "").replace(_PREFIX, "")
    return f"the adapter holds {count_of(sizes)} of another shape: {names}{rest}"
