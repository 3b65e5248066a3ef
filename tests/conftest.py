"""A tiny real causal LM, built and trained on the spot, and facts it partly knows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads only wait for each other
os.environ["HF_HUB_OFFLINE"] = "1"

import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from foreknow import cli
from foreknow.progress import log_to_stderr

log_to_stderr()  # as the command line does: tests read what a person would

# A loaded machine is no fault of the code. The suite draws the same examples every time, so that it says the same of
# the same code; `make test-hypothesis` draws new ones.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("explore", settings.get_profile("steady"), derandomize=False, print_blob=True)
settings.load_profile("steady")

CAPITALS = {
    "Arland": "Avens", "Borvia": "Brigston", "Cendor": "Callow", "Delmar": "Dunwick", "Estoria": "Elmfort",
    "Fenwall": "Farrow", "Galdor": "Grimsby", "Hestia": "Hollin", "Ilmora": "Iverton", "Jorvik": "Jasperton",
    "Kaldor": "Kestrel", "Lorien": "Lindale", "Mordane": "Marwick", "Norvik": "Nantwell", "Ostara": "Oakham",
    "Pelagia": "Porthaven", "Quendor": "Quillon", "Rivania": "Redbrook", "Sylvana": "Stonely", "Tarvos": "Tamworth",
    "Umbria": "Ulford", "Valdor": "Varnham", "Westria": "Wexcombe", "Zephyra": "Zellwood",
}  # fmt: skip
RIVERS = {name: f"River {capital[:4]}" for name, capital in CAPITALS.items()}


def fact_rows() -> list[dict[str, object]]:
    """48 facts of two relations; the last third of each is dev."""
    rows: list[dict[str, object]] = []
    for relation, question, table in (
        ("capital", "What is the capital of {}?", CAPITALS),
        ("river", "Which river crosses {}?", RIVERS),
    ):
        for i, (subject, answer) in enumerate(table.items()):
            split = "dev" if i >= 16 else "train"
            rows.append({
                "question": question.format(subject), "answer": answer, "subject": subject, "relation": relation,
                "split": split, "popularity": 1000 - i,
            })  # fmt: skip
    return rows


def tiny_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text can be spelled, words in several ways."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", clean_up_tokenization_spaces=False)


def tiny_model(vocabulary: int, end: int) -> LlamaForCausalLM:
    """Two layers, grouped-query attention, 64 wide."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=end, pad_token_id=end,
        )
    )  # fmt: skip


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Teach the prompt's form and some of the facts, the early ones more often than the late."""
    rows = fact_rows()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    weights = torch.tensor([float(r["popularity"]) - 984 if r["split"] == "train" else 0.05 for r in rows])  # type: ignore[arg-type]
    model.train()
    for _ in range(160):
        texts = []
        for _ in range(12):
            picks = torch.multinomial(weights.clamp(min=0.02), 5, replacement=False, generator=generator).tolist()
            texts.append("".join(f"Q: {rows[i]['question']}\nA: {rows[i]['answer']}\n" for i in picks))
        ids = [tokenizer(t)["input_ids"] for t in texts]
        width = max(map(len, ids))
        batch = torch.full((len(ids), width), -100)
        for r, line in enumerate(ids):
            batch[r, : len(line)] = torch.tensor(line)
        loss = model(input_ids=batch.clamp(min=0), labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


Cli = Callable[..., tuple[int, str, str]]
"""Runs a command line: exit code, output, errors."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process: exit code, output, errors."""

    def call(*words: object) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main([*map(str, words)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, trained and saved as any Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    rows = fact_rows()
    tokenizer = tiny_tokenizer([f"Q: {r['question']}\nA: {r['answer']}\n" for r in rows] * 3)
    model = tiny_model(len(tokenizer), tokenizer.eos_token_id)
    _train(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def facts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The facts as JSONL."""
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in fact_rows()), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Tests write to a cache of their own, but for those that need a packaged model: they share the user's."""
    if request.node.get_closest_marker("packaged") is None:
        monkeypatch.setenv("FOREKNOW_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def unchecked_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load models whose weights are not finite, to see what the stages behind the loader make of them."""
    from foreknow.models import loading

    monkeypatch.setattr(loading, "check_finite", lambda *_: None)


@pytest.fixture
def frame() -> pl.DataFrame:
    """The facts in the frame every stage works on."""
    from foreknow.data.schema import ROWS, flag_rows

    rows = [
        {**r, "row": i, "answers": [r["answer"]], "group": r["relation"], "flags": []}
        for i, r in enumerate(fact_rows())
    ]
    return flag_rows(pl.DataFrame([{k: r.get(k) for k in ROWS} for r in rows], schema=ROWS))


def chromium() -> str | None:
    """A Chromium on this machine, if any."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, and no proxy between us and loopback."""
    for name in ("OPENAI_API_KEY", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
