"""Audits through a completions server: a real model behind real HTTP, with the manners and faults that servers have."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from completions_server import (
    LLAMA_CPP_PYTHON,
    LLAMA_SERVER,
    OPENAI,
    TRANSFORMERS,
    VLLM,
    Manners,
    completes,
    troubled,
)
from foreknow.cli import main
from foreknow.config import AuditConfig
from foreknow.data.schema import chunks, common_heads
from foreknow.errors import ConfigError, InputError, MissingExtra, ModelError, ResourceError
from foreknow.inference.engine import PlainEngine, Sampling, nodes_of
from foreknow.inference.exact_probe import Chunk, Prober, ProbeSettings
from foreknow.inference.generate import Generator, Sampler, exact_head
from foreknow.inference.prompt_builder import PromptBuilder
from foreknow.inference.server.client import Endpoint, InvalidResponse, RequestFailure, RequestSession
from foreknow.inference.server.completions import Usage, completion_of
from foreknow.inference.server.engine import UNKNOWN, node_of
from foreknow.inference.server.fluency import fluency_at
from foreknow.inference.server.model import (
    Address,
    ServerModel,
    Spelling,
    address_of,
    estimate,
    kept_identity,
    load_tokenizer,
    open_server,
)
from foreknow.inference.server.sampling import ServerAnswers, discover_drawing
from foreknow.inference.vllm_generator import vllm_answers
from foreknow.io.run_dir import lock_run_dir
from foreknow.models import loading
from foreknow.models.fluency import fluency_of
from foreknow.prompts import few_shot
from foreknow.prompts.prompt_template import Prompter
from foreknow.stages.audit.result import open_audit
from foreknow.stages.audit.server_executor import connect_server, estimate_at_server, open_server_executor
from foreknow.stages.audit.setup import read_input
from serving import RESET, Asked, Reply, Script, Server, refuses, serving

SECRET = "sk-77aa-not-to-be-seen-anywhere"
SAMPLING = Sampling(temperature=0.9, top_k=40)


pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> loading.Loaded:
    return loading.load_model(str(tiny_folder), dtype="float32", device="cpu")


@pytest.fixture
def rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Facts with aliases, and answers that can be spelled in many ways; dev rows are the exemplars."""
    answers = frame["answers"].to_list()
    answers[3] = ["Dunwick", "dunwick", "The Dunwick"]
    answers[6] = ["Avens", "River Avens"]
    return frame.with_columns(answers=pl.Series(answers))


@pytest.fixture
def few(rows: pl.DataFrame) -> pl.DataFrame:
    """Six of them, of both relations."""
    return rows.filter(pl.col("row").is_in([0, 3, 6, 12, 25, 30]))


@pytest.fixture(scope="module")
def scripts(tiny_folder: Path) -> Callable[[Manners], Script]:
    """Servers by their manners, each made once."""
    made: dict[Manners, Script] = {}

    def script(manners: Manners) -> Script:
        if manners not in made:
            made[manners] = completes(tiny_folder, manners)
        return made[manners]

    return script


@contextmanager
def connected(
    script: Script, folder: Path, top_k: int = 40, known: object = None, bos: str = "auto", **endpoint: Any
) -> Iterator[tuple[ServerModel, Server]]:
    with serving(script) as server:
        prompter = Prompter(load_tokenizer(str(folder)), bos=bos)  # type: ignore[arg-type]
        asked = Endpoint(server.url, "m", **{"backoff": 0.01, **endpoint})
        with open_server(asked, prompter, top_k, tokenizer_name=str(folder), known=known) as model:
            yield model, server


def prober(engine: Any, prompter: Prompter, vocabulary: Any, rows: pl.DataFrame, **settings: Any) -> Prober:
    drawn = few_shot.draw_exemplars(rows, sorted(rows["group"].unique()), shots=2, sets=2, seed=0)
    return Prober(engine, PromptBuilder(prompter, drawn, common_heads(rows)), vocabulary, ProbeSettings(**settings))


def here(loaded: loading.Loaded, rows: pl.DataFrame, sampling: Sampling = SAMPLING) -> Prober:
    """The exact probe of the same model, computed here."""
    loaded.model.set_attn_implementation("sdpa")
    return prober(PlainEngine(loaded.model, sampling), Prompter(loaded.tokenizer), loading.vocabulary_of(loaded), rows)


def there(model: ServerModel, rows: pl.DataFrame, **settings: Any) -> Prober:
    engine = model.engine(SAMPLING)
    return prober(engine, Prompter(model.tokenizer), model.vocabulary, rows, **settings)


def probed(prober: Any, rows: pl.DataFrame) -> Chunk:
    found = [prober.probe(part) for part in chunks(rows, 4)]
    return Chunk(
        pl.concat([c.probes for c in found]).sort("row", "exemplar_set"),
        pl.concat([c.answers for c in found]).sort("row"),
    )


