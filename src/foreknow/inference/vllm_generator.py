"""Generates answers for the sampled protocol with vLLM, in a child process (extra `foreknow[vllm]`).

The child runs this file as a module. It loads the model, replies to each line of JSON with another, and exits when
its input closes, which frees the GPU memory that vLLM took. vLLM computes shared beginnings of prompts once (prefix
caching).

    {"model": FOLDER, "dtype": "auto", "seed": 0}                                -> {"ready": VERSION}
    {"prompts": [IDS, ...], "limits": [8, ...], "n": 16, "temperature": 0.5,
     "top_k": 40, "stops": [ID, ...], "seed": 7}                                 -> {"answers": [[PATH, ...], ...]}
    whatever goes wrong                                                          -> {"error": TEXT}, or "missing"

Tested against a substitute for the module `vllm` that generates with a small model and has the names this file uses
(`LLM`, `SamplingParams`, `TokensPrompt`, outputs with `token_ids`, `finish_reason` and `stop_reason`). Not tested
with vLLM itself on a GPU.
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

_EXIT_SECONDS: Final = 30.0
"""Seconds that a child may take to exit by itself."""


@dataclass(frozen=True)
class VllmAnswers:
    """Generates answers with vLLM; replaces `generate.Generator`. Create one with `vllm_answers`."""

    child: subprocess.Popen[str]
    log: IO[str]
    vocabulary: Vocabulary
    sampling: Sampling

    def generate(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], draws: int | None, seed: int
    ) -> list[list[Answer]]:
        """See `generate.AnswerGenerator.generate`. Raises ResourceError where the child died or failed."""
        from foreknow.inference.generate import answer_within  # keeps torch out

        reply = self.send(
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
            [answer_within(self.vocabulary, self._until_end(path), limit) for path in paths]
            for paths, limit in zip(reply["answers"], limits, strict=True)
        ]

    def send(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send the child one message and return its reply. Raises MissingExtra or ResourceError."""
        line = ""
        with suppress(OSError, ValueError):  # a child that died leaves an empty reply
            assert self.child.stdin is not None
            assert self.child.stdout is not None
            self.child.stdin.write(json.dumps(message) + "\n")
            self.child.stdin.flush()
            line = self.child.stdout.readline()
        try:
            reply = json.loads(line)
        except ValueError:
            code = self.child.wait(_EXIT_SECONDS)
            raise ResourceError(f"vLLM's process died (exit {code}): {self._last_log_line()}") from None
        if "missing" in reply:
            raise MissingExtra(
                f"Generating with vLLM needs the package {reply['missing']}, which is not installed.\n"
                "Install it with: pip install 'foreknow[vllm]'"
            )
        if "error" in reply:
            raise ResourceError(f"vLLM failed: {reply['error']}")
        return dict(reply)

    def _until_end(self, path: Sequence[int]) -> TokenPath:
        """Return the tokens up to and including the first that ends the answer."""
        for at, token in enumerate(path):
            if self.vocabulary.is_end(token):
                return tuple(path[: at + 1])
        return tuple(path)

    def _last_log_line(self) -> str:
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"


@contextmanager
def vllm_answers(
    folder: str, vocabulary: Vocabulary, sampling: Sampling, *, dtype: str = "auto", seed: int = 0
) -> Iterator[VllmAnswers]:
    """Start vLLM on a model's folder; its process exits, and frees its memory, at the end of the block.

    Raises MissingExtra where vLLM is not installed, ResourceError where it cannot load the model.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "foreknow.inference.vllm_generator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
        )
        try:
            answers = VllmAnswers(child, log, vocabulary, sampling)
            answers.send({"model": folder, "dtype": dtype, "seed": seed})
            yield answers
        finally:
            _end(child)


def _end(child: subprocess.Popen[str]) -> None:
    """Close the child's input, on which it exits; kill it if it does not."""
    for pipe in (child.stdin, child.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
    try:
        child.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main() -> None:
    """Run the child process: load a model, then generate answers until the input closes."""
    # vLLM prints to standard output, which must carry our replies only
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(reply: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):
            out.write(json.dumps(reply) + "\n")
            out.flush()

    first_line = sys.stdin.readline()
    if not first_line:
        return
    request = json.loads(first_line)
    try:
        vllm = importlib.import_module("vllm")
    except ModuleNotFoundError as error:
        send({"missing": error.name})
        return
    try:
        model = vllm.LLM(
            model=request["model"], dtype=request["dtype"], seed=request["seed"], enable_prefix_caching=True
        )
    except Exception as error:  # the parent reports any error of vLLM in one line
        send({"error": _first_line(error)})
        return
    send({"ready": getattr(vllm, "__version__", "")})
    for line in sys.stdin:
        try:
            send({"answers": _generate(vllm, model, json.loads(line))})
        except Exception as error:
            send({"error": _first_line(error)})


def _generate(vllm: Any, model: Any, request: dict[str, Any]) -> list[list[list[int]]]:
    """Return for each prompt the token ids of its answers, including the ending token."""
    prompt_of = importlib.import_module("vllm.inputs").TokensPrompt
    settings = [
        vllm.SamplingParams(
            n=request["n"],
            max_tokens=limit,
            temperature=request["temperature"],
            top_k=request["top_k"],
            top_p=1.0,
            stop_token_ids=request["stops"],
            seed=request["seed"] + number if request["temperature"] else None,
            detokenize=False,
        )
        for number, limit in enumerate(request["limits"])
    ]
    prompts = [prompt_of(prompt_token_ids=ids) for ids in request["prompts"]]
    outputs = model.generate(prompts, settings, use_tqdm=False)
    return [[_path(answer, set(request["stops"])) for answer in output.outputs] for output in outputs]


def _path(answer: Any, stops: set[int]) -> list[int]:
    """Return an answer's ids; the token that stopped it is appended if vLLM left it out."""
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
