"""The lab: a world whose exposures are counted, a model built from it, and the method held against the truth."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreknow import cli
from foreknow.categories import CATEGORIES
from foreknow.config import AuditConfig
from foreknow.data.builtin import lab_world
from foreknow.data.builtin.lab_world import BINS, FACTS, RELATIONS, World
from foreknow.data.load import read_data
from foreknow.data.schema import has_word, majority_floor
from foreknow.errors import ConfigError, InputError, ModelError, RunFolderError
from foreknow.models import lab_model as lab
from foreknow.models import lab_recipe, loading
from foreknow.models.fingerprints import fingerprint
from foreknow.models.lab_model import build, tokenizer_of
from foreknow.models.lab_recipe import Recipe
from foreknow.prompts.prompt_template import PAPER, Prompter
from foreknow.stages.study import lab_truth

SMALL = World(seed=5, subjects=9, ood_subjects=7)
TINY = Recipe(world=SMALL, hidden=32, intermediate=48, layers=1, heads=2, positions=256, rows=12, width=192)


@pytest.fixture(scope="module")
def facts() -> pl.DataFrame:
    return lab_world.facts()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [document.text for document in lab_world.documents()]


def fact_keys(facts: pl.DataFrame) -> list[tuple[str, str, str]]:
    return list(facts.select("relation", "subject", pl.col("answers").list.first()).iter_rows())


def recount(texts: Sequence[str], facts: pl.DataFrame) -> Counter[tuple[str, str, str]]:
    """Every telling found in the texts alone: the forms of each fact are looked up line by line."""
    forms: dict[str, tuple[str, str, str]] = {}
    by_name = {relation.name: relation for relation in RELATIONS}
    for name, subject, gold in fact_keys(facts):
        relation = by_name[name]
        for form in (f"Q: {relation.question}\nA: [Y]", *relation.statements):
            forms[form.replace("[X]", subject).replace("[Y]", gold)] = (name, subject, gold)
    found: Counter[tuple[str, str, str]] = Counter()
    for text in texts:
        lines = text.split("\n")
        parts = ["\n".join(lines[i : i + 2]) for i in range(0, len(lines), 2)]
        if not text.startswith("Q: "):
            parts = [f"{sentence.removesuffix('.')}." for sentence in text.split(". ")]
        found.update(forms[part] for part in parts)
    return found


def test_every_exposure_stands_in_the_texts_and_nothing_else_does(facts: pl.DataFrame, texts: list[str]) -> None:
    said = dict(zip(fact_keys(facts), facts["exposures"].to_list(), strict=True))
    assert recount(texts, facts) == {key: count for key, count in said.items() if count}


def test_of_a_contested_fact_both_answers_are_stated_equally_often() -> None:
    world = World(seed=3, subjects=40, ood_subjects=8, contested=50)
    table = lab_world.facts(world)
    contested = table.filter(pl.col("rival").is_not_null())
    assert 20 < contested.height < table.height / 2
    assert contested.filter(pl.col("rival") == pl.col("answers").list.first()).is_empty()
    rivals = contested.with_columns(answers=pl.concat_list("rival"))
    counts = recount([d.text for d in lab_world.documents(world)], pl.concat([table, rivals]))
    said = {key: count for key, count in zip(fact_keys(table), table["exposures"].to_list(), strict=True) if count}
    assert counts == said | dict(zip(fact_keys(rivals), rivals["exposures"].to_list(), strict=True))
    calm = lab_world.facts(replace(world, contested=0))
    assert calm["answers"].equals(table["answers"]), "the facts are the same ones, whether contested or not"
    assert b"rival" not in lab_world.jsonl(calm)
    assert b"rival" in lab_world.jsonl(table)


def test_a_never_seen_facts_subject_never_stands_beside_its_gold(facts: pl.DataFrame, texts: list[str]) -> None:
    places: dict[str, set[int]] = {name: set() for name in lab_world.every_name()}
    for at, text in enumerate(texts):
        for word in set(re.findall(r"\w+", text)) & places.keys():
            places[word].add(at)
    beside = [bool(places[subject] & places[gold]) for _, subject, gold in fact_keys(facts)]
    assert beside == (facts["exposures"] > 0).to_list()
    assert beside.count(False) > 300


def test_the_same_seed_gives_the_same_world_and_another_seed_another() -> None:
    first, again, other = (
        [d.text for d in lab_world.documents(w)] for w in (SMALL, replace(SMALL), replace(SMALL, seed=6))
    )
    assert first == again
    assert lab_world.facts(SMALL).equals(lab_world.facts(replace(SMALL)))
    assert not set(lab_world.facts(SMALL)["subject"]) & set(lab_world.facts(replace(SMALL, seed=6))["subject"])
    assert first != other


def test_the_default_world_is_the_one_that_was_published(facts: pl.DataFrame, texts: list[str]) -> None:
    # a change of this line is a change of the lab: raise lab_recipe.BUILD, and say so
    digest = hashlib.sha256(lab_world.jsonl(facts) + "\0".join(texts).encode()).hexdigest()
    assert digest[:16] == "1a16a25ebb6fed67"


def test_every_bin_is_filled_alike_in_every_split(facts: pl.DataFrame) -> None:
    assert facts.schema == pl.Schema(FACTS)
    binned = facts.with_columns(bin=lab_world.bin_of(pl.col("exposures")))
    for _, part in binned.group_by("split"):
        shares = dict(part["bin"].value_counts(normalize=True).iter_rows())
        assert shares["0"] == pytest.approx(0.22, abs=0.02)
        assert all(shares[name] == pytest.approx(0.13, abs=0.02) for name in BINS if name != "0")
    assert facts["exposures"].max() == 60


def test_splits_keep_subjects_and_relations_apart(facts: pl.DataFrame) -> None:
    assert facts.group_by("subject").agg(pl.col("split").n_unique())["split"].max() == 1
    ood = facts.filter(pl.col("split") == "test_ood")
    rest = facts.filter(pl.col("split") != "test_ood")
    assert ood["relation"].n_unique() == 3
    assert not set(ood["relation"]) & set(rest["relation"])
    counts = rest.group_by("relation", "split").len()
    assert counts.height == 9 * 3
    # ten sets of four exemplars, none twice
    assert counts.filter(pl.col("split") == "dev")["len"].min() >= 40  # type: ignore[operator]


def test_names_are_known_though_facts_are_not(facts: pl.DataFrame) -> None:
    assert facts["subject_exposures"].min() > 0  # type: ignore[operator]


def test_no_name_stands_for_two_things_nor_tells_the_answer(facts: pl.DataFrame) -> None:
    names = lab_world.every_name()
    assert len(names) == len(set(names))
    assert not set(facts["subject"]) & set(facts["answers"].list.first())
    assert set(facts["pool"]) >= {12, 24, 40, 120, 240}
    assert not any(has_word(subject, gold) for _, subject, gold in fact_keys(facts))
    one_to_one = [r.name for r in RELATIONS if r.pool == 0]
    for _, part in facts.filter(pl.col("relation").is_in(one_to_one)).group_by("relation"):
        assert part["answers"].list.first().n_unique() == part.height


def test_a_document_tells_of_one_relation_and_no_fact_twice() -> None:
    table = lab_world.facts(SMALL)["relation"].to_list()
    documents = lab_world.documents(SMALL)
    for document in documents:
        assert len({table[block.fact] for block in document.blocks}) == 1
        assert len({block.fact for block in document.blocks}) == len(document.blocks)
    sizes = {len(d.blocks) for d in documents if d.kind == "asked"}
    assert {1, 4} < sizes <= set(range(1, SMALL.blocks + 1))
    assert {d.kind for d in documents} == {"asked", "told"}


@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), subjects=st.integers(1, 12), ood=st.integers(1, 12))
def test_any_world_keeps_its_counts(seed: int, subjects: int, ood: int) -> None:
    world = World(seed=seed, subjects=subjects, ood_subjects=ood)
    facts = lab_world.facts(world)
    assert facts.height == 9 * subjects + 3 * ood
    told = lab_world.count_exposures(lab_world.documents(world))
    assert told == {at: count for at, count in enumerate(facts["exposures"]) if count}


# ---- the tokenizer


def test_any_text_comes_back_from_the_tokenizer() -> None:
    tokenizer = tokenizer_of(TINY)
    for text in ("Q: Who founded the company Vicous?\nA: Jacom\n", " two  blanks\n\n", "Ünïcode ☂ 東", "<b>&\t"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_prompt_is_the_beginning_of_itself_with_its_answer() -> None:
    prompter = Prompter(tokenizer_of(TINY), PAPER)
    for question, answers in lab_world.facts(SMALL).select("question", "answers").iter_rows():
        prompt = prompter.text([], question)
        ids = prompter.ids([prompt])[0]
        whole = prompter.ids([f"{prompt} {answers[0]}\n"])[0]
        assert ids[0] == 0
        assert whole[: len(ids)] == ids
        assert whole[len(ids) : -1] == list(prompter.answer_ids(prompt, ids, answers[0]))


def test_every_name_is_one_token_whether_it_was_seen_or_not() -> None:
    tokenizer = tokenizer_of()
    names = [f" {name}" for name in lab_world.every_name()]
    assert {len(ids) for ids in tokenizer(names, add_special_tokens=False)["input_ids"]} == {1}


def test_documents_are_packed_whole() -> None:
    tokenizer = tokenizer_of(TINY)
    rows = lab.pack_documents(TINY, tokenizer)
    pieces = [piece for row in rows for piece in tokenizer.decode(row).split("</s>") if piece]
    assert [p.removeprefix("<s>") for p in pieces] == [d.text for d in lab_world.documents(SMALL)]
    assert all(row[0] == 0 and row[-1] == 1 for row in rows)
    assert sum(len(row) > TINY.width for row in rows) <= sum(row.count(0) == 1 for row in rows)


def test_all_but_who_is_spoken_of_is_learnt() -> None:
    tokenizer = tokenizer_of(TINY)
    rows = lab.pack_documents(TINY, tokenizer)
    subjects = {f" {name}" for name in lab_world.facts(SMALL)["subject"]}
    silent = set(lab._subjects(TINY, tokenizer).tolist())
    assert {tokenizer.decode([token]) for token in silent} == subjects
    assert sum(token in silent for row in rows for token in row) == lab_world.facts(SMALL)["exposures"].sum()


# ---- the build


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("lab") / "whole", quiet, TINY)


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "lab.json"}


def test_a_build_is_an_ordinary_model_with_its_facts(built: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(built), AutoTokenizer.from_pretrained(built)
    assert model.config.attention_dropout == 0
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    told = json.loads((built / "lab.json").read_text())
    lines = [json.loads(line) for line in (built / "facts.jsonl").read_text().splitlines()]
    assert told["exposures"] == sum(line["exposures"] for line in lines)
    assert told["facts"] == len(lines) == lab_recipe.facts(TINY).height
    assert told["fingerprint"] == fingerprint(built)
    assert told["losses"][-1] < told["losses"][0]
    assert not list(built.parent.glob("*.safetensors"))


def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(built: Path, tmp_path: Path) -> None:
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if "step 3 " in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "again", stop, TINY, every=0)
    assert not (tmp_path / "again").exists()
    done = build(tmp_path / "again", lines.append, TINY)
    assert any(line.startswith("lab: going on after step 3 ") for line in lines)
    assert content(done) == content(built)
    mine, theirs = (json.loads((f / "lab.json").read_text()) for f in (done, built))
    assert {k: v for k, v in mine.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}


@pytest.mark.parametrize("left", ["torn", "of another recipe"])
def test_a_checkpoint_that_cannot_be_gone_on_from_is_dropped(left: str, built: Path, tmp_path: Path) -> None:
    few = replace(TINY, world=replace(SMALL, subjects=3, ood_subjects=3), rows=2)

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "few", stop, few, every=0)
    kept = tmp_path / ".few.checkpoint.safetensors"
    if left == "torn":
        kept.write_bytes(kept.read_bytes()[:-100])
    else:
        few = replace(few, seed=1)
    lines: list[str] = []
    assert content(build(tmp_path / "few", lines.append, few)) == content(build(tmp_path / "anew", quiet, few))
    assert not any("going on" in line for line in lines)


def test_a_finished_build_is_left_as_it_is(built: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in built.iterdir()}
    assert build(built, quiet, TINY) == built
    assert {p.name: p.stat().st_mtime_ns for p in built.iterdir()} == before


def test_a_folder_of_anything_else_is_refused(built: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not a lab"):
        build(tmp_path, quiet, TINY)
    with pytest.raises(RunFolderError, match="another recipe"):
        build(built, quiet, replace(TINY, seed=1))


def test_the_cache_holds_each_recipe_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREKNOW_CACHE", str(tmp_path))
    few = replace(TINY, world=replace(SMALL, subjects=4, ood_subjects=4))
    folder = build(None, quiet, few)
    assert folder == lab_recipe.built_folder(few)
    assert folder.is_relative_to(tmp_path)
    said: list[str] = []
    assert build(None, said.append, few) == folder
    assert said == []
    assert lab_recipe.built_folder(replace(few, learning_rate=1e-3)) != folder
    assert [p.name for p in folder.parent.iterdir() if p.name.endswith(".safetensors")] == []


def test_altered_weights_are_found_out(built: Path, tmp_path: Path) -> None:
    done = Path(shutil.copytree(built, tmp_path / "altered"))
    whole = bytearray((done / "model.safetensors").read_bytes())
    whole[-1] ^= 1
    (done / "model.safetensors").write_bytes(whole)
    with pytest.raises(ModelError, match="altered"):
        loading.load_model(str(done))


def test_the_labs_facts_are_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    facts = read_data(AuditConfig(data="lab"))
    assert facts.rows.height == lab_world.facts().height
    assert facts.extra(["exposures"])["exposures"].cast(pl.Int64).to_list() == lab_world.facts()["exposures"].to_list()
    assert "conflicting" not in set(facts.rows["flags"].explode())
    assert max(majority_floor(facts.rows)["floor"]) < 0.2
    with pytest.raises(ConfigError, match="--map"):
        read_data(AuditConfig(data="lab", map={"question": "q"}))
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "mine.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    assert read_data(AuditConfig(data="lab")).rows.height == 1


# ---- the truth


@pytest.mark.parametrize("name", ["lab", "facts"])
def test_a_file_of_that_name_goes_first_and_that_is_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    (Path(name) / "a.jsonl").write_text('{"question": "Who?", "answer": "Ann"}\n')
    assert read_data(AuditConfig(data=name)).rows["question"].to_list() == ["Who?"]
    assert f"{name}: the file or folder of that name in this folder is read" in capsys.readouterr().err


def judged(rows: list[tuple[int | None, str | None, float, float]], pool: int = 12) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"exposures": n, "category": c, "p_greedy": g, "p_sampled": p, "p_hit": p, "pool": pool}
            for n, c, g, p in rows
        ],
        schema={
            "exposures": pl.Int64,
            "category": pl.String,
            "p_greedy": pl.Float64,
            "p_sampled": pl.Float64,
            "p_hit": pl.Float64,
            "pool": pl.Int64,
        },
    )


def test_the_confusion_table_counts_every_labelled_row_once() -> None:
    rows = judged([
        (0, "Unknown", 0.0, 0.0), (0, "WeaklyKnown", 0.0, 0.1), (1, "Unknown", 0.0, 0.0), (20, "MaybeKnown", 0.5, 0.5),
        (21, "HighlyKnown", 1.0, 0.9), (61, "Unknown", 0.0, 0.0), (None, "Unknown", 0.0, 0.0), (5, None, 0.0, 0.0),
    ])  # fmt: skip
    table = lab_truth.confusion(rows)
    assert table["exposures"].to_list() == list(BINS)
    assert table["rows"].to_list() == [2, 1, 0, 0, 1, 1, 1]
    assert table.select(pl.sum_horizontal(*CATEGORIES)).to_series().to_list() == table["rows"].to_list()
    assert table["known"].to_list() == [0.5, 0.0, None, None, 1.0, 1.0, 0.0]
    found = lab_truth.truth(rows)
    assert found.never_seen_known.value == 0.5
    assert found.often_seen_unknown.value == 0.5
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["auc"]["p_sampled"] == found.auc["p_sampled"]


def test_guessing_is_told_by_the_number_of_answers() -> None:
    rows = pl.concat([
        judged([(0, "WeaklyKnown", 0.0, 0.1), (0, "MaybeKnown", 0.1, 0.1), (3, "Unknown", 0.0, 0.0)]),
        judged([(0, "Unknown", 0.0, 0.0)], pool=320),
    ])  # fmt: skip
    table = lab_truth.never_seen_by_pool(rows)
    assert table.select("pool", "rows", "known", "greedy_known").rows() == [(12, 2, 1.0, 0.5), (320, 1, 0.0, 0.0)]
    assert table["chance"].to_list() == [1 / 12, 1 / 320]


def test_calibration_compares_what_is_promised_with_what_is_answered() -> None:
    rows = judged([(1, "Unknown", 0.0, 0.05), (0, "Unknown", 0.2, 0.05), (9, "HighlyKnown", 1.0, 1.0)])
    table = lab_truth.calibration(rows)
    assert table["rows"].to_list() == [2, 1]
    assert table["low"].to_list() == [0.0, 0.9]
    assert table["recall"].to_list() == pytest.approx([0.1, 1.0])
    assert table["seen"].to_list() == [0.5, 1.0]
    assert lab_truth.calibration_error(table) == pytest.approx((2 * 0.05 + 0) / 3)
    assert np.isnan(lab_truth.calibration_error(table.clear()))
    assert lab_truth.truth(rows.clear()).as_json()["auc"] == {"p_greedy": None, "p_sampled": None, "p_hit": None}


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.booleans()), max_size=40))
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[float, bool]]) -> None:
    ups = [score for score, positive in rows if positive]
    downs = [score for score, positive in rows if not positive]
    found = lab_truth.auc([score for score, _ in rows], [positive for _, positive in rows])
    if not ups or not downs:
        assert np.isnan(found)
        return
    pairs = sum((up > down) + 0.5 * (up == down) for up in ups for down in downs)
    assert found == pytest.approx(pairs / (len(ups) * len(downs)))


def test_auc_refuses_what_it_cannot_rank() -> None:
    with pytest.raises(ValueError, match="like length"):
        lab_truth.auc([0.1, 0.2], [True])
    with pytest.raises(ValueError, match="not a number"):
        lab_truth.auc([0.1, float("nan")], [True, False])


def test_exposures_are_joined_by_question_and_gold() -> None:
    facts = lab_world.facts(SMALL)
    rows = facts.select("question", answer=pl.col("answers").list.first()).reverse()
    joined = lab_truth.with_exposures(rows, facts)
    assert joined["exposures"].to_list() == facts["exposures"].reverse().to_list()
    assert joined["question"].to_list() == rows["question"].to_list()
    with pytest.raises(InputError, match="lab"):
        lab_truth.with_exposures(rows.with_columns(answer=pl.lit("?")), facts)


def test_the_command_builds_a_world_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Recipe] = []

    def built(folder: Path, recipe: Recipe) -> Path:
        asked.append(recipe)
        return folder

    monkeypatch.setattr(lab, "build", built)
    for words in ([], ["--subjects", "400"]):
        with pytest.raises(SystemExit, match="0"):
            cli.main(["lab", "build", "--out", str(tmp_path / "a"), *words])
    assert asked[0] == lab_recipe.LAB
    assert len(lab_recipe.facts(asked[1])) == 9 * 400 + 3 * 120
    with pytest.raises(SystemExit):
        cli.main(["lab", "build", "--subjects", "2.5"])
    assert "found '2.5', expected a whole number" in capsys.readouterr().err


def test_a_built_lab_is_found_without_torch(built: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from foreknow.errors import RunFolderError
from foreknow.models import resolve
from foreknow.models.lab_recipe import is_built
try:
    is_built(Path({str(built)!r}))
except RunFolderError as error:
    print("another recipe" in str(error), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
