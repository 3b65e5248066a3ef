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
from foreknow.settings import COMMON, Group, Settings

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
ChatChoice = Literal["auto", "yes", "no"]
TUNE_PROMPT = (
    "YAML file with the prompt as the keys instruction and target (default: 'Answer the following question. "
    "{question}' and a newline)."
)
TRUST_REMOTE_CODE = "Allow Python code that comes with the model to run."
OUT = "The run folder to write."
DRY_RUN = "Run a short burst, print what the whole run would cost, and write nothing."
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
    samples: Annotated[int, Group.PROTOCOL, COMMON] = Field(
        16, ge=1, description="Each prompt stands for this many sampled answers."
    )
    temperature: Annotated[float, Group.PROTOCOL] = Field(
        0.5, gt=0, description="The temperature at which answers are sampled."
    )
    top_k: Annotated[int, Group.PROTOCOL] = Field(
        40, ge=0, description="Sample each token from the k likeliest ones (0: from all)."
    )
    match: Annotated[Literal["strict", "lenient"], Group.PROTOCOL] = Field("strict", description=MATCH)
    bos: Annotated[Literal["auto", "yes", "no"], Group.PROTOCOL] = Field("auto", description=BOS)
    chat_template: Annotated[ChatChoice, Group.PROTOCOL, COMMON] = Field("auto", description=CHAT_TEMPLATE)
    prompt_template: Annotated[Path | None, Group.PROTOCOL, COMMON] = Field(
        None,
        description="YAML file with the keys instruction, shot and target; it replaces the paper's Q:/A: prompt.",
    )
    trust_remote_code: Annotated[bool, Group.MODEL] = Field(False, description=TRUST_REMOTE_CODE)
    max_unknown: Annotated[float | None, Group.OUTPUT, COMMON] = Field(
        None, ge=0, le=1, description="Exit with status 3 if more than this share of the rows is Unknown."
    )
    max_answer_tokens: Annotated[int, Group.PROTOCOL] = Field(
        32, ge=1, description="Flag a row whose answer has more tokens than this, and give it no category."
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
    dtype: Annotated[str, Group.MODEL, COMMON] = Field(
        "auto", description="Compute in auto, bfloat16, float16 or float32."
    )
    device: Annotated[str, Group.MODEL, COMMON] = Field(
        "auto", description="Compute on auto, cpu, cuda, cuda:1 or map (over all GPUs)."
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

    @field_validator("bos", "chat_template", mode="before")
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

    out: Annotated[Path | None, Group.OUTPUT, COMMON] = Field(
        None, description="The file to write: your rows with a new column 'facts'."
    )
    endpoint: Annotated[str, Group.MODEL, COMMON] = Field(
        description="The address of an OpenAI-compatible server, such as http://localhost:8000/v1; OPENAI_API_KEY "
        "holds its key."
    )
    model: Annotated[str, Group.MODEL, COMMON] = Field(description="The name of the model on that server.")
    max_facts: Annotated[int, Group.PROTOCOL, COMMON] = Field(
        8, ge=1, description="Ask for at most this many facts from one row."
    )
    max_answer_words: Annotated[int, Group.PROTOCOL, COMMON] = Field(
        8, ge=1, description="Drop a fact whose answer has more words than this."
    )
    temperature: Annotated[float, Group.PROTOCOL] = Field(
        0.0, ge=0, le=2, description="The temperature at which the server samples its reply."
    )
    max_tokens: Annotated[int, Group.PROTOCOL] = Field(
        1024, ge=1, description="The server may use at most this many tokens for one reply."
    )
    attempts: Annotated[int, Group.PROTOCOL] = Field(
        3, ge=1, description="Ask the server at most this often about a row while its reply cannot be read."
    )
    limit: Annotated[int | None, Group.DATA, COMMON] = Field(
        None, ge=1, description="Ask about only this many rows, drawn evenly over the groups."
    )


class TuneConfig(Settings):
    """Settings of `foreknow tune`. Epochs, batch size and learning rate follow from rows and model unless given.

    The preset `paper` takes the paper's (section 3); dropout defaults to the paper's in any case.
    """

    train: Annotated[str, Group.DATA, COMMON] = Field(
        description="The data file to train on, such as one that 'foreknow mix' wrote."
    )
    dev: Annotated[str, Group.DATA, COMMON] = Field(
        "0.1",
        description="The data file that chooses the best epoch, or the share of TRAIN's rows to hold out for it.",
    )
    test: Annotated[FileMap, Group.DATA, COMMON] = Field(
        {}, description="Another data file to measure after each epoch, as NAME=FILE; repeatable."
    )
    out: Annotated[Path | None, Group.OUTPUT, COMMON] = Field(None, description=OUT)
    model: Annotated[str, Group.MODEL, COMMON] = Field("smollm2-135m", description=MODEL)
    base: Annotated[str | None, Group.MODEL] = Field(None, description=BASE)
    audit: Annotated[Path | None, Group.DATA, COMMON] = Field(
        None, description="A finished audit, which gives rows without a category column their category."
    )
    force: Annotated[bool, Group.DATA] = Field(
        False, description="Continue even if the audit, the mix or --base belongs to another model than this one."
    )
    allow_overlap: Annotated[bool, Group.DATA] = Field(
        False, description="Continue even if rows of the training file also stand in the dev or a test file."
    )
    method: Annotated[Literal["full", "lora"], Group.TRAINING, COMMON] = Field(
        "full", description="full trains every weight; lora trains low-rank adapters (PEFT)."
    )
    preset: Annotated[Literal["auto", "paper"], Group.TRAINING, COMMON] = Field(
        "auto",
        description="What sets --epochs, --batch-size and --learning-rate: the rows and the model, or the paper.",
    )
    epochs: Annotated[int | None, Group.TRAINING, COMMON] = Field(
        None, ge=1, description="How often to train on every row (default: by --preset)."
    )
    learning_rate: Annotated[float | None, Group.TRAINING, COMMON] = Field(
        None, gt=0, description="The learning rate, constant after the warmup (default: by --preset)."
    )
    batch_size: Annotated[int | None, Group.TRAINING, COMMON] = Field(
        None, ge=1, description="How many rows go into one optimizer step (default: by --preset)."
    )
    dropout: Annotated[float, Group.TRAINING] = Field(
        0.05, ge=0, lt=1, description="The dropout rate in training, for every dropout layer that the model has."
    )
    weight_decay: Annotated[float, Group.TRAINING] = Field(0.0, ge=0, description="The weight decay of AdamW.")
    warmup: Annotated[float, Group.TRAINING] = Field(
        0.0, ge=0, description="Raise the learning rate over this many steps; below 1, over this share of all steps."
    )
    max_grad_norm: Annotated[float, Group.TRAINING] = Field(
        1.0, ge=0, description="Clip the gradients to this norm (0: never)."
    )
    lora_rank: Annotated[int, Group.TRAINING] = Field(16, ge=1, description="The rank of the LoRA adapters.")
    lora_alpha: Annotated[int, Group.TRAINING] = Field(
        32, ge=1, description="The scale of the LoRA adapters, which multiplies them by alpha / rank."
    )
    lora_targets: Annotated[tuple[str, ...], Group.TRAINING] = Field(
        ("all-linear",), description="The names of the layers that get a LoRA adapter."
    )
    patience: Annotated[int | None, Group.TRAINING, COMMON] = Field(
        None, ge=1, description="Stop after this many epochs in which --metric did not improve."
    )
    metric: Annotated[str, Group.TRAINING] = Field(
        "auto",
        description="The metric that chooses the best epoch: auto takes dev_em where dev's rows can tell epochs apart, "
        "else, and for long answers, dev_loss; an unknown name is an error that lists them.",
    )
    eval_steps: Annotated[tuple[int, ...], Group.TRAINING] = Field(
        (), description="Also measure after these steps of the first epoch (0: before training)."
    )
    match: Annotated[Literal["strict", "lenient"], Group.PROTOCOL] = Field("strict", description=MATCH)
    prompt_template: Annotated[Path | None, Group.PROTOCOL] = Field(None, description=TUNE_PROMPT)
    chat_template: Annotated[ChatChoice, Group.PROTOCOL, COMMON] = Field("auto", description=CHAT_TEMPLATE)
    bos: Annotated[Literal["auto", "yes", "no"], Group.PROTOCOL] = Field("auto", description=BOS)
    map: Annotated[ColumnMap, Group.DATA] = Field(
        {}, description="Which column of the files holds what: question=q,answer=a."
    )
    templates: Annotated[Path | None, Group.DATA] = Field(None, description=TEMPLATES)
    group_by: Annotated[str | None, Group.DATA] = Field(
        None, description="The column whose values the report compares (default: the relation)."
    )
    turns: Annotated[Turns, Group.DATA] = Field("all", description=TURNS)
    null_words: Annotated[NullWords, Group.DATA] = Field("leave-out", description=NULL_WORDS)
    strict_rows: Annotated[bool, Group.DATA] = Field(False, description=STRICT_ROWS)
    bad_rows: Annotated[BadRows, Group.DATA] = Field(
        "refuse",
        description="What happens to rows that teach nothing (the answer is cut away or gives no token, the chat "
        "template refuses the row): refuse the file, or skip them. Both count and list them.",
    )
    trust_remote_code: Annotated[bool, Group.MODEL] = Field(False, description=TRUST_REMOTE_CODE)
    dtype: Annotated[str, Group.MODEL] = Field(
        "auto", description="Compute in auto, bfloat16 or float32; the weights stay float32."
    )
    device: Annotated[str, Group.MODEL, COMMON] = Field("auto", description="Compute on auto, cpu, cuda, cuda:1, ...")
    micro_batch_tokens: Annotated[int | None, Group.SPEED] = Field(
        None,
        ge=1,
        description="How many tokens to train on at once (default: 2048; on a GPU 16384); this changes the memory that "
        "a run needs, not its method.",
    )
    batch_tokens: Annotated[int | None, Group.SPEED] = Field(
        None, ge=1, description="How many tokens to measure at once (default: 2048; on a GPU 16384)."
    )
    save_every: Annotated[int | None, Group.OUTPUT] = Field(
        None, ge=1, description="Save a checkpoint every this many steps, besides the one after each epoch."
    )
    report_to: Annotated[tuple[str, ...], Group.OUTPUT] = Field(
        (), description="The trackers that transformers reports to: tensorboard, wandb, ..."
    )
    seed: Annotated[int, Group.TRAINING] = Field(
        0, ge=0, description="The seed that orders the rows, draws dropout and starts new weights."
    )
    dry_run: Annotated[bool, Group.OUTPUT, COMMON] = Field(False, description=DRY_RUN)

    @property
    def uses_chat_template(self) -> bool:
        """Whether prompts go through the chat template, once `auto` is resolved (`chat_templates.choose_template`)."""
        return self.chat_template == "yes"

    @field_validator("bos", "chat_template", mode="before")
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
    idk_answer: Annotated[str | None, Group.PROTOCOL] = Field(
        None, description="The refusal that the model was taught, if it was taught one."
    )
    prompt_template: Annotated[Path | None, Group.PROTOCOL] = Field(None, description=TUNE_PROMPT)
    chat_template: Annotated[ChatChoice, Group.PROTOCOL, COMMON] = Field("auto", description=CHAT_TEMPLATE)
    bos: Annotated[Literal["auto", "yes", "no"], Group.PROTOCOL] = Field("auto", description=BOS)
    trust_remote_code: Annotated[bool, Group.MODEL] = Field(False, description=TRUST_REMOTE_CODE)
    dtype: Annotated[str, Group.MODEL] = Field("auto", description="Compute in auto, bfloat16, float16 or float32.")
    device: Annotated[str, Group.MODEL, COMMON] = Field(
        "auto", description="Compute on auto, cpu, cuda, cuda:1 or map (over all GPUs)."
    )
    batch_rows: Annotated[int | None, Group.SPEED] = Field(
        None, ge=1, description="How many rows the model answers at once (default: 32; on a GPU 256)."
    )
    chunk_rows: Annotated[int | None, Group.SPEED] = Field(
        None, ge=1, description="How many rows the run saves at once (default: 256; on a GPU 2048)."
    )

    @property
    def uses_chat_template(self) -> bool:
        """Whether prompts go through the chat template, once `auto` is resolved (`chat_templates.choose_template`)."""
        return self.chat_template == "yes"

    @field_validator("bos", "chat_template", mode="before")
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

    audit: Annotated[Path, Group.DATA, COMMON] = Field(description="The folder of a finished audit.")
    out: Annotated[Path, Group.OUTPUT, COMMON] = Field(
        description="The file to write, in the audited file's layout; FILE.manifest.json is written beside it."
    )
    unknown: Annotated[float | None, Group.SETS, COMMON] = Field(
        None, ge=0, le=1, description="Draw this share of Unknown rows (0 to 1) in every relation."
    )
    only: Annotated[str | None, Group.SETS, COMMON] = Field(
        None, description="Draw rows of one category only: HighlyKnown, MaybeKnown, WeaklyKnown or Unknown."
    )
    natural: Annotated[bool, Group.SETS, COMMON] = Field(
        False, description="Draw every relation's categories in the shares that the audit found."
    )
    known_of: Annotated[Path | None, Group.SETS, COMMON] = Field(
        None, description="Take the rows of this file, which mix wrote before, without its Unknown ones."
    )
    drop: Annotated[tuple[str, ...], Group.SETS, COMMON] = Field(
        (), description="Take all rows but those of these categories, such as unknown,weakly."
    )
    idk: Annotated[bool, Group.SETS, COMMON] = Field(
        False, description="Replace the answer of each Unknown row by a refusal, and keep its question."
    )
    idk_answer: Annotated[str, Group.SETS] = Field("I don't know.", description="The refusal that --idk writes.")
    weight: Annotated[dict[str, float], Group.SETS, COMMON] = Field(
        {},
        description="Add a column that weights rows by category: HighlyKnown=0.5,Unknown=2 (others 1), half-unknown or "
        "fading.",
    )
    relations: Annotated[tuple[str, ...], Group.DATA, COMMON] = Field(
        (), description="Take only rows of these relations."
    )
    size: Annotated[int | None, Group.SETS, COMMON] = Field(
        None, ge=1, description="How many rows the set has (default: as many as possible)."
    )
    family: Annotated[Literal["own", "shares", "categories"] | None, Group.SETS] = Field(
        None,
        description="Which sets must reach the same size and mix of relations: only this one (own), all that differ in "
        "their Unknown share (shares), or all of one category each (categories), as a study's do. Default: own.",
    )
    family_of: Annotated[tuple[str, ...], Group.SETS] = Field(
        CATEGORIES, description="The categories that have a set of their own, with --family categories."
    )
    bad_rows: Annotated[BadRows, Group.DATA] = Field(
        "skip",
        description="What happens to rows that teach nothing (no answer, or the chat template refuses the row): skip "
        "never draws them but counts them, refuse makes them an error.",
    )
    seed: Annotated[int, Group.SETS] = Field(0, ge=0, description="The seed of every random draw.")
    force: Annotated[bool, Group.OUTPUT] = Field(
        False, description="Write over a file that mix wrote with other settings."
    )

    @property
    def kind(self) -> str:
        """Which rows are drawn: unknown, only, natural, known_of or drop."""
        return next(iter(self._kinds()), "natural")

    @property
    def limited_by(self) -> Literal["own", "shares", "categories"]:
        """The family whose limit holds."""
        return self.family or "own"

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
