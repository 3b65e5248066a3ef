"""Watches facts that have nothing to do with the user's rows, to see what training costs elsewhere (`--canaries`).

auto   packaged facts (`data/builtin/default_facts.py`) that the base model knows. Each model is asked the `ASKED` most
       popular ones once, and the outcome is cached under its fingerprint in the user's cache. A fact is not watched if
       its question, or its subject, stands in a row of train, dev or a test set. If the model knows fewer than `FEW`,
       HighlyKnown rows of `--audit` that are in none of these sets are watched instead.
FILE   all usable rows of a data file, whether the base model knows them or not.
none   nothing is watched.

Which packaged facts the model knows is asked once, behind `SHOTS` exemplars (other rows of the same relation) in the
form in which the run trains. The rows to watch are asked in the same way before training and after every epoch, so
that like is compared with like: without exemplars, as the rows that are trained on, or, where the model has fewer than
`FEW` right so, behind `SHOTS` exemplars. Those that it has right before training are watched.

An answer is right if it *begins* with an accepted one and no letter or digit follows, whether or not the model has
learnt yet to end its answer there. One pass over prompt and answer decides it: the arg max has to be the answer's token
at every place. An answer spelled with other tokens counts as wrong.

Rows are never trained on, and at most `WATCHED` are watched, fewer if measuring them would cost more than a third of an
epoch (counted in tokens, so that the same run always watches the same rows).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl
import torch

from foreknow.categories import HIGHLY_KNOWN
from foreknow.data.builtin.default_facts import RELATIONS, compile_facts
from foreknow.data.schema import GOLD, USABLE
from foreknow.io.remote_paths import cache_folder
from foreknow.io.run_dir import fingerprint, write_frame
from foreknow.stages.train.batches import micro_batches
from foreknow.stages.train.curves import CANARIES
from foreknow.stages.train.dataset import SET, LabelledSplit
from foreknow.stages.train.kl_loss import Teacher, joined, kl_to_teacher, teacher_of
from foreknow.stages.train.training_examples import TrainingExample, tokenise
from foreknow.stats import mcnemar, wilson

if TYPE_CHECKING:
    from foreknow.prompts.prompt_template import Prompter
    from foreknow.stages.train.asking_model import AskingModel

WATCHED: Final = 200
"""The most rows that are watched."""
ASKED: Final = 400
"""How many packaged facts each model is asked once."""
SHOTS: Final = 2
"""How many exemplars a question is asked behind before training."""
PILOT: Final = 40
"""How many packaged facts are asked first; a model that knows none of them is asked no more."""
FEW: Final = 30
"""If the model knows fewer packaged facts than this, rows of the audit are watched instead, if it has more."""
SHARE_OF_EPOCH: Final = 1 / 3
"""The largest share of an epoch's own cost that measuring the watched rows may cost."""
BACKWARD: Final = 3
"""A token costs this many times as much to train on as to measure: one pass forward, and two backward."""
_VERSION: Final = 1
"""Raise this when the same model would know other facts: cached outcomes of another number are not used."""

ROWS: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "question": pl.String(),
    "answers": pl.List(pl.String()),
    "subject": pl.String(),
    "relation": pl.String(),
    "source": pl.String(),
    "before": pl.Boolean(),
    "shots": pl.Int64(),
}
"""The contract of `canaries.parquet`, the rows that are watched.

`before`: whether the answer was right before training. `shots`: how many exemplars the rows are asked behind, before
training and after every epoch; null until that is decided. `source`: where the row is from.
`outcomes.parquet` has their outcomes, under the set "canaries".
"""


@dataclass(frozen=True)
class Candidates:
    """Holds rows that may be watched or replayed (`ROWS`; `before` null if not known), and words for their source."""

    rows: pl.DataFrame
    source: str


class Replies(NamedTuple):
    """Holds what the rows were answered. `right`: see `CanaryCheck.spellings`.

    `divergence`: the mean of KL(before || now) at the tokens of the answers, in nats; None if it is not measured.
    """

    right: dict[int, int]
    divergence: float | None


