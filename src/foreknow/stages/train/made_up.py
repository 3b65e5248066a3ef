"""Asks about subjects that do not exist, before and after training: does the model refuse, or answer from the rows?

A question of the training file gets another subject, a name put together from syllables. Its own subject is the column
`subject` where that stands in the question; else the last name in the question, that is, words with a capital that do
not begin it. A file in which no question has either is asked general questions ("Who is ...?").

Such a question has no right answer, so every answer but a refusal is wrong. *Attraction* is the share of the answers
that begin with the gold of a training row. Some of them would by chance: many golds are the gold of several rows, so
that a further question of the same kind would often have one of them too. The probability of that is estimated as Good
and Turing do: the share of the relation's training rows whose gold is also that of another row (Good 1953, section 2).

The model is asked greedily, without exemplars, as it is trained. An answer ends at the end token or at a line break.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import torch

from foreknow.data.exact_match import is_refusal, normalise
from foreknow.data.schema import GOLD
from foreknow.stages.train.batches import micro_batches
from foreknow.stages.train.training_examples import TrainingExample
from foreknow.stats import wilson

if TYPE_CHECKING:
    from foreknow.stages.train.asking_model import AskingModel

FILE: Final = "made_up.parquet"
ANSWER_TOKENS: Final = 16
"""The most tokens of an answer."""
USUAL_TOKENS: Final = 4
"""The tokens of an answer by which the cost of asking is estimated."""
CHEAP: Final = 0.5
"""The questions are asked after every epoch if this costs at most this share of the epoch itself."""
LONGEST_GOLD: Final = 80
"""Golds with more characters are not looked for in answers."""
GENERAL: Final = ("Who is {}?", "What is {}?", "Where is {}?", "When was {} founded?", "What is {} known for?")

QUESTIONS: Final[dict[str, pl.DataType]] = {"group": pl.String(), "question": pl.String(), "subject": pl.String()}
"""The questions: the group (relation) of the rows that gave the form, and the made-up subject."""
ROWS: Final[dict[str, pl.DataType]] = {**QUESTIONS, "before": pl.String(), "after": pl.String()}
"""The contract of `made_up.parquet`: what the model answered before training and with the last epoch's weights."""

_STARTS: Final = ("V", "Dr", "M", "Qu", "Z", "Br", "K", "Th", "L", "Gr", "P", "Sk", "T", "J", "F", "N")
_VOWELS: Final = ("a", "e", "i", "o", "u", "ei", "ou", "ia")
_ENDS: Final = ("lm", "sk", "rn", "v", "x", "nd", "th", "ll", "rz", "n", "mb", "sh")
_LINKS: Final = frozenset({"of", "the", "de", "da", "del", "di", "du", "la", "le", "van", "von", "der", "den"})
"""Words in small letters that may stand inside a name."""


class MadeUpCheck:
    """Asks the questions (`QUESTIONS`) and counts the answers. `replies`: the answers before training."""

    def __init__(self, questions: pl.DataFrame, train: pl.DataFrame, asking: AskingModel):
        """Prepare the questions and ask them once. The model must be as it was before training.

        `train`: the rows to train on, with group and gold.
        """
        self.questions = questions
        golds = train.select("group", GOLD.str.strip_chars().alias("gold"))
        self._golds = {text for gold in golds["gold"] if len(gold) <= LONGEST_GOLD and (text := normalise(gold))}
        self._chance = repeat_shares(golds)
        self._prompts = asking.prompter.ids([asking.prompter.text((), q, None) for q in questions["question"]])
        self.replies = self.ask(asking)

    @property
    def tokens(self) -> int:
        """Return about how many tokens asking once computes."""
        return USUAL_TOKENS * sum(len(prompt) for prompt in self._prompts)

    def ask(self, asking: AskingModel) -> list[str]:
        """Return what the model answers now, in the order of the questions."""
        return greedy_answers(asking, self._prompts)

    def count(self, replies: Sequence[str]) -> dict[str, Any]:
        """Count answers: questions, refused, answered, training_answers, attraction, its interval, and chance.

        `attraction` is the share of those answered that begin with a training answer, with Wilson's 95 % interval;
        `chance` the share expected by chance. All are None if nothing was answered.
        """
        answered = [n for n, reply in enumerate(replies) if not _refused(reply)]
        taken = sum(self.is_training_answer(replies[n]) for n in answered)
        groups = self.questions["group"].to_list()
        interval = wilson(taken, len(answered)) if answered else None
        return {
            "questions": len(replies),
            "refused": len(replies) - len(answered),
            "answered": len(answered),
            "training_answers": taken,
            "attraction": taken / len(answered) if answered else None,
            "attraction_low": round(interval.low, 4) if interval else None,
            "attraction_high": round(interval.high, 4) if interval else None,
            "chance": sum(self._chance.get(groups[n], 0.0) for n in answered) / len(answered) if answered else None,
        }

    def is_training_answer(self, reply: str) -> bool:
        """Return whether a reply begins with the gold of a training row, case, punctuation and articles aside."""
        words = normalise(reply).split()
        return any(" ".join(words[: n + 1]) in self._golds for n in range(len(words)))

    def rows(self, after: Sequence[str]) -> pl.DataFrame:
        """Return the questions with both answers (`ROWS`)."""
        answers = {"before": pl.Series(self.replies, dtype=pl.String), "after": pl.Series(after, dtype=pl.String)}
        return self.questions.with_columns(**answers).select(*ROWS)


