"""P(True): the probability that the model itself judges a row's answer true (Kadavath et al. 2022; the paper's
section 4).

    Question: {question}
    Proposed Answer: {gold}
    (A) True
    (B) False
    The proposed answer is:

The score is P(A) / (P(A) + P(B)) of the two options as the next tokens. The paper compares SliCK with it: it takes one
forward pass per row, and calls a row Unknown by a threshold alone (`score_sweep.py`).
"""

from __future__ import annotations

import logging
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
from foreknow.progress import meter
from foreknow.prompts.few_shot import Exemplar, GroupExemplars, same_fact
from foreknow.prompts.prompt_template import Prompter, Template, common_prefix
from foreknow.stages.audit import reload
from foreknow.stages.audit.result import AuditResult
from foreknow.version import __version__

logger = logging.getLogger(__name__)

PTRUE: Final[dict[str, pl.DataType]] = {"row": pl.Int64(), "p_true": pl.Float64()}
"""Schema of the scores. `p_true`: P(A) / (P(A) + P(B)) of the row's gold, 0 to 1."""

OPTIONS: Final = ("(A)", "(B)")
TEMPLATE: Final = Template("", "{question} {answer}\n\n", "{question}")
"""The question's slot holds the whole text that is asked (`question_of`), so a chat template shows all of it."""
WHOLE: Final = Sampling(temperature=1.0, top_k=0)


@dataclass(frozen=True)
class PTrueSettings:
    """How rows are asked. `shots`: number of solved examples in the prompt, half of them false. `chunk`: number of rows
    saved together. `seed`: decides which examples are false."""

    shots: int = 4
    chunk: int = 128
    seed: int = 0


def question_of(question: str, proposed: str) -> str:
    """Return the whole text that is asked about one proposed answer."""
    return f"Question: {question}\nProposed Answer: {proposed}\n(A) True\n(B) False\nThe proposed answer is:"


def solved_examples(pool: Sequence[Exemplar], group: str, settings: PTrueSettings) -> list[Exemplar]:
    """Make solved examples from a group's exemplars: a true one shows its own answer, a false one another exemplar's.

    A hash with the group's name decides which half is false. An exemplar stays true if no other answer differs from its
    own.
    """
    chosen = pool[: settings.shots]
    order = sorted(range(len(chosen)), key=lambda i: sampling_hash(settings.seed, "false", group, str(i)))
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
    """A row's prompt, and for each option the token ids that spell it."""

    prompt: Prompt
    options: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def spans(self) -> tuple[range, range]:
        """For each option, the positions of the tokens that count.

        The tokens that both options begin with cancel out. If the options differ in one token and end alike, only that
        token counts; otherwise all tokens from the first different one on count.
        """
        a, b = self.options
        first = common_prefix(a, b)
        if first < min(len(a), len(b)) and a[first + 1 :] == b[first + 1 :]:
            return range(first, first + 1), range(first, first + 1)
        return range(first, len(a)), range(first, len(b))

    @property
    def tree(self) -> list[tuple[int, ...]]:
        """The token paths behind the prompt whose next tokens are needed, with all their prefixes."""
        ends = zip(self.options, self.spans, strict=True)
        return sorted({option[:n] for option, span in ends for n in range(1, span.stop)})


