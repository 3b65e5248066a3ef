"""One frozen model per stage (`settings.py`: how they are read).

The same fields are the command's flags, the keys of its YAML file and the arguments of the Python call, so
there is one list of settings with one meaning.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from foreknow.categories import CATEGORIES
from foreknow.errors import ConfigError
from foreknow.settings import Settings

DEFAULT_FACTS = "facts"
"""The name of the packaged fact set, where a data file could stand."""


def _pairs(value: Any) -> Any:
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


ColumnMap = Annotated[dict[str, str], BeforeValidator(_pairs)]


DATA = (
    "A data file (JSONL, JSON, CSV, TSV, Parquet, Arrow; also .gz, .zst, .bz2, .xz), a folder or .zip of them, also of "
    "save_to_disk or the hub's cache, - for standard input, hub:owner/name, s3:// or gs://, or 'facts': the packaged "
    "fact set."
)
LAYOUT = (
    "How rows are written: auto, messages, sharegpt, preference, alpaca, prompt-completion, popqa, choices, reading, "
    "question, triples, trees, instances or text."
)
TURNS = "Of a chat: every answer of the assistant is a row (all), or only the last one (last)."
Turns = Literal["all", "last"]
NULL_WORDS = (
    "Rows whose answer is a word for a missing value (nan, null, None, N/A, -): leave-out counts them, keep takes the "
    "word as the answer."
)
NullWords = Literal["leave-out", "keep"]
BadRows = Literal["refuse", "skip"]
MODEL = "A packaged model, a folder (a model's or an adapter's), a .gguf file or a hub id; see 'foreknow models'."
BASE = "The model that an adapter belongs to, where it is not found by itself."
RAY = "Compute in processes of a Ray cluster: one started on this machine, or that at --ray-address."
RAY_ADDRESS = "A running Ray cluster, as HOST:PORT or auto (default: RAY_ADDRESS, else a cluster of this machine)."
RAY_WORKERS = "Ray processes at once (default: one a GPU; without GPUs one for every 4 cores)."


class DataSettings(Settings):
    """What every stage that reads rows has in common."""

    data: str = Field(description=DATA)
    layout: str = Field("auto", description=LAYOUT)
    map: ColumnMap = Field(
        {}, description="Columns of the file by our names: question=q,answer=a; data.a is a key of an object."
    )
    templates: Path | None = Field(
        None, description="Question templates by relation (JSON or YAML), for subject/relation/object rows."
    )
    group_by: str | None = Field(None, description="Column within which exemplars are drawn (default: the relation).")
    turns: Turns = Field("all", description=TURNS)
    null_words: NullWords = Field("leave-out", description=NULL_WORDS)
    strict_rows: bool = Field(False, description="Refuse a file in which a row has no question or answer.")
    seed: int = Field(0, ge=0, description="Seed of every draw.")


class ServerSettings(Settings):
    """How patiently an OpenAI-compatible server is asked."""

    timeout: float = Field(120.0, gt=0, description="Servers: seconds to wait for a reply.")
    retries: int = Field(5, ge=0, description="Servers: tries after the first where one fails or is busy.")
    backoff: float = Field(1.0, ge=0, description="Servers: seconds before the second try; doubled for each one more.")
    concurrency: int = Field(4, ge=1, le=256, description="Servers: requests under way at once.")


class AuditConfig(DataSettings, ServerSettings):
    """Settings of `foreknow audit`. The protocol's numbers default to the paper's (section 2)."""

    out: Path | None = Field(None, description="The run folder to write.")
    model: str = Field(
        "smollm2-135m",
        description=f"{MODEL} Or a server's: "
        "openai:URL#NAME, such as openai:http://localhost:8000/v1#llama; a key is read from OPENAI_API_KEY.",
    )
    base: str | None = Field(None, description=BASE)
    tokenizer: str | None = Field(
        None, description="Servers: whose tokenizer makes the prompts, as for --model (default: the model's NAME)."
    )
    per_minute: float | None = Field(None, gt=0, description="Servers: requests a minute, at most.")
    batch_prompts: int = Field(16, ge=1, description="Servers: prompts in a request, where several are taken.")
    prices: tuple[float, float] | None = Field(
        None, description="Servers: the price of a million prompt tokens and of a million answer tokens, for --dry-run."
    )
    generator: Literal["transformers", "vllm"] = Field(
        "transformers", description="What generates the answers of --protocol sampled."
    )
    exemplars: Path | None = Field(None, description="A data file whose rows serve as exemplars.")
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
    max_unknown: float | None = Field(
        None, ge=0, le=1, description="Exit 3, after all is written, if a larger share of rows is Unknown."
    )
    max_answer_tokens: int = Field(32, ge=1, description="Longer answers are flagged and get no category.")
    chance: bool = Field(
        False,
        description="Tell what guessing would score too: each row's answer given to other subjects' questions.",
    )
    tolerance: float = Field(
        0.01,
        gt=0,
        description="Search a row's spellings until samples x unsearched probability is at most this.",
    )
    max_expansions: int = Field(64, ge=1, description="Token paths searched for one prompt, at most.")
    dtype: str = Field("auto", description="auto, bfloat16, float16 or float32.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...; map: the layers spread over all GPUs.")
    batch_tokens: int | None = Field(None, ge=1, description="Tokens computed at once (default: 2048; GPU 16384).")
    chunk_rows: int | None = Field(None, ge=1, description="Rows saved at once (default: 128; GPU 512).")
    ray: bool = Field(False, description=RAY)
    ray_address: str | None = Field(None, description=RAY_ADDRESS)
    ray_workers: int | None = Field(None, ge=1, description=RAY_WORKERS)
    dry_run: bool = Field(False, description="Say what a run would cost, from a short measured burst; write nothing.")
    rows: int | None = Field(
        None, ge=1, description="With --dry-run: what so many rows would cost, here and on other machines (1e9)."
    )

    @field_validator("rows", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        """`1e9` is a whole number too."""
        try:
            return int(float(value)) if isinstance(value, str) and float(value).is_integer() else value
        except (ValueError, OverflowError):
            return value

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


class CheckConfig(DataSettings):
    """Settings of `foreknow check`."""


class ExtractConfig(DataSettings, ServerSettings):
    """Settings of `foreknow extract`."""

    writes_a_file: ClassVar[bool] = True

    out: Path | None = Field(None, description="The file to write: the input with a column of facts.")
    endpoint: str = Field(
        description="Address of an OpenAI-compatible server, such as http://localhost:8000/v1. "
        "A key is read from OPENAI_API_KEY."
    )
    model: str = Field(description="The model's name on that server.")
    max_facts: int = Field(8, ge=1, description="Facts of one row, at most.")
    max_answer_words: int = Field(8, ge=1, description="Words of one fact's answer, at most.")
    temperature: float = Field(0.0, ge=0, le=2, description="Sampling temperature.")
    max_tokens: int = Field(1024, ge=1, description="Tokens of one reply, at most.")
    attempts: int = Field(3, ge=1, description="How often a row is asked while its reply cannot be read.")
    limit: int | None = Field(None, ge=1, description="Ask for so many rows, spread over the groups.")


class TuneConfig(Settings):
    """Settings of `foreknow tune`. Epochs, learning rate, batch and dropout default to the paper's (section 3)."""

    train: str = Field(description="The rows to train on: a data file, such as one that 'foreknow mix' wrote.")
    dev: str = Field(description="The rows that choose the best epoch.")
    test: FileMap = Field({}, description="More rows to watch, as NAME=FILE; may be given more than once.")
    out: Path | None = Field(None, description="The run folder to write.")
    model: str = Field("smollm2-135m", description=MODEL)
    base: str | None = Field(None, description=BASE)
    audit: Path | None = Field(None, description="A finished audit: the categories of files that have no such column.")
    force: bool = Field(
        False, description="Go on though the audit, the mix, or --base, is of another model than this one."
    )
    allow_overlap: bool = Field(False, description="Go on though rows to train on stand in dev or a test set.")
    method: Literal["full", "lora"] = Field("full", description="Train every weight, or low-rank adapters (PEFT).")
    epochs: int = Field(50, ge=1, description="Passes over the rows.")
    learning_rate: float = Field(1e-5, gt=0, description="Constant after the warmup.")
    batch_size: int = Field(128, ge=1, description="Rows of one optimizer step.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout while training, wherever the model has any.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    warmup: float = Field(0.0, ge=0, description="Warmup: so many steps, or below 1 this share of all steps.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are cut to this norm (0: never).")
    lora_rank: int = Field(16, ge=1, description="Rank of the adapters.")
    lora_alpha: int = Field(32, ge=1, description="Scale of the adapters: alpha / rank.")
    lora_targets: tuple[str, ...] = Field(("all-linear",), description="Layers that get an adapter, by name.")
    patience: int | None = Field(None, ge=1, description="Stop after so many epochs without a better metric.")
    metric: str = Field("dev_em", description="Chooses the best epoch; a name that does not exist is an error.")
    eval_steps: tuple[int, ...] = Field((), description="Measure after these steps of the first epoch too (0: before).")
    match: Literal["strict", "lenient"] = Field(
        "strict", description="Exact match letter by letter, or without case, punctuation and articles."
    )
    prompt_template: Path | None = Field(
        None,
        description="YAML file with the keys instruction and target: what stands before the answer. "
        "Default: 'Answer the following question. {question}' and a newline.",
    )
    chat_template: bool = Field(False, description="Ask through the tokenizer's chat template.")
    bos: Literal["auto", "yes", "no"] = Field(
        "auto", description="Beginning-of-sequence token: as the tokenizer does it, always, or never."
    )
    map: ColumnMap = Field({}, description="Columns of the files by our names: question=q,answer=a.")
    templates: Path | None = Field(
        None, description="Question templates by relation (JSON or YAML), for subject/relation/object rows."
    )
    group_by: str | None = Field(None, description="Column to report by (default: the relation).")
    turns: Turns = Field("all", description=TURNS)
    null_words: NullWords = Field("leave-out", description=NULL_WORDS)
    strict_rows: bool = Field(False, description="Refuse a file in which a row has no question or answer.")
    bad_rows: BadRows = Field(
        "refuse",
        description="Rows that nothing can be learnt from (the answer is cut away or gives no token, the chat template "
        "refuses the row): refuse the file, or skip them. They are counted and listed either way.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    dtype: str = Field("auto", description="What is computed in: auto, bfloat16 or float32. Weights stay float32.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="Tokens trained on at once (default: 2048; GPU 16384); changes memory, not the method."
    )
    batch_tokens: int | None = Field(None, ge=1, description="Tokens measured at once (default: 2048; GPU 16384).")
    save_every: int | None = Field(None, ge=1, description="Checkpoint after so many steps too, not only each epoch.")
    report_to: tuple[str, ...] = Field((), description="Trackers that transformers knows: tensorboard, wandb, ...")
    seed: int = Field(0, ge=0, description="Seed of the order of rows, dropout and new weights.")
    dry_run: bool = Field(False, description="Say what a run would cost, from a short measured burst; write nothing.")

    @field_validator("bos", mode="before")
    @classmethod
    def _yaml_says_no(cls, value: Any) -> Any:
        """YAML reads a bare `no` as False and a bare `yes` as True."""
        return ("no", "yes")[value] if isinstance(value, bool) else value

    @field_validator("dtype")
    @classmethod
    def _trainable_dtype(cls, value: str) -> str:
        if value not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"found {value!r}, expected auto, float32 or bfloat16")
        return value

    @field_validator("test")
    @classmethod
    def _names_of_sets(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name in ("train", "dev") or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"found the name {name!r}, expected letters, digits, '-' and '_', not train or dev")
        return value

    @field_validator("eval_steps")
    @classmethod
    def _steps(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(step < 0 for step in value):
            raise ValueError(f"found {min(value)}, expected steps from 0 on")
        return tuple(sorted(set(value)))


class EvaluateConfig(DataSettings):
    """Settings of `foreknow evaluate`. Prompt, BOS and matching default to those of `tune`."""

    model: str = Field(
        description="The tuned model: a folder such as RUN/early_stop, an adapter's folder, a packaged model or a "
        "hub id."
    )
    out: Path | None = Field(None, description="The run folder to write.")
    audit: Path | None = Field(None, description="A finished audit of these rows: their categories before training.")
    base: str | None = Field(None, description=BASE)
    force: bool = Field(False, description="Go on though the audit, or --base, is of another model than the base.")
    limit: int | None = Field(None, ge=1, description="Ask so many rows, spread over the groups.")
    match: Literal["strict", "lenient"] = Field(
        "strict", description="Exact match letter by letter, or without case, punctuation and articles."
    )
    max_new_tokens: int | Literal["auto"] = Field(
        "auto",
        description="Tokens in which a right answer must end. auto: a row's longest accepted answer and 4 more.",
    )
    idk_answer: str | None = Field(None, description="The refusal the model was taught, where it was taught one.")
    prompt_template: Path | None = Field(
        None,
        description="YAML file with the keys instruction and target, as in tune. "
        "Default: 'Answer the following question. {question}' and a newline.",
    )
    chat_template: bool = Field(False, description="Ask through the tokenizer's chat template.")
    bos: Literal["auto", "yes", "no"] = Field(
        "auto", description="Beginning-of-sequence token: as the tokenizer does it, always, or never."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    dtype: str = Field("auto", description="auto, bfloat16, float16 or float32.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...; map: the layers spread over all GPUs.")
    batch_rows: int | None = Field(None, ge=1, description="Rows answered at once (default: 32; GPU 256).")
    chunk_rows: int | None = Field(None, ge=1, description="Rows saved at once (default: 256; GPU 2048).")

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

    @field_validator("max_new_tokens", mode="before")
    @classmethod
    def _tokens(cls, value: Any) -> Any:
        if value == "auto" or (str(value).isdecimal() and int(value) > 0):
            return value
        raise ValueError(f"found {value!r}, expected auto or a number from 1 on")

    @field_validator("idk_answer")
    @classmethod
    def _some_text(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or "\n" in value or "\r" in value):
            raise ValueError(f"found {value!r}, expected one line of text: an answer ends at a line break")
        return value and value.strip()


WEIGHTS = {
    "half-unknown": {"Unknown": 0.5},
    "fading": {"WeaklyKnown": 0.5, "Unknown": 0.25},
}
"""Named weights: ours, for a start; a category that is not named weighs 1."""


def _category(text: str) -> str:
    """A category by its name in any case, `Known` left off or not: `weakly`, `WEAKLYKNOWN`, `WeaklyKnown`."""
    names = {name.removesuffix("Known").casefold(): name for name in CATEGORIES}
    names |= {name.casefold(): name for name in CATEGORIES}
    if (bare := text.strip().casefold()) in names:
        return names[bare]
    raise ValueError(f"found {text!r}, expected {', '.join(CATEGORIES[:3])} or {CATEGORIES[3]}")


class MixConfig(Settings):
    """Settings of `foreknow mix`. One of unknown, only, natural, known_of and drop says which rows are drawn.

    With `idk` or `weight` and none of the five, the audit's rows are taken as they are (natural).
    """

    writes_a_file: ClassVar[bool] = True

    audit: Path = Field(description="A finished audit's folder.")
    out: Path = Field(description="The file to write, in the audited file's layout; FILE.manifest.json beside it.")
    unknown: float | None = Field(None, ge=0, le=1, description="Share of Unknown rows (0 to 1) in every relation.")
    only: str | None = Field(None, description="Rows of one category: HighlyKnown, MaybeKnown, WeaklyKnown or Unknown.")
    natural: bool = Field(False, description="Every relation's categories in the audit's own shares.")
    known_of: Path | None = Field(None, description="A file made by mix: the same rows without its Unknown ones.")
    drop: tuple[str, ...] = Field((), description="All rows but those of these categories: unknown,weakly.")
    idk: bool = Field(False, description="Unknown rows keep their question; the answer becomes a refusal.")
    idk_answer: str = Field("I don't know.", description="The refusal.")
    weight: dict[str, float] = Field(
        {}, description="A weight column by category: HighlyKnown=0.5,Unknown=2 (others 1), or half-unknown, or fading."
    )
    relations: tuple[str, ...] = Field((), description="Only rows of these relations.")
    size: int | None = Field(None, ge=1, description="Rows of the set (default: the largest size possible).")
    family: Literal["own", "shares", "categories"] | None = Field(
        None,
        description="Whose largest size and relation mix hold: this set's own, those of sets that differ in the "
        "Unknown share, or of sets of one category (default: shares with --unknown, else own).",
    )
    family_of: tuple[str, ...] = Field(
        CATEGORIES, description="With --family categories: the categories that such sets are made of."
    )
    bad_rows: BadRows = Field(
        "skip",
        description="Rows of the audit that nothing can be learnt from (no answer, refused by the chat template): they "
        "are never drawn, but counted; refuse makes them an error.",
    )
    seed: int = Field(0, ge=0, description="Seed of every draw.")
    force: bool = Field(False, description="Write over a file that was made with other settings.")

    @property
    def kind(self) -> str:
        """Which rows are drawn: unknown, only, natural, known_of or drop."""
        return next(iter(self._kinds()), "natural")

    @property
    def limited_by(self) -> Literal["own", "shares", "categories"]:
        """The family whose limit holds."""
        return self.family or ("shares" if self.kind == "unknown" else "own")

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that rows are drawn from."""
        if self.only is not None:
            return (self.only,)
        left_out = ("Unknown",) if self.kind == "known_of" else self.drop
        return tuple(name for name in CATEGORIES if name not in left_out)

    def _kinds(self) -> list[str]:
        given = {
            "unknown": self.unknown is not None,
            "only": self.only is not None,
            "natural": self.natural,
            "known_of": self.known_of is not None,
            "drop": bool(self.drop),
        }
        return [kind for kind, is_given in given.items() if is_given]

    @field_validator("only")
    @classmethod
    def _known_category(cls, value: str | None) -> str | None:
        return None if value is None else _category(value)

    @field_validator("drop", "family_of", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, (list, tuple)):
            return value
        names = {_category(name) for text in texts for name in str(text).split(",") if name.strip()}
        return tuple(name for name in CATEGORIES if name in names)

    @field_validator("weight", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, (list, tuple)) and len(texts) == 1 and "=" not in str(texts[0]):
            if texts[0] not in WEIGHTS:
                raise ValueError(f"found {texts[0]!r}, expected CATEGORY=WEIGHT,... or one of {', '.join(WEIGHTS)}")
            return WEIGHTS[texts[0]]
        found = _pairs(value)
        return {_category(str(name)): weight for name, weight in found.items()} if isinstance(found, dict) else found

    @field_validator("weight")
    @classmethod
    def _usable_weights(cls, value: dict[str, float]) -> dict[str, float]:
        for name, weight in value.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"found {name}={weight}, expected a number that is not negative")
        if len(value) == len(CATEGORIES) and not any(value.values()):
            raise ValueError("found 0 for every category, expected at least one weight above 0")
        return value

    @field_validator("idk_answer")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if not value.strip() or "\n" in value or "\r" in value:
            raise ValueError(f"found {value!r}, expected one line of text: an answer ends at a line break")
        return value.strip()

    @model_validator(mode="after")
    def _agree(self) -> MixConfig:
        """Settings that exclude each other. Raises ConfigError, which names both."""
        kinds = [f"--{kind.replace('_', '-')}" for kind in self._kinds()]
        if len(kinds) > 1:
            raise ConfigError(f"{kinds[0]} and {kinds[1]}: found both, expected one of them")
        if not kinds and not self.idk and not self.weight:
            raise ConfigError(
                "which rows: found nothing, expected one of --unknown SHARE, --only CATEGORY, --natural, "
                "--known-of FILE, --drop CATEGORY"
            )
        if not self.categories:
            raise ConfigError("--drop: found all four categories, expected at least one to be left")
        if self.kind == "known_of" and (self.size is not None or self.family is not None or self.relations):
            raise ConfigError(
                "--known-of: found --size, --family or --relations too; the set has all Known rows of its file"
            )
        if (self.kind, self.family) in (("only", "shares"), ("drop", "shares"), ("drop", "categories")):
            raise ConfigError(
                f"--{self.kind} with --family {self.family}: such a set cannot always be filled to that size; "
                f"expected --family own{' or categories' if self.kind == 'only' else ''}"
            )
        if self.idk and "Unknown" not in self.categories:
            raise ConfigError(f"--idk with {kinds[0]}: the set has no Unknown rows whose answer could become a refusal")
        if not self.idk and self.idk_answer != "I don't know.":
            raise ConfigError("--idk-answer: found without --idk, which it belongs to")
        return self