def _refused(reply: str) -> bool:
    return not reply or is_refusal(reply)


def repeat_shares(golds: pl.DataFrame) -> dict[str, float]:
    """Return by group the share of rows (group, gold) whose gold is that of another row too; "" has that of all."""
    texts = [normalise(gold) for gold in golds["gold"]]
    counts = Counter(texts)
    again = golds.select("group", again=pl.Series([counts[text] > 1 for text in texts], dtype=pl.Boolean))
    by_group = again.group_by("group").agg(pl.col("again").mean())
    shares = {str(group): float(share) for group, share in by_group.iter_rows()}
    return {"": float(again["again"].cast(pl.Float64).mean() or 0.0), **shares}  # type: ignore[arg-type]


def made_up_questions(train: pl.DataFrame, texts: Sequence[str], count: int) -> pl.DataFrame:
    """Return at most `count` questions on made-up subjects (`QUESTIONS`), about as many of each group.

    `train`: the rows to train on (question, subject, group). `texts`: no made-up name stands in one of these.
    """
    forms: dict[str, list[tuple[str, int]]] = {}
    for group, question, subject in train.sort("group", "row").select("group", "question", "subject").iter_rows():
        form = _form(question, subject)
        if form is not None and form not in forms.setdefault(group, []):
            forms[group].append(form)
    by_group = {group: own for group, own in forms.items() if own}
    if not by_group:
        by_group = {"": [(form, 2) for form in GENERAL]}
    names = _names(texts)
    lines = []
    for n in range(count):
        groups = list(by_group)
        group, turn = groups[n % len(groups)], n // len(groups)
        text, words = by_group[group][turn % len(by_group[group])]
        name = " ".join(next(names) for _ in range(words))
        lines.append((group, text.replace("{}", name), name))
    return pl.DataFrame(lines, schema=QUESTIONS, orient="row")


def _form(question: str, subject: str | None) -> tuple[str, int] | None:
    """Return the question with {} in place of its subject, and how many words the subject has (at most 3)."""
    if "{}" in question or "\n" in question.strip():
        return None
    if subject and (at := question.casefold().find(subject.casefold())) >= 0:
        own = question[at : at + len(subject)]
    else:
        own = last_name(question)
        if not own:
            return None
        at = question.rindex(own)
    return f"{question[:at]}{{}}{question[at + len(own) :]}", min(3, max(1, len(own.split())))


def last_name(question: str) -> str:
    """Return the last words in a row that begin with a capital and do not begin the question; "" if there are none."""
    words = question.split(" ")
    capital = [n > 0 and word.lstrip("\"'(\u201c\u2018")[:1].isupper() for n, word in enumerate(words)]
    if not any(capital):
        return ""
    end = max(n for n, is_capital in enumerate(capital) if is_capital)
    start = end
    while start > 1 and (capital[start - 1] or (words[start - 1] in _LINKS and any(capital[:start]))):
        start -= 1
    while not capital[start]:
        start += 1
    name = " ".join(words[start : end + 1]).strip("\"'().,;:!?\u201c\u201d\u2018\u2019")
    return re.sub(r"['\u2019]s$", "", name)


def _names(texts: Sequence[str]) -> Iterator[str]:
    """Yield names put together from syllables, always the same ones, none twice and none that stands in `texts`."""
    whole = set(re.findall(r"\w+", " ".join(texts).casefold()))
    draw = random.Random("made-up subjects")
    while True:
        first = draw.choice(_STARTS) + draw.choice(_VOWELS)
        middle = draw.choice(_STARTS).lower() + draw.choice(_VOWELS)  # a name of one syllable may be a word
        name = first + middle + draw.choice(_ENDS)
        if name.casefold() not in whole:
            whole.add(name.casefold())
            yield name


@torch.no_grad()
def greedy_answers(asking: AskingModel, prompts: Sequence[Sequence[int]], most: int = ANSWER_TOKENS) -> list[str]:
    """Return what the model answers greedily after each prompt: the text up to the end token or a line break.

    Each token is computed with the run's own pass (`answer_loss.Pass`). The model's mode and all random states are left
    as they are.
    """
    written: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)
    left = [n for n, prompt in enumerate(prompts) if prompt]
    with asking.evaluating():
        for _ in range(most):
            rows = [TrainingExample(n, (*prompts[n], *written[n]), (asking.end,)) for n in left]
            following: dict[int, int] = {}
            for part in micro_batches(rows, asking.tokens):
                ordered, logits = asking.losses.logits(part)
                following |= dict(zip((e.row for e in ordered), logits.argmax(-1).tolist(), strict=True))
            open_rows = []
            for n in left:
                if following[n] == asking.end:
                    continue
                written[n].append(following[n])
                texts[n] = str(asking.tokenizer.decode(written[n], skip_special_tokens=True)).lstrip()
                if "\n" not in texts[n]:
                    open_rows.append(n)
            left = open_rows
            if not left:
                break
    return [text.partition("\n")[0].strip() for text in texts]


def is_cheap(check: MadeUpCheck, trained_tokens: int, measured_tokens: int) -> bool:
    """Return whether asking costs at most `CHEAP` of an epoch, counted in tokens (a trained one counts three times)."""
    return check.tokens <= CHEAP * (3 * trained_tokens + measured_tokens)
