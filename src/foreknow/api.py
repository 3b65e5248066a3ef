"""The verbs as Python functions: what `foreknow.audit`, `foreknow.mix` and their siblings take and return.

    audit = foreknow.audit("train.jsonl", model="path/to/model", out="runs/train")     # files and folders
    audit = foreknow.audit(rows, model=model, tokenizer=tokenizer)                      # what lies in memory

The settings of a verb are its flags with `_` for `-`: `foreknow audit --help-all` lists them, docs/settings.md explains
each. Every verb takes rows as a path, a list of dictionaries, a table (pandas, Polars, Arrow), a `datasets.Dataset`,
`IterableDataset` or `DatasetDict`; models as a name, a path or a loaded model with its tokenizer; and finished runs as
their result or their folder. Without `out` a result lies in a temporary folder for as long as it is in use; `save`
keeps it. Every function raises the errors of `foreknow.errors`.

Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

from foreknow.errors import GateCrossed

if TYPE_CHECKING:
    from typing import TypeAlias, Unpack

    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from foreknow.data.validation_result import CheckResult
    from foreknow.stages.audit.compare import Comparison
    from foreknow.stages.audit.result import AuditResult
    from foreknow.stages.compare.comparison import RunComparison
    from foreknow.stages.evaluate.result import EvaluateResult
    from foreknow.stages.explore.server import Explorer
    from foreknow.stages.export.run import LmEvalExport
    from foreknow.stages.mix.result import MixResult
    from foreknow.stages.remedies.result import RemediesResult
    from foreknow.stages.study.long_result import LongStudyResult
    from foreknow.stages.study.result import StudyResult
    from foreknow.stages.train.result import TrainResult

    class ArrowTable(Protocol):
        """A table that hands out its columns by the Arrow PyCapsule interface: Arrow, Polars, pandas, DuckDB."""

        def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

    class LazyTable(Protocol):
        """A table that is not computed yet, such as `polars.LazyFrame`."""

        def collect(self) -> Any: ...  # noqa: D102

    PathName: TypeAlias = str | PathLike[str]
    OneTable: TypeAlias = PathName | ArrowTable | LazyTable | Iterable[Mapping[str, Any]]
    Rows: TypeAlias = OneTable | MixResult | Mapping[str, OneTable]
    ModelOrName: TypeAlias = PathName | nn.Module
    TokenizerOrName: TypeAlias = str | PreTrainedTokenizerBase
    RunOrFolder: TypeAlias = PathName | AuditResult


def audit(
    data: Rows,
    *,
    out: PathName | None = None,
    model: ModelOrName = "smollm2-135m",
    tokenizer: TokenizerOrName | None = None,
    map: Mapping[str, str] | Sequence[str] | str | None = None,
    exemplars: Rows | None = None,
    limit: int | None = None,
    minutes: float | None = None,
    device: str = "auto",
    protocol: Literal["exact", "sampled"] = "exact",
    shots: int = 4,
    exemplar_sets: int = 10,
    chat_template: Literal["auto", "yes", "no"] = "auto",
    spans: str = "auto",
    chance: bool = False,
    layout: str = "auto",
    templates: PathName | None = None,
    group_by: str | None = None,
    turns: Literal["all", "last"] = "all",
    null_words: Literal["leave-out", "keep"] = "leave-out",
    strict_rows: bool = False,
    base: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "auto",
    max_unknown: float | None = None,
    seed: int = 0,
    samples: int = 16,
    temperature: float = 0.5,
    top_k: int = 40,
    match: Literal["strict", "lenient"] = "strict",
    bos: Literal["auto", "yes", "no"] = "auto",
    prompt_template: PathName | None = None,
    max_answer_tokens: int = 32,
    span_sets: int = 4,
    span_shots: int = 2,
    span_alternatives: int = 9,
    tolerance: float = 0.01,
    max_expansions: int = 64,
    timeout: float = 120.0,
    retries: int = 5,
    backoff: float = 1.0,
    concurrency: int = 4,
    per_minute: float | None = None,
    batch_prompts: int = 16,
    prices: tuple[float, float] | None = None,
    ray: bool = False,
    ray_address: str | None = None,
    ray_workers: int | None = None,
    generator: Literal["transformers", "vllm"] = "transformers",
    batch_tokens: int | None = None,
    chunk_rows: int | None = None,
) -> AuditResult:
    """Label each row of `data` by what the model expresses already, before any training.

        audit = foreknow.audit([{"question": "What is the capital of Peru?", "answer": "Lima"}, ...], model="lab")
        audit.rows                       # a Polars frame: category, probabilities, flags of every row
        audit                            # the verdict in one line; in a notebook with a bar

    `model` may be a loaded `PreTrainedModel` or PEFT model; `tokenizer` is its tokenizer then. It is asked where it
    lies and in its dtype, and it is left as it was: mode, gradients, hooks and random state. Without `out` the result
    lies in a temporary folder until it is no longer used. The same call on a finished folder computes nothing.

    Raises GateCrossed, whose `result` is the finished audit, if a larger share of rows is Unknown than `max_unknown`.
    """
    values = locals()
    from foreknow import arguments  # keeps polars out
    from foreknow.config import AuditConfig  # keeps pydantic out
    from foreknow.stages.audit.result import AuditResult  # keeps polars out
    from foreknow.stages.audit.run import run  # keeps altair out

    with ExitStack() as stack:
        settings = arguments.CallArguments(audit, values, stack)
        settings.take_rows("data", "exemplars")
        settings.take_model()
        folder = settings.take_run_folder()
        config = settings.config(AuditConfig)
        try:
            return folder.holding(run(config))
        except GateCrossed as gate:
            gate.result = folder.holding(AuditResult(folder.path))
            raise


def check(
    *data: Rows,
    map: Mapping[str, str] | Sequence[str] | str | None = None,
    layout: str = "auto",
    templates: PathName | None = None,
    group_by: str | None = None,
    turns: Literal["all", "last"] = "all",
    null_words: Literal["leave-out", "keep"] = "leave-out",
    strict_rows: bool = False,
    seed: int = 0,
) -> CheckResult:
    """Tell what is wrong with `data`, without a model: duplicates, contradictions, overlaps. Several data are splits.

    foreknow.check("train.jsonl", "test.jsonl").findings
    foreknow.check(dataset).summary["majority_floor"]
    """
    values = locals()
    from foreknow import arguments  # keeps polars out
    from foreknow.config import CheckConfig  # keeps pydantic out
    from foreknow.data.validation import check_files  # keeps polars out

    with ExitStack() as stack:
        configs = []
        for one in data:
            settings = arguments.CallArguments(check, {**values, "data": one}, stack)
            settings.take_rows("data")
            configs.append(settings.config(CheckConfig))
        return check_files(configs)


def mix(
    audit: RunOrFolder,
    *,
    out: PathName | None = None,
    relations: Sequence[str] = (),
    unknown: float | None = None,
    only: str | None = None,
    natural: bool = False,
    known_of: PathName | None = None,
    drop: Sequence[str] | str = (),
    mask: Literal["new", "unknown"] | None = None,
    cut: Literal["new"] | None = None,
    idk: bool = False,
    weight: Mapping[str, float] | str | None = None,
    size: int | None = None,
    bad_rows: Literal["refuse", "skip"] = "skip",
    model: str | None = None,
    force: bool = False,
    new_share: float | None = None,
    drop_new_above: float | None = None,
    drop_facts_above: float | None = None,
    idk_answer: str = "I don't know.",
    family: Literal["own", "shares", "categories"] | None = None,
    family_of: Sequence[str] | str = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"),
    seed: int = 0,
) -> MixResult:
    """Draw a training set from a finished audit: a share of Unknown rows, without them, weighted, or masked.

        mixed = foreknow.mix(audit, drop="unknown")
        mixed.records()                  # the rows as they were, with a category: for Dataset.from_list
        mixed.save("known.jsonl")

    Without `out` the file lies in a temporary folder until the result is no longer used. With `mask`, the tokens of the
    set are written beside the file for other trainers (FILE.tokens.parquet).
    """
    values = locals()
    from foreknow import arguments  # keeps polars out
    from foreknow.config import MixConfig  # keeps pydantic out
    from foreknow.stages.mix.result import MixResult  # keeps polars out
    from foreknow.stages.mix.run import write_mix  # keeps polars out

    with ExitStack() as stack:
        settings = arguments.CallArguments(mix, values, stack)
        settings.take_runs("audit")
        folder = settings.take_file(settings.suffix_of_audit("audit"))
        config = settings.config(MixConfig)
        written = write_mix(config)
        if config.mask:
            from foreknow.stages.train.pretokenized import write_tokens  # keeps torch out

            write_tokens(config)
        return folder.holding(MixResult(written.path, written.mix.rows, written.mix.manifest, written.mix.notes))


def tune(
    train: Rows,
    *,
    dev: Rows | float = "0.1",
    test: Mapping[str, Rows] | None = None,
    out: PathName | None = None,
    model: ModelOrName = "smollm2-135m",
    tokenizer: TokenizerOrName | None = None,
    audit: RunOrFolder | None = None,
    keep: Literal["best", "last", "both"] = "best",
    method: Literal["full", "lora"] = "full",
    preset: Literal["auto", "paper"] = "auto",
    epochs: int | None = None,
    learning_rate: float | Literal["auto"] | None = None,
    middle_rate: float | None = None,
    batch_size: int | None = None,
    replay: float = 0.0,
    kl: float = 0.0,
    kl_rows: Literal["auto", "all", "known"] = "auto",
    kl_exemplars: Literal["auto", "yes", "no"] = "auto",
    kl_teacher: Literal["base", "known-epoch"] = "base",
    force: bool = False,
    allow_overlap: bool = False,
    map: Mapping[str, str] | Sequence[str] | str | None = None,
    templates: PathName | None = None,
    group_by: str | None = None,
    turns: Literal["all", "last"] = "all",
    null_words: Literal["leave-out", "keep"] = "leave-out",
    strict_rows: bool = False,
    bad_rows: Literal["refuse", "skip"] = "refuse",
    base: str | None = None,
    trust_remote_code: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    save_every: int | None = None,
    report_to: Sequence[str] = (),
    match: Literal["strict", "lenient"] = "strict",
    prompt_template: PathName | None = None,
    chat_template: Literal["auto", "yes", "no"] = "auto",
    bos: Literal["auto", "yes", "no"] = "auto",
    dropout: float = 0.05,
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    max_grad_norm: float = 1.0,
    lora_rank: int = 16,
    lora_alpha: int = 32,
    lora_targets: Sequence[str] = ("all-linear",),
    trainable: str = "all",
    canaries: Rows = "auto",
    watch_known: Mapping[str, Rows] | None = None,
    made_up_subjects: int = 40,
    replay_from: Rows | None = None,
    stop_fitted: float | None = None,
    known_late: float = 0.0,
    loss_weights: Literal["file", "flow"] = "file",
    average: Sequence[float] | float | str = (),
    patience: int | None = None,
    metric: str = "auto",
    eval_steps: Sequence[int] = (),
    watch_rows: int | Literal["auto", "all"] = "auto",
    seed: int = 0,
    micro_batch_tokens: int | None = None,
    batch_tokens: int | None = None,
) -> TrainResult:
    """Fine-tune a model on `train` and measure after every epoch what it fits and forgets in each category.

        tuned = foreknow.tune(mixed, dev=0.1, model="path/to/model", out="runs/tuned")
        tuned.best                       # the folder with the weights of the best epoch

    `dev` may be a share of the rows of `train` to hold out. A loaded model is copied: its own weights stay as they are.
    """
    values = locals()
    from foreknow import arguments  # keeps polars out
    from foreknow.config import TuneConfig  # keeps pydantic out
    from foreknow.stages.train.run import run  # keeps altair out

    with ExitStack() as stack:
        settings = arguments.CallArguments(tune, values, stack)
        settings.take_rows("train", "dev", "test", "canaries", "watch_known", "replay_from")
        settings.take_runs("audit")
        settings.take_model(copy=True)
        folder = settings.take_run_folder()
        return folder.holding(run(settings.config(TuneConfig)))


def evaluate(
    model: ModelOrName | TrainResult,
    data: Rows,
    *,
    tokenizer: TokenizerOrName | None = None,
    out: PathName | None = None,
    audit: RunOrFolder | None = None,
    map: Mapping[str, str] | Sequence[str] | str | None = None,
    limit: int | None = None,
    base: str | None = None,
    compare_base: bool = True,
    device: str = "auto",
    match: Literal["strict", "lenient"] = "strict",
    max_new_tokens: int | Literal["auto"] = "auto",
    chat_template: Literal["auto", "yes", "no"] = "auto",
    layout: str = "auto",
    templates: PathName | None = None,
    group_by: str | None = None,
    turns: Literal["all", "last"] = "all",
    null_words: Literal["leave-out", "keep"] = "leave-out",
    strict_rows: bool = False,
    force: bool = False,
    trust_remote_code: bool = False,
    dtype: str = "auto",
    seed: int = 0,
    idk_answer: str | None = None,
    prompt_template: PathName | None = None,
    bos: Literal["auto", "yes", "no"] = "auto",
    batch_rows: int | None = None,
    chunk_rows: int | None = None,
) -> EvaluateResult:
    """Ask a tuned `model` every question of `data` and count what it gets right, wrong, and newly wrong.

        foreknow.evaluate(tuned, "test.jsonl", audit=audit).summary["em"]
        foreknow.evaluate(model, rows, tokenizer=tokenizer)

    `model` may be what `tune` returned, of which the weights of the best epoch are asked (else those of the last one),
    or a loaded model with its `tokenizer`, which is left as it was.
    """
    values = locals()
    from foreknow import arguments  # keeps polars out
    from foreknow.config import EvaluateConfig  # keeps pydantic out
    from foreknow.stages.evaluate.run import run  # keeps altair out

    with ExitStack() as stack:
        settings = arguments.CallArguments(evaluate, values, stack)
        settings.take_rows("data")
        settings.take_runs("audit")
        settings.take_model()
        folder = settings.take_run_folder()
        return folder.holding(run(settings.config(EvaluateConfig)))


def extract(
    data: Rows,
    *,
    endpoint: str,
    model: str,
    out: PathName,
    map: Mapping[str, str] | Sequence[str] | str | None = None,
    limit: int | None = None,
    max_facts: int = 8,
    max_answer_words: int = 8,
    layout: str = "auto",
    templates: PathName | None = None,
    group_by: str | None = None,
    turns: Literal["all", "last"] = "all",
    null_words: Literal["leave-out", "keep"] = "leave-out",
    strict_rows: bool = False,
    seed: int = 0,
    temperature: float = 0.0,
    max_tokens: int = 1024,
    attempts: int = 3,
    timeout: float = 120.0,
    retries: int = 5,
    backoff: float = 1.0,
    concurrency: int = 4,
) -> dict[str, Any]:
    """Ask a server for the short facts in the long answers of `data`, and write them beside each row to the file `out`.

        foreknow.extract("long.jsonl", endpoint="http://localhost:8000/v1", model="NAME", out="facts.jsonl")

    Returns the counts: rows asked, facts kept, and what was left out and why.
    """
    values = locals()
    from foreknow import arguments  # keeps polars out
    from foreknow.config import ExtractConfig  # keeps pydantic out
    from foreknow.stages.extract.run import write_facts  # keeps polars out

    with ExitStack() as stack:
        settings = arguments.CallArguments(extract, values, stack)
        settings.take_rows("data")
        return write_facts(settings.config(ExtractConfig))


class StudySettings(TypedDict, total=False):
    """The settings that `study` takes beside its preset or file, which they overrule."""

    data: Rows
    out: PathName
    model: PathName
    base: str
    audit: Mapping[str, Any]
    tune: Mapping[str, Any]
    ood: Sequence[str]
    rows: Mapping[str, int]
    above_floor: float
    unknown: Sequence[float]
    known: bool
    only: Sequence[str]
    natural: bool
    idk: Sequence[float]
    idk_answer: str
    size: int
    seeds: int
    fixed_epochs: Sequence[int]
    margin: float
    p_true: bool
    workers: int
    ray: bool
    ray_address: str
    ray_workers: int
    keep_weights: bool
    until: Literal["decided"] | None
    most_seeds: int
    spans: bool
    remedies: Sequence[str]


def study(which: PathName, **settings: Unpack[StudySettings]) -> StudyResult | LongStudyResult:
    """Do the paper's whole experiment on a model: audit, mix, tune every variant and seed, test every claim.

        foreknow.study("quick", model="path/to/model", out="runs/study").tables["claims"]

    `which`: a preset (quick, lab, lab-long, long, paper) or a YAML file. A study with `spans=True` (the presets long
    and lab-long) is one of long answers. With `until="decided"` it adds seeds until its claims are decided.
    """
    from foreknow import arguments  # keeps polars out
    from foreknow.stages.study.long_run import run_long  # keeps altair out
    from foreknow.stages.study.run import run  # keeps altair out
    from foreknow.stages.study.settings import study_settings  # keeps pydantic out
    from foreknow.stages.study.until_decided import run_until_decided  # keeps altair out

    with ExitStack() as stack:
        given = arguments.CallArguments(study, dict(settings), stack)
        given.take_rows("data")
        folder = given.take_run_folder()
        config = study_settings(str(which), given.values)
        if config.spans:
            return folder.holding(run_long(config))
        return folder.holding(run(config) if config.until is None else run_until_decided(config))


class RemediesSettings(TypedDict, total=False):
    """The settings that `remedies` takes beside its rows."""

    out: PathName
    model: PathName
    base: str
    audit: Mapping[str, Any]
    tune: Mapping[str, Any]
    reworded: PathName
    ood: Sequence[str]
    recipes: Sequence[str]
    rates: Sequence[float]
    seeds: int
    facts: int
    held_out: int
    epochs: int
    known_late_epochs: int
    kl: float
    workers: int
    ray: bool
    ray_address: str
    ray_workers: int


def remedies(data: Rows, **settings: Unpack[RemediesSettings]) -> RemediesResult:
    """Compare recipes for teaching the new facts of `data` without losing the known ones, on your own model.

        foreknow.remedies("facts.jsonl", model="path/to/model", recipes=["plain", "replay", "kl+average"], seeds=3)

    The recipes are compared at equally many new facts learnt.
    """
    from foreknow import arguments  # keeps polars out
    from foreknow.config import RemediesConfig  # keeps pydantic out
    from foreknow.stages.remedies.run import run  # keeps altair out

    with ExitStack() as stack:
        given = arguments.CallArguments(remedies, {"data": data, **settings}, stack)
        given.take_rows("data")
        folder = given.take_run_folder()
        return folder.holding(run(given.config(RemediesConfig)))


def compare(first: RunOrFolder, second: RunOrFolder) -> Comparison:
    """Show how categories move, row by row, from one finished audit to another (two models, before and after).

    foreknow.compare("runs/base", "runs/tuned").moves
    """
    from foreknow import arguments  # keeps polars out
    from foreknow.stages.audit.compare import compare_audits  # keeps polars out

    return compare_audits(arguments.audit_of(first), arguments.audit_of(second))


def compare_runs(
    *runs: PathName | AuditResult | EvaluateResult | TrainResult, page: PathName | None = None
) -> RunComparison:
    """Hold finished runs of one kind beside each other: what each has right, tested against the first one.

        compared = foreknow.compare_runs("runs/plain-evaluated", "runs/known-evaluated", page="compared.html")
        compared.table                   # one line a run: share with its interval, won and lost rows, p
        compared.settings                # the settings in which the runs differ

    Audits, evaluations or tune runs. `page`: also write the comparison as a page to this file.
    """
    from foreknow import arguments  # keeps polars out
    from foreknow.io.remote_paths import place  # keeps pydantic out
    from foreknow.stages.compare.run import compare_folders, write_page  # keeps altair out

    compared = compare_folders([arguments.run_folder(run, "runs") for run in runs])
    if page is not None:
        write_page(compared, place(str(page)))
    return compared


def explore(run: PathName | AuditResult | EvaluateResult | TrainResult, *, port: int = 0) -> Explorer:
    """Serve a page of a finished run's rows on this machine: search, filters, sorting, and why a row has its label.

        explorer = foreknow.explore(audit)
        explorer.url                     # open it in a browser; in a notebook the result is a link
        explorer.close()

    `port`: 0 takes a free one. The page is served from a thread of this process, until `close` or the process's end.
    """
    from foreknow import arguments  # keeps polars out
    from foreknow.stages.explore.server import explore as serve  # keeps polars out

    return serve(arguments.run_folder(run, "run"), port=port, keep=run)


def model_card(run: PathName | TrainResult, *, evaluation: PathName | EvaluateResult | None = None) -> str:
    """Return a model card's section on a tune run: what was trained, what was new, what was lost (Markdown).

        print(foreknow.model_card(tuned, evaluation=done))

    It begins with a metadata block as the hub's cards do. `evaluation`: an evaluation of the run's model.
    """
    from foreknow import arguments  # keeps polars out
    from foreknow.pages import card_text  # keeps altair out

    return card_text(
        arguments.run_folder(run, "run"), None if evaluation is None else arguments.run_folder(evaluation, "evaluation")
    )


def export_lm_eval(
    audit: RunOrFolder,
    out: PathName,
    *,
    form: Literal["few-shot", "tune"] = "few-shot",
    exemplar_set: int = 0,
    prompt_template: PathName | None = None,
    name: str | None = None,
) -> LmEvalExport:
    """Write an audit's rows as tasks of EleutherAI's lm-evaluation-harness, a task for each category.

        print(foreknow.export_lm_eval(audit, "tasks").command)

    `form`: few-shot asks as the audit did, behind its exemplar set `exemplar_set`; tune asks without exemplars, as
    `tune` trains, in the format of `prompt_template` if one is given. `name`: that of the tasks.
    """
    from foreknow import arguments  # keeps polars out
    from foreknow.stages.export.run import export_lm_eval as export  # keeps polars out

    template = None if prompt_template is None else Path(prompt_template)
    return export(
        arguments.audit_of(audit), Path(out), form=form, exemplar_set=exemplar_set, prompt_template=template, name=name
    )


def forecast(
    audit: RunOrFolder,
    *,
    study: PathName | StudyResult,
    unknown: float | None = None,
    fitted: tuple[float, float] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Estimate from a study of the same model what training on a mix of an audit's rows would do to exact match.

        foreknow.forecast(audit, study="runs/study", unknown=0.5)["forecast"]

    `unknown`: the share of Unknown rows in the mix (default: the audit's). `fitted`: the shares of the Known and of the
    Unknown rows that training will fit (default: the usual ones of the study). `force`: continue even if the study
    trained another model. Also writes forecast.json into the audit's folder, which its page shows.
    """
    from foreknow import arguments  # keeps polars out
    from foreknow.io.run_dir import with_checksum, write_json  # keeps polars out
    from foreknow.stages.study.forecast import forecast_audit  # keeps polars out

    audited = arguments.audit_of(audit)
    estimate = forecast_audit(audited, arguments.study_of(study), unknown=unknown, fitted=fitted or (), force=force)
    write_json(audited.folder / "forecast.json", with_checksum(estimate))
    return estimate