class TestNodes:
    @given(st.data())
    def test_low_ends_and_tail_hold_the_true_distribution_whatever_is_listed(self, data: st.DataObject) -> None:
        """`k` of the likeliest are listed, some of them without a name, some left out: their texts were others'."""
        size = data.draw(st.integers(2, 24))
        # few different logits, so that ties are common
        logits = data.draw(st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=size, max_size=size))
        sampling = Sampling(data.draw(st.sampled_from([0.2, 0.5, 1.0, 1.7])), data.draw(st.integers(0, size + 2)))
        k = data.draw(st.integers(1, size))
        log_p = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
        order = sorted(range(size), key=lambda i: (-logits[i], data.draw(st.integers(0, 3)), i))[:k]
        dropped = data.draw(st.sets(st.sampled_from(order), max_size=len(order) - 1))
        nameless = data.draw(st.sets(st.sampled_from(order)))
        listed = [(None if i in nameless else i, float(log_p[i].float())) for i in order if i not in dropped]

        node, _ = node_of(listed, sampling, limit=k, vocabulary=size)

        scaled = log_p / sampling.temperature
        if sampling.top_k:
            scaled[log_p < log_p.topk(min(sampling.top_k, size)).values[-1]] = -torch.inf
        true = scaled.softmax(-1).tolist()
        assert sum(node.p) + node.tail == pytest.approx(1.0)
        assert all(low <= true[i] + 1e-6 for i, low in zip(node.tokens, node.p, strict=True))
        assert list(node.p) == sorted(node.p, reverse=True)
        # what the low ends leave out of the truth fits into the tail
        assert 1.0 - sum(node.p) <= node.tail + 1e-6
        assert node.greedy in (UNKNOWN, logits.index(max(logits)))
        if not dropped and not nameless and k == size:
            assert node.tail == 0.0
            assert node.greedy != UNKNOWN

    @pytest.mark.parametrize(("temperature", "top_k"), [(0.5, 40), (1.0, 3), (0.9, 0), (1.5, 7)])
    def test_a_list_longer_than_the_top_k_gives_the_local_engines_node(self, temperature: float, top_k: int) -> None:
        logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(3))
        logits[0, 11] = logits[0, 30] = logits[0].topk(top_k or 9).values[-1]  # ties at the last
        logits[0, 5] = logits[0, 50] = logits.max() + 0.25  # and at the first
        sampling = Sampling(temperature, top_k)
        values, ids = logits.sort(descending=True, stable=True)
        kept = int((values[0] >= values[0, top_k - 1]).sum()) if top_k else 60
        [local] = nodes_of(ids[:, :kept], values[:, :kept], sampling)
        top = logits[0].log_softmax(-1).topk(60 if not top_k else kept + 2)
        listed = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        ours, _ = node_of(listed, sampling, limit=len(listed), vocabulary=60)
        assert ours.greedy == local.greedy == 5
        assert set(ours.tokens) == set(local.tokens)
        assert ours.tail == 0.0
        theirs = dict(zip(local.tokens, local.p, strict=True))
        assert {t: pytest.approx(p, abs=1e-6) for t, p in zip(ours.tokens, ours.p, strict=True)} == theirs

    def test_the_token_that_stands_at_a_position_is_no_part_of_the_list(self) -> None:
        listed = [(9, math.log(0.01)), (1, math.log(0.5)), (2, math.log(0.3))]
        node, _ = node_of(listed, Sampling(1.0, 40), limit=2, vocabulary=1000)
        assert node.tokens == [1, 2]
        assert node.tail == pytest.approx(0.2, abs=1e-4)

    def test_more_than_one_in_all_is_no_distribution(self) -> None:
        with pytest.raises(InvalidResponse, match="add up"):
            node_of([(1, -0.1), (2, -0.1)], SAMPLING, limit=2, vocabulary=100)


EVERYTHING = [
    pytest.param(VLLM, id="prompt_logprobs"),
    pytest.param(Manners(prompt_logprobs=False), id="echo"),
    pytest.param(Manners(prompt_logprobs=False, echo="shifted", many=False), id="one-token-one-prompt"),
    pytest.param(LLAMA_SERVER, id="llama-server"),
]


