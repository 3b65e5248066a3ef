"""Checks that a config.json describes a causal LM, or a model whose text part is one.

`AutoModelForCausalLM` also loads other models: an encoder, which sees the tokens it should predict, or a classifier's
weights, into a causal LM with a tied head. So the config's classes are checked first.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from foreknow.errors import ModelError

_TASKS: Final = (
    ("ForSequenceClassification", "a classifier or reward model, which answers nothing"),
    ("ForTokenClassification", "a token classifier, which answers nothing"),
    ("ForMultipleChoice", "a classifier, which answers nothing"),
    ("ForQuestionAnswering", "a model that marks answers in a text, which writes none"),
    ("RewardModel", "a reward model, which answers nothing"),
    ("ForMaskedLM", "a masked language model: an encoder, which fills gaps and answers nothing"),
    ("ForPreTraining", "an encoder with its pre-training heads, which answers nothing"),
    ("ForNextSentencePrediction", "an encoder, which answers nothing"),
    ("EncoderModel", "an encoder, which answers nothing"),
    ("ForImageClassification", "an image classifier"),
    ("ForCTC", "a speech recogniser"),
    ("ForSpeechSeq2Seq", "a speech recogniser"),
    ("ForTextEncoding", "an encoder, which answers nothing"),
)


class TextPart(NamedTuple):
    """The text model inside a checkpoint that also takes images or sound.

    `renames`: patterns of the checkpoint's names -> the text model's own.
    """

    config: Any
    renames: dict[str, str]
    note: str


_RENAMES: Final = {
    r"^model\.language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^language_model\.": "model.",
    r"^model\.text_model\.": "model.",
    r"^text_model\.": "model.",
    r"^thinker\.model\.": "model.",
    r"^thinker\.lm_head\.": "lm_head.",
}
"""Prefixes under which composite checkpoints have stored their language model."""


def check_architecture(called: str, config: Mapping[str, Any], trust_remote_code: bool = False) -> None:
    """Raise ModelError, saying what the model is and what to do, for a config.json (`config`) of no causal LM.

    A config with custom code is not checked if that code is trusted.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.get("model_type")
    classes = [str(name) for name in config.get("architectures") or ()]
    if isinstance(config.get("auto_map"), Mapping):
        if not trust_remote_code and kind not in CONFIG_MAPPING:
            raise ModelError(
                f"{called}: cannot be loaded: it contains custom code, which does not run unasked; read that code, and "
                "give --trust-remote-code if you trust it"
            )
        if trust_remote_code:
            return
    if not isinstance(kind, str) or not kind:
        seen = ", ".join(list(config)[:4]) or "nothing"
        raise ModelError(f"{called}: its config.json has no model_type (found {seen}); expected one of save_pretrained")
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"{called}: {_unknown(kind, config)}")
    for ending, words in _TASKS:
        if (
            classes
            and all(name.endswith(ending) for name in classes)
            and not (kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and ending == "ForPreTraining")
        ):
            raise ModelError(f"{called}: {classes[0]}, {words}; name a causal LM")
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{called}: {classes[0] if classes else kind}, an encoder-decoder: it does not continue a prompt, so that "
            "the protocol does not apply; name a decoder-only causal LM"
        )
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and kind not in ("xlm", "reformer")
    if masked and not config.get("is_decoder"):
        raise ModelError(
            f"{called}: {classes[0] if classes else kind}, an encoder (is_decoder is not set), which sees the answer "
            "it is asked for; name a causal LM"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not _inner_kind(config):
        words = classes[0] if classes else kind
        raise ModelError(f"{called}: {words} (model_type {kind}) is no causal LM that transformers {version()} knows")


def text_part(called: str, config: Any, config_json: Mapping[str, Any]) -> TextPart | None:
    """Return the text model inside a checkpoint that also takes images or sound; None for a text model's config.

    `config`: transformers' config object of config.json's keys (`config_json`). Raises ModelError where transformers
    has no class for the text alone.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    outer = getattr(config, "thinker_config", None) or config
    inner = getattr(outer, "text_config", None)
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if inner is None or inner is config or own_code:
        return None
    class_name = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ""))
    has_text_class = type(inner) in MODEL_FOR_CAUSAL_LM_MAPPING
    if class_name and not class_name.endswith("ForConditionalGeneration") and not has_text_class:
        return None  # its causal LM is of the whole config
    if not has_text_class:
        raise ModelError(
            f"{called}: {config.model_type} takes images or sound too, and transformers {version()} has no class for "
            f"its text model ({inner.model_type}) alone; name a text-only checkpoint of the family"
        )
    if getattr(config, "quantization_config", None) is not None:
        inner.quantization_config = config.quantization_config
    if isinstance(
        config_json.get("tie_word_embeddings"), bool
    ):  # set on the outer config, but meant for the text model
        inner.tie_word_embeddings = config_json["tie_word_embeddings"]
    inner.architectures = None
    return TextPart(
        inner, dict(_RENAMES), f"the text model of a {config.model_type} checkpoint; images and sound are left out"
    )


def version() -> str:
    """Return the version of the installed transformers."""
    return importlib.metadata.version("transformers")


def _inner_kind(config: Mapping[str, Any]) -> str | None:
    for name in ("text_config", "thinker_config", "llm_config", "language_config"):
        if isinstance(config.get(name), Mapping):
            return str(config[name].get("model_type") or name)
    return None


def _unknown(kind: str, config: Mapping[str, Any]) -> str:
    """Return the message for a model_type that the installed transformers does not know."""
    saved_version = str(config.get("transformers_version") or "")
    installed = version()
    if saved_version and _numbers(saved_version) > _numbers(installed):
        return (
            f"model_type {kind!r} is not known to transformers {installed}; it was saved by {saved_version}: "
            f"pip install -U 'transformers>={_release(saved_version)}'"
        )
    saved_by = f" (it was saved by {saved_version})" if saved_version else ""
    return (
        f"model_type {kind!r} is not known to transformers {installed}{saved_by}: pip install -U transformers, or name "
        "a checkpoint in transformers' own format"
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", _release(text)))


def _release(text: str) -> str:
    """Return a version without its pre-release suffix: 5.30.0.dev0 -> 5.30.0."""
    match = re.match(r"\d+(\.\d+)*", text)
    return match.group(0) if match else text
