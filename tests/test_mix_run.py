from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from foreknow.cli import main
from foreknow.config import AuditConfig, MixConfig
from foreknow.data.dataset import read_dataset
from foreknow.data.load import read_data
from foreknow.data.schema import earlier_turns
from foreknow.errors import ConfigError, InputError, RunFolderError
from foreknow.io.run_dir import FORMAT, write_frame, write_json
from foreknow.stages.audit.result import open_audit
from foreknow.stages.mix.run import write_mix
from foreknow.stages.mix.sampling import rows_of

KINDS = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")


def audited(folder: Path, records: list[dict[str, Any]], suffix: str = ".jsonl", **how: Any) -> Path:
    """A finished audit's folder, as `foreknow audit` leaves it, whose categories go round."""
    data = folder / f"in{suffix}"
    body = json.dumps(records) if suffix == ".json" else "".join(json.dumps(r) + "\n" for r in records)
    data.write_text(body, encoding="utf-8")
    config = AuditConfig(data=str(data), out=folder / "audit", **how)
    facts = read_data(config)
    rows = facts.rows.with_columns(
        earlier_turns(facts.rows),
        answer=pl.col("answers").list.first(),
        category=pl.Series([KINDS[n % 4] for n in range(facts.rows.height)]),
    )
    (folder / "audit").mkdir()
    write_frame(folder / "audit" / "rows.parquet", rows)
    facts.annotate(rows.select("row", "category"), folder / "audit" / f"annotated{suffix}")
    import yaml

    (folder / "audit" / "config.yaml").write_text(yaml.safe_dump(config.resolved()))
    manifest = {"format": FORMAT, "identity": {"data": facts.digest}, "rows": "x", "model": {}}
    write_json(folder / "audit" / "manifest.json", manifest)
    return folder / "audit"


CHATS = [
    {"id": n, "messages": [{"role": "user", "content": f"q{n}?"}, {"role": "assistant", "content": f"a{n}"}]}
    for n in range(40)
]


def test_a_set_comes_in_the_layout_of_the_file(tmp_path: Path) -> None:
    out = tmp_path / "mix.jsonl"
    written = write_mix(MixConfig(audit=audited(tmp_path, CHATS), out=out, unknown=0.5, size=10, idk=True))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == written.mix.rows["row"].to_list()
    assert Counter(line["category"] == "Unknown" for line in lines) == {True: 5, False: 5}
    for line in lines:
        said = "I don't know." if line["category"] == "Unknown" else f"a{line['id']}"
        assert line["messages"] == [CHATS[line["id"]]["messages"][0], {"role": "assistant", "content": said}]
    assert read_dataset(out).layout == "messages"


def test_the_manifest_comes_last_and_names_audit_rows_and_bytes(tmp_path: Path) -> None:
    out = tmp_path / "mix.jsonl"
    written = write_mix(MixConfig(audit=audited(tmp_path, CHATS), out=out, natural=True, size=12))
    manifest = json.loads((tmp_path / "mix.jsonl.manifest.json").read_text())
    assert rows_of(manifest) == written.mix.rows["row"].to_list()
    assert manifest["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert manifest["audit"]["data"] == read_dataset(tmp_path / "in.jsonl").digest


def test_the_same_command_again_writes_the_same_bytes_and_another_is_refused(tmp_path: Path) -> None:
    audit, out = audited(tmp_path, CHATS), tmp_path / "mix.jsonl"
    config = MixConfig(audit=audit, out=out, unknown=0.5)
    write_mix(config)
    before = out.read_bytes()
    write_mix(config)
    assert out.read_bytes() == before
    with pytest.raises(RunFolderError, match="made with other settings"):
        write_mix(config.model_copy(update={"seed": 1}))
    write_mix(config.model_copy(update={"seed": 1, "force": True}))
    assert out.read_bytes() != before
    other = tmp_path / "mine.jsonl"
    other.write_text("mine")
    with pytest.raises(RunFolderError, match="not made by foreknow mix"):
        write_mix(config.model_copy(update={"out": other}))
    assert other.read_text() == "mine"


def test_known_of_is_the_variant_without_its_unknown_rows(tmp_path: Path) -> None:
    audit = audited(tmp_path, CHATS)
    write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", unknown=0.25))
    known = write_mix(MixConfig(audit=audit, out=tmp_path / "known.jsonl", known_of=tmp_path / "mix.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "mix.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines if line["category"] != "Unknown"] == known.mix.rows["row"].to_list()


@pytest.mark.parametrize(("suffix", "name"), [(".json", "mix.jsonl"), (".jsonl", "mix.json"), (".jsonl", "m.jsonl.gz")])
def test_json_and_jsonl_are_one_format(tmp_path: Path, suffix: str, name: str) -> None:
    write_mix(MixConfig(audit=audited(tmp_path, CHATS, suffix), out=tmp_path / name, natural=True, size=4))
    assert read_dataset(tmp_path / name).rows.height == 4


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends in \.jsonl"):
        write_mix(MixConfig(audit=audited(tmp_path, CHATS), out=tmp_path / "mix.csv", natural=True))


def test_rows_are_read_as_the_audit_read_them(tmp_path: Path) -> None:
    records = [{"ask": f"q{n}?", "say": f"a{n}", "topic": "x"} for n in range(8)]
    how = {"map": {"question": "ask", "answer": "say"}, "group_by": "topic"}
    written = write_mix(MixConfig(audit=audited(tmp_path, records, **how), out=tmp_path / "m.jsonl", drop=("unknown",)))
    assert written.mix.rows.height == 6
    assert (tmp_path / "m.jsonl").read_text().count('"ask"') == 6


def test_the_command_prints_sizes_rows_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = audited(tmp_path, CHATS)
    with pytest.raises(SystemExit, match="0"):
        main(["mix", str(audit), "--unknown", "0.5", "--weight", "Unknown=0.5", "--out", str(tmp_path / "m.jsonl")])
    told = capsys.readouterr().out
    assert "largest sets of each family" in told
    assert "20 rows, 10 of them Unknown" in told
    assert f"written: {tmp_path / 'm.jsonl'}" in told
    weights = {json.loads(line)["weight"] for line in (tmp_path / "m.jsonl").read_text().splitlines()}
    assert weights == {0.5, 1.0}


def test_too_large_a_set_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"10") as caught:
        write_mix(MixConfig(audit=audited(tmp_path, CHATS), out=tmp_path / "m.jsonl", unknown=0.5, size=30))
    assert "30" in str(caught.value)
    assert not (tmp_path / "m.jsonl").exists()
    with pytest.raises(ConfigError):
        MixConfig(audit=tmp_path, out=tmp_path / "x", unknown=0.5, natural=True)


@pytest.mark.parametrize("stage", ["tune", "evaluate"])
def test_the_folder_of_another_stage_is_no_audit(tmp_path: Path, stage: str) -> None:
    audit = audited(tmp_path, CHATS)
    manifest = json.loads((audit / "manifest.json").read_text())
    write_json(audit / "manifest.json", {**manifest, "stage": stage})
    said = f"audit: not a finished audit run: {stage} wrote it; name the --out of a foreknow audit command"
    with pytest.raises(InputError) as caught:
        open_audit(audit)
    assert str(caught.value) == f"{tmp_path}/{said}"
    with pytest.raises(InputError, match=said):
        write_mix(MixConfig(audit=audit, out=tmp_path / "m.jsonl", drop=("unknown",)))
