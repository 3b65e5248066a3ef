"""The null of every row against the probe itself, question by question; its rules; interruption."""

from __future__ import annotations

import json
import math
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import foreknow
from conftest import fact_rows
from foreknow.cli import main
from foreknow.config import AuditConfig
from foreknow.data.exact_match import normalise
from foreknow.errors import ConfigError, ModelError, ResourceError
from foreknow.inference import multi_target_search, slick
from foreknow.inference.engine import PackedEngine
from foreknow.inference.nodes import Node
from foreknow.prompts.vocabulary import Vocabulary
from foreknow.settings import settings_of
from foreknow.stages.audit import chance_baseline, chance_probe, reload
from foreknow.stages.audit.chance_baseline import (
    ChanceRow,
    ReferenceQuestion,
    Rules,
    chance_line,
    choose,
    corrected_shares,
    invent_references,
)
from foreknow.stages.audit.chance_probe import Search
from foreknow.stages.audit.result import AuditResult
from foreknow.stages.audit.setup import open_context, read_input

RULES = Rules(references=6, least=3)
SEARCH = Search(RULES, negligible=1e-7)


def made(folder: Path, tiny_folder: Path, rows: list[dict[str, object]], **more: object) -> AuditResult:
    """A finished audit of the rows, searched almost to the end."""
    data = folder / "facts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    exact = {"temperature": 0.9, "tolerance": 1e-5, "max_expansions": 5000, "exemplar_sets": 3, "shots": 2}
    options = {**exact, "dtype": "float32", "device": "cpu", **more}
    return foreknow.audit(str(data), model=str(tiny_folder), out=str(folder / "audit"), **options)


