"""`--model openai:URL#name`: a model behind a completions server, with a local tokenizer.

    capabilities.py                    finds out what the server can do
    completions.py                     requests and replies
    engine.py                          next-token distributions (exact protocol)
    sampling.py                        sampled answers (sampled protocol)
    client.py                          parallel requests, retries, the key
    stages/audit/server_executor.py    runs an audit at such a server

The weights cannot be hashed from here. A run's identity contains instead the server's host, the model's name, the
tokenizer's content and the model's answers to two fixed prompts (`identity`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from foreknow.errors import ConfigError, ModelError
from foreknow.inference.server.capabilities import PROBES, Capabilities, close, discover, likeliest
from foreknow.inference.server.client import Endpoint, RequestSession
from foreknow.inference.server.completions import CompletionChoice, Completions, Name, PromptInput, Usage
from foreknow.inference.server.engine import UNKNOWN, ServerEngine, ServerText
from foreknow.models.packaged import PACKAGED
from foreknow.models.quiet import quiet
from foreknow.prompts.vocabulary import TokenPath, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foreknow.inference.engine import Sampling
    from foreknow.prompts.prompt_template import Prompter

PREFIX: Final = "openai:"
MORE: Final = 8
"""Log-probabilities to request beyond the top k, so that ties with the k-th show."""
NOTE: Final = "behind a server: its weights were not seen here; known by its name and what it answers"

_CHECKED: Final = (
    *PROBES,
    "Which river crosses Z\u00fcrich?  Two  blanks, 1,234.5 km\u00b2!",
    "def f(x):\n\treturn x**2\n\n# \u6771\u4eac \U0001f5fc",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
)
"""Texts whose tokens the server and our tokenizer both count: accents, blanks, digits, code, scripts, long words."""


class Address(NamedTuple):
    """The parts of `openai:URL#name`."""

    url: str
    name: str


def address_of(model: str) -> Address | None:
    """Parse a `--model` that names a server; None for any other. Raises ConfigError if the model's name is missing."""
    if not model.startswith(PREFIX):
        return None
    url, mark, name = model.removeprefix(PREFIX).partition("#")
    if not mark or not name.strip() or not url.strip():
        # the message must not repeat the address, which may hold a secret
        raise ConfigError("--model openai:...: expected openai:URL#NAME, such as openai:http://localhost:8000/v1#llama")
    return Address(url.strip(), name.strip())