class TestExact:
    @pytest.mark.parametrize("manners", EVERYTHING)
    def test_a_server_with_enough_log_probabilities_gives_the_local_probe(
        self, manners: Manners, loaded: loading.Loaded, rows: pl.DataFrame, few: pl.DataFrame, tiny_folder: Path,
        scripts: Callable[[Manners], Script],
    ) -> None:  # fmt: skip
        local = probed(here(loaded, rows), few)
        with connected(scripts(manners), tiny_folder) as (model, _):
            assert "exact" in model.reasons[0]
            theirs = probed(there(model, rows), few)
        same = ["row", "exemplar_set", "greedy_correct", "greedy_lenient", "expansions"]
        assert theirs.probes.select(same).equals(local.probes.select(same))
        assert theirs.answers.equals(local.answers)
        for column in ("p_correct", "p_correct_upper", "p_lenient", "p_lenient_upper"):
            np.testing.assert_allclose(theirs.probes[column], local.probes[column], atol=2e-5)
        assert 0.1 < local.probes["greedy_correct"].mean() < 0.95

    @pytest.mark.parametrize(
        "manners",
        [
            pytest.param(Manners(cap=5), id="five-by-id"),
            pytest.param(Manners(clamp=3), id="three-and-no-refusal"),
            pytest.param(OPENAI, id="five-by-text"),
            pytest.param(LLAMA_CPP_PYTHON, id="text-only"),
        ],
    )
    def test_fewer_log_probabilities_give_intervals_that_hold_the_truth(
        self, manners: Manners, loaded: loading.Loaded, rows: pl.DataFrame, few: pl.DataFrame, tiny_folder: Path,
        scripts: Callable[[Manners], Script],
    ) -> None:  # fmt: skip
        exact = here(loaded, rows)
        truth = probed(prober(exact.engine, exact.prompts.prompter, exact.vocabulary, rows, tolerance=1e-6), few).probes
        with connected(scripts(manners), tiny_folder) as (model, _):
            asking = there(model, rows, max_expansions=12)
            found = probed(asking, few)
            tally = asking.engine.tally  # type: ignore[attr-defined]
        both = found.probes.join(truth, on=["row", "exemplar_set"], suffix="_true")
        for low, high in (("p_correct", "p_correct_upper"), ("p_lenient", "p_lenient_upper")):
            assert (both[low] <= both[f"{high}_true"] + 1e-5).all()
            assert (both[high] >= both[f"{low}_true"] - 1e-5).all()
        assert (both["p_correct"] > 0.01).any()
        # a greedy answer called right is right; one that could not be followed is counted
        assert (both["greedy_correct_true"] | ~both["greedy_correct"]).all()
        if manners.by_id:
            assert both["greedy_correct"].equals(both["greedy_correct_true"])
            assert not tally

    def test_no_log_probabilities_no_exact_protocol(
        self, tiny_folder: Path, scripts: Callable[[Manners], Script]
    ) -> None:
        with connected(scripts(TRANSFORMERS), tiny_folder) as (model, _), pytest.raises(ConfigError, match="sampled"):
            model.engine(SAMPLING)


class TestCapabilities:
    def test_a_shifted_echo_is_found_out_and_not_used(
        self, tiny_folder: Path, scripts: Callable[[Manners], Script]
    ) -> None:
        with connected(scripts(Manners(prompt_logprobs=False, echo="shifted")), tiny_folder) as (model, _):
            assert model.can.prompt_route is None
        with connected(scripts(Manners(prompt_logprobs=False)), tiny_folder) as (model, _):
            assert model.can.prompt_route == "echo"

    @pytest.mark.parametrize(
        ("manners", "listed", "said"),
        [
            (VLLM, 48, "48 log-probabilities a position for a top-k of 40: exact"),
            (Manners(cap=20), 20, "20 of 40 log-probabilities"),
            (Manners(clamp=7), 7, "7 of 40"),
            (OPENAI, 5, "tokens told by texts"),
            (TRANSFORMERS, 0, "only --protocol sampled"),
        ],
    )
    def test_what_a_server_can_do_is_told_in_a_line(
        self, manners: Manners, listed: int, said: str, tiny_folder: Path, scripts: Callable[[Manners], Script]
    ) -> None:
        with connected(scripts(manners), tiny_folder) as (model, server):
            assert model.can.listed == listed
            assert said in model.reasons[0]
            assert model.can.ids_in == manners.ids
            assert model.can.many == manners.many
            assert len(server.seen) < 45

    def test_a_name_that_several_tokens_share_is_no_ones(self, tiny_folder: Path) -> None:
        tokenizer = load_tokenizer(str(tiny_folder))
        spelling = Spelling(tokenizer)
        texts = [spelling.decode([i]) for i in range(spelling.size)]
        for i, text in enumerate(texts):
            found = spelling.token(text)
            assert found == (i if texts.count(text) == 1 and "\ufffd" not in text else None)
            assert spelling.token(i) == i
        assert spelling.token("no such token") is None
        assert texts.count("\ufffd") > 10  # bytes that are no character alone

    def test_a_prompt_that_would_be_read_as_other_tokens_has_no_text(self, tiny_folder: Path) -> None:
        spelling = Spelling(load_tokenizer(str(tiny_folder)))
        whole = tuple(spelling.tokenizer("Q: What is the capital of Arland?")["input_ids"])
        assert spelling.exact_text(whole) == "Q: What is the capital of Arland?"
        apart = tuple(i for c in "capital" for i in spelling.tokenizer(c)["input_ids"])
        assert spelling.exact_text(apart) is None


