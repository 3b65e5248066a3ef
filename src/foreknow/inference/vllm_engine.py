"""vLLM as the generator of the sampled protocol, in a process of its own (extra `foreknow[vllm]`).

The child is this file, run as a module. It loads the model, then answers one line of JSON with another, and
ends with its input: the graphics memory that vLLM took comes back. Prompts that begin alike are computed once
(prefix caching).

    {"model": FOLDER, "dtype": "auto", "seed": 0}                                -> {"ready": VERSION}
    {"prompts": [IDS, ...], "limits": [8, ...], "n": 16, "temperature": 0.5,
     "top_k": 40, "stops": [ID, ...], "seed": 7}                                 -> {"answers": [[PATH, ...], ...]}
    whatever goes wrong                                                          -> {"error": TEXT}, or "missing"

What was run: this file against a stand-in for the module `vllm` with the names it uses (`LLM`, `SamplingParams`,
`TokensPrompt`, outputs with `token_ids`, `finish_reason` and `stop_reason`), which really generates with a small
model. vLLM itself, and a GPU, were not at hand.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

from foreknow.errors import MissingExtra, ResourceError

if TYPE_CHECKING:
    from foreknow.inference.engine import Sampling
    from foreknow.inference.generate import Answer
    from foreknow.prompts.vocabulary import TokenPath, Vocabulary

_FAREWELL: Final = 30.0
"""Seconds a child may take to end by itself."""


@dataclass(frozen=True)
class VllmAnswers:
    """Answers by vLLM; takes the place of `generate.Generator`. Get one from `vllm_answers`."""

    child: subprocess.Popen[str]
    log: IO[str]
    vocabulary: Vocabulary
    sampling: Sampling

    def say(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], draws: int | None, seed: int
    ) -> list[list[Answer]]:
        """See `generate.Speaks.say`. Raises ResourceError where the child died or failed."""
        from foreknow.inference.generate import answer_within  # keeps torch out

        reply = self.ask(
            {
                "prompts": [list(ids) for ids in prompts],
                "limits": list(limits),
                "n": draws or 1,
                "temperature": self.sampling.temperature if draws else 0.0,
                "top_k": self.sampling.top_k if draws else 0,
                "stops": sorted(self.vocabulary.ends | self.vocabulary.breaks),
                "seed": seed & 0x7FFFFFFF,
            }
        )
        return [
            [answer_within(self.vocabulary, self._ended(path), limit) for path in paths]
            for paths, limit in zip(reply["answers"], limits, strict=True)
        ]

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """One line to the child and one back. Raises MissingExtra or ResourceError."""
        told = ""
        with suppress(OSError, ValueError):  # a child that died shows in what comes back
            assert self.child.stdin is not None
            assert self.child.stdout is not None
            self.child.stdin.write(json.dumps(message) + "\n")
            self.child.stdin.flush()
            told = self.child.stdout.readline()
        try:
            reply = json.loads(told)
        except ValueError:
            code = self.child.wait(_FAREWELL)
            raise ResourceError(f"vLLM's process died (exit {code}): {self._last_words()}") from None
        if "missing" in reply:
            raise MissingExtra(
                f"Generating with vLLM needs the package {reply['missing']}, which is not installed.\n"
                "Install it with: pip install 'foreknow[vllm]'"
            )
        if "error" in reply:
            raise ResourceError(f"vLLM failed: {reply['error']}")
        return dict(reply)

    def _ended(self, path: Sequence[int]) -> TokenPath:
        """Tokens up to and with the first that ends the answer."""
        for at, token in enumerate(path):
            if self.vocabulary.is_end(token):
                return tuple(path[: at + 1])
        return tuple(path)

    def _last_words(self) -> str:
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"


@contextmanager
def vllm_answers(
    folder: str, vocabulary: Vocabulary, sampling: Sampling, *, dtype: str = "auto", seed: int = 0
) -> Iterator[VllmAnswers]:
    """Start vLLM on a model's folder; its process ends, and its memory comes back, with the block.

    Raises MissingExtra where vLLM is not installed, ResourceError where it cannot load the model.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "foreknow.inference.vllm_engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
        )
        try:
            answers = VllmAnswers(child, log, vocabulary, sampling)
            answers.ask({"model": folder, "dtype": dtype, "seed": seed})
            yield answers
        finally:
            _end(child)


def _end(child: subprocess.Popen[str]) -> None:
    """Close the child's input, which ends it; kill one that does not end."""
    for pipe in (child.stdin, child.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
    try:
        child.wait(_FAREWELL)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main() -> None:
    """The child: a model, then answers, until its input ends."""
    # vLLM prints to standard output, which is for our lines only
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(reply: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):
            out.write(json.dumps(reply) + "\n")
            out.flush()

    first = sys.stdin.readline()
    if not first:
        return
    asked = json.loads(first)
    try:
        vllm = importlib.import_module("vllm")
    except ModuleNotFoundError as error:
        say({"missing": error.name})
        return
    try:
        model = vllm.LLM(model=asked["model"], dtype=asked["dtype"], seed=asked["seed"], enable_prefix_caching=True)
    except Exception as error:  # whatever vLLM raises, the parent says in one line
        say({"error": _first_line(error)})
        return
    say({"ready": getattr(vllm, "__version__", "")})
    for line in sys.stdin:
        try:
            say({"answers": _generate(vllm, model, json.loads(line))})
        except Exception as error:
            say({"error": _first_line(error)})


def _generate(vllm: Any, model: Any, asked: dict[str, Any]) -> list[list[list[int]]]:
    """For each prompt its answers' token ids, the ending one with them."""
    prompt_of = importlib.import_module("vllm.inputs").TokensPrompt
    settings = [
        vllm.SamplingParams(
            n=asked["n"],
            max_tokens=limit,
            temperature=asked["temperature"],
            top_k=asked["top_k"],
            top_p=1.0,
            stop_token_ids=asked["stops"],
            seed=asked["seed"] + number if asked["temperature"] else None,
            detokenize=False,
        )
        for number, limit in enumerate(asked["limits"])
    ]
    prompts = [prompt_of(prompt_token_ids=ids) for ids in asked["prompts"]]
    made = model.generate(prompts, settings, use_tqdm=False)
    return [[_path(answer, set(asked["stops"])) for answer in one.outputs] for one in made]


def _path(answer: Any, stops: set[int]) -> list[int]:
    """An answer's ids; the token that stopped it is put behind them where it is not among them."""
    path = [int(token) for token in answer.token_ids]
    reason = answer.stop_reason
    if answer.finish_reason == "stop" and not stops.intersection(path) and isinstance(reason, int):
        path.append(reason)
    return path


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


if __name__ == "__main__":
    main()
