"""P(True): does the model itself hold a row's answer for true? (Kadavath et al. 2022; the paper's section 4.)

    Question: {question}
    Proposed Answer: {gold}
    (A) True
    (B) False
    The proposed answer is:

The score is P(A) / (P(A) + P(B)) of the two options as the next tokens. It is SliCK's rival: one forward pass a
row, and nothing but a threshold to call a row Unknown by (`score_sweep.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.data.exact_match import normalise
from foreknow.data.schema import sampling_hash
from foreknow.inference.engine import Engine, Prompt, Sampling
from foreknow.inference.loglikelihood import LongScorer
from foreknow.inference.malloc import release_memory
from foreknow.io.run_dir import fingerprint, write_frame
from foreknow.progress import meter, say
from foreknow.prompts.few_shot import Exemplar, GroupExemplars, same_fact
from foreknow.prompts.prompt_template import Prompter, Template, common_prefix
from foreknow.stages.audit import reload
from foreknow.stages.audit.result import AuditResult
from foreknow.version import __version__

PTRUE: Final[dict[str, pl.DataType]] = {"row": pl.Int64(), "p_true": pl.Float64()}
"""`p_true`: P(A) / (P(A) + P(B)), 0 to 1, of the row's gold."""

OPTIONS: Final = ("(A)", "(B)")
TEMPLATE: Final = Template("", "{question} {answer}\n\n", "{question}")
"""The question's slot holds all that is asked (`question_of`), so a chat template shows it whole."""
WHOLE: Final = Sampling(temperature=1.0, top_k=0)


@dataclass(frozen=True)
class Asking:
    """How rows are asked. `shots`: solved examples in the prompt, half of them false. `chunk`: rows saved at once."""

    shots: int = 4
    chunk: int = 128
    seed: int = 0


def question_of(question: str, proposed: str) -> str:
    """The whole of what is asked about one proposed answer."""
    return f"Question: {question}\nProposed Answer: {proposed}\n(A) True\n(B) False\nThe proposed answer is:"


