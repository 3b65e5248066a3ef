"""One frozen model per stage. YAML < flags; a key that does not exist is an error.

The same fields are the command's flags, the keys of its YAML file and the arguments of the Python call, so
there is one list of settings with one meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from foreknow.errors import ConfigError

DEFAULT_FACTS = "facts"
"""The name of the packaged fact set, where a data file could stand."""


def _pairs(value: Any) -> Any:
    """`question=q,answer=a`, or a list of such texts, as a mapping."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        return value
    found = {}
    for pair in (p for text in texts for p in str(text).split(",") if p.strip()):
        ours, equals, theirs = pair.partition("=")
        if not equals or not ours.strip() or not theirs.strip():
            raise ValueError(f"{pair.strip()!r}: expected NAME=COLUMN, such as question=q,answer=a")
        found[ours.strip()] = theirs.strip()
    return found


ColumnMap = Annotated[dict[str, str], BeforeValidator(_pairs)]


class Settings(BaseModel):
    """What all stages' settings have in common: frozen, and strict about their names."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def resolved(self) -> dict[str, Any]:
        """All settings as plain values, for `config.yaml`."""
        return self.model_dump(mode="json")


class AuditConfig(Settings):
    """Settings of `foreknow audit`. The protocol's numbers default to the paper's (section 2)."""

    data: str = Field(description="A data file (JSONL, JSON, CSV, TSV, Parquet), or 'facts': the packaged fact set.")
    out: Path | None = Field(None, description="The run folder to write.")
    model: str = Field(
        "smollm2-135m",
        description="A packaged model, a folder, a .gguf file or a hub id; see 'foreknow models'.",
    )
    exemplars: Path | None = Field(None, description="A data file whose rows serve as exemplars.")
    templates: Path | None = Field(
        None, description="Question templates by relation (JSON or YAML), for subject/relation/object rows."
    )
    group_by: str | None = Field(None, description="Column within which exemplars are drawn (default: the relation).")
    map: ColumnMap = Field({}, description="Columns of the file by our names: question=q,answer=a.")
    limit: int | None = Field(None, ge=1, description="Audit so many rows, spread over the groups.")
    protocol: Literal["exact", "sampled"] = Field(
        "exact",
        description="exact: probabilities computed; sampled: the paper's answers really generated (slow).",
    )
    shots: int = Field(4, ge=0, description="Exemplars in a prompt.")
    exemplar_sets: int = Field(10, ge=1, description="Prompts for each row.")
    samples: int = Field(16, ge=1, description="Samples of each prompt that P_Correct and the label speak of.")
    temperature: float = Field(0.5, gt=0, description="Sampling temperature.")
    top_k: int = Field(40, ge=0, description="Sample from the k likeliest tokens (0: from all).")
    match: Literal["strict", "lenient"] = Field(
        "strict", description="Exact match letter by letter, or without case, punctuation and articles."
    )
    bos: Literal["auto", "yes", "no"] = Field(
        "auto", description="Beginning-of-sequence token: as the tokenizer does it, always, or never."
    )
    chat_template: bool = Field(False, description="Ask through the tokenizer's chat template.")
    prompt_template: Path | None = Field(
        None,
        description="YAML file with the keys instruction, shot and target, in place of the paper's Q:/A: prompt.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    strict_rows: bool = Field(False, description="Refuse a file in which a row has no question or answer.")
    max_unknown: float | None = Field(
        None, ge=0, le=1, description="Exit 3, after all is written, if a larger share of rows is Unknown."
    )
    max_answer_tokens: int = Field(32, ge=1, description="Longer answers are flagged and get no category.")
    tolerance: float = Field(
        0.01,
        gt=0,
        description="Search a row's spellings until samples x unsearched probability is at most this.",
    )
    max_expansions: int = Field(64, ge=1, description="Token paths searched for one prompt, at most.")
    dtype: str = Field("auto", description="auto, bfloat16, float16 or float32.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    batch_tokens: int | None = Field(None, ge=1, description="Tokens computed at once (default: 2048; GPU 16384).")
    chunk_rows: int | None = Field(None, ge=1, description="Rows saved at once (default: 128; GPU 512).")
    seed: int = Field(0, ge=0, description="Seed of every draw.")
    dry_run: bool = Field(False, description="Say what a run would cost, from a short measured burst; write nothing.")

    @field_validator("bos", mode="before")
    @classmethod
    def _yaml_says_no(cls, value: Any) -> Any:
        """YAML reads a bare `no` as False and a bare `yes` as True."""
        return ("no", "yes")[value] if isinstance(value, bool) else value

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        if value not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"found {value!r}, expected auto, float32, bfloat16 or float16")
        return value


S = TypeVar("S", bound=Settings)


def settings_of(model: type[S], given: dict[str, Any], file: Path | None = None) -> S:
    """A stage's settings from a YAML file, if any, and those given on top. Raises ConfigError naming the key."""
    found = {**_read_yaml(file), **given} if file else given
    try:
        return model(**found)
    except ValidationError as error:
        raise ConfigError(_first_fault(error, model, file, set(given))) from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: not YAML: {' '.join(str(error).split())[:200]}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"--config {file}: found a {type(found).__name__}, expected keys with values")
    return {str(key).replace("-", "_"): value for key, value in found.items()}


def _first_fault(error: ValidationError, model: type[Settings], file: Path | None, given: set[str]) -> str:
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"][:1]) or "settings"
    where = f"--{key.replace('_', '-')}" if key in given or file is None else f"{file}: {key}"
    if fault["type"] == "extra_forbidden":
        known = ", ".join(sorted(model.model_fields))
        return f"{where}: no such setting; known are {known}"
    if fault["type"] == "missing":
        return f"{key}: missing; give it as an argument or in --config"
    message = fault["msg"].removeprefix("Value error, ")
    found = fault.get("input")
    shown = "" if isinstance(found, (dict, list)) or "found" in message else f"found {found!r}: "
    return f"{where}: {shown}{message[0].lower()}{message[1:]}"
