"""The settings of `foreknow evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from foreknow.config.shared import (
    BASE,
    BOS,
    CHAT_TEMPLATE,
    MATCH,
    OUT,
    TRUST_REMOTE_CODE,
    TUNE_PROMPT,
    DataSettings,
    Dtype,
    OneLine,
    YesNoAuto,
    count_or,
)
from foreknow.settings import COMMON, Group


class EvaluateConfig(DataSettings):
    """Settings of `foreknow evaluate`. Prompt, BOS and matching default to those of `tune`."""

    model: Annotated[str, Group.MODEL, COMMON] = Field(
        description="The tuned model: a folder such as RUN/early_stop, an adapter's folder, a packaged model or a hub "
        "id."
    )
    out: Annotated[Path | None, Group.OUTPUT, COMMON] = Field(None, description=OUT)
    audit: Annotated[Path | None, Group.DATA, COMMON] = Field(
        None, description="The folder of a finished audit of these rows, which gives their categories before training."
    )
    base: Annotated[str | None, Group.MODEL, COMMON] = Field(None, description=BASE)
    force: Annotated[bool, Group.DATA] = Field(
        False, description="Continue even if the audit or --base belongs to another model than the tuned model's base."
    )
    compare_base: Annotated[bool, Group.MODEL, COMMON] = Field(
        True,
        description="Also ask the model that MODEL was tuned from in the same format (takes as long again).",
    )
    limit: Annotated[int | None, Group.DATA, COMMON] = Field(
        None, ge=1, description="Ask only this many rows, drawn evenly over the groups."
    )
    match: Annotated[Literal["strict", "lenient"], Group.PROTOCOL, COMMON] = Field("strict", description=MATCH)
    max_new_tokens: Annotated[int | Literal["auto"], Group.PROTOCOL, COMMON] = Field(
        "auto",
        description="How many tokens an answer may have; auto: 4 more than the row's longest accepted answer has.",
    )
    idk_answer: Annotated[OneLine | None, Group.PROTOCOL] = Field(
        None, description="The refusal that the model was taught, if it was taught one."
    )
    prompt_template: Annotated[Path | None, Group.PROTOCOL] = Field(None, description=TUNE_PROMPT)
    chat_template: Annotated[YesNoAuto, Group.PROTOCOL, COMMON] = Field("auto", description=CHAT_TEMPLATE)
    bos: Annotated[YesNoAuto, Group.PROTOCOL] = Field("auto", description=BOS)
    trust_remote_code: Annotated[bool, Group.MODEL] = Field(False, description=TRUST_REMOTE_CODE)
    dtype: Annotated[Dtype, Group.MODEL] = Field("auto", description="Compute in auto, bfloat16, float16 or float32.")
    device: Annotated[str, Group.MODEL, COMMON] = Field(
        "auto", description="Compute on auto, cpu, cuda, cuda:1, mps or map (over all GPUs)."
    )
    batch_rows: Annotated[int | None, Group.SPEED] = Field(
        None, ge=1, description="How many rows the model answers at once (default: 32; on a GPU 256)."
    )
    chunk_rows: Annotated[int | None, Group.SPEED] = Field(
        None,
        ge=1,
        description="How many rows the run saves at once (default: 256; on a GPU 2048; a quarter for long answers).",
    )

    @property
    def uses_chat_template(self) -> bool:
        """Whether prompts go through the chat template, once `auto` is resolved (`chat_templates.choose_template`)."""
        return self.chat_template == "yes"

    @field_validator("max_new_tokens", mode="before")
    @classmethod
    def _tokens(cls, value: Any) -> Any:
        return count_or(value, "auto")