class CanaryCheck:
    """Asks rows (`row`, `question`, `answers`) in the form of training, and says which answers begin rightly."""

    def __init__(self, rows: pl.DataFrame, asking: AskingModel, *, shots: int = 0):
        """Turn the rows into token ids, one line for each accepted answer.

        `shots`: how many other rows stand before each question as exemplars (`exemplar_turns`). Rows that cannot be
        asked (`row_faults.py`) are left out of `rows`.
        """
        context = pl.Series("context", exemplar_turns(rows, shots), dtype=SET["context"])
        spellings = rows.select("row", "question", "answers").with_columns(context).explode("answers")
        prompter = with_own_shots(asking.prompter)
        numbered = spellings.with_row_index("line").with_columns(line=pl.col("line").cast(pl.Int64))
        split = LabelledSplit(CANARIES, CANARIES, _as_set(numbered), {}, "", "")
        self.examples, _ = tokenise(split, prompter, asking.end, asking.positions)
        lines = [example.row for example in self.examples]
        self._row_of = dict(numbered.filter(pl.col("line").is_in(lines)).select("line", "row").iter_rows())
        self.rows = rows.filter(pl.col("row").is_in(list(self._row_of.values())))
        self._text_of = dict(numbered.select("line", "answers").iter_rows())
        self._tokenizer, self._end = asking.tokenizer, asking.end

    def with_own_spelling(self, rows: pl.DataFrame, right: Mapping[int, int]) -> pl.DataFrame:
        """Put the accepted answer that the model gives before the others of each row. `right`: see `spellings`."""
        own = [self._text_of[right[row]] for row in rows["row"]]
        answers = [[first, *(a for a in all_ if a != first)] for first, all_ in zip(own, rows["answers"], strict=True)]
        return rows.with_columns(answers=pl.Series(answers, dtype=ROWS["answers"]))

    def tokens(self) -> pl.DataFrame:
        """Return how many tokens each row costs to ask, with all its accepted answers: row, tokens."""
        costs = [(self._row_of[example.row], example.length) for example in self.examples]
        frame = pl.DataFrame(costs, schema={"row": pl.Int64(), "tokens": pl.Int64()}, orient="row")
        return frame.group_by("row", maintain_order=True).agg(pl.col("tokens").sum())

    def golds(self) -> dict[int, TrainingExample]:
        """Return, by row, its gold behind its prompt as token ids."""
        by_line = {example.row: example for example in self.examples}
        return {row: by_line[line] for row, line in self.first_spellings().items()}

    def first_spellings(self) -> dict[int, int]:
        """Return, for every row, the line in which its gold stands."""
        first: dict[int, int] = {}
        for example in self.examples:
            row = self._row_of[example.row]
            first[row] = min(example.row, first.get(row, example.row))
        return first

    def spellings(self, asking: AskingModel) -> dict[int, int]:
        """Return, for every row whose answer begins rightly, the line in which its first such answer stands."""
        return self.ask(asking).right

    @torch.no_grad()
    def ask(self, asking: AskingModel, before: Mapping[int, Teacher] | None = None) -> Replies:
        """Ask every row once.

        `before`: the model's predictions before training, by line (`predictions`), to measure the divergence from. The
        model's mode, weights and all random states are left as they are.
        """
        right: dict[int, int] = {}
        divergence, places = 0.0, 0
        with asking.evaluating():
            for part in micro_batches(self.examples, asking.tokens):
                ordered, logits = asking.losses.logits(part)
                said = logits.argmax(-1).tolist()
                start = 0
                measured: list[int] = []
                teachers: list[Teacher] = []
                for example in ordered:
                    own = tuple(said[start : start + len(example.answer)])
                    if before is not None and (teacher := before.get(example.row)) is not None:
                        measured += range(start, start + len(example.answer) - 1)
                        teachers.append(teacher)
                    start += len(example.answer)
                    if own[:-1] == example.answer[:-1] and self._ends(example.answer[:-1], own[-1]):
                        row = self._row_of[example.row]
                        right[row] = min(example.row, right.get(row, example.row))
                if measured:
                    chosen = logits[torch.tensor(measured, device=logits.device)]
                    divergence += float(kl_to_teacher(chosen, joined(teachers)).double().sum())
                    places += len(measured)
        return Replies(right, divergence / places if places else None)

    def predictions(self, lines: Mapping[int, int], asking: AskingModel) -> dict[int, Teacher]:
        """Return the model's predictions at the answer's tokens, without the one that ends it, by line.

        `lines`: for each row, the line to measure (as `spellings` and `first_spellings` return them).
        """
        wanted = set(lines.values())
        rows = [example._replace(row=-1 - n) for n, example in enumerate(e for e in self.examples if e.row in wanted)]
        numbers = [example.row for example in self.examples if example.row in wanted]
        if not rows:
            return {}
        whole = teacher_of(asking, rows)
        by_line = {}
        for number, example in zip(numbers, rows, strict=True):
            own = whole.at([example])
            by_line[number] = Teacher(own.tokens[:-1], own.log_p[:-1], own.log_tail[:-1], ())
        return by_line

    def _ends(self, answer: Sequence[int], following: int) -> bool:
        """Return whether the answer's last word ends before the token that follows it."""
        if following == self._end:
            return True
        decode = self._tokenizer.decode
        before, after = (str(decode(list(ids))) for ids in (answer, (*answer, following)))
        return not after[len(before) : len(before) + 1].isalnum()