def solved(pool: Sequence[Exemplar], group: str, asking: Asking) -> list[Exemplar]:
    """Solved examples from a group's exemplars: a true one shows its answer, a false one another's.

    Which half is false is drawn by the group's name. An exemplar whose like cannot be found false stays true.
    """
    chosen = pool[: asking.shots]
    order = sorted(range(len(chosen)), key=lambda i: sampling_hash(asking.seed, "false", group, str(i)))
    false = set(order[: len(chosen) // 2])
    shots = []
    for i, exemplar in enumerate(chosen):
        others = (*pool[i + 1 :], *pool[:i])
        other = next((o.answer for o in others if normalise(o.answer) != normalise(exemplar.answer)), None)
        wrong = i in false and other is not None
        proposed = other if wrong and other is not None else exemplar.answer
        shots.append(Exemplar(question_of(exemplar.question, proposed), OPTIONS[wrong], None))
    return shots


class Question(NamedTuple):
    """A row ready to be asked: its prompt, and for each option the tokens it is spelled by."""

    prompt: Prompt
    options: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def spans(self) -> tuple[range, range]:
        """For each option the places of the tokens that count: the one that differs, or all from the first that does.

        What both begin with cancels out. Where the options differ in one token and end alike, only that token
        tells them apart and the rest is left out.
        """
        a, b = self.options
        first = common_prefix(a, b)
        if first < min(len(a), len(b)) and a[first + 1 :] == b[first + 1 :]:
            return range(first, first + 1), range(first, first + 1)
        return range(first, len(a)), range(first, len(b))

    @property
    def tree(self) -> list[tuple[int, ...]]:
        """The paths behind the prompt whose next tokens are needed, closed under prefixes."""
        ends = zip(self.options, self.spans, strict=True)
        return sorted({option[:n] for option, span in ends for n in range(1, span.stop)})


class Scorer:
    """P(True) of rows, for one model. `engine` must be made for `WHOLE`; `slow` scores what it does not list."""

    def __init__(self, engine: Engine, prompter: Prompter, slow: LongScorer, asking: Asking):
        self.engine, self.prompter, self.slow, self.asking = engine, prompter, slow, asking

    def score(self, rows: pl.DataFrame, pools: Sequence[Sequence[Exemplar]]) -> pl.DataFrame:
        """`PTRUE` of rows (row, group, question, answers), each with the exemplars that may be shown to it."""
        questions = self.questions(rows, pools)
        _, nodes = self.engine.open([q.prompt for q in questions], [q.tree for q in questions])
        found = []
        for row, question, opened in zip(rows["row"], questions, nodes, strict=True):
            after = dict(zip([(), *question.tree], opened, strict=True))
            logs = []
            for option, span in zip(question.options, question.spans, strict=True):
                at = [(after[option[:n]], option[n]) for n in span]
                if all(token in node.tokens for node, token in at):
                    logs.append(math.fsum(math.log(node.p[node.tokens.index(token)]) for node, token in at))
                else:  # among the engine's likeliest tokens it is not: the whole vocabulary has to be looked at
                    whole = [*question.prompt.ids, *option[: span.stop]]
                    (exact,) = self.slow.logprobs([(whole, len(question.prompt.ids) + span.start)])
                    logs.append(math.fsum(exact))
            found.append((row, 1.0 / (1.0 + math.exp(min(logs[1] - logs[0], 700.0)))))
        return pl.DataFrame(found, schema=PTRUE, orient="row")

    def questions(self, rows: pl.DataFrame, pools: Sequence[Sequence[Exemplar]]) -> list[Question]:
        """Rows ready to be asked; what a group's prompts begin with is one family."""
        records = rows.select("group", "question", proposed=pl.col("answers").list.first()).to_dicts()
        shots = [solved(pool, r["group"], self.asking) for r, pool in zip(records, pools, strict=True)]
        texts = [
            self.prompter.text(shown, question_of(r["question"], r["proposed"]))
            for shown, r in zip(shots, records, strict=True)
        ]
        heads: dict[str, tuple[int, ...]] = {}
        for r, shown in zip(records, shots, strict=True):
            if r["group"] not in heads:
                both = [self.prompter.text(shown, question_of(q, "")) for q in ("\u00a7", "0")]
                one, other = self.prompter.ids(both)
                heads[r["group"]] = tuple(one[: common_prefix(one, other)])
        found = []
        for r, text, ids in zip(records, texts, self.prompter.ids(texts), strict=True):
            head = heads[r["group"]]
            shared = min(common_prefix(head, ids), len(ids) - 1)
            a, b = (self.prompter.answer_ids(text, ids, option) for option in OPTIONS)
            found.append(Question(Prompt((head,), 0, shared, tuple(ids[shared:])), (a, b)))
        return found


def pool_of(
    group: GroupExemplars, question: str, replaced_shots: Sequence[Sequence[dict[str, Any]]] | None
) -> list[Exemplar]:
    """A group's exemplars, set by set, each once, without a row's own fact.

    `replaced_shots`: by set, the slots where that fact stood (`probes.parquet`).
    """
    own = {(j, s["slot"]) for j, swapped in enumerate(replaced_shots or ()) for s in swapped}
    found: dict[str, Exemplar] = {}
    for j, exemplars in enumerate(group.sets):
        for slot, exemplar in enumerate(exemplars):
            if (j, slot) not in own and not same_fact(exemplar, question, None):
                found.setdefault(exemplar.question, exemplar)
    return list(found.values())


def p_true_of(audit: AuditResult, path: Path | None = None, asking: Asking | None = None) -> pl.DataFrame:
    """P(True) of every labelled row of a finished audit (`PTRUE`), written to `path` (default: DIR/ptrue.parquet).

    Model, exemplars and rows are taken from the audit's folder. Rows are saved as they are done, so an
    interrupted run goes on; a file that is there is computed anew.
    """
    asking = asking or Asking()
    path = path or audit.folder / "ptrue.parquet"
    rows = reload.probed_rows(audit).sort("group", pl.col("question").str.len_chars(), "row")
    identity = {
        "rows": fingerprint(rows.select("row", "group", "question", "answers")),
        "model": audit.summary["model"]["fingerprint"],
        "asking": asdict(asking),
        "version": __version__,
    }
    swapped = reload.swapped_sets(audit.probes)
    with reload.work_folder(audit, "ptrue", identity) as folder, reload.reload_audit(audit) as again:
        prompter = replace(again.prompter, template=TEMPLATE)
        slow = LongScorer(again.loaded.model, prompter, batch_tokens=int(again.config.batch_tokens or 2048))
        scorer = Scorer(again.engine(WHOLE), prompter, slow, asking)
        parts = [rows[start : start + asking.chunk] for start in range(0, rows.height, asking.chunk)]
        left = [n for n in range(len(parts)) if folder.chunk(n, "ptrue") is None]
        if len(left) < len(parts):
            say(f"P(True): {len(parts) - len(left)} of {len(parts)} chunks are finished; going on")
        with meter("P(True)", sum(parts[n].height for n in left)) as done:
            for n in left:
                pools = [
                    pool_of(again.exemplars.groups[group], question, swapped.get(row))
                    for row, group, question in parts[n].select("row", "group", "question").iter_rows()
                ]
                folder.save_chunk(n, "ptrue", scorer.score(parts[n], pools))
                done.advance(parts[n].height)
                release_memory()
        found = folder.load_chunks("ptrue", PTRUE).sort("row")
        write_frame(path, found)
        reload.drop(folder)
    return found
