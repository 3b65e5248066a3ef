"""Asks a tuned model in the form in which it was tuned, as far as the tune run beside its weights tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import polars as pl

from foreknow.config import EvaluateConfig
from foreknow.data.schema import are_chats
from foreknow.io.run_dir import differences, read_json
from foreknow.models.resolve import Resolved
from foreknow.prompts.chat_templates import choose_template
from foreknow.prompts.prompt_template import Prompter, Template


class AsTuned(NamedTuple):
    """Holds the settings and the prompt to ask with, and lines that say what was taken from the tune run."""

    config: EvaluateConfig
    template: Template
    notes: list[str]


def training_prompt(resolved_model: Resolved) -> dict[str, Any]:
    """Return the form that the tune run in the model's parent folder recorded, or {} if there is none."""
    text = (read_json(resolved_model.path.parent / "results.json") or {}).get("method", {}).get("training_text")
    return text if isinstance(text, dict) else {}


def ask_as_tuned(config: EvaluateConfig, template: Template, tuned_with: Mapping[str, Any]) -> AsTuned:
    """Take the prompt and `bos` of the tune run where the settings leave them open. `tuned_with`: `training_prompt`."""
    notes = []
    target, instruction = tuned_with.get("prompt"), tuned_with.get("instruction")
    own = replace(template, target=target or template.target, instruction=instruction or "")
    if config.prompt_template is None and "{question}" in (target or "") and own != template:
        template = own
        notes.append(f"asked with the prompt that it was tuned with: {instruction or ''}{target}")
    if config.bos == "auto" and tuned_with.get("bos") in ("yes", "no"):
        config = config.model_copy(update={"bos": tuned_with["bos"]})
        notes.append(f"asked with --bos {tuned_with['bos']}, as it was tuned")
    return AsTuned(config, template, notes)


def chat_choice(
    config: EvaluateConfig, rows: pl.DataFrame, tokenizer: Any, tuned_with: Mapping[str, Any]
) -> tuple[bool, str | None]:
    """Choose whether to ask through the chat template, and say why.

    With `--chat-template auto` the model is asked as it was tuned if that is known; else the rows decide.
    """
    if config.chat_template != "auto":
        return config.uses_chat_template, None
    chat = tuned_with.get("chat_template")
    if isinstance(chat, bool):
        return chat, f"asked {'through the chat template' if chat else 'in plain text'}, as it was tuned"
    choice, reason = choose_template(tokenizer, chats=are_chats(rows))
    return choice == "yes", reason


def prompt_differences(tuned_with: Mapping[str, Any], prompter: Prompter) -> list[str]:
    """Return how the prompts differ from those of the tune run, which alone can bring EM near 0; [] if unknown."""
    if not tuned_with:
        return []
    return differences(dict(tuned_with), {**prompter.choices, "prompt": prompter.template.target})