def load_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load only a tokenizer, by packaged name, folder, .gguf file or hub id. Raises ModelError where there is none."""
    from foreknow.models import loading  # keeps rapidfuzz out
    from foreknow.models.resolve import resolve  # keeps rapidfuzz out

    folder = name
    if name in PACKAGED or name.endswith(".gguf"):
        folder = str(resolve(name).folder)
    try:
        with quiet():
            local = Path(folder).expanduser()
            return loading.read_tokenizer(local if local.is_dir() else folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        # a tokenizer's files and the hub's client can raise anything: report it in two lines
        raise ModelError(
            f"--tokenizer {name}: cannot be loaded: {loading.format_load_error(error)}\nPrompts are made here: name "
            "the folder or hub id of the model's tokenizer"
        ) from None


@dataclass(frozen=True)
class Spelling:
    """Converts between ids, texts and token names like a server that receives and returns texts."""

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def size(self) -> int:
        """Return how many tokens there are."""
        return len(self.tokenizer)

    def decode(self, path: Sequence[int]) -> str:
        """Return the text of token ids. From the first `UNKNOWN` on, it is replaced by one replacement character."""
        ids = list(path)
        is_cut = UNKNOWN in ids
        ids = ids[: ids.index(UNKNOWN)] if is_cut else ids
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return f"{text}\ufffd" if is_cut else str(text)

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of a prompt without its beginning-of-sequence token, which a server adds itself."""
        return self.decode(self._own(ids))

    def exact_text(self, ids: Sequence[int]) -> str | None:
        """Return the text of a prompt; None where a server would read it as other tokens."""
        text = self.text(ids)
        return text if self._own(self.tokenizer(text)["input_ids"]) == self._own(ids) else None

    def _own(self, ids: Sequence[int]) -> list[int]:
        """Return the ids without a beginning-of-sequence token; `check_tokenizer` checks if the server adds one."""
        return list(ids[1:] if ids and ids[0] == self.tokenizer.bos_token_id else ids)

    def token(self, name: Name) -> int | None:
        """Return the token that a name identifies: by id, by its text in a line, or by its vocabulary entry."""
        if isinstance(name, int):
            return name if name >= 0 else None
        return self._texts.get(name, self._written.get(name)) if name else None

    def readable(self, answer: CompletionChoice) -> bool:
        """Return whether the names of an answer's tokens join to the answer's text, or are all in the vocabulary."""
        if all(isinstance(name, int) for name in answer.tokens):
            return bool(answer.tokens)
        joined = "".join(str(name) for name in answer.tokens)
        return bool(joined) and (joined.strip() == answer.text.strip() or set(answer.tokens) <= set(self._written))

    @cached_property
    def _texts(self) -> dict[Name, int | None]:
        """Return tokens by their text after another token, which keeps leading blanks; None if tokens share a text."""
        [anchor] = self.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        pairs = [[anchor, i] for i in range(self.size)]
        whole = self.tokenizer.batch_decode(pairs, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        start = len(self.decode([anchor]))
        return _once((text[start:], i) for i, text in enumerate(whole))

    @cached_property
    def _written(self) -> dict[Name, int | None]:
        """Return tokens by their spelling in the vocabulary, unless that is the text of another token."""
        raw = self.tokenizer.convert_ids_to_tokens(list(range(self.size)))
        return {
            name: i
            for name, i in _once((token, i) for i, token in enumerate(raw) if token).items()
            if i is not None and self._texts.get(name, i) == i
        }


def _once(pairs: Iterator[tuple[Name, int]]) -> dict[Name, int | None]:
    tokens_by_name: dict[Name, int | None] = {}
    for name, i in pairs:
        tokens_by_name[name] = None if name in tokens_by_name or "\ufffd" in str(name) else i
    return tokens_by_name


@dataclass(frozen=True)
class ServerModel:
    """A connected model behind a server. `reasons`: lines that say what was found out and chosen."""

    address: Address
    tokenizer: PreTrainedTokenizerBase
    spelling: Spelling
    completions: Completions
    can: Capabilities
    vocabulary: Vocabulary
    identity: dict[str, Any]
    reasons: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Return a hash of `identity`."""
        text = json.dumps(self.identity, sort_keys=True)
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def usage(self) -> Usage:
        """Return the requests and tokens so far."""
        return self.completions.usage

    @property
    def text(self) -> ServerText:
        """Return the translation of prompts and token names."""
        send: Callable[[Sequence[int]], PromptInput | None] = tuple if self.can.ids_in else self.spelling.exact_text
        return ServerText(send, self.spelling.token, self.spelling.size)

    def engine(self, sampling: Sampling, batch: int = 16) -> ServerEngine:
        """Return the engine of the exact probe. Raises ConfigError where the server returns no log-probabilities."""
        if not self.can.listed:
            raise ConfigError(
                f"{self.address.url}: tells no log-probabilities, so nothing can be computed from them; "
                "use --protocol sampled"
            )
        return ServerEngine(self.completions, self.can, self.text, sampling, batch)


@contextmanager
def open_server(
    endpoint: Endpoint,
    prompter: Prompter,
    top_k: int,
    *,
    tokenizer_name: str,
    known: object = None,
    vocabulary: Vocabulary | None = None,
) -> Iterator[ServerModel]:
    """Connect to a server and find out what it can do; the connection ends with the block.

    `prompter`: makes the prompts; its tokenizer must be the server's. `known`: the identity of the run to resume, if
    any; it is kept where the server's answers are the same up to rounding. Raises ConfigError where the tokenizers
    differ, and what `client.RequestSession.each` raises.
    """
    tokenizer = prompter.tokenizer

    def encode(text: str) -> tuple[int, ...]:
        return tuple(prompter.ids([text])[0])

    with RequestSession(endpoint) as session:
        completions = Completions(session)
        spelling = Spelling(tokenizer)
        wanted = top_k + MORE if top_k else 100
        can = discover(completions, wanted, encode, spelling.readable)
        tokenizer_line = check_tokenizer(completions, can, encode, tokenizer_name)
        address = Address(endpoint.url, endpoint.model)
        identity = _identity(completions, can, address, tokenizer)
        yield ServerModel(
            address,
            tokenizer,
            spelling,
            completions,
            can,
            vocabulary or vocabulary_of(spelling, tokenizer_name),
            kept_identity(known, identity),
            (can.reason(top_k), tokenizer_line),
        )


def check_tokenizer(
    completions: Completions, can: Capabilities, encode: Callable[[str], tuple[int, ...]], name: str
) -> str:
    """Compare the server's token counts of a few texts with the tokenizer's; return the outcome as a line.

    Where the server accepts ids, a beginning-of-sequence token that it adds to texts does not matter. Raises
    ConfigError where the counts differ.
    """
    replies = completions.each([([text], {"max_tokens": 1, "temperature": 0.0}) for text in _CHECKED], lambda _, r: r)
    pairs = [
        (text, reply.prompt_tokens, len(encode(text)))
        for text, reply in zip(_CHECKED, replies, strict=True)
        if reply.prompt_tokens
    ]
    if not pairs:
        return f"tokenizer {name}: the server counts no tokens, so it could not be held against the server's"
    gaps = {theirs - ours for _, theirs, ours in pairs}
    if gaps == {0} or (can.ids_in and gaps in ({1}, {-1})):
        return f"tokenizer {name}: counts {len(pairs)} texts as the server does"
    text, theirs, ours = next(pair for pair in pairs if pair[1] != pair[2])
    if gaps in ({1}, {-1}):
        puts, ask = ("puts", "yes") if gaps == {1} else ("puts no", "no")
        raise ConfigError(
            f"{completions.session.endpoint.url}: {puts} beginning-of-sequence token before a text, unlike our "
            f"prompts, and takes no token ids; use --bos {ask}"
        )
    raise ConfigError(
        f"--tokenizer {name}: not the server's: it counts {theirs} tokens in {text[:40]!r}, the tokenizer {ours}. "
        "Name the tokenizer of the model that is served"
    )


def vocabulary_of(spelling: Spelling, name: str) -> Vocabulary:
    """Return the tokens that end an answer, by the tokenizer and its generation config, if any (design, section 8)."""
    from transformers import GenerationConfig

    tokenizer = spelling.tokenizer
    stops: set[int] = set()
    try:
        with quiet():
            config_eos = GenerationConfig.from_pretrained(tokenizer.name_or_path or name).eos_token_id
    except Exception:  # there is none, or no hub: use the tokenizer's own end
        config_eos = None
    for eos in (config_eos, tokenizer.eos_token_id):
        if eos is not None:
            stops.update([eos] if isinstance(eos, int) else eos)
    texts = tokenizer.batch_decode([[i] for i in range(spelling.size)], clean_up_tokenization_spaces=False)
    newline = {i for i, text in enumerate(texts) if "\n" in text}
    blank = {i for i in newline if not texts[i].strip()}

    def decode(path: TokenPath) -> str:
        return spelling.decode(path)

    return Vocabulary(decode, frozenset(stops | blank), frozenset(newline - blank - stops))


def _identity(
    completions: Completions, can: Capabilities, address: Address, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    answers = []
    for prompt in PROBES:
        if can.listed:
            options = {**can.options(), "logprobs": min(can.listed, 20)}
            choice = completions.one([prompt], **options).choices[0]
            top = likeliest(choice.tops[-1] if choice.tops else None, 5)
            answers.append({str(name): round(value, 2) for name, value in top.items() if math.isfinite(value)})
        else:
            choice = completions.one([prompt], max_tokens=12, temperature=0.0).choices[0]
            answers.append({choice.text: 0.0})
    return {
        "server": urlsplit(address.url).hostname,
        "name": address.name,
        "tokenizer": tokenizer_digest(tokenizer),
        "answers": answers,
    }


def kept_identity(known: object, now: dict[str, Any]) -> dict[str, Any]:
    """Return the earlier run's identity if the server is still the same up to rounding, else the new one."""
    if not isinstance(known, dict) or {**known, "answers": 0} != {**now, "answers": 0}:
        return now
    answers = known.get("answers")
    if not isinstance(answers, list) or len(answers) != len(now["answers"]):
        return now
    try:
        same = all(close(one, other) for one, other in zip(answers, now["answers"], strict=True))
    except (TypeError, AttributeError):
        return now
    return known if same else now


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of a tokenizer's content, never of its name."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    more = json.dumps([tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template], default=str)
    return "sha256:" + hashlib.sha256(f"{content}\0{more}".encode("utf-8", "surrogatepass")).hexdigest()


def estimate(usage: Usage, measured: int, rows: int, price: tuple[float, float] | None = None) -> dict[str, Any]:
    """Estimate an audit of `rows` rows from what a burst of `measured` rows took.

    `price`: of a million prompt tokens and of a million answer tokens, in any currency. Returns requests,
    prompt_tokens, completion_tokens, and with a price `cost`.
    """
    scale = rows / measured if measured else 0.0
    totals: dict[str, Any] = {name: round(value * scale) for name, value in usage._asdict().items()}
    if price is not None:
        totals["cost"] = round((usage.prompt_tokens * price[0] + usage.completion_tokens * price[1]) * scale / 1e6, 4)
    return totals