class TestTokenizer:
    def test_another_tokenizer_is_refused(self, tmp_path: Path, scripts: Callable[[Manners], Script]) -> None:
        from conftest import tiny_tokenizer

        tiny_tokenizer(["completely other words " * 20]).save_pretrained(tmp_path / "other")
        with (
            pytest.raises(ConfigError, match=r"--tokenizer .*other: not the server's: it counts \d+ tokens in"),
            connected(scripts(VLLM), tmp_path / "other"),
        ):
            pass

    def test_a_token_put_before_texts_matters_only_where_texts_are_sent(
        self, tiny_folder: Path, scripts: Callable[[Manners], Script]
    ) -> None:
        with connected(scripts(Manners(bos=True)), tiny_folder) as (model, _):
            assert "as the server does" in model.reasons[1]
        with (
            pytest.raises(ConfigError, match="--bos yes"),
            connected(scripts(Manners(bos=True, ids=False)), tiny_folder),
        ):
            pass

    def test_a_server_that_counts_nothing_is_said_to(
        self, tiny_folder: Path, scripts: Callable[[Manners], Script]
    ) -> None:
        with connected(scripts(Manners(counts=False)), tiny_folder) as (model, _):
            assert "could not be held against" in model.reasons[1]

    def test_a_missing_one_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"--tokenizer .*nowhere"):
            load_tokenizer(str(tmp_path / "nowhere"))

    @pytest.mark.parametrize("model", ["openai:", "openai:http://x/v1", "openai:http://x/v1#", "openai:#m"])
    def test_an_address_without_a_model_is_refused(self, model: str) -> None:
        with pytest.raises(ConfigError, match="openai:URL#NAME"):
            address_of(model)

    def test_an_address_is_taken_apart(self) -> None:
        assert address_of("openai:http://localhost:8000/v1#meta/llama#2") == (
            "http://localhost:8000/v1",
            "meta/llama#2",
        )
        assert address_of("smollm2-135m") is None


def once(reply: Reply | None) -> Callable[[Asked], Reply | None]:
    """Every request fails in this way the first time it is made."""
    return lambda asked: reply if asked.nth == 0 else None


def torn(asked: Asked) -> Reply | None:
    return Reply(b'{"choices": [{"text": " Avens", "logpro') if asked.nth == 0 else None


def cut_short(asked: Asked) -> Reply | None:
    """Fewer bytes than were announced: the connection ends in the middle of the reply."""
    return Reply(b'{"choices"', headers={"X-Cut": "1"}, reset=True) if asked.nth == 0 else None


def of_a_wrong_shape(asked: Asked) -> Reply | None:
    odd: list[Any] = [
        [], {}, {"choices": None}, {"choices": []}, {"choices": [{"index": 0}]}, {"choices": [{"text": 1}]},
        {"choices": [{"text": "", "logprobs": {"tokens": ["a"], "top_logprobs": []}}]},
        {"choices": [{"text": "", "logprobs": {"tokens": ["a"], "top_logprobs": [{"a": "high"}]}}]},
        {"choices": [{"text": "", "logprobs": {"tokens": ["a"], "top_logprobs": [{"a": 3.0}]}}]},
    ]  # fmt: skip
    return Reply(json.dumps(odd[len(json.dumps(asked.body)) % len(odd)]).encode()) if asked.nth == 0 else None