def _as_set(numbered: pl.DataFrame) -> pl.DataFrame:
    columns = ("question", "context")
    own = numbered.select(*columns, row="line", answers=pl.concat_list("answers"), weight=pl.lit(1.0))
    missing = [pl.lit(None, kind).alias(name) for name, kind in SET.items() if name not in own.columns]
    return own.with_columns(missing).select(*SET)


def exemplar_turns(rows: pl.DataFrame, shots: int) -> list[list[dict[str, str]]]:
    """Return, for each row, `shots` other rows as turns of a chat; fewer if there are no more.

    The first rows of the same relation are taken, then the first of all, with another question and another gold.
    """
    if not shots:
        return [[] for _ in range(rows.height)]
    facts = [(relation, question, answers[0]) for relation, question, answers in _texts(rows)]
    by_relation: dict[str | None, list[tuple[str, str]]] = {}
    for relation, question, gold in facts:
        by_relation.setdefault(relation, []).append((question, gold))
    first = [(question, gold) for _, question, gold in facts]
    turns = []
    for relation, question, gold in facts:
        others = (fact for fact in (*by_relation[relation], *first) if fact[0] != question and fact[1] != gold)
        chosen = list(islice(dict.fromkeys(others), shots))
        turns.append([turn for q, a in chosen for turn in (_turn("user", q), _turn("assistant", a))])
    return turns


def _texts(rows: pl.DataFrame) -> Iterable[tuple[str | None, str, list[str]]]:
    relation = pl.col("relation") if "relation" in rows.columns else pl.lit(None, pl.String).alias("relation")
    return rows.select(relation, "question", "answers").iter_rows()


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def with_own_shots(prompter: Prompter) -> Prompter:
    """Return a prompter that writes exemplars as the training rows are written: prompt, answer, line break."""
    template = prompter.template
    return replace(prompter, template=replace(template, shot=f"{template.target}{template.gap}{{answer}}\n"))


