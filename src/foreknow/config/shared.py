"""What the settings of several commands have in common: texts of help, types of values, shared fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from foreknow.errors import ConfigError
from foreknow.settings import COMMON, Group, Settings, settings_of

DEFAULT_FACTS = "facts"
"""The name of the packaged fact set, where a data file could stand."""
FEW_SETS = 3
"""Exemplar sets for a first look: with ten, a slow machine labels a handful of rows in a minute."""


def column_pairs(value: Any) -> Any:
    """`question=q,answer=a`, or a list of such texts, as a mapping."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        return value
    found = {}
    # a column's own name may hold a comma
    for pair in (p for text in texts for p in re.split(r",(?=\s*\w+\s*=)|,\s*$", str(text)) if p.strip()):
        ours, equals, theirs = pair.partition("=")
        if not equals or not ours.strip() or not theirs.strip():
            raise ValueError(f"{pair.strip()!r}: expected NAME=COLUMN, such as question=q,answer=a")
        found[ours.strip()] = theirs.strip()
    return found


ColumnMap = Annotated[dict[str, str], BeforeValidator(column_pairs)]


def _files(value: Any) -> Any:
    """`ood=ood.jsonl`, or a list of such texts, as a mapping; a file's name may hold commas."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        return value
    found: dict[str, str] = {}
    for text in texts:
        name, equals, file = str(text).partition("=")
        if not equals or not name.strip() or not file.strip():
            raise ValueError(f"found {text!r}, expected NAME=FILE, such as ood=ood.jsonl")
        if name.strip() in found:
            raise ValueError(f"found the name {name.strip()!r} twice")
        found[name.strip()] = file.strip()
    return found


FileMap = Annotated[dict[str, str], BeforeValidator(_files)]


def _yes_or_no(value: Any) -> Any:
    """Return the word that YAML reads as a boolean: a bare `no` as False, a bare `yes` as True."""
    return ("no", "yes")[value] if isinstance(value, bool) else value


YesNoAuto = Annotated[Literal["auto", "yes", "no"], BeforeValidator(_yes_or_no)]


def _numbers(value: Any) -> Any:
    """`0.5,0.7`, a list of such texts or of numbers, or one number, as a list of texts and numbers."""
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    return [piece for part in parts for piece in (part.split(",") if isinstance(part, str) else [part])]


Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers)]


def count_or(value: Any, *words: str) -> Any:
    """Return the value if it is a whole number from 1 on or one of `words`. Raises ValueError."""
    if value in words or (str(value).isdecimal() and int(value) > 0):
        return value
    raise ValueError(f"found {value!r}, expected {', '.join(words)} or a number from 1 on")


def _known_dtype(value: str) -> str:
    if value not in ("auto", "float32", "bfloat16", "float16"):
        raise ValueError(f"found {value!r}, expected auto, float32, bfloat16 or float16")
    return value


Dtype = Annotated[str, AfterValidator(_known_dtype)]


def _one_line(value: str) -> str:
    if not value.strip() or "\n" in value or "\r" in value:
        raise ValueError(f"found {value!r}, expected one line of text: an answer ends at a line break")
    return value.strip()


OneLine = Annotated[str, AfterValidator(_one_line)]


def _known_finder(value: str) -> str:
    if value not in ("auto", "rules", "column", "none") and not value.removeprefix("spacy:").strip():
        raise ValueError(f"found {value!r}, expected a model's name behind spacy:, such as spacy:en_core_web_sm")
    if value not in ("auto", "rules", "column", "none") and not value.startswith("spacy:"):
        raise ValueError(f"found {value!r}, expected auto, rules, spacy:MODEL, column or none")
    return value


SpanFinder = Annotated[str, AfterValidator(_known_finder)]


DATA = (
    "A data file (JSONL, JSON, CSV, TSV, Parquet, Arrow; also .gz, .zst, .bz2, .xz), a folder or .zip of "
    "them, a folder of save_to_disk or the hub's cache, - for standard input, hub:owner/name, s3://, gs://, or 'facts' "
    "(packaged)."
)
LAYOUT = (
    "How the file lays out its rows: auto detects it; or messages, sharegpt, preference, alpaca, prompt-completion, "
    "popqa, choices, reading, question, triples, trees, instances, text."
)
TEMPLATES = (
    "JSON or YAML file with a question template for each relation; the templates turn subject/relation/object rows "
    "into questions."
)
TURNS = "Make a row of every answer of the assistant in a chat (all), or only of the last one (last)."
Turns = Literal["all", "last"]
NULL_WORDS = (
    "What happens to a row whose answer is a word for a missing value (nan, null, None, N/A, -): leave-out drops and "
    "counts the row, keep takes the word as the answer."
)
NullWords = Literal["leave-out", "keep"]
STRICT_ROWS = "Refuse the file if any row has no question or no answer."
BadRows = Literal["refuse", "skip"]
MODEL = (
    "The model: a packaged one (see 'foreknow models'), a folder of a model or an adapter, a .gguf file or a hub id."
)
BASE = "The base model of an adapter, if the adapter's own files do not lead to it."
MATCH = (
    "How an answer is compared with the accepted ones: strict compares letter by letter, lenient ignores case, "
    "punctuation and articles."
)
BOS = (
    "Whether prompts begin with the beginning-of-sequence token: auto follows the tokenizer, yes always adds it, no "
    "never does."
)
CHAT_TEMPLATE = "Wrap prompts in the tokenizer's chat template; auto does so for chats."
TUNE_PROMPT = (
    "YAML file with the prompt as the keys instruction and target (default: 'Answer the following question. "
    "{question}' and a newline)."
)
TRUST_REMOTE_CODE = "Allow Python code that comes with the model to run."
OUT = "The run folder to write."
DRY_RUN = "Run a short burst, print what the whole run would cost, and write nothing."
RAY_SETTINGS: Final = ("ray", "ray_address", "ray_workers")
RAY = "Compute in Ray processes, on a cluster that is started on this machine or the one at --ray-address."
RAY_ADDRESS = (
    "The running Ray cluster to use, as HOST:PORT or auto (default: RAY_ADDRESS if it is set, else a new cluster on "
    "this machine)."
)
RAY_WORKERS = "How many Ray processes run at once (default: one for each GPU; without GPUs one for every 4 cores)."


class DataSettings(Settings):
    """What every stage that reads rows has in common."""

    data: Annotated[str, Group.DATA, COMMON] = Field(description=DATA)
    layout: Annotated[str, Group.DATA] = Field("auto", description=LAYOUT)
    map: Annotated[ColumnMap, Group.DATA, COMMON] = Field(
        {}, description="Which column holds what: question=q,answer=a; data.a reads into an object."
    )
    templates: Annotated[Path | None, Group.DATA] = Field(None, description=TEMPLATES)
    group_by: Annotated[str | None, Group.DATA] = Field(
        None, description="The column that groups rows: exemplars come from a row's own group (default: the relation)."
    )
    turns: Annotated[Turns, Group.DATA] = Field("all", description=TURNS)
    null_words: Annotated[NullWords, Group.DATA] = Field("leave-out", description=NULL_WORDS)
    strict_rows: Annotated[bool, Group.DATA] = Field(False, description=STRICT_ROWS)
    seed: Annotated[int, Group.PROTOCOL] = Field(0, ge=0, description="The seed of every random draw.")


class ServerSettings(Settings):
    """How patiently an OpenAI-compatible server is asked."""

    timeout: Annotated[float, Group.SERVER] = Field(
        120.0, gt=0, description="How many seconds to wait for a server's reply."
    )
    retries: Annotated[int, Group.SERVER] = Field(
        5, ge=0, description="How often to repeat a request that failed or met a busy server."
    )
    backoff: Annotated[float, Group.SERVER] = Field(
        1.0, ge=0, description="How many seconds to wait before the first repeat; each further wait is twice as long."
    )
    concurrency: Annotated[int, Group.SERVER] = Field(
        4, ge=1, le=256, description="How many requests to have under way at once."
    )


def stage_settings(
    model: type[Settings], value: dict[str, Any], own: frozenset[str], needed: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings that a study hands to a stage, by name, if the stage accepts them.

    `own`: settings that the study itself sets. `needed`: values for the required ones. Raises ValueError.
    """
    named = {str(key).replace("-", "_"): setting for key, setting in value.items()}
    for key in named:
        if key in own:
            raise ValueError(f"found {key}, which the study sets itself")
    try:
        settings_of(model, {**needed, **named})
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return named


def check_workers(workers: int, ray: bool, ray_address: str | None) -> None:
    """Raise ConfigError if runs are to be done at once both in processes of this machine and on Ray."""
    if workers > 1 and (ray or ray_address is not None):
        raise ConfigError("--workers: found with --ray, where --ray-workers says how many runs are done at once")
