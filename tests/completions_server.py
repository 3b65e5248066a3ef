"""A causal LM behind `/v1/completions` on loopback, with the manners and the faults that servers have.

with serving(completes(folder)) as server: ...                          # server.url, server.seen
with serving(completes(folder, Manners(cap=5, by_id=False))) as server: ...

python tests/completions_server.py FOLDER               the same as a process; says its address
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serving import Asked, Reply, Script, refuses, serving


@dataclass(frozen=True)
class Manners:
    """How a server differs from one that can do everything.

    `cap`: more log-probabilities than so many are refused. `clamp`: more are not given. `ids`: takes prompts as
    ids. `many`: takes lists of prompts. `by_id`: tells tokens by id when asked; "content": in llama.cpp's form.
    `last_stays`: of tokens with one text the last is listed, else the first. `tells_end`: lists the token that
    ends an answer. `echo`: echoes; "shifted": with distributions one position late. `prompt_logprobs`, `n`:
    knows the option. `strict`: refuses what it does not know. `logprobs`, `counts`: tells them. `draws`: really
    samples. `bos`: puts one more token before texts. `refusal`: the status of a refusal.
    """

    cap: int | None = None
    clamp: int | None = None
    ids: bool = True
    many: bool = True
    by_id: bool | Literal["content"] = True
    last_stays: bool = False
    tells_end: bool = True
    echo: bool | Literal["shifted"] = True
    prompt_logprobs: bool = True
    n: bool = True
    strict: bool = False
    logprobs: bool = True
    counts: bool = True
    draws: bool = True
    bos: bool = False
    refusal: int = 400


VLLM = Manners()
OPENAI = Manners(cap=5, by_id=False, echo=False, prompt_logprobs=False, strict=True)
LLAMA_CPP_PYTHON = Manners(
    ids=False,
    many=False,
    by_id=False,
    last_stays=True,
    tells_end=False,
    echo="shifted",
    prompt_logprobs=False,
    n=False,
    refusal=500,
)
LLAMA_SERVER = Manners(by_id="content", echo=False, prompt_logprobs=False, n=False)
TRANSFORMERS = Manners(
    ids=False, many=False, logprobs=False, echo=False, prompt_logprobs=False, n=False, strict=True, refusal=422
)

KNOWN = {"model", "prompt", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "logprobs", "echo"}


def completes(folder: Path, manners: Manners = VLLM) -> Script:
    """A script by which the model in `folder` answers completions."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generation = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *([generation] if isinstance(generation, int) else generation or [])}
    lock = threading.Lock()

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def name(token: int, by_id: bool) -> str:
        told = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return f"token_id:{token}" if by_id else told

    @torch.inference_mode()
    def log_probabilities(ids: list[int]) -> torch.Tensor:
        """[len(ids), vocabulary]: row i is the distribution behind token i; float32, as servers send them."""
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1).float()

    def draw(line: torch.Tensor, body: dict[str, Any], generator: torch.Generator) -> int:
        temperature = body.get("temperature", 1.0)
        if not temperature or not manners.draws:
            return int(line.argmax())
        scaled = line.double() / temperature
        if body.get("top_k"):
            scaled[scaled < scaled.topk(min(body["top_k"], len(scaled))).values[-1]] = -torch.inf
        return int(torch.multinomial(scaled.softmax(-1), 1, generator=generator))

    def top(line: torch.Tensor, token: int, count: int) -> dict[int, float]:
        """The likeliest, and the token that stands there: first, as vLLM has it."""
        values, index = line.topk(min(count, len(line)))
        return {token: float(line[token]), **dict(zip(index.tolist(), values.tolist(), strict=True))}

    def listing(spots: list[tuple[int, dict[int, float] | None]], by_id: bool) -> dict[str, Any]:
        if manners.by_id == "content":
            return {"content": [
                {"id": t, "token": name(t, False), "logprob": (at or {}).get(t), "top_logprobs": [
                    {"id": i, "token": name(i, False), "logprob": v}
                    for i, v in sorted((at or {}).items(), key=lambda pair: -pair[1])
                ]} for t, at in spots
            ]}  # fmt: skip
        tops = []
        for _, at in spots:
            ordered = None if at is None else sorted(at.items(), key=lambda pair: -pair[1])
            if ordered is not None and not by_id and not manners.last_stays:
                # keeps the first of those with one text, as SGLang does
                ordered.reverse()
            tops.append(None if ordered is None else {name(i, by_id): v for i, v in ordered})
        return {
            "tokens": [name(t, by_id) for t, _ in spots],
            "token_logprobs": [None if at is None else at[t] for t, at in spots],
            "top_logprobs": tops,
        }

    def choice(number: int, prompt: list[int], body: dict[str, Any], seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        ids, fresh, finish = list(prompt), [], "length"
        count = min(body.get("logprobs") or 0, manners.clamp or 10**6)
        spots: list[tuple[int, dict[int, float] | None]] = []
        stops = body.get("stop") or []
        for _ in range(body.get("max_tokens", 16)):
            line = log_probabilities(ids)[-1]
            token = draw(line, body, generator)
            if manners.tells_end or token not in ends:
                spots.append((token, top(line, token, count)))
            ids.append(token)
            fresh.append(token)
            if token in ends or any(stop in text(fresh) for stop in stops):
                finish = "stop"
                break
        said = text(fresh)
        for stop in stops:
            said = said.split(stop)[0]
        found: dict[str, Any] = {"index": number, "text": said, "finish_reason": finish, "logprobs": None}
        by_id = bool(body.get("return_tokens_as_token_ids")) and manners.by_id is True
        asked_for = body.get("echo") or body.get("prompt_logprobs") is not None
        rows = log_probabilities(prompt) if asked_for else torch.empty(0)
        if body.get("echo"):
            late = manners.echo == "shifted"
            before = [(t, None if n == 0 else top(rows[n if late else n - 1], t, count)) for n, t in enumerate(prompt)]
            spots = before + spots
            found["text"] = text(prompt) + said
        if body.get("logprobs") is not None and manners.logprobs:
            found["logprobs"] = listing(spots, by_id)
        if body.get("prompt_logprobs") is not None:
            count = body["prompt_logprobs"]
            told = [None if n == 0 else top(rows[n - 1], t, count) for n, t in enumerate(prompt)]
            found["prompt_logprobs"] = [
                None if at is None else {str(i): {"logprob": v, "decoded_token": name(i, False)} for i, v in at.items()}
                for at in told
            ]
        return found

    def answer(asked: Asked) -> Reply:
        body = asked.body
        prompts = body["prompt"] if isinstance(body["prompt"], list) and not _ids(body["prompt"]) else [body["prompt"]]
        if trouble := _trouble(body, prompts, manners):
            return refuses(manners.refusal, trouble)
        body = {k: v for k, v in body.items() if manners.prompt_logprobs or k != "prompt_logprobs"}
        body = {k: v for k, v in body.items() if manners.echo or k != "echo"}
        ids = [p if _ids(p) else tokenizer(p)["input_ids"] for p in prompts]
        if manners.bos:
            ids = [
                [tokenizer.eos_token_id, *line] if isinstance(p, str) else line
                for p, line in zip(prompts, ids, strict=True)
            ]
        n = body.get("n", 1) if manners.n else 1
        seed = body.get("seed", 0)
        with lock:
            choices = [choice(i * n + j, line, body, seed * 1009 + j) for i, line in enumerate(ids) for j in range(n)]
        usage = {"prompt_tokens": sum(map(len, ids)), "completion_tokens": 1, "total_tokens": 1}
        whole = {"id": "c", "object": "text_completion", "created": 0, "model": body["model"], "choices": choices}
        return Reply(json.dumps({**whole, "usage": usage if manners.counts else None}).encode())

    return answer


def _ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(i, int) for i in prompt)


def _trouble(body: dict[str, Any], prompts: list[Any], manners: Manners) -> str | None:
    """What the server would refuse."""
    if not manners.ids and any(_ids(p) for p in prompts):
        return "prompt: expected a string"
    if not manners.many and len(prompts) > 1:
        return "prompt: expected one"
    if manners.cap is not None and max(body.get("logprobs") or 0, body.get("prompt_logprobs") or 0) > manners.cap:
        return f"logprobs: at most {manners.cap}"
    if manners.strict and (unknown := set(body) - KNOWN):
        return f"unknown options: {sorted(unknown)}"
    return None


def troubled(script: Script, fault: Callable[[Asked], Reply | None]) -> Script:
    """A script with faults: where `fault` has a reply to a request, that is what comes."""
    return lambda asked: fault(asked) or script(asked)


def main() -> None:
    with serving(completes(Path(sys.argv[1]))) as server:
        print(server.url, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
