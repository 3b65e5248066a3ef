"""The settings of `foreknow audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from foreknow.config.shared import (
    BASE,
    BOS,
    CHAT_TEMPLATE,
    DRY_RUN,
    MATCH,
    OUT,
    RAY,
    RAY_ADDRESS,
    RAY_WORKERS,
    TRUST_REMOTE_CODE,
    DataSettings,
    Dtype,
    ServerSettings,
    SpanFinder,
    YesNoAuto,
)
from foreknow.settings import COMMON, Group


class AuditConfig(DataSettings, ServerSettings):
    """Settings of `foreknow audit`. The protocol's numbers default to the paper's (section 2)."""

    out: Annotated[Path | None, Group.OUTPUT, COMMON] = Field(None, description=OUT)
    model: Annotated[str, Group.MODEL, COMMON] = Field(
        "smollm2-135m",
        description="The model: a packaged one (see 'foreknow models'), a folder of a model or an adapter, a .gguf "
        "file, a hub id, or openai:URL#NAME for one on a server (OPENAI_API_KEY holds its key).",
    )
    base: Annotated[str | None, Group.MODEL] = Field(None, description=BASE)
    tokenizer: Annotated[str | None, Group.SERVER] = Field(
        None,
        description="The model whose tokenizer makes the prompts for a server, named as in --model (default: the NAME "
        "in --model).",
    )
    per_minute: Annotated[float | None, Group.SERVER] = Field(
        None, gt=0, description="Send at most this many requests a minute."
    )
    batch_prompts: Annotated[int, Group.SERVER] = Field(
        16, ge=1, description="How many prompts to put into one request, if the server takes several."
    )
    prices: Annotated[tuple[float, float] | None, Group.SERVER] = Field(
        None,
        description="What a million prompt tokens and a million answer tokens cost on the server; --dry-run uses both.",
    )
    generator: Annotated[Literal["transformers", "vllm"], Group.SPEED] = Field(
        "transformers", description="The library that generates the answers of --protocol sampled."
    )
    exemplars: Annotated[Path | None, Group.DATA, COMMON] = Field(
        None, description="A data file whose rows serve as exemplars in the prompts."
    )
    limit: Annotated[int | None, Group.DATA, COMMON] = Field(
        None, ge=1, description="Audit only this many rows, drawn evenly over the groups."
    )
    minutes: Annotated[float | None, Group.DATA, COMMON] = Field(
        None,
        gt=0,
        description="Audit as many rows as fit in this many minutes on this machine, as a short burst measures.",
    )
    protocol: Annotated[Literal["exact", "sampled"], Group.PROTOCOL, COMMON] = Field(
        "exact",
        description="exact computes the probability of each answer; sampled generates answers as the paper did (slow).",
    )
    shots: Annotated[int, Group.PROTOCOL, COMMON] = Field(
        4, ge=0, description="The number of exemplars in each prompt."
    )
    exemplar_sets: Annotated[int, Group.PROTOCOL, COMMON] = Field(
        10, ge=1, description="Ask about each row with this many sets of exemplars."
    )
    samples: Annotated[int, Group.PROTOCOL] = Field(
        16, ge=1, description="Each prompt stands for this many sampled answers."
    )
    temperature: Annotated[float, Group.PROTOCOL] = Field(
        0.5, gt=0, description="The temperature at which answers are sampled."
    )
    top_k: Annotated[int, Group.PROTOCOL] = Field(
        40, ge=0, description="Sample each token from the k likeliest ones (0: from all)."
    )
    match: Annotated[Literal["strict", "lenient"], Group.PROTOCOL] = Field("strict", description=MATCH)
    bos: Annotated[YesNoAuto, Group.PROTOCOL] = Field("auto", description=BOS)
    chat_template: Annotated[YesNoAuto, Group.PROTOCOL, COMMON] = Field("auto", description=CHAT_TEMPLATE)
    prompt_template: Annotated[Path | None, Group.PROTOCOL] = Field(
        None,
        description="YAML file with the keys instruction, shot and target; it replaces the paper's Q:/A: prompt.",
    )
    trust_remote_code: Annotated[bool, Group.MODEL] = Field(False, description=TRUST_REMOTE_CODE)
    max_unknown: Annotated[float | None, Group.OUTPUT] = Field(
        None,
        ge=0,
        le=1,
        description="Exit with status 3 if more than this share of the rows is Unknown: 0.3 is 30 per cent.",
    )
    max_answer_tokens: Annotated[int, Group.PROTOCOL] = Field(
        32, ge=1, description="Flag a row whose answer has more tokens than this, and give it no category."
    )
    spans: Annotated[SpanFinder, Group.PROTOCOL, COMMON] = Field(
        "auto",
        description="How to find the facts to label in long answers: rules, spacy:MODEL, column (the rows' column "
        "spans) or none; auto takes the column if there is one, else rules.",
    )
    span_sets: Annotated[int, Group.PROTOCOL] = Field(
        4, ge=1, description="Probe the spans of long answers behind this many sets of exemplars."
    )
    span_shots: Annotated[int, Group.PROTOCOL] = Field(
        2, ge=0, description="The number of exemplars in each of these sets."
    )
    span_alternatives: Annotated[int, Group.PROTOCOL] = Field(
        9, ge=0, description="Compare each span with this many spans of other rows (0: with none)."
    )
    chance: Annotated[bool, Group.PROTOCOL, COMMON] = Field(
        False,
        description="Also measure guessing, by trying answers on other subjects' questions.",
    )
    tolerance: Annotated[float, Group.PROTOCOL] = Field(
        0.01,
        gt=0,
        description="Search further spellings of a row's answer until samples x unsearched probability is at most "
        "this.",
    )
    max_expansions: Annotated[int, Group.PROTOCOL] = Field(
        64, ge=1, description="Search at most this many token paths for one prompt."
    )
    dtype: Annotated[Dtype, Group.MODEL] = Field("auto", description="Compute in auto, bfloat16, float16 or float32.")
    device: Annotated[str, Group.MODEL, COMMON] = Field(
        "auto", description="Compute on auto, cpu, cuda, cuda:1, mps or map (over all GPUs)."
    )
    batch_tokens: Annotated[int | None, Group.SPEED] = Field(
        None, ge=1, description="How many tokens the model computes at once (default: 2048; on a GPU 16384)."
    )
    chunk_rows: Annotated[int | None, Group.SPEED] = Field(
        None, ge=1, description="How many rows the run saves at once (default: 128; on a GPU 512)."
    )
    ray: Annotated[bool, Group.RAY] = Field(False, description=RAY)
    ray_address: Annotated[str | None, Group.RAY] = Field(None, description=RAY_ADDRESS)
    ray_workers: Annotated[int | None, Group.RAY] = Field(None, ge=1, description=RAY_WORKERS)
    dry_run: Annotated[bool, Group.OUTPUT, COMMON] = Field(False, description=DRY_RUN)
    rows: Annotated[int | None, Group.OUTPUT] = Field(
        None,
        ge=1,
        description="With --dry-run, print what this many rows (such as 1e9) would cost here and on other machines.",
    )

    @field_validator("rows", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        """`1e9` is a whole number too."""
        try:
            return int(float(value)) if isinstance(value, str) and float(value).is_integer() else value
        except (ValueError, OverflowError):
            return value

    @property
    def uses_chat_template(self) -> bool:
        """Whether prompts go through the chat template, once `auto` is resolved (`chat_templates.choose_template`)."""
        return self.chat_template == "yes"