def packaged_candidates() -> Candidates:
    """Return the `ASKED` most popular packaged facts, as many of each relation; compiled once and cached."""
    packages = sorted({name.strip() for relation in RELATIONS for name in relation.package.split(",")})
    path = cache_folder() / CANARIES / f"facts-{fingerprint([_VERSION, ASKED, *map(_version, packages)])[7:23]}.parquet"
    rows = _cached(path)
    if rows is None:
        each = -(-ASKED // len(RELATIONS))
        place = pl.int_range(pl.len()).over("relation")
        popular = compile_facts().sort("popularity", descending=True, nulls_last=True, maintain_order=True)
        popular = popular.with_columns(place=place).filter(pl.col("place") < each).sort("place", "relation").head(ASKED)
        rows = popular.with_row_index("row").select(**{name: _own(name, popular.columns) for name in ROWS})
        _keep_in_cache(path, rows)
    return Candidates(rows.with_columns(source=pl.lit("packaged facts")), "packaged facts")


def _own(name: str, columns: Sequence[str]) -> pl.Expr:
    known = name in columns or name == "row"
    return (pl.col(name).cast(ROWS[name]) if known and name != "source" else pl.lit(None, ROWS[name])).alias(name)


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def audit_candidates(audited: pl.DataFrame, source: str, categories: Sequence[str] = (HIGHLY_KNOWN,)) -> Candidates:
    """Return the rows of an audit (`rows.parquet`) with one of `categories` that no earlier turn belongs to.

    Their order is fixed.

    The audit asked them behind exemplars; whether they are right without is measured before training.
    """
    alone = pl.col("earlier_turns").is_null() & ~pl.col("flags").fill_null([]).list.contains("context")
    known = audited.filter(USABLE & pl.col("category").is_in(categories) & alone)
    known = known.unique("question", keep="first", maintain_order=True)
    shuffled = known.with_columns(key=pl.col("question").map_elements(_place, return_dtype=pl.String)).sort("key")
    rows = shuffled.select(
        *("row", "question", "answers", "subject", "relation"),
        source=pl.lit(source),
        before=pl.lit(None, pl.Boolean),
        shots=pl.lit(None, pl.Int64),
    )
    return Candidates(rows.select(*ROWS), source)


def _place(question: str) -> str:
    return fingerprint([CANARIES, question])


def file_candidates(split: LabelledSplit) -> Candidates:
    """Return the rows of a file that the user names."""
    source = f"the file {split.file}"
    rows = split.rows.select(
        *("row", "question", "answers", "subject", "relation"),
        source=pl.lit(source),
        before=pl.lit(None, pl.Boolean),
        shots=pl.lit(None, pl.Int64),
    )
    return Candidates(rows.select(*ROWS), source)


def without_questions(rows: pl.DataFrame, sets: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Leave out the rows whose question stands in one of the sets, capitals and punctuation aside."""
    asked = {_words(question) for frame in sets.values() for question in frame["question"]}
    return rows.filter(pl.Series([_words(question) not in asked for question in rows["question"]], dtype=pl.Boolean))


def without_facts(rows: pl.DataFrame, trained: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that do not ask for a fact of `trained` in other words: the same subject, and the same gold.

    Rows without a subject are all returned.
    """
    key = {"s": pl.col("subject").str.to_lowercase(), "g": GOLD.str.strip_chars()}
    facts = trained.select(**key).drop_nulls().unique()
    keyed = rows.with_columns(**key)
    return keyed.join(facts, on=["s", "g"], how="anti", maintain_order="left").drop("s", "g")


def without_subjects(rows: pl.DataFrame, sets: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Leave out the rows whose subject stands, as whole words, in a question or as a subject of one of the sets."""
    texts = [text for frame in sets.values() for name in ("question", "subject") for text in frame[name].drop_nulls()]
    whole = "|".join(_words(text) for text in texts)
    fits = [subject is None or _words(subject) not in whole for subject in rows["subject"]]
    return rows.filter(pl.Series(fits, dtype=pl.Boolean))


def _words(text: str) -> str:
    """Return the words of a text in small letters, with a blank before, between and after them."""
    words = " ".join(re.findall(r"[^\W_]+", text.casefold()))
    return f" {words} "


class KnownFacts(NamedTuple):
    """Holds the packaged facts that a model knows, how many it was asked, and whether that was read from the cache."""

    rows: pl.DataFrame
    asked: int
    cached: bool


def known_packaged(
    rows: pl.DataFrame,
    model: str,
    prompt: Any,
    check: Callable[[pl.DataFrame], CanaryCheck],
    spellings: Callable[[CanaryCheck], dict[int, int]],
) -> KnownFacts:
    """Ask a model packaged facts, and keep in the user's cache which of them it knows.

    A model that knows none of the first `PILOT` is not asked the others. `rows`: the facts (`ROWS`). `model`: the
    fingerprint of the model. `prompt`: what else decides the answers (the prompt's form, the dtype). `check` prepares
    rows to be asked; `spellings` asks them (`CanaryCheck.spellings`).
    """
    key = fingerprint([_VERSION, SHOTS, PILOT, model, prompt, fingerprint(rows)])
    path = cache_folder() / CANARIES / f"known-{key[7:23]}.parquet"
    cached = _cached(path)
    if cached is not None:
        return KnownFacts(cached, rows.height if cached.height else min(PILOT, rows.height), True)
    known, asked = rows.clear(), 0
    for part in (rows.head(PILOT), rows) if rows.height else ():
        asking = check(part)
        right = spellings(asking)
        own = asking.rows.filter(pl.col("row").is_in(list(right))).with_columns(before=pl.lit(True))
        known, asked = asking.with_own_spelling(own, right).select(*ROWS), part.height
        if known.is_empty():
            break
    _keep_in_cache(path, known)
    return KnownFacts(known, asked, False)


def _cached(path: Path) -> pl.DataFrame | None:
    """Read a cached frame of `ROWS`; None if it is missing or not whole, so that it is made again."""
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):
        return None
    return frame if dict(frame.schema) == ROWS else None


def _keep_in_cache(path: Path, frame: pl.DataFrame) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_frame(path, frame)
    except Exception:
        return


def affordable(costs: pl.DataFrame, trained_tokens: int, measured_tokens: int, most: int = WATCHED) -> int:
    """Return how many of the first rows can be watched at `SHARE_OF_EPOCH` of an epoch's cost or less; at most `most`.

    `costs`: row and tokens, in the order in which rows are taken. `trained_tokens`, `measured_tokens`: the tokens that
    an epoch trains on, and those that it measures in the other sets.
    """
    budget = SHARE_OF_EPOCH * (BACKWARD * trained_tokens + measured_tokens)
    within = costs.head(most).select((pl.col("tokens").cum_sum() <= budget).sum()).item()
    return int(within)


def summary(before: Sequence[bool], now: Sequence[bool]) -> dict[str, Any]:
    """Compare the same rows before training and now.

    Returns `rows`, `before` (right before training), `kept`, `lost` and `gained` (rows); `lost_low` and `lost_high`:
    Wilson's 95 % interval of the share lost of those right before; `p`: McNemar's exact test of lost against gained.
    """
    lost = sum(was and not is_now for was, is_now in zip(before, now, strict=True))
    gained = sum(is_now and not was for was, is_now in zip(before, now, strict=True))
    known = sum(before)
    interval = wilson(lost, known)
    return {
        "rows": len(before),
        "before": known,
        "kept": known - lost,
        "lost": lost,
        "gained": gained,
        "lost_low": round(interval.low, 4),
        "lost_high": round(interval.high, 4),
        "p": mcnemar(lost, gained),
    }
