"""Extract short facts from long answers: ask an endpoint for each row's facts, and keep those its text supports.

    chat_completions.py     one request, in JSON where the server can
    client.py   many at once, with retries
    grounding.py  from a reply to its pairs, and to those that the text supports

    OUT.cache/replies.jsonl   every reply unchanged, one per line, with a hash of the request: prompt, model,
                              temperature, max_tokens. Lines are only appended. The hash does not cover the address.

A reply is on disk before the next one is read. A killed run loses only its pending requests, and the same command
then sends only the missing requests: none, once every row has a reply. The cache is beside the output, so that a
user sees, moves and deletes both together.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from foreknow.config import ExtractConfig
from foreknow.data.load import read_data
from foreknow.data.schema import FACT, GOLD, USABLE
from foreknow.errors import ConfigError, InputError, ResourceError
from foreknow.inference.server.client import Endpoint, RequestFailure, RequestSession
from foreknow.io.remote import push_written
from foreknow.io.run_dir import fingerprint, lock_run_dir, write_folder, write_whole
from foreknow.progress import meter
from foreknow.stages.extract.chat_completions import Chat, Reply
from foreknow.stages.extract.grounding import Grounded, grounded, parse

logger = logging.getLogger(__name__)

TO_STORE: Final = 64
"""The maximum number of replies that the copy of a run folder in a store may lack."""
FACTS: Final[dict[str, pl.DataType]] = {"row": pl.Int64(), "facts": pl.List(FACT)}
"""`facts` is null where a row was not asked or failed, and [] where the text supports none."""

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "facts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
                "required": ["question", "answer"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["facts"],
    "additionalProperties": False,
}
"""The JSON schema of the reply. Its root is an object: servers that enforce a schema accept no array there."""

PROMPT: Final = """\
Find the facts in a text and write each one as a question with a short answer.

Rules for the answer:
- Copy it from the text, letter by letter. Do not rephrase, complete or translate it.
- It is one name, number, date or term, of at most {max_answer_words} words.
Rules for the question:
- It has one right answer, and the text states that answer.
- It names what it asks about in full. Someone who has never seen the text must understand it, so it does not \
say "this", "it" or "the text".
- It does not contain its answer.
Leave out opinions, advice and examples. Ask for the same fact only once. Write at most {max_facts} pairs, the \
most important first, and none if the text states no such fact.

Reply with JSON and nothing else, in this form:
{{"facts": [{{"question": "...", "answer": "..."}}]}}

{context}The text answers this question: {question}

