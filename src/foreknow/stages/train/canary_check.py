"""Asks a model known facts while it is trained, and says which answers begin rightly.

An answer is right if it *begins* with an accepted one and no letter or digit follows, whether or not the model has
learnt yet to end its answer there. One pass over prompt and answer decides it: the arg max has to be the answer's token
at every place. An answer spelled with other tokens counts as wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl
import torch

from foreknow.stages.train.batches import micro_batches
from foreknow.stages.train.curves import CANARIES
from foreknow.stages.train.dataset import SET, LabelledSplit
from foreknow.stages.train.kl_loss import Teacher, joined, kl_to_teacher, teacher_of
from foreknow.stages.train.known_candidates import ROWS
from foreknow.stages.train.training_examples import TrainingExample, tokenise

if TYPE_CHECKING:
    from foreknow.prompts.prompt_template import Prompter
    from foreknow.stages.train.asking_model import AskingModel

SHOTS: Final = 2
"""How many exemplars a question is asked behind before training."""


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