class TestFaults:
    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param(once(refuses(429, "slow down", {"Retry-After": "0.01"})), id="429"),
            pytest.param(once(refuses(503)), id="503"),
            pytest.param(once(RESET), id="reset"),
            pytest.param(once(Reply(b"<html>busy</html>", 502)), id="502"),
            pytest.param(torn, id="torn-json"),
            pytest.param(of_a_wrong_shape, id="wrong-shape"),
        ],
    )
    def test_passing_faults_change_nothing(
        self, fault: Callable[[Asked], Reply | None], loaded: loading.Loaded, rows: pl.DataFrame, few: pl.DataFrame,
        tiny_folder: Path, scripts: Callable[[Manners], Script],
    ) -> None:  # fmt: skip
        some = few.head(3)
        local = probed(here(loaded, rows), some)
        began: list[int] = []

        def when_probing(asked: Asked) -> Reply | None:
            return fault(asked) if began else None

        with connected(troubled(scripts(VLLM), when_probing), tiny_folder, backoff=0.001) as (model, server):
            began.append(1)
            theirs = probed(there(model, rows), some)
            assert model.usage.requests == len(server.seen)
        assert theirs.answers.equals(local.answers)
        np.testing.assert_allclose(theirs.probes["p_correct"], local.probes["p_correct"], atol=2e-5)

    def test_a_slow_server_is_waited_for_and_asked_again(
        self, tiny_folder: Path, scripts: Callable[[Manners], Script]
    ) -> None:
        def slow(asked: Asked) -> Reply | None:
            return Reply(b"{}", delay=0.6) if asked.nth == 0 and asked.body.get("max_tokens") == 8 else None

        with connected(troubled(scripts(VLLM), slow), tiny_folder, timeout=0.3) as (model, _):
            assert model.can.prompt_route == "prompt_logprobs"

    def test_a_server_that_vanishes_ends_the_run_in_a_line_and_nothing_finished_is_asked_again(
        self,
        rows: pl.DataFrame,
        few: pl.DataFrame,
        tiny_folder: Path,
        scripts: Callable[[Manners], Script],
        tmp_path: Path,
    ) -> None:
        plan = chunks(few, 2)
        gone: list[int] = []

        def vanish(asked: Asked) -> Reply | None:
            return RESET if gone else None

        def run(script: Script) -> Server:
            """As an audit does: each chunk is kept once it is finished, and finished ones are left alone."""
            with lock_run_dir(tmp_path / "out") as folder, connected(script, tiny_folder, retries=1) as (model, server):
                folder.chunks.mkdir(exist_ok=True)
                asking = there(model, rows)
                del server.seen[:]
                for n, part in enumerate(plan):
                    if folder.chunk(n, "probes") is None:
                        folder.save_chunk(n, "probes", asking.probe(part).probes)
                        gone.extend([1] * (n == 1))
            return server

        with pytest.raises(ResourceError, match="a request got no answer: the connection was lost") as error:
            run(troubled(scripts(VLLM), vanish))
        assert len(str(error.value).splitlines()) <= 2
        assert "Traceback" not in str(error.value)
        gone.clear()
        server = run(scripts(VLLM))
        asked = json.dumps([asked.body["prompt"] for asked in server.seen])
        tokenizer = load_tokenizer(str(tiny_folder))
        for n, part in enumerate(plan):
            for question in part["question"]:
                ids = json.dumps(tokenizer(f"Q: {question}\nA:")["input_ids"])[1:-1]
                assert (ids in asked) == (n > 1)

    def test_a_refused_request_names_the_reason(
        self, rows: pl.DataFrame, tiny_folder: Path, scripts: Callable[[Manners], Script]
    ) -> None:
        began: list[int] = []

        def too_long(asked: Asked) -> Reply | None:
            return refuses(400, "the prompt is longer than the context") if began else None

        with connected(troubled(scripts(VLLM), too_long), tiny_folder) as (model, _):
            began.append(1)
            with pytest.raises(ResourceError, match="longer than the context"):
                there(model, rows).probe(rows.head(1))

    def test_no_server_is_said_at_once(self, tiny_folder: Path) -> None:
        prompter = Prompter(load_tokenizer(str(tiny_folder)))
        with (
            pytest.raises(InputError, match="no server answers there"),
            open_server(Endpoint("http://127.0.0.1:9/v1", "m"), prompter, 40, tokenizer_name="tiny"),
        ):
            pass

    def test_requests_keep_to_their_rate(self) -> None:
        with serving(lambda _: RESET) as server:
            began = time.monotonic()
            with RequestSession(Endpoint(server.url, "m", per_minute=600.0, concurrency=4)) as session:
                found = [reply for _, reply in session.each(range(5), lambda _: session.client.models.list())]
        assert len(found) == 5
        assert not any(isinstance(reply, RequestFailure) for reply in found)
        assert time.monotonic() - began >= 0.4

    @given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(), lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "text", "index", "logprobs", "tokens", "top_logprobs", "content",
                                           "prompt_logprobs", "usage", "id", "token", "logprob"]), inner, max_size=4)
    ), max_leaves=12))  # fmt: skip
    def test_whatever_comes_back_is_read_or_called_odd(self, body: Any) -> None:
        try:
            found = completion_of(json.dumps(body).encode(), 1)
        except InvalidResponse:
            return
        assert len(found.choices) == 1


class TestKey:
    def test_the_key_reaches_the_server_and_nothing_else(
        self, rows: pl.DataFrame, tiny_folder: Path, scripts: Callable[[Manners], Script],
        monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)

        def tells(asked: Asked) -> Reply | None:
            if asked.body.get("logprobs") == 48:
                return refuses(400, f"{asked.headers['authorization']} may not ask for so many")
            return None

        with connected(troubled(scripts(VLLM), tells), tiny_folder) as (model, server):
            told = there(model, rows).probe(rows.head(1))
            assert {asked.headers["authorization"] for asked in server.seen} == {f"Bearer {SECRET}"}
            kept = repr((told, model.identity, model.fingerprint, model.reasons, model.can, model.address))
        assert SECRET not in kept
        assert SECRET not in "".join(capfd.readouterr())
        with pytest.raises(ConfigError) as error:
            Endpoint(f"http://me:{SECRET}@localhost/v1", "m")
        assert SECRET not in str(error.value)


class TestIdentity:
    def test_another_model_at_the_same_address_is_noticed_and_rounding_is_not(
        self, tiny_folder: Path, tmp_path: Path, loaded: loading.Loaded, scripts: Callable[[Manners], Script]
    ) -> None:
        with connected(scripts(VLLM), tiny_folder) as (model, _):
            first = model.identity
        noisy = json.loads(json.dumps(first))
        noisy["answers"][0] = {name: value + 0.03 for name, value in noisy["answers"][0].items()}
        with connected(scripts(VLLM), tiny_folder, known=noisy) as (model, _):
            assert model.identity == noisy
        from transformers import AutoModelForCausalLM

        other = AutoModelForCausalLM.from_pretrained(tiny_folder)
        with torch.no_grad():
            for weight in other.parameters():
                weight.data += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        other.save_pretrained(tmp_path)
        loaded.tokenizer.save_pretrained(tmp_path)
        with connected(completes(tmp_path), tmp_path, known=first) as (model, _):
            assert model.identity != first
            assert model.identity["tokenizer"] == first["tokenizer"]

    @pytest.mark.parametrize("known", [None, 3, {}, {"answers": 1}, {"answers": [1, 2]}])
    def test_anything_else_is_no_earlier_run(self, known: object) -> None:
        now = {"name": "m", "answers": [{"a": -1.0}, {"b": -2.0}]}
        wrong = {**now, **known} if isinstance(known, dict) and known else known
        assert kept_identity(wrong, now) == now