class Scorer:
    """Computes P(True) of rows for one model.

    `engine` must be built for the sampling `WHOLE`; `slow` scores the options that the engine does not list.
    """

    def __init__(self, engine: Engine, prompter: Prompter, slow: LongScorer, settings: PTrueSettings):
        self.engine, self.prompter, self.slow, self.settings = engine, prompter, slow, settings

    def score(self, rows: pl.DataFrame, pools: Sequence[Sequence[Exemplar]]) -> pl.DataFrame:
        """Score rows (row, group, question, answers) and return `PTRUE`. `pools`: for each row, exemplars it may be
        shown."""
        questions = self.questions(rows, pools)
        _, nodes = self.engine.open([q.prompt for q in questions], [q.tree for q in questions])
        lines = []
        trees = [[(), *question.tree] for question in questions]
        nodes_by_row = nodes.split([len(tree) for tree in trees])
        for row, question, tree, row_nodes in zip(rows["row"], questions, trees, nodes_by_row, strict=True):
            after = dict(zip(tree, row_nodes, strict=True))
            logs = []
            for option, span in zip(question.options, question.spans, strict=True):
                at = [(after[option[:n]], option[n]) for n in span]
                if all(token in node.tokens for node, token in at):
                    logs.append(math.fsum(math.log(node.p[node.tokens.index(token)]) for node, token in at))
                else:  # the token is not among those that the engine lists, so the whole vocabulary is scored
                    whole = [*question.prompt.ids, *option[: span.stop]]
                    (exact,) = self.slow.logprobs([(whole, len(question.prompt.ids) + span.start)])
                    logs.append(math.fsum(exact))
            lines.append((row, 1.0 / (1.0 + math.exp(min(logs[1] - logs[0], 700.0)))))
        return pl.DataFrame(lines, schema=PTRUE, orient="row")

    def questions(self, rows: pl.DataFrame, pools: Sequence[Sequence[Exemplar]]) -> list[Question]:
        """Build the questions of rows; the text that a group's prompts share at their start is one prompt family."""
        records = rows.select("group", "question", proposed=pl.col("answers").list.first()).to_dicts()
        shots = [solved_examples(pool, r["group"], self.settings) for r, pool in zip(records, pools, strict=True)]
        texts = [
            self.prompter.text(row_shots, question_of(r["question"], r["proposed"]))
            for row_shots, r in zip(shots, records, strict=True)
        ]
        heads: dict[str, tuple[int, ...]] = {}
        for r, row_shots in zip(records, shots, strict=True):
            if r["group"] not in heads:
                both = [self.prompter.text(row_shots, question_of(q, "")) for q in ("\u00a7", "0")]
                first_ids, second_ids = self.prompter.ids(both)
                heads[r["group"]] = tuple(first_ids[: common_prefix(first_ids, second_ids)])
        question_list = []
        for r, text, ids in zip(records, texts, self.prompter.ids(texts), strict=True):
            head = heads[r["group"]]
            shared = min(common_prefix(head, ids), len(ids) - 1)
            a, b = (self.prompter.answer_ids(text, ids, option) for option in OPTIONS)
            question_list.append(Question(Prompt((head,), 0, shared, tuple(ids[shared:])), (a, b)))
        return question_list


def pool_of(
    group: GroupExemplars, question: str, replaced_shots: Sequence[Sequence[dict[str, Any]]] | None
) -> list[Exemplar]:
    """Return a group's exemplars in the order of its sets, each once, without the row's own fact.

    `replaced_shots`: for each set, the slots where that fact stood (`probes.parquet`).
    """
    own = {(j, s["slot"]) for j, swapped in enumerate(replaced_shots or ()) for s in swapped}
    exemplars_by_question: dict[str, Exemplar] = {}
    for j, exemplars in enumerate(group.sets):
        for slot, exemplar in enumerate(exemplars):
            if (j, slot) not in own and not same_fact(exemplar, question, None):
                exemplars_by_question.setdefault(exemplar.question, exemplar)
    return list(exemplars_by_question.values())


def compute_p_true(audit: AuditResult, path: Path | None = None, settings: PTrueSettings | None = None) -> pl.DataFrame:
    """Compute P(True) of every labelled row of a finished audit, write it to `path` and return it (`PTRUE`).

    `path`: DIR/ptrue.parquet by default; an existing file is computed anew. The model, the exemplars and the rows come
    from the audit's folder. Finished chunks are saved, so an interrupted run continues.
    """
    settings = settings or PTrueSettings()
    path = path or audit.folder / "ptrue.parquet"
    rows = reload.probed_rows(audit).sort("group", pl.col("question").str.len_chars(), "row")
    identity = {
        "rows": fingerprint(rows.select("row", "group", "question", "answers")),
        "model": audit.summary["model"]["fingerprint"],
        "asking": asdict(settings),
        "version": __version__,
    }
    swapped = reload.swapped_sets(audit.probes)
    with reload.work_folder(audit, "ptrue", identity) as folder, reload.reload_audit(audit) as reloaded:
        prompter = replace(reloaded.prompter, template=TEMPLATE)
        slow = LongScorer(reloaded.loaded.model, prompter, batch_tokens=int(reloaded.config.batch_tokens or 2048))
        scorer = Scorer(reloaded.engine(WHOLE), prompter, slow, settings)
        parts = [rows[start : start + settings.chunk] for start in range(0, rows.height, settings.chunk)]
        left = [n for n in range(len(parts)) if folder.chunk(n, "ptrue") is None]
        if len(left) < len(parts):
            logger.info(f"P(True): {len(parts) - len(left)} of {len(parts)} chunks are finished; going on")
        with meter("P(True)", sum(parts[n].height for n in left)) as done:
            for n in left:
                pools = [
                    pool_of(reloaded.exemplars.groups[group], question, swapped.get(row))
                    for row, group, question in parts[n].select("row", "group", "question").iter_rows()
                ]
                folder.save_chunk(n, "ptrue", scorer.score(parts[n], pools))
                done.advance(parts[n].height)
                release_memory()
        p_true = folder.load_chunks("ptrue", PTRUE).sort("row")
        write_frame(path, p_true)
        reload.drop(folder)
    return p_true