@pytest.fixture(scope="module")
def audit(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    """Facts with aliases and golds that repeat; no dev rows, so rows stand among each other's exemplars."""
    rows = [{k: v for k, v in row.items() if k != "split"} for row in fact_rows()]
    rows = [*rows[:12], *rows[24:34]]
    rows[2]["answer"] = "Avens"
    rows[3]["answer"] = "Avens"
    rows[5]["answer"] = ["Elmfort", "Farrow", "the farrow"]
    rows[17]["answer"] = "River Aven "
    return made(tmp_path_factory.mktemp("chance"), tiny_folder, rows)


@pytest.fixture
def copy(audit: AuditResult, tmp_path: Path) -> Callable[[str], AuditResult]:
    def copied(name: str) -> AuditResult:
        return AuditResult(Path(shutil.copytree(audit.folder, tmp_path / name)))

    return copied


def test_every_null_is_that_of_the_reference_questions_probed_one_by_one(audit: AuditResult, tmp_path: Path) -> None:
    out = AuditResult(Path(shutil.copytree(audit.folder, tmp_path / "audit")))
    found = pl.read_parquet(chance_probe.compute_chance(out, SEARCH))
    assert dict(found.schema) == chance_baseline.CHANCE
    rows = reload.probed_rows(audit)
    assert found["row"].to_list() == rows["row"].to_list()
    labels = slick.label(audit.probes, samples=16)
    swapped = {
        (row, j) for row, j, shown in audit.probes.select("row", "exemplar_set", "replaced_shots").iter_rows() if shown
    }
    assert swapped  # rows did stand among exemplars
    config = settings_of(AuditConfig, {}, audit.folder / "config.yaml").model_copy(update={"batch_tokens": 500})
    invented = 0
    with open_context(config, read_input(config)) as context:
        for (group,), part in rows.join(labels.drop("category"), on="row").group_by("group"):
            own = part.sort(pl.col("answers").list.first(), "row")
            references, serves = choose(own, RULES)
            pairs = [(i, r) for i in range(own.height) for r in range(len(references)) if serves[i, r]]
            lines = [
                {
                    "row": n, "group": group, "question": references[r].question, "subject": references[r].subject,
                    "answers": own["answers"][i].to_list(), "context": [],
                }
                for n, (i, r) in enumerate(pairs)
            ]  # fmt: skip
            asked = pl.DataFrame(lines, schema={name: context.plan.rows.schema[name] for name in lines[0]})
            probes = pl.concat(
                [context.probing.prober.probe(asked[at : at + 128]).probes for at in range(0, len(pairs), 128)]
            )
            told = {
                (n, j): (p, g)
                for n, j, p, g in probes.select("row", "exemplar_set", "p_correct", "greedy_correct").rows()
            }
            for i, row in enumerate(own.iter_rows(named=True)):
                sets = [j for j in range(3) if (row["row"], j) not in swapped]
                ours = found.row(by_predicate=pl.col("row") == row["row"], named=True)
                of = [n for n, (k, _) in enumerate(pairs) if k == i]
                assert ours["references"] == len(of) >= 3
                hits, greedy, scores = [], [], []
                for n in of:
                    ps = [told[n, j][0] for j in sets]
                    hits.append(1 - math.prod((1 - p) ** (16 * 3 / len(sets)) for p in ps))
                    greedy.append(sum(told[n, j][1] for j in sets) / len(sets))
                    scores.append(logit(sum(ps) / len(ps)))
                mean = sum(scores) / len(scores)
                assert ours["p_chance"] == pytest.approx(sum(hits) / len(hits), abs=2e-4)
                assert ours["p_chance_upper"] - ours["p_chance"] < 1e-3
                assert ours["p_chance_greedy"] == pytest.approx(sum(greedy) / len(greedy))
                assert ours["lift"] == pytest.approx(logit(row["p_sampled"]) - mean, abs=0.05)
                assert ours["lift_lower"] == pytest.approx(ours["lift"], abs=0.1)
                invented += any(references[pairs[n][1]].row is None for n in of)
    assert 0 < found["p_chance"].mean() < 0.9
    assert found.filter(pl.col("flag") == chance_baseline.MADE_UP).height == invented


def logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def test_the_summary_is_that_of_the_frame(copy: Callable[[str], AuditResult]) -> None:
    out = copy("one")
    found = pl.read_parquet(chance_probe.compute_chance(out, SEARCH))
    told = json.loads((out.folder / "chance.json").read_text())
    every = out.rows.join(found, on="row")
    for group, part in every.group_by("group"):
        share = told["corrected"]["hit"]["by_relation"][group[0]]
        observed, expected = part["p_hit"].mean(), part["p_chance"].mean()
        assert share["corrected"] == pytest.approx(max(0, (observed - expected) / (1 - expected)))
        assert share["ci_low"] <= share["corrected"] <= share["ci_high"]
    assert sum(line["rows"] for line in told["guessable"].values()) == told["with_null"] == 22
    assert told["cost"]["seconds"] > 0
    assert told["cost"]["prompts"] % 3 == 0
    assert not (out.folder / ".chance").exists()


def test_the_command_writes_and_prints_it(
    copy: Callable[[str], AuditResult], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy("audit")
    assert out.chance is None
    given = yaml.safe_load((out.folder / "config.yaml").read_text(encoding="utf-8"))
    again = {**{k: v for k, v in given.items() if v is not None}, "out": str(out.folder), "chance": True}
    file = out.folder.parent / "audit.yaml"
    file.write_text(yaml.safe_dump(again), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["audit", "--config", str(file)])
    assert ended.value.code in (0, None)
    told = capsys.readouterr()
    assert "this audit is complete; nothing to do" in told.err
    assert "by chance" in told.out
    assert AuditResult(out.folder).chance is not None
    assert (out.folder / "chance.parquet").is_file()


def test_an_interrupted_run_goes_on_and_ends_the_same(
    copy: Callable[[str], AuditResult], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = copy("whole"), copy("cut")
    first = chance_probe.compute_chance(whole, SEARCH)
    asked = PackedEngine.open
    calls = []

    def stops(self: PackedEngine, *given: object) -> object:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return asked(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(PackedEngine, "open", stops)
    with pytest.raises(KeyboardInterrupt):
        chance_probe.compute_chance(cut, SEARCH)
    assert not (cut.folder / "chance.json").exists()
    monkeypatch.setattr(PackedEngine, "open", asked)
    capsys.readouterr()
    second = chance_probe.compute_chance(cut, SEARCH)
    assert "1 of 2 parts are finished" in capsys.readouterr().err
    assert first.read_bytes() == second.read_bytes()
    chance_probe.compute_chance(cut, SEARCH)
    assert "complete; nothing to do" in capsys.readouterr().err
    again = chance_probe.compute_chance(cut, Search(Rules(references=8, least=3), negligible=1e-7))
    assert again.read_bytes() != first.read_bytes()


def test_out_of_memory_once_it_goes_on_with_smaller_batches(
    copy: Callable[[str], AuditResult], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = pl.read_parquet(chance_probe.compute_chance(copy("whole"), SEARCH))
    real, failures = PackedEngine.open, [torch.OutOfMemoryError("CUDA out of memory")]

    def tight(self: PackedEngine, *given: object) -> object:
        if failures:
            raise failures.pop()
        return real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(PackedEngine, "open", tight)
    out = copy("tight")
    found = pl.read_parquet(chance_probe.compute_chance(out, SEARCH))
    assert "out of memory: going on with 1024 tokens" in capsys.readouterr().err
    assert json.loads((out.folder / "chance.json").read_text())["cost"]["halved"] == 1
    exact = pl.col(pl.Int64, pl.Boolean, pl.String)
    assert found.select(exact).equals(whole.select(exact))
    np.testing.assert_allclose(found["p_chance"], whole["p_chance"], atol=1e-5)


def test_too_little_memory_for_any_batch_is_a_line_and_keeps_what_is_finished(
    copy: Callable[[str], AuditResult], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy("one")
    real, calls = PackedEngine.open, []

    def full(self: PackedEngine, *given: object) -> object:
        calls.append(self.batch_tokens)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(PackedEngine, "open", full)
    with pytest.raises(ResourceError, match=r"^chance: out of memory; finished groups are kept\. Free some memory"):
        chance_probe.compute_chance(out, SEARCH)
    assert calls[1:] == [2048, 1024, 512, 256, 128, 64]
    monkeypatch.setattr(PackedEngine, "open", real)
    capsys.readouterr()
    chance_probe.compute_chance(out, SEARCH)
    assert "1 of 2 parts are finished" in capsys.readouterr().err


def test_an_unfinished_run_with_other_settings_is_not_mixed_in(
    copy: Callable[[str], AuditResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = copy("one"), copy("two")
    monkeypatch.setattr(reload, "drop", lambda _: None)  # its parts stay, as if killed at the very end
    chance_probe.compute_chance(out, Search(Rules(references=4, least=3), negligible=1e-7))
    chance_probe.compute_chance(out, SEARCH)
    chance_probe.compute_chance(other, SEARCH)
    assert (out.folder / "chance.parquet").read_bytes() == (other.folder / "chance.parquet").read_bytes()


def test_rows_in_several_passes_and_references_in_several_slices_come_to_the_same(
    copy: Callable[[str], AuditResult],
) -> None:
    one = pl.read_parquet(chance_probe.compute_chance(copy("one"), SEARCH))
    few = Search(RULES, negligible=1e-7, texts=2, references=2)
    two = pl.read_parquet(chance_probe.compute_chance(copy("two"), few))
    assert one.select("row", "references", "flag", "guessable").equals(
        two.select("row", "references", "flag", "guessable")
    )
    np.testing.assert_allclose(one["p_chance"], two["p_chance"], atol=1e-4)
    np.testing.assert_allclose(one["lift"], two["lift"], atol=0.01)


def test_what_is_not_searched_is_counted(copy: Callable[[str], AuditResult]) -> None:
    exact = pl.read_parquet(chance_probe.compute_chance(copy("one"), SEARCH))
    rough = pl.read_parquet(chance_probe.compute_chance(copy("two"), Search(RULES, negligible=1e-3, max_paths=6)))
    slack = 1e-4
    assert (rough["p_chance"] <= exact["p_chance"] + slack).all()
    assert (rough["p_chance_upper"] >= exact["p_chance"] - slack).all()
    assert (rough["lift_lower"] <= exact["lift"] + slack).all()
    assert (rough["p_chance_upper"] - rough["p_chance"]).max() > slack  # it did search less


def test_too_few_references_give_no_numbers_and_few_are_told(copy: Callable[[str], AuditResult]) -> None:
    none, few = copy("none"), copy("few")
    for out in (none, few):  # without subjects nobody can be made up
        out.rows.with_columns(subject=pl.lit(None, pl.String)).write_parquet(out.folder / "rows.parquet")
    found = pl.read_parquet(
        chance_probe.compute_chance(AuditResult(none.folder), Search(Rules(references=50, least=20)))
    )
    assert set(found["flag"]) == {chance_baseline.NONE}
    assert found.select("p_chance", "p_chance_greedy", "lift", "rank", "guessable").null_count().row(0) == (22,) * 5
    told = json.loads((none.folder / "chance.json").read_text())
    assert (told["with_null"], told["corrected"]["hit"]["overall"]["corrected"]) == (0, None)
    found = pl.read_parquet(
        chance_probe.compute_chance(AuditResult(few.folder), Search(Rules(references=50, least=1), negligible=1e-3))
    )
    assert set(found["flag"]) <= {chance_baseline.FEW, chance_baseline.NONE}
    assert found.filter(pl.col("flag") == chance_baseline.FEW)["p_chance"].null_count() == 0
    assert 1 <= found["references"].max() < 12


def test_another_model_and_an_audit_by_generation_are_refused(copy: Callable[[str], AuditResult]) -> None:
    out = copy("one")
    manifest = json.loads((out.folder / "manifest.json").read_text())
    manifest["identity"]["model"] = "sha256:" + "0" * 64
    (out.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="is not the model that"):
        chance_probe.compute_chance(out, SEARCH)
    assert not (out.folder / "chance.parquet").exists()
    out = copy("two")
    config = (out.folder / "config.yaml").read_text().replace("protocol: exact", "protocol: sampled")
    (out.folder / "config.yaml").write_text(config)
    with pytest.raises(ConfigError, match="--protocol sampled; chance needs --protocol exact"):
        chance_probe.compute_chance(out, SEARCH)


# ---- references ------------------------------------------------------------------------------------------------

NAMES = ("Arland", "Borvia", "Cendor East", "Delmar", "Estoria", "Fenwall", "Galdor", "Hestia", "Ilmora", "Jorvik")
GOLDS = ("Avens", "avens", "Brigston", "Callow", "Dunwick")


@st.composite
def groups(draw: st.DrawFn) -> pl.DataFrame:
    count = draw(st.integers(0, 14))
    rows = []
    for i in range(count):
        name = draw(st.sampled_from(NAMES))
        right = draw(st.sampled_from([0.0, 0.0, 0.0, 0.5]))
        rows.append({
            "row": i, "question": f"What is the capital of {name}?", "subject": draw(st.sampled_from([name, None])),
            "answers": draw(st.lists(st.sampled_from(GOLDS), min_size=1, max_size=2)),
            "flags": draw(st.sampled_from([[], [], ["context"]])),
            "p_greedy": right, "p_greedy_lenient": max(right, draw(st.sampled_from([0.0, 0.0, 0.5]))),
        })  # fmt: skip
    kinds = {"row": pl.Int64(), "question": pl.String(), "subject": pl.String(), "answers": pl.List(pl.String())}
    more = {"flags": pl.List(pl.String()), "p_greedy": pl.Float64(), "p_greedy_lenient": pl.Float64()}
    return pl.DataFrame(rows, schema={**kinds, **more})


@settings(max_examples=50)
@given(groups(), st.integers(1, 5))
def test_a_reference_is_wrong_and_says_neither_the_row_s_answer_nor_its_fact(rows: pl.DataFrame, want: int) -> None:
    rules = Rules(references=want, least=1)
    references, serves = choose(rows, rules)
    assert serves.shape == (rows.height, len(references))
    assert serves.any(axis=0).all()  # nobody is asked in vain
    lines = {row["row"]: row for row in rows.to_dicts()}
    fact = {r["row"]: (r["subject"] or r["question"]).strip().casefold() for r in rows.to_dicts()}
    for i, row in enumerate(rows.to_dicts()):
        real = [r for r, serving in zip(references, serves[i], strict=True) if serving and r.row is not None]
        invented = int(serves[i].sum()) - len(real)
        for r in real:
            source = lines[r.row]
            assert source["p_greedy"] == 0 == source["p_greedy_lenient"]
            assert "context" not in source["flags"]
            assert not {*map(normalise, source["answers"])} & {*map(normalise, row["answers"])}
            assert fact[r.row] != fact[row["row"]]
        # made-up subjects fill up, and only where the real ones do not suffice
        assert invented <= max(0, want - len(real))
        possible = {
            fact[s["row"]]
            for s in lines.values()
            if s["p_greedy"] == 0 == s["p_greedy_lenient"]
            and "context" not in s["flags"]
            and fact[s["row"]] != fact[row["row"]]
            and not {*map(normalise, s["answers"])} & {*map(normalise, row["answers"])}
        }
        # of rows about one fact only one can serve, which may be the one with this answer
        repeated = len(set(fact.values())) < len(fact)
        if not repeated and len(references) < 4 * want:
            assert len(real) >= min(want, len(possible))
    assert len({r.question for r in references if r.row is None}) == sum(r.row is None for r in references)


@settings(max_examples=40)
@given(groups(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows: pl.DataFrame, random: object) -> None:
    distinct = rows.unique("question", keep="first", maintain_order=True)
    order = list(range(distinct.height))
    random.shuffle(order)  # type: ignore[attr-defined]
    rules = Rules(references=3, least=1)
    one, other = choose(distinct, rules), choose(distinct[order], rules)
    assert one.references == other.references
    assert (one.serves[order] == other.serves).all()


@settings(max_examples=40)
@given(groups(), st.integers(0, 30))
def test_made_up_subjects_are_nobody_s(rows: pl.DataFrame, count: int) -> None:
    found = invent_references(rows, count, 0)
    real = {s.casefold() for s in rows["subject"].drop_nulls()}
    names = [r.subject for r in found]
    assert len(found) <= count
    assert len({str(name).casefold() for name in names}) == len(names)
    for r in found:
        assert str(r.subject).casefold() not in real
        assert r.question == f"What is the capital of {r.subject}?"
        assert r.row is None


# ---- numbers ---------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_a_line_against_plain_arithmetic(data: st.DataObject, references: int, sets: int, texts: int) -> None:
    shape = (references, sets, texts)
    total = references * sets * texts
    p = np.array(data.draw(st.lists(st.floats(0, 1 / 3), min_size=total, max_size=total))).reshape(shape)
    said = data.draw(st.lists(st.integers(-1, texts - 1), min_size=references * sets, max_size=references * sets))
    greedy = np.array(said).reshape(references, sets)
    own = sorted(data.draw(st.sets(st.integers(0, texts - 1), min_size=1)))
    serves = np.array(data.draw(st.lists(st.booleans(), min_size=references, max_size=references)))
    counts = np.array(data.draw(st.lists(st.booleans(), min_size=sets, max_size=sets)))
    p_sampled = data.draw(st.floats(0, 1))
    rules = Rules(references=2, least=1)
    line = chance_line(
        ChanceRow(7, p_sampled, own, serves, counts, False),
        ReferenceQuestion(p, np.minimum(p + 0.01, 1), greedy),
        16,
        rules,
    )
    assert set(line) == set(chance_baseline.CHANCE)
    assert line["references"] == serves.sum()
    if not serves.any() or not counts.any():
        assert line["p_chance"] is None is line["lift"]
        assert line["flag"] in (chance_baseline.NONE, chance_baseline.OWN_SETS)
        return
    hits, talks, scores = [], [], []
    kept = [j for j in range(sets) if counts[j]]
    for r in (r for r in range(references) if serves[r]):
        some = [min(sum(p[r, j, t] for t in own), 1.0) for j in kept]
        hits.append(1 - math.prod(max(1 - q, 1e-15) ** (16 * sets / len(kept)) for q in some))
        talks.append(sum(greedy[r, j] in own for j in kept) / len(kept))
        scores.append(logit(sum(some) / len(kept)))
    assert line["p_chance"] == pytest.approx(sum(hits) / len(hits))
    assert line["p_chance_greedy"] == pytest.approx(sum(talks) / len(talks))
    assert line["lift"] == pytest.approx(logit(p_sampled) - sum(scores) / len(scores), abs=1e-9)
    assert line["lift_lower"] <= line["lift"] + 1e-9
    assert line["p_chance_upper"] >= line["p_chance"] - 1e-12
    beaten = sum(score >= logit(p_sampled) for score in scores)
    if all(abs(score - logit(p_sampled)) > 1e-9 for score in scores):
        assert line["rank"] == pytest.approx((1 + beaten) / (len(scores) + 1))
    assert line["guessable"] == (line["rank"] > 0.1)
    assert (line["flag"] == chance_baseline.FEW) == (serves.sum() < 2)


def test_a_row_no_better_than_its_references_is_guessable() -> None:
    p = np.full((20, 1, 1), 0.01)
    asked = ReferenceQuestion(p, p, np.full((20, 1), -1))
    every, one = np.ones(20, dtype=bool), np.ones(1, dtype=bool)

    def line(p_sampled: float) -> dict[str, object]:
        return chance_line(ChanceRow(0, p_sampled, [0], every, one, False), asked, 16, Rules())

    assert line(0.01)["rank"] == 1
    assert line(0.01)["guessable"] is True
    assert line(0.0)["lift"] < 0  # type: ignore[operator]
    assert line(0.02)["guessable"] is False
    assert line(0.02)["rank"] == pytest.approx(1 / 21)


@st.composite
def shares(draw: st.DrawFn) -> pl.DataFrame:
    line = st.tuples(st.sampled_from(["a", "b"]), st.floats(0, 1), st.floats(0, 1))
    return pl.DataFrame(
        draw(st.lists(line, min_size=1, max_size=20)),
        schema={"group": pl.String(), "observed": pl.Float64(), "chance": pl.Float64()},
        orient="row",
    )


@settings(max_examples=40)
@given(shares())
def test_corrected_shares_follow_the_formula(rows: pl.DataFrame) -> None:
    found = corrected_shares(rows)
    weighted, count = 0.0, 0
    for (group,), part in rows.group_by("group"):
        observed, expected = part["observed"].mean(), part["chance"].mean()
        line = found[str(group)]
        if 1 - expected > 1e-8:
            assert line["corrected"] == pytest.approx(max(0, (observed - expected) / (1 - expected)), abs=1e-6)
            weighted, count = weighted + part.height * line["corrected"], count + part.height
        assert (line["ci_low"] is None) >= (part.height < 5)
        if line["ci_low"] is not None:
            assert 0 <= line["ci_low"] <= line["ci_high"] <= 1
    if count:
        assert found[""]["corrected"] == pytest.approx(weighted / count)
    shuffled = rows.sample(fraction=1, shuffle=True, seed=1)
    again = corrected_shares(shuffled)
    assert {g: line["ci_low"] for g, line in again.items()} == {g: line["ci_low"] for g, line in found.items()}


def test_what_was_planted_is_found_again() -> None:
    """Half of the facts are known, the rest are hit by luck three times in ten: observed 0.65, corrected 0.5."""
    rng = np.random.default_rng(0)
    known = rng.random(2000) < 0.5
    luck = rng.random(2000) < 0.3
    rows = pl.DataFrame({"group": ["g"] * 2000, "observed": (known | luck).astype(float), "chance": [0.3] * 2000})
    line = corrected_shares(rows)["g"]
    assert line["observed"] == pytest.approx(0.65, abs=0.04)
    assert line["ci_low"] < 0.5 < line["ci_high"]
    assert line["ci_high"] - line["ci_low"] < 0.08
    assert line["corrected"] == pytest.approx(0.5, abs=0.04)


def test_shares_that_cannot_vary_still_have_an_interval() -> None:
    every = pl.DataFrame({"group": ["g"] * 20, "observed": [1.0] * 20, "chance": [0.5] * 20})
    line = corrected_shares(every)["g"]
    assert line["corrected"] == 1
    assert 0.5 < line["ci_low"] < 0.95
    sure = corrected_shares(every.with_columns(chance=pl.lit(1.0)))
    assert sure["g"]["corrected"] is None is sure[""]["corrected"]


# ---- the search for many texts ---------------------------------------------------------------------------------

WORDS = ("a", "b", "ab", " ", "ba", "\n", "", "c\n")
VOCABULARY = Vocabulary(lambda path: "".join(WORDS[t] for t in path), frozenset({5, 6}), frozenset({7}))
TEXTS = ["a", "a b", "ab", "aba", "bc"]


def node(path: tuple[int, ...], seed: int) -> Node:
    """A distribution that depends on the path only; some tokens cannot be drawn."""
    rng = np.random.default_rng([seed, *path, 99])
    p = rng.dirichlet(np.full(len(WORDS), 0.6))
    p[p < 0.02] = 0
    p /= p.sum()
    order = sorted(range(len(WORDS)), key=lambda t: (-p[t], t))
    kept = [t for t in order if p[t] > 0]
    return Node(kept[0], kept, [float(p[t]) for t in kept])


def searched(
    seed: int, limits: list[int], negligible: float, max_paths: int = 10**6
) -> multi_target_search.MultiTargetSearch:
    spellings = multi_target_search.Spellings(VOCABULARY, TEXTS, limits)
    hunt = multi_target_search.MultiTargetSearch(
        spellings, negligible, max_paths, np.zeros(len(TEXTS)), np.zeros(len(TEXTS))
    )
    hunt.feed((), node((), seed))
    while paths := hunt.paths_to_expand():
        for path in paths:
            hunt.feed(path, node(path, seed))
    return hunt


def answer_of(path: tuple[int, ...]) -> str:
    return VOCABULARY.decode(path).split("\n")[0].strip()


def enumerated(seed: int, limits: list[int]) -> tuple[list[float], int]:
    """P of every text, over all paths of as many tokens as its limit allows; the place of the greedy answer."""
    found = [0.0] * len(TEXTS)
    waiting: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while waiting:
        path, mass = waiting.pop()
        at = node(path, seed)
        for token, p in zip(at.tokens, at.p, strict=True):
            whole = (*path, token)
            if not VOCABULARY.is_end(token):
                if len(whole) < max(limits):
                    waiting.append((whole, mass * p))
            elif answer_of(whole) in TEXTS and len(whole) <= limits[TEXTS.index(answer_of(whole))]:
                found[TEXTS.index(answer_of(whole))] += mass * p
    said: tuple[int, ...] = ()
    while len(said) < max(limits):
        said = (*said, node(said, seed).greedy)
        if VOCABULARY.is_end(said[-1]):
            place = TEXTS.index(answer_of(said)) if answer_of(said) in TEXTS else -1
            return found, place if place >= 0 and len(said) <= limits[place] else -1
    return found, -1


tokens = st.lists(st.integers(1, 5), min_size=len(TEXTS), max_size=len(TEXTS))


@settings(max_examples=60)
@given(st.integers(0, 10**6), tokens)
def test_every_text_gets_the_probability_of_all_its_spellings(seed: int, limits: list[int]) -> None:
    hunt = searched(seed, limits, 0.0)
    exact, said = enumerated(seed, limits)
    np.testing.assert_allclose(hunt.p, exact, atol=1e-12)
    assert not hunt.lost.any()
    assert hunt.greedy_text == said


@settings(max_examples=60)
@given(st.integers(0, 10**6), tokens, st.floats(1e-4, 0.3), st.integers(0, 12))
def test_a_search_that_stops_early_knows_how_much_it_left_out(
    seed: int, limits: list[int], negligible: float, most: int
) -> None:
    hunt = searched(seed, limits, negligible, most)
    exact, said = enumerated(seed, limits)
    assert (hunt.p <= np.array(exact) + 1e-12).all()
    assert (hunt.p + hunt.lost >= np.array(exact) - 1e-12).all()
    assert hunt.greedy_text == said  # the greedy answer is followed to its end, however unlikely


ACCENT_WORDS = ["e", "\u0301", "\u0323", "\u00e9", "b", "</s>", "\n"]
ACCENT_TEXTS = multi_target_search.canonical_texts(["e\u0301", "\u00e9", " \u1eb9\u0301", "eb", "e", "\u1eb9b"])


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.01, 0.1]))
def test_an_accent_counts_in_either_spelling(seed: int, negligible: float) -> None:
    assert ACCENT_TEXTS == ["e", "eb", "\u00e9", "\u1eb9b", "\u1eb9\u0301"], "by their parts, each once"
    vocabulary = Vocabulary(lambda path: "".join(ACCENT_WORDS[t] for t in path), frozenset({5, 6}), frozenset())
    count, longest = len(ACCENT_TEXTS), 5
    rng_of = lambda path: np.random.default_rng([seed, *path, 7])  # noqa: E731

    def at(path: tuple[int, ...]) -> Node:
        p = rng_of(path).dirichlet(np.full(len(ACCENT_WORDS), 0.6))
        order = sorted(range(len(p)), key=lambda t: (-p[t], t))
        return Node(order[0], order, [float(p[t]) for t in order])

    exact, waiting = np.zeros(count), [((), 1.0)]
    while waiting:
        path, mass = waiting.pop()
        for token, p in zip(at(path).tokens, at(path).p, strict=True):
            said = unicodedata.normalize("NFC", vocabulary.decode(path).strip())
            if token in vocabulary.ends:
                exact[[n for n, text in enumerate(ACCENT_TEXTS) if text == said]] += mass * p
            elif len(path) + 2 <= longest:
                waiting.append(((*path, token), mass * p))
    hunt = multi_target_search.MultiTargetSearch(
        multi_target_search.Spellings(vocabulary, ACCENT_TEXTS, [longest] * count),
        negligible,
        10**6,
        np.zeros(count),
        np.zeros(count),
    )
    hunt.feed((), at(()))
    while paths := hunt.paths_to_expand():
        for path in paths:
            hunt.feed(path, at(path))
    assert (hunt.p <= exact + 1e-12).all()
    assert (hunt.p + hunt.lost >= exact - 1e-12).all()
    if not negligible:
        np.testing.assert_allclose(hunt.p, exact, atol=1e-12)
