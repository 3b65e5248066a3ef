"""Whether a model speaks at all: models that do, and every kind of broken one that a checkpoint is met as."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import foreknow
from conftest import fact_rows, tiny_model, tiny_tokenizer
from foreknow.config import EvaluateConfig, TuneConfig
from foreknow.errors import ForeknowError, ModelError
from foreknow.format.text import display
from foreknow.models import fluency, lab_model, loading
from foreknow.models.fluency import LEAST, fluency_of
from foreknow.models.plain_sentences import SENTENCES
from foreknow.stages.evaluate import run as evaluate_run
from foreknow.stages.train import run as train_run

TEXTS = [text for texts in SENTENCES.values() for text in texts]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    rows = [f"Q: {r['question']}\nA: {r['answer']}\n" for r in fact_rows()]
    return tiny_tokenizer([*TEXTS, *rows])


@pytest.fixture(scope="module")
def speaking(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A tiny model that has read the English and the Spanish sentences: it finds them likely, and no other."""
    model = tiny_model(len(tokenizer), int(tokenizer.eos_token_id)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    ids = [
        torch.tensor(tokenizer(text)["input_ids"])[None] for name in ("English", "Spanish") for text in SENTENCES[name]
    ]
    for step in range(120):
        loss = model(input_ids=(some := ids[step % len(ids)]), labels=some).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def speaking_folder(
    speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("models") / "speaking"
    speaking.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def silent_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights."""
    folder = tmp_path_factory.mktemp("models") / "silent"
    tiny_model(len(tokenizer), int(tokenizer.eos_token_id)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_has_read_the_sentences_speaks(
    speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = fluency_of(speaking, tokenizer)
    assert found.warning is None
    assert found.best is not None
    assert found.best[0] in ("English", "Spanish")
    assert all(found.languages[name].share > 2 * LEAST for name in ("English", "Spanish"))
    assert set(found.languages) | set(found.not_covered) == set(SENTENCES)


def test_a_model_fluent_in_the_first_language_is_asked_in_no_other(
    speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    every, first = fluency_of(speaking, tokenizer), fluency_of(speaking, tokenizer, every_language=False)
    assert first.languages == {"English": pytest.approx(every.languages["English"], abs=1e-4)}
    assert first.warning is None
    assert first.not_covered == every.not_covered
    assert {*first.languages, *first.not_measured} == set(every.languages)
    silent = tiny_model(len(tokenizer), 0)
    assert fluency_of(silent, tokenizer, every_language=False) == fluency_of(silent, tokenizer)


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_do_not(tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    model = tiny_model(len(tokenizer), 0)
    torch.manual_seed(seed)
    model.init_weights()
    found = fluency_of(model, tokenizer)
    assert found.best is not None
    assert abs(found.best[1].share) < LEAST / 4
    assert found.warning is not None
    for cause in ("random or damaged", "its tokenizer another model's", "its architecture and settings"):
        assert cause in found.warning
    assert display(found.warning, 1000) == found.warning, "the page has room for all of it"


@pytest.mark.parametrize("seed", range(3))
def test_other_ids_for_the_same_tokens_are_noticed(
    speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    other = tiny_model(len(tokenizer), 0)
    other.load_state_dict(speaking.state_dict())
    order = torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        other.model.embed_tokens.weight.copy_(speaking.get_input_embeddings().weight[order])
    assert fluency_of(other, tokenizer).warning


def test_another_models_tokenizer_is_noticed(speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    other = tiny_tokenizer(["the quick onyx goblin jumps over a lazy dwarf " * 3, "Полынь и чертополох " * 3])
    assert len(other) <= len(tokenizer)
    assert fluency_of(speaking, other).warning


def test_ids_outside_the_embeddings_are_refused_before_anything_runs(
    speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    small = tiny_model(40, 0)
    with pytest.raises(
        ModelError,
        match=r"^--model m: its tokenizer gives token ids up to 4\d\d, but it has embeddings "
        r"of 40 tokens only: the tokenizer is another model's; put .* into its folder$",
    ):
        fluency_of(small, tokenizer, "m")


def test_a_language_outside_the_embeddings_is_not_measured_and_the_others_are(
    speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    highest = {name: max(max(tokenizer(text)["input_ids"]) for text in texts) for name, texts in SENTENCES.items()}
    size = max(highest["English"], highest["Spanish"]) + 1
    outside = {name for name, high in highest.items() if high >= size}
    model = tiny_model(size, 0)
    weights = speaking.state_dict()
    weights["model.embed_tokens.weight"] = weights["lm_head.weight"] = weights["lm_head.weight"][:size]
    model.load_state_dict(weights)
    found = fluency_of(model, tokenizer)
    assert found.warning is None
    assert not outside & set(found.languages)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_named(
    speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, value: float
) -> None:
    broken = tiny_model(len(tokenizer), 0)
    broken.load_state_dict(speaking.state_dict())
    broken.model.norm.weight.data[:] = value
    found = fluency_of(broken, tokenizer)
    assert found.warning is not None
    assert "not finite" in found.warning
    assert {None} == {value for gains in found.summary["languages"].values() for value in gains.values()}
    assert found.summary["nats_per_token_gained"] is None
    json.dumps(found.summary, allow_nan=False)


def words_only(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    raw = Tokenizer(token_models.WordLevel({"<unk>": 0, **{w: i + 1 for i, w in enumerate(vocabulary)}}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def test_a_tokenizer_without_the_words_covers_nothing() -> None:
    found = fluency_of(tiny_model(40, 0), words_only(list("ACDEFGHIKLMNPQRSTVWY")))  # of proteins, say
    assert found.languages == {}
    assert found.not_covered == tuple(SENTENCES)
    assert found.warning is not None
    assert found.warning.startswith("the tokenizer covers none of English, Spanish, ")
    assert "or of no language at all" in found.warning


def test_scripts_spelled_byte_by_byte_do_not_count(speaking: PreTrainedModel) -> None:
    bytes_only = tiny_tokenizer([])
    found = fluency_of(tiny_model(len(bytes_only), 0), bytes_only)
    assert "English" in found.languages
    assert {"Russian", "Arabic", "Hindi", "Chinese", "Japanese", "Korean"} <= set(found.not_covered)


def test_what_a_tokenizer_puts_around_a_text_stays_in_its_place(
    speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(fluency, "mean_logprobs", lambda _, sequences: seen.extend(sequences) or [0.0] * len(sequences))
    with_bos = lab_model.tokenizer_of()
    fluency_of(tiny_model(len(with_bos), 0), with_bos)
    assert all(one.ids[0] == 0 and one.first == 1 for one in seen)
    assert all(1 not in one.ids for one in seen), "no end in the middle"


@pytest.mark.parametrize("broken", [0, 2])
def test_a_language_with_a_sentence_that_is_no_number_does_not_count(
    tokenizer: PreTrainedTokenizerFast, broken: int
) -> None:
    means = [-1.0, -4.0, -1.0, -4.0]  # each sentence, then its shuffled tokens
    means[broken] = math.nan
    found = fluency.measure_fluency(tokenizer, {"English": [[5, 6, 7], [8, 9, 10]]}, lambda _: means)
    assert found.best is None
    assert found.warning is not None
    assert "not finite" in found.warning


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40), st.text(max_size=8), st.integers(4, 60))
@settings(max_examples=60)
def test_a_shuffle_keeps_the_tokens_and_depends_on_its_seed_only(ids: list[int], seed: str, room: int) -> None:
    plain, other = fluency._pair([99], ids, seed, room)
    assert plain.ids == (99, *ids)[:room]
    assert Counter(other.ids) == Counter(plain.ids)
    assert other.ids[0] == 99
    assert fluency._pair([99], ids, seed, room) == (plain, other)


def test_gains_are_the_same_in_any_batch_and_nothing_is_changed(
    speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in speaking.state_dict().items()}
    attention, random = speaking.config._attn_implementation, torch.get_rng_state()
    found = fluency_of(speaking, tokenizer).summary
    for rows in (1, 5, 100):
        monkeypatch.setattr(fluency, "_ROWS", rows)
        assert fluency_of(speaking, tokenizer).summary == found
    assert all(torch.equal(value, before[name]) for name, value in speaking.state_dict().items())
    assert speaking.config._attn_implementation == attention
    assert torch.equal(torch.get_rng_state(), random)


def test_the_gain_is_what_transformers_own_loss_says(
    speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = []
    for n, text in enumerate(SENTENCES["English"]):
        ids = tokenizer(text)["input_ids"]
        plain, other = fluency._pair([], ids, f"0 English {n}", 2**31)
        with torch.no_grad():
            losses = [float(speaking(input_ids=(t := torch.tensor([p.ids])), labels=t).loss) for p in (plain, other)]
        found.append((1 - losses[0] / losses[1], losses[1] - losses[0]))
    share, nats = min(found)
    assert fluency_of(speaking, tokenizer).languages["English"] == pytest.approx((nats, share), abs=1e-4)


def test_few_positions_are_enough(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(len(tokenizer), 0)
    model.config.max_position_embeddings = 6
    found = fluency_of(model, tokenizer)
    assert found.warning is not None
    assert len(found.languages) > 4


def test_a_model_that_cannot_be_run_so_is_not_accused(
    speaking: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    def forward(**_: Any) -> None:
        raise TypeError("forward() needs pixel_values\nand more")

    odd: Any = SimpleNamespace(
        config=speaking.config, get_input_embeddings=speaking.get_input_embeddings, __call__=forward
    )
    loaded = loading.Loaded("odd", odd, tokenizer, "", "", None, "float32", "cpu", ())
    found = fluency.check_fluency(loaded, print)
    assert found.warning is None
    assert found.summary["warning"] is None
    assert capsys.readouterr().out.startswith("whether the model speaks is not checked: ")


def test_the_lab_speaks_its_own_world_in_whole_words() -> None:
    tokenizer = lab_model.tokenizer_of()
    for text in SENTENCES["the lab's world"]:
        names = [word.strip(".") for word in text.split()[1:] if word[0].isupper() and len(word) > 4]
        assert len(names) >= 4
        for name in names:
            assert len(tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) == 1, "a name of this world"


SETTINGS: dict[str, Any] = {"dtype": "float32", "device": "cpu", "shots": 2, "exemplar_sets": 2, "limit": 8}


def test_an_audit_says_it_in_terminal_summary_and_page(
    silent_folder: Path, facts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second time it is complete
        done = foreknow.audit(str(facts_file), model=str(silent_folder), out=str(tmp_path / "a"), **SETTINGS)
        (line,) = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: the model hardly")
        ]
        told = done.summary["model"]["fluency"]
        assert line == f"warning: {told['warning']}"
    assert told["share_of_surprise"] < LEAST == told["least_share"]
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert page.count("Warning:") == 1
    assert page.index("the model hardly finds plain sentences likelier") < page.index('id="verdict"')


def test_an_audit_of_a_model_that_speaks_warns_of_nothing(
    speaking_folder: Path, facts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = foreknow.audit(str(facts_file), model=str(speaking_folder), out=str(tmp_path / "a"), **SETTINGS)
    assert "warning" not in capsys.readouterr().err
    told = done.summary["model"]["fluency"]
    assert told["warning"] is None
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "Warning:" not in page
    assert f"{told['nats_per_token_gained']:.2f} nats a token likelier than the same tokens shuffled" in page


def test_an_audit_with_a_tokenizer_too_large_is_refused_in_a_line(
    speaking_folder: Path, facts_file: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(speaking_folder, wrong)
    tiny_model(50, 0).save_pretrained(wrong)
    with pytest.raises(ForeknowError, match=r"its tokenizer has 4\d\d tokens and its embeddings 50 rows") as refused:
        foreknow.audit(str(facts_file), model=str(wrong), out=str(tmp_path / "a"), **SETTINGS)
    assert "\n" not in str(refused.value)


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[[str, int, int], str]:
    def write(name: str, start: int, stop: int) -> str:
        rows = fact_rows()[start:stop]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({k: r[k] for k in ("question", "answer")}) + "\n" for r in rows))
        return str(path)

    return write


def test_tune_and_evaluate_say_it_and_keep_it(
    silent_folder: Path, rows_file: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = train_run.run(
        TuneConfig(
            train=rows_file("train", 0, 8), dev=rows_file("dev", 8, 12), model=str(silent_folder), out=tmp_path / "t",
            epochs=1, dtype="float32", device="cpu", keep="last",
        )
    )  # fmt: skip
    warning = tuned.results["model"]["fluency"]["warning"]
    assert f"warning: {warning}" in capsys.readouterr().err
    assert "Warning:" in (tmp_path / "t" / "report.html").read_text(encoding="utf-8")
    done = evaluate_run.run(
        EvaluateConfig(
            data=rows_file("test", 12, 16), model=str(tmp_path / "t" / "convergence"), out=tmp_path / "e",
            dtype="float32", device="cpu",
        )
    )  # fmt: skip
    after = done.summary["model"]["fluency"]
    assert after["warning"]
    assert f"warning: {after['warning']}" in capsys.readouterr().err
    assert "Warning:" in (tmp_path / "e" / "report.html").read_text(encoding="utf-8")


@pytest.mark.packaged
def test_the_packaged_model_speaks_and_with_other_ids_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = loading.load_model("smollm2-135m", dtype="auto", device="cpu")
    few = {name: SENTENCES[name] for name in ("English", "Russian", "Korean")}
    monkeypatch.setattr(fluency, "SENTENCES", few)
    found = fluency_of(loaded.model, loaded.tokenizer)
    assert found.warning is None
    assert set(found.languages) == {"English", "Russian"}
    assert min(gain.share for gain in found.languages.values()) > 1.5 * LEAST
    order = torch.randperm(loaded.model.config.vocab_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight = loaded.model.get_input_embeddings().weight
        weight.copy_(weight[order].clone())
    assert fluency_of(loaded.model, loaded.tokenizer).warning
