"""A small OpenAI-compatible server on loopback, for tests: real sockets, real HTTP, faults on demand.

    with serving(always(says("hello"))) as server: ...   # server.url, server.seen
    with serving(speaks(folder)) as server: ...                # a real causal LM answers

A script is a function from a request to a `Reply`; it is called in the request's own thread.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request: path, headers (names in lower case), JSON body, and which one it is of those with its prompt."""

    path: str
    headers: Mapping[str, str]
    body: Any
    nth: int
    at: float

    @property
    def prompt(self) -> str:
        """The text of the last message."""
        return str(self.body["messages"][-1]["content"]) if self.body else ""


@dataclass(frozen=True)
class Reply:
    """What goes back after `delay` seconds; `reset`: the connection is cut with nothing said."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    reset: bool = False


Script = Callable[[Asked], Reply]


def says(text: str | None, *, finish: str = "stop", delay: float = 0.0, tokens: tuple[int, int] | None = None) -> Reply:
    """A chat completion with this content."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = (
        {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)} if tokens else None
    )
    return Reply(completion([choice], usage), delay=delay)


def completion(choices: list[Any], usage: Any = None) -> bytes:
    """The body of a chat completion with these choices."""
    whole = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}
    return json.dumps(whole).encode()


def refuses(status: int, message: str = "no", headers: Mapping[str, str] | None = None, **more: Any) -> Reply:
    """An error as OpenAI spells it; `more`: its `param`, `code`, `type`."""
    body = {"error": {"message": message, "type": None, "param": None, "code": None, **more}}
    return Reply(json.dumps(body).encode(), status, headers or {})


RESET = Reply(reset=True)


def always(reply: Reply) -> Script:
    """The same reply to every request."""
    return lambda _: reply


@dataclass
class Server:
    """A running server and every request it has seen."""

    url: str
    seen: list[Asked] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        """The prompts of the chat requests, in order of arrival."""
        return [asked.prompt for asked in self.seen if asked.path.endswith("/chat/completions")]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no fault of the server's."""


@contextmanager
def serving(script: Script, *, models: tuple[str, ...] = ("m",)) -> Iterator[Server]:
    """A server on a free port of 127.0.0.1; it answers `/v1/models` itself and leaves the rest to `script`."""
    lock = threading.Lock()
    counts: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path.endswith("/v1/models"):
                listed = [{"id": name, "object": "model", "created": 0, "owned_by": "us"} for name in models]
                self._send(Reply(json.dumps({"object": "list", "data": listed}).encode()))
            else:
                self._send(refuses(404, "nothing here"))

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            raw = self.rfile.read(length)
            if len(raw) < length:  # the client was killed while it spoke
                self.close_connection = True
                return
            body = json.loads(raw) if raw else None
            with lock:
                key = json.dumps(body, sort_keys=True)
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.path, headers, body, counts[key], time.monotonic())
                counts[key] += 1
                server.seen.append(asked)
            self._send(script(asked))

        def _send(self, reply: Reply) -> None:
            if reply.delay:
                time.sleep(reply.delay)
            if reply.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the requests are in `server.seen`."""

    http = _Quiet(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def speaks(folder: Path, *, most: int = 64) -> Script:
    """A script by which the model in `folder` answers greedily: its chat template if it has one, else the prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    lock = threading.Lock()

    def answer(asked: Asked) -> Reply:
        text, special = asked.prompt, True
        if tokenizer.chat_template:
            text, special = (
                tokenizer.apply_chat_template(asked.body["messages"], tokenize=False, add_generation_prompt=True),
                False,
            )
        given = tokenizer(text, return_tensors="pt", add_special_tokens=special)
        limit = min(asked.body.get("max_tokens") or most, most)
        with lock, torch.inference_mode():
            ids = model.generate(
                input_ids=given["input_ids"], attention_mask=given["attention_mask"], do_sample=False,
                max_new_tokens=limit, pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        fresh = ids[0, given["input_ids"].shape[1] :]
        ended = len(fresh) < limit
        said = tokenizer.decode(fresh, skip_special_tokens=True)
        sizes = (given["input_ids"].shape[1], len(fresh))
        return says(said, finish="stop" if ended else "length", tokens=sizes)

    return answer