class TestAudit:
    @pytest.mark.parametrize("protocol", ["exact", "sampled"])
    def test_chunks_come_in_order_and_an_estimate_asks_for_two_rows(
        self, protocol: str, facts_file: Path, tiny_folder: Path, scripts: Callable[[Manners], Script]
    ) -> None:
        given = {"data": str(facts_file), "protocol": protocol, "samples": 2, "exemplar_sets": 1, "shots": 2}
        own = {"limit": 8, "model": "openai:http://localhost/v1#m", "tokenizer": str(tiny_folder), "prices": (1.0, 2.0)}
        config = AuditConfig(**{**given, **own})  # type: ignore[arg-type]
        read = read_input(config)
        with serving(scripts(VLLM)) as server, connect_server(config, read, Address(server.url, "m")) as model:
            told = estimate_at_server(config, read, model)
            executor = open_server_executor(config, read, model)
            before = model.usage
            plan = list(enumerate(chunks(executor.plan.rows, 3)))
            done = list(executor.probe(plan))
            spent = model.usage.requests - before.requests
        assert [n for n, _, _ in done] == [n for n, _ in plan]
        assert sum(chunk.probes.height for _, chunk, _ in done) == executor.plan.rows.height == told["rows"] == 8
        assert told["measured_rows"] == 2
        assert told["cost"] > 0
        assert spent / 6 < told["requests"] < spent * 6
        assert executor.protocol["server"][0] == model.reasons[0]
        assert executor.model["fingerprint"].startswith("sha256:")

    def test_a_whole_audit_through_the_command_is_the_local_one(
        self, facts_file: Path, tiny_folder: Path, scripts: Callable[[Manners], Script], tmp_path: Path,
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
        asked = [str(facts_file), "--exemplar-sets", "2", "--shots", "2", "--limit", "12", "--chunk-rows", "4"]
        with pytest.raises(SystemExit, match="0"):
            main(["audit", *asked, "--model", str(tiny_folder), "--dtype", "float32", "--out", str(tmp_path / "here")])
        here = open_audit(tmp_path / "here")
        with serving(scripts(VLLM)) as server:
            there = ["audit", *asked, "--model", f"openai:{server.url}#m", "--tokenizer", str(tiny_folder)]
            with pytest.raises(SystemExit, match="0"):
                main([*there, "--prices", "1", "2", "--dry-run"])
            assert "cost" in capsys.readouterr().out
            with pytest.raises(SystemExit, match="0"):
                main([*there, "--out", str(tmp_path / "there")])
            asked_before = len(server.seen)
            with pytest.raises(SystemExit, match="0"):
                main([*there, "--out", str(tmp_path / "there")])
            assert "nothing to do" in capsys.readouterr().err
            assert len(server.seen) - asked_before < 40  # what it is, not the rows once more
            for flag in ("--chance", "--ray"):
                with pytest.raises(SystemExit, match="2"):
                    main([*there, flag, "--out", str(tmp_path / "no")])
                assert "names a server's" in capsys.readouterr().err
        found = open_audit(tmp_path / "there")
        assert found.rows["category"].to_list() == here.rows["category"].to_list()
        assert found.rows["p_greedy"].equals(here.rows["p_greedy"])
        assert (found.rows["p_sampled"] - here.rows["p_sampled"]).abs().max() < 1e-4
        assert found.summary["model"]["name"] == "m"
        for path in (tmp_path / "there").rglob("*"):
            assert path.is_dir() or b"sk-very-secret" not in path.read_bytes()


class TestCost:
    def test_a_whole_audit_costs_as_its_part_did(self) -> None:
        found = estimate(Usage(40, 8_000, 40), measured=4, rows=1000, price=(0.5, 2.0))
        assert found == {"requests": 10_000, "prompt_tokens": 2_000_000, "completion_tokens": 10_000, "cost": 1.02}
        assert "cost" not in estimate(Usage(40, 8_000, 40), measured=4, rows=8)
        assert estimate(Usage(0, 0, 0), measured=0, rows=8)["requests"] == 0


@contextmanager
def sampler(model: ServerModel, rows: pl.DataFrame, samples: int) -> Iterator[Sampler]:
    drawing = discover_drawing(model.completions, SAMPLING)
    answers = ServerAnswers(model.completions, model.can, drawing, model.spelling.text, SAMPLING.temperature)
    drawn = few_shot.draw_exemplars(rows, sorted(rows["group"].unique()), shots=2, sets=2, seed=0)
    yield Sampler(PromptBuilder(Prompter(model.tokenizer), drawn, common_heads(rows)), answers, samples, 0)


class TestSampled:
    @pytest.mark.parametrize(
        "manners",
        [pytest.param(VLLM, id="all-in-one"), pytest.param(Manners(ids=False, many=False, n=False), id="each")],
    )
    def test_shares_are_drawn_from_the_exact_probabilities(
        self, manners: Manners, loaded: loading.Loaded, rows: pl.DataFrame, few: pl.DataFrame, tiny_folder: Path,
        scripts: Callable[[Manners], Script],
    ) -> None:  # fmt: skip
        some = few.head(3)
        local = probed(here(loaded, rows), some)
        with connected(scripts(manners), tiny_folder) as (model, _), sampler(model, rows, 16) as drawing:
            real = probed(drawing, some)
            twice = [drawing.probe(some.head(1)) for _ in range(2)]
        assert real.probes["greedy_correct"].equals(local.probes["greedy_correct"])
        assert real.answers.equals(local.answers)
        assert twice[0].probes.equals(twice[1].probes)  # the server draws from the seed it is given
        p, hits = local.probes["p_correct"].to_numpy(), real.probes["p_correct"].to_numpy() * 16
        assert abs((hits - 16 * p).sum() / np.sqrt((16 * p * (1 - p)).sum())) < 4
        assert 0 < hits.sum() < 16 * len(hits)

    def test_a_server_that_knows_few_options_is_asked_without_them_and_says_so(
        self, tiny_folder: Path, scripts: Callable[[Manners], Script]
    ) -> None:
        with connected(scripts(TRANSFORMERS), tiny_folder) as (model, server):
            drawing = discover_drawing(model.completions, SAMPLING)
            assert not drawing.top_k
            assert not drawing.several
            assert "takes no top_k" in drawing.reason(40)
            answers = ServerAnswers(model.completions, model.can, drawing, model.spelling.text, 0.9)
            ids = model.tokenizer("Q: What is the capital of Arland?\nA:")["input_ids"]
            del server.seen[:]
            [[greedy], [short]] = answers.generate([ids, ids], [8, 1], None, 0)
            assert greedy.ended
            assert not short.ended
            assert short.text.endswith("\u2026")
            assert not any("top_k" in asked.body for asked in server.seen)

    def test_a_server_that_does_not_draw_is_refused(
        self, tiny_folder: Path, scripts: Callable[[Manners], Script]
    ) -> None:
        with (
            connected(scripts(Manners(draws=False)), tiny_folder) as (model, _),
            pytest.raises(ConfigError, match="needs a server that samples"),
        ):
            discover_drawing(model.completions, SAMPLING)


@contextmanager
def transformers_serve(folder: Path, log: Path) -> Iterator[str]:
    """`transformers serve` with this model, on a free port of loopback: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    flags = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", str(folder)]
    with log.open("w") as out:
        child = subprocess.Popen([sys.executable, "-c", start, *flags], stdout=out, stderr=subprocess.STDOUT)
        try:
            for _ in range(1200):
                with socket.socket() as door:
                    if child.poll() is not None or door.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            assert child.poll() is None, log.read_text()[-2000:]
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            child.terminate()
            child.wait()


@pytest.mark.slow
def test_transformers_serve_draws_from_the_exact_probabilities(
    loaded: loading.Loaded, rows: pl.DataFrame, few: pl.DataFrame, tiny_folder: Path, tmp_path: Path
) -> None:
    for extra in ("fastapi", "uvicorn"):
        pytest.importorskip(extra)
    some = few.head(3)
    local = probed(here(loaded, rows), some)
    prompter = Prompter(load_tokenizer(str(tiny_folder)))
    with (
        transformers_serve(tiny_folder, tmp_path / "log") as url,
        open_server(Endpoint(url, str(tiny_folder)), prompter, 40, tokenizer_name=str(tiny_folder)) as model,
        sampler(model, rows, 16) as drawing,
    ):
        assert "only --protocol sampled" in model.reasons[0]
        assert drawing.generator.drawing.top_k  # type: ignore[attr-defined]
        real = probed(drawing, some)
    assert real.probes["greedy_correct"].equals(local.probes["greedy_correct"])
    assert real.answers.equals(local.answers)
    p, hits = local.probes["p_correct"].to_numpy(), real.probes["p_correct"].to_numpy() * 16
    assert abs((hits - 16 * p).sum() / np.sqrt((16 * p * (1 - p)).sum())) < 4


STAND_IN = '''
"""The names of vLLM that are used, over a small model: a stand-in, for tests."""

import os, sys, types
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM

__version__ = "0"
print("vLLM prints to standard output")


@dataclass
class SamplingParams:
    n: int = 1
    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_token_ids: list = field(default_factory=list)
    seed: int | None = None
    detokenize: bool = True


class LLM:
    def __init__(self, model, dtype, seed, enable_prefix_caching):
        assert enable_prefix_caching
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(self, prompts, settings, use_tqdm):
        made = []
        for prompt, params in zip(prompts, settings, strict=True):
            if len(prompt["prompt_token_ids"]) == 1:
                os._exit(9) if prompt["prompt_token_ids"] == [1] else None
                raise ValueError("the prompt is too short for the stand-in")
            made.append(types.SimpleNamespace(outputs=[self.one(prompt, params, j) for j in range(params.n)]))
        return made

    def one(self, prompt, params, number):
        generator = torch.Generator().manual_seed((params.seed or 0) * 1009 + number)
        ids, fresh = list(prompt["prompt_token_ids"]), []
        while len(fresh) < params.max_tokens:
            line = self.model(torch.tensor([ids])).logits[0, -1].double()
            if params.temperature:
                line = line / params.temperature
                line[line < line.topk(params.top_k).values[-1]] = -torch.inf
                token = int(torch.multinomial(line.softmax(-1), 1, generator=generator))
            else:
                token = int(line.argmax())
            if token in params.stop_token_ids:
                return types.SimpleNamespace(token_ids=fresh, finish_reason="stop", stop_reason=token)
            fresh.append(token)
            ids.append(token)
        return types.SimpleNamespace(token_ids=fresh, finish_reason="length", stop_reason=None)


sys.modules["vllm.inputs"] = types.SimpleNamespace(TokensPrompt=dict)
'''


class TestVllm:
    @pytest.fixture
    def stand_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "vllm.py").write_text(textwrap.dedent(STAND_IN))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    @pytest.mark.usefixtures("stand_in")
    def test_answers_come_from_a_process_of_its_own(
        self, loaded: loading.Loaded, rows: pl.DataFrame, few: pl.DataFrame, tiny_folder: Path
    ) -> None:
        exact = here(loaded, rows.head(3))
        some = few.head(3)
        vocabulary = exact.vocabulary
        with exact_head(loaded.model):
            own = probed(Sampler(exact.prompts, Generator(loaded.model, vocabulary, SAMPLING, 32), 16, 0), some)
        truth = probed(exact, some).probes["p_correct"].to_numpy()
        with vllm_answers(str(tiny_folder), vocabulary, SAMPLING) as answers:
            child = answers.child
            theirs = probed(Sampler(exact.prompts, answers, 16, 0), some)
            with pytest.raises(ResourceError, match="vLLM failed: the prompt is too short"):
                answers.generate([[2]], [4], None, 0)
            again = answers.generate([[5, 6, 7]], [4], 3, 0)
            assert again == answers.generate([[5, 6, 7]], [4], 3, 0)
            with pytest.raises(ResourceError, match=r"vLLM's process died \(exit 9\)"):
                answers.generate([[1]], [4], None, 0)
        assert child.poll() is not None  # it is gone, and its memory with it
        assert "vllm" not in sys.modules
        assert theirs.answers.equals(own.answers)
        assert theirs.probes["greedy_correct"].equals(own.probes["greedy_correct"])
        hits = theirs.probes["p_correct"].to_numpy() * 16
        assert abs((hits - 16 * truth).sum() / np.sqrt((16 * truth * (1 - truth)).sum())) < 4

    @pytest.mark.usefixtures("stand_in")
    def test_a_model_that_cannot_be_loaded_is_told_in_a_line(self, loaded: loading.Loaded, tmp_path: Path) -> None:
        vocabulary = loading.vocabulary_of(loaded)
        with pytest.raises(ResourceError, match="vLLM failed: "), vllm_answers(str(tmp_path), vocabulary, SAMPLING):
            pass

    def test_without_vllm_the_extra_is_named(self, loaded: loading.Loaded, tiny_folder: Path) -> None:
        vocabulary = loading.vocabulary_of(loaded)
        with (
            pytest.raises(MissingExtra, match=r"pip install 'foreknow\[vllm\]'"),
            vllm_answers(str(tiny_folder), vocabulary, SAMPLING),
        ):
            pass


def test_the_server_files_do_not_import_torch() -> None:
    code = "import sys; from foreknow.inference.server import completions, engine, model"
    code += "; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


@pytest.mark.parametrize("manners", [VLLM, replace(VLLM, prompt_logprobs=False), replace(VLLM, many=False)])
def test_whether_a_model_speaks_is_read_off_the_server(
    scripts: Callable[[Manners], Script], tiny_folder: Path, loaded: loading.Loaded, manners: Manners
) -> None:
    ours = fluency_of(loaded.model, loaded.tokenizer)
    with connected(scripts(manners), tiny_folder) as (model, server):
        before = len(server.seen)
        found = fluency_at(model, 16)
        asked = len(server.seen) - before
    assert found.languages.keys() == ours.languages.keys()
    for name, gain in found.languages.items():
        assert gain == pytest.approx(ours.languages[name], abs=1e-3)
    sentences = 4 * len(ours.languages)
    assert asked == (-(-sentences // 16) if manners.many else sentences)


@pytest.mark.parametrize(
    ("manners", "why"),
    [
        (OPENAI, "the server tells no log-probabilities of a prompt"),
        (replace(VLLM, ids=False, bos=False), "the server takes no token ids, so that no tokens can be shuffled"),
    ],
)
def test_where_a_server_tells_too_little_that_is_said(
    scripts: Callable[[Manners], Script], tiny_folder: Path, manners: Manners, why: str
) -> None:
    with connected(scripts(manners), tiny_folder) as (model, _):
        found = fluency_at(model, 16)
    assert found.not_checked == why
    assert found.summary == {"not_checked": why, "warning": None}