The text:
{text}
"""
AGAIN: Final = "\nYour last reply could not be read ({fault}). Reply with the JSON alone.\n"
_AGAIN_TEMPERATURE: Final = 0.5
"""The minimum temperature of a second request: at 0 the model would give the same reply again."""


class Extraction(NamedTuple):
    """`frame` is `FACTS`, a line for each input row; `summary` has counts, failed rows with reasons, and tokens."""

    frame: pl.DataFrame
    summary: dict[str, Any]


class _Ask(NamedTuple):
    """One request, and its key in the cache."""

    key: str
    prompt: str
    temperature: float


class _Row(NamedTuple):
    """A row to ask about. Rows with the same prompt share one request."""

    row: int
    text: str
    prompt: str


def write_facts(config: ExtractConfig) -> dict[str, Any]:
    """Ask for the facts of every row of an input, write the rows with their facts (`--out`), and return the summary.

    With `limit`, rows that are not drawn get null. Raises what `read_dataset` and `extract` raise.
    """
    if config.out is None:
        raise ConfigError("--out: missing; name the file to write")
    given = read_data(config, config.limit)
    if "facts" in given.columns:
        raise InputError(f"{config.data}: has a column facts already; foreknow audit reads it as it is")
    if given.suffix != "".join(config.out.suffixes)[-len(given.suffix) :]:
        raise ConfigError(
            f"--out {config.out}: expected a name that ends in {given.suffix or 'no suffix'}, as the input"
        )
    done = extract(given.rows.filter(pl.col("row").is_in(given.audited.implode())), config)
    write = write_whole if given.suffix else write_folder
    write(config.out, lambda part: given.annotate(done.frame, part))
    return done.summary


def extract(rows: pl.DataFrame, config: ExtractConfig) -> Extraction:
    """Extract the short facts of every row (columns `row`, `question`, `answers`, and `context` if there is one).

    A row's text is its first answer; the prompt also gives its question. Rows without either are not asked. The
    summary lists rows that fail; if all fail, this raises ResourceError. Replies are kept in `config.out`'s cache.
    Raises ConfigError, MissingExtra, and the errors of `client.RequestSession.each`.
    """
    if config.out is None:
        raise ConfigError("--out: missing; name the file to write")
    endpoint = Endpoint(
        config.endpoint, config.model, config.timeout, config.retries, config.concurrency, config.backoff
    )
    asked = _asking(rows, config)
    with lock_run_dir(config.out.with_name(f"{config.out.name}.cache")) as folder:
        gathered = _gather(asked, config, endpoint, folder.path / "replies.jsonl")
    return _outcome(rows, asked, gathered, config)


def prompt_of(config: ExtractConfig, text: str, question: str, context: Sequence[dict[str, str]] = ()) -> str:
    """Return the prompt for one row. `context` has the earlier turns of its conversation."""
    turns = "".join(f"{turn['role']}: {turn['content']}\n" for turn in context)
    return PROMPT.format(
        max_facts=config.max_facts,
        max_answer_words=config.max_answer_words,
        context=f"Said before:\n{turns}\n" if turns else "",
        question=question,
        text=text,
    )


def _asking(rows: pl.DataFrame, config: ExtractConfig) -> list[_Row]:
    context = pl.col("context") if "context" in rows.columns else pl.lit(None)
    usable = rows.filter(USABLE).select("row", GOLD.alias("text"), "question", context.alias("context"))
    return [
        _Row(row, text, prompt_of(config, text, question, turns or ()))
        for row, text, question, turns in usable.iter_rows()
    ]


class _Gathered(NamedTuple):
    """By prompt: a readable reply, or the reason why there is none. `read` has all replies, also unreadable ones."""

    replies: dict[str, Reply]
    failed: dict[str, str]
    read: list[Reply]
    fresh: set[str]
    requests: int


def _gather(asked: Sequence[_Row], config: ExtractConfig, endpoint: Endpoint, path: Path) -> _Gathered:
    """Get a readable reply to each prompt from the cache or the endpoint. Unreadable replies are requested again."""
    known = _read_cache(path)
    replies: dict[str, Reply] = {}
    failed: dict[str, str] = {}
    read: list[Reply] = []
    fresh: set[str] = set()
    wanted = {one.prompt: _ask(one.prompt, config) for one in asked}
    chat: Chat | None = None
    with ExitStack() as stack:
        for attempt in range(config.attempts):
            missing = {prompt: ask for prompt, ask in wanted.items() if ask.key not in known}
            if missing:
                chat = chat or Chat(stack.enter_context(RequestSession(endpoint)), config.max_tokens, SCHEMA)
                logger.info(_plan(len(wanted), len(missing), attempt))
                fresh.update(missing)
                with closing(_replies(missing, chat)) as arriving:
                    for prompt, ask, found in arriving:
                        if isinstance(found, RequestFailure):
                            failed[prompt] = found.reason
                        else:
                            _append(path, json.dumps({"key": ask.key, **found._asdict()}) + "\n")
                            known[ask.key] = found
                            if len(known) % TO_STORE == 0:
                                push_written(path)
            answered = {prompt: known[ask.key] for prompt, ask in wanted.items() if ask.key in known}
            wanted = {}
            for prompt, reply in answered.items():
                read.append(reply)
                if parse(reply.text) is not None:
                    replies[prompt] = reply
                    continue
                failed[prompt] = _unreadable(reply, config)
                wanted[prompt] = _ask(prompt, config, attempt + 1, failed[prompt])
        return _Gathered(replies, failed, read, fresh, chat.session.requests if chat else 0)


def _replies(
    missing: Mapping[str, _Ask], chat: Chat
) -> Generator[tuple[str, _Ask, Reply | RequestFailure], None, None]:
    jobs = chat.session.each(missing.items(), lambda job: chat.ask(job[1].prompt, job[1].temperature))
    with meter("asking", len(missing)) as done, closing(jobs) as arriving:
        for (prompt, ask), found in arriving:
            yield prompt, ask, found
            done.advance(1)


def _ask(prompt: str, config: ExtractConfig, attempt: int = 0, fault: str | None = None) -> _Ask:
    """Return the request for a prompt. After a reply with a `fault`, it names the fault and raises the temperature."""
    temperature = config.temperature if fault is None else max(config.temperature, _AGAIN_TEMPERATURE)
    if fault is not None:
        prompt += AGAIN.format(fault=fault)
    asked = {"prompt": prompt, "model": config.model, "temperature": temperature, "max_tokens": config.max_tokens}
    return _Ask(fingerprint({**asked, "attempt": attempt}), prompt, temperature)


def _unreadable(reply: Reply, config: ExtractConfig) -> str:
    if not reply.text.strip():
        return "the reply was empty"
    if reply.finish == "length":
        return f"the reply was cut off at {config.max_tokens} tokens"
    return "the reply held no JSON of the form asked for"


def _plan(wanted: int, missing: int, attempt: int) -> str:
    if attempt:
        return f"replies that could not be read: {missing:,}; asking again"
    held = f"{wanted - missing:,} of {wanted:,} replies are in the cache; " if missing < wanted else ""
    return f"{held}asking for {missing:,}"


def _read_cache(path: Path) -> dict[str, Reply]:
    """Read the replies in the file by key. Skips unreadable lines, and ends an incomplete last line."""
    known: dict[str, Reply] = {}
    if not path.is_file():
        return known
    line = "\n"
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                found = json.loads(line)
                key = str(found.pop("key"))
                known[key] = Reply(**{**found, "text": str(found["text"])})
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
    if not line.endswith("\n"):
        _append(path, "\n")
    return known


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be written ({error.strerror}); the replies in it are kept, the same command goes on"
        ) from None


def _outcome(rows: pl.DataFrame, asked: Sequence[_Row], gathered: _Gathered, config: ExtractConfig) -> Extraction:
    """Return the frame and the summary. Raises ResourceError where every row that was asked failed."""
    answered = [one for one in asked if one.prompt in gathered.replies]
    found = {one.row: _grounded(gathered.replies[one.prompt], one.text, config) for one in answered}
    failed = [{"row": one.row, "reason": gathered.failed[one.prompt]} for one in asked if one.row not in found]
    if asked and not found:
        raise ResourceError(
            f"{config.endpoint}: no row of {len(asked):,} got its facts; the first: row {failed[0]['row']}: "
            f"{failed[0]['reason']}. Try another model or server"
        )
    facts = {row: [pair._asdict() for pair in one.kept] for row, one in found.items()}
    frame = pl.DataFrame({"row": rows["row"], "facts": [facts.get(row) for row in rows["row"]]}, schema=FACTS)
    told = [reply for reply in gathered.read if reply.prompt_tokens is not None]
    summary = {
        "rows": rows.height,
        "asked": len(asked),
        "from_cache": sum(one.prompt not in gathered.fresh for one in asked),
        "requests": gathered.requests,
        "failed": failed,
        "facts": sum(map(len, facts.values())),
        "rows_with_facts": sum(map(bool, facts.values())),
        "refused": dict(sorted(Counter(r.reason for one in found.values() for r in one.refused).items())),
        "tokens": {
            "prompt": sum(reply.prompt_tokens or 0 for reply in told),
            "completion": sum(reply.completion_tokens or 0 for reply in told),
        }
        if told
        else None,
        "model": config.model,
        "endpoint": config.endpoint,
    }
    return Extraction(frame, summary)


def _grounded(reply: Reply, text: str, config: ExtractConfig) -> Grounded:
    return grounded(parse(reply.text) or [], text, max_facts=config.max_facts, max_answer_words=config.max_answer_words)
