"""Folders as Hugging Face writes them, made by the real `datasets` where it writes them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_from_disk

import foreknow
from conftest import fact_rows
from foreknow.config import MixConfig
from foreknow.data.dataset import read_dataset
from foreknow.errors import InputError
from foreknow.stages.mix.run import write_mix

LABELS = pl.DataFrame({"row": [0, 2], "category": ["Unknown", "HighlyKnown"], "flags": [["a"], ["b", "c"]]})


def rows(count: int = 5, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": n, "question": f"q{n}?", "answers": {"text": [f"a{n}"], "answer_start": [0]}, "kind": n % 2}
        for n in range(start, start + count)
    ]


FEATURES = Features(
    {
        "id": Value("int64"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
        "kind": ClassLabel(names=["odd", "even"]),
    }
)


def dataset(count: int = 5, start: int = 0) -> Dataset:
    return Dataset.from_list(rows(count, start), features=FEATURES)


def test_a_saved_data_set_of_several_shards_comes_back_as_one_that_datasets_opens(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "in", num_shards=2)
    facts = read_dataset(tmp_path / "in")
    assert facts.rows["question"].to_list() == [f"q{n}?" for n in range(5)]
    assert facts.rows["answers"].to_list() == [[f"a{n}"] for n in range(5)]
    assert "save_to_disk" in facts.reason
    facts.annotate(LABELS, tmp_path / "out")
    back = load_from_disk(str(tmp_path / "out"))
    assert back.remove_columns(["category", "flags"]).to_list() == dataset().to_list()
    assert back["category"][:] == ["Unknown", None, "HighlyKnown", None, None]
    assert back["flags"][:] == [["a"], None, ["b", "c"], None, None]
    assert back.features["kind"].names == ["odd", "even"]
    assert back._fingerprint != load_from_disk(str(tmp_path / "in"))._fingerprint
    assert read_dataset(tmp_path / "out").rows.equals(facts.rows)


def test_the_splits_of_a_saved_dictionary_are_splits(tmp_path: Path) -> None:
    both = DatasetDict({"train": dataset(3), "validation": dataset(2, 3), "unsupervised": dataset(1, 5)})
    both.save_to_disk(tmp_path / "in", num_shards={"train": 2, "validation": 1, "unsupervised": 1})
    facts = read_dataset(tmp_path / "in")
    assert dict(facts.rows.group_by("split").len().iter_rows()) == {"train": 3, "dev": 2, "unsupervised": 1}
    facts.annotate(LABELS, tmp_path / "out")
    back = load_from_disk(str(tmp_path / "out"))
    assert {name: len(one) for name, one in back.items()} == {"train": 3, "validation": 2, "unsupervised": 1}
    assert read_dataset(tmp_path / "out").rows.equals(facts.rows)


def test_a_saved_data_set_may_be_packed_as_a_zip(tmp_path: Path) -> None:
    DatasetDict({"train": dataset(3), "test": dataset(2, 3)}).save_to_disk(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for file in sorted((tmp_path / "in").rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path / "in"))
    facts = read_dataset(tmp_path / "in.zip")
    assert facts.rows["split"].to_list() == ["test", "test", "train", "train", "train"]
    facts.annotate(LABELS, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        archive.extractall(tmp_path / "out")
    assert load_from_disk(str(tmp_path / "out"))["train"].num_rows == 3
    assert read_dataset(tmp_path / "out.zip").rows.equals(facts.rows)


def test_rows_that_were_chosen_are_saved_as_they_were_chosen(tmp_path: Path) -> None:
    dataset().select([4, 1]).save_to_disk(tmp_path / "in")
    assert read_dataset(tmp_path / "in").rows["question"].to_list() == ["q4?", "q1?"]


def test_a_mapping_of_indices_is_never_passed_over(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "in")
    state = json.loads((tmp_path / "in" / "state.json").read_text())
    (tmp_path / "in" / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(InputError, match=r"in: state\.json says that rows are chosen by a mapping of indices"):
        read_dataset(tmp_path / "in")


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "in", num_shards=2)
    (tmp_path / "in" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(
        InputError, match=r"state\.json names the file 'data-00001-of-00002\.arrow', which is not there"
    ):
        read_dataset(tmp_path / "in")
    DatasetDict({"train": dataset(3), "test": dataset(2)}).save_to_disk(tmp_path / "both")
    for file in (tmp_path / "both" / "test").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"names the split 'test', whose folder is not there"):
        read_dataset(tmp_path / "both")


def test_results_of_map_beside_a_saved_data_set_are_not_read(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "in")
    load_from_disk(str(tmp_path / "in")).map(lambda row: {"more": row["id"]})
    assert list((tmp_path / "in").glob("cache-*.arrow"))
    assert read_dataset(tmp_path / "in").total == 5


def test_a_subset_of_a_saved_data_set_is_written_as_arrow_and_as_parquet(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "in", num_shards=2)
    facts = read_dataset(tmp_path / "in")
    labels = pl.DataFrame({"row": [1, 4], "category": ["Unknown", "Unknown"]})
    facts.write(labels, tmp_path / "mixed.arrow", {1: "I don't know."})
    back = Dataset.from_file(str(tmp_path / "mixed.arrow"))
    assert back["question"][:] == ["q1?", "q4?"]
    assert back["answers"][0]["text"] == ["I don't know."]
    facts.write(labels, tmp_path / "mixed.parquet")
    assert read_dataset(tmp_path / "mixed.parquet").rows["answers"].to_list() == [["a1"], ["a4"]]
    with pytest.raises(InputError, match=r"mixed\.jsonl: expected a name that ends in \.arrow"):
        facts.write(labels, tmp_path / "mixed.jsonl")


# Arrow files


def stream(table: pa.Table, **how: Any) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema, **how) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


def ipc_file(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


@pytest.mark.parametrize("made", [stream, ipc_file])
@pytest.mark.parametrize("suffix", [".arrow", ".feather", ".ipc", ".arrow.gz"])
def test_arrow_is_read_as_stream_and_as_file_and_comes_back_as_it_was(tmp_path: Path, made: Any, suffix: str) -> None:
    import gzip

    content = made(pa.Table.from_pylist(rows()))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    facts = read_dataset(path)
    assert facts.rows["answers"].to_list() == [[f"a{n}"] for n in range(5)]
    out = tmp_path / f"b{facts.suffix}"
    assert out.name == f"b{suffix}"
    facts.annotate(LABELS, out)
    assert read_dataset(out).rows.equals(facts.rows)
    bytes_out = gzip.decompress(out.read_bytes()) if suffix.endswith(".gz") else out.read_bytes()
    opener = pa.ipc.open_stream if made is stream else pa.ipc.open_file
    table = opener(bytes_out).read_all()
    assert table.drop_columns(["category", "flags"]).to_pylist() == rows()
    assert table["category"].to_pylist() == ["Unknown", None, "HighlyKnown", None, None]


def test_feather_of_version_2_is_arrow_and_version_1_is_refused(tmp_path: Path) -> None:
    table = pa.table({"question": ["q0?"], "answer": ["a0"]})
    pyarrow.feather.write_feather(table, str(tmp_path / "a.feather"))
    assert read_dataset(tmp_path / "a.feather").rows["answers"].to_list() == [["a0"]]
    (tmp_path / "b.feather").write_bytes(b"FEA1" + bytes(60))
    with pytest.raises(InputError, match=r"b\.feather: is a Feather file of version 1\. Write it as version 2"):
        read_dataset(tmp_path / "b.feather")


def test_a_stream_that_breaks_off_is_refused_wherever_it_does(tmp_path: Path) -> None:
    content = stream(pa.Table.from_pylist(rows()))
    path = tmp_path / "a.arrow"
    for cut in range(9, len(content), 8):
        path.write_bytes(content[:cut])
        with pytest.raises(InputError, match=r"a\.arrow: not a readable Arrow file"):
            read_dataset(path)
    path.write_bytes(content)
    assert read_dataset(path).total == 5


TYPES = {
    "dictionary": pa.array(["Paris", "Rome", None]).dictionary_encode(),
    "large": pa.array(["Paris", "Rome", None], pa.large_string()),
    "view": pa.array(["Paris", "Rome", None], pa.string_view()),
    "list": pa.array([["Paris"], ["Rome"], None]),
    "structs": pa.array([[{"text": "Paris", "answer_start": 0}], [{"text": "Rome", "answer_start": 1}], None]),
    "struct of lists": pa.array([{"text": ["Paris"], "start": [0]}, {"text": ["Rome"], "start": [1]}, None]),
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("form", ["parquet", "stream", "file"])
def test_answers_of_every_arrow_type_that_holds_texts(tmp_path: Path, kind: str, form: str) -> None:
    table = pa.table({"question": ["q0?", "q1?", "q2?"], "answer": TYPES[kind]})
    path = tmp_path / ("a.parquet" if form == "parquet" else "a.arrow")
    if form == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        path.write_bytes(stream(table) if form == "stream" else ipc_file(table))
    facts = read_dataset(path)
    assert facts.rows["answers"].to_list() == [["Paris"], ["Rome"], None]
    out = tmp_path / f"b{facts.suffix}"
    facts.annotate(pl.DataFrame({"row": [0], "category": ["x"]}), out)
    assert read_dataset(out).rows.equals(facts.rows)


def test_chats_in_a_list_of_structs_and_odd_columns_beside(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Capital?"}, {"role": "assistant", "content": "Paris"}]
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    table = pa.table({
        "messages": pa.array([chat, chat], pa.list_(turn)), "when": pa.array([1, 2], pa.timestamp("s")),
        "map": pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string())), "raw": pa.array([b"\xff", None]),
        "price": pa.array([1, 2]).cast(pa.decimal128(30, 2)), "nothing": pa.nulls(2),
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.arrow").write_bytes(stream(table))
    for name in ("a.parquet", "a.arrow"):
        facts = read_dataset(tmp_path / name)
        assert facts.rows["answers"].to_list() == [["Paris"], ["Paris"]]
        out = tmp_path / f"b{facts.suffix}"
        facts.annotate(pl.DataFrame({"row": [0], "category": ["x"]}), out)
        assert read_dataset(out).rows.equals(facts.rows)


@pytest.mark.parametrize(
    "column", [pa.array([1, 2]).cast(pa.decimal256(40, 2)), pa.array([(1, 2, 3)] * 2, pa.month_day_nano_interval())]
)
def test_a_type_that_cannot_be_read_is_refused_in_a_line(tmp_path: Path, column: Any) -> None:
    (tmp_path / "a.arrow").write_bytes(stream(pa.table({"question": ["a", "b"], "answer": ["c", "d"], "x": column})))
    with pytest.raises(InputError, match=r"a\.arrow: not a readable Arrow file"):
        read_dataset(tmp_path / "a.arrow")


# caches and downloads


def hub_cache(root: Path, revisions: dict[str, list[dict[str, Any]]], main: str | None) -> Path:
    """A data set as huggingface_hub keeps it: snapshots of links into blobs."""
    folder = root / "datasets--owner--name"
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    for revision, records in revisions.items():
        snapshot = folder / "snapshots" / revision / "data"
        snapshot.mkdir(parents=True)
        blob = folder / "blobs" / f"blob-{revision}"
        blob.write_text("".join(json.dumps(record) + "\n" for record in records))
        (snapshot / "train.jsonl").symlink_to(blob)
    if main is not None:
        (folder / "refs" / "main").write_text(main)
    return folder


RECORD = {"question": "Capital of France?", "answer": "Paris"}


def test_of_a_hub_cache_the_main_revision_is_read_and_said(tmp_path: Path) -> None:
    folder = hub_cache(tmp_path, {"aaa": [RECORD], "bbb": [RECORD, RECORD]}, "bbb\n")
    facts = read_dataset(folder)
    assert facts.total == 2
    assert "the hub's cache at refs/main, bbb, of 2 revisions" in facts.reason
    assert read_dataset(folder / "snapshots" / "aaa").total == 1
    assert read_dataset(tmp_path).total == 2


def test_a_hub_cache_that_does_not_tell_its_revision_is_refused(tmp_path: Path) -> None:
    folder = hub_cache(tmp_path, {"aaa": [RECORD], "bbb": [RECORD]}, "gone")
    with pytest.raises(
        InputError, match=r"revisions aaa, bbb, and refs/main names none of them\. Name one: .*/snapshots/aaa"
    ):
        read_dataset(folder)
    (tmp_path / "datasets--owner--other").mkdir()
    with pytest.raises(InputError, match=r"2 data sets: datasets--owner--name, datasets--owner--other\. Name one"):
        read_dataset(tmp_path)


def test_the_cache_of_datasets_is_read_by_its_own_info(tmp_path: Path) -> None:
    folder = tmp_path / "owner___name" / "default" / "0.0.0" / "abc"
    folder.mkdir(parents=True)
    table = pa.table({"question": ["q?"], "answer": ["a"]})
    for name in (
        "name-test-set-train.arrow",
        "name-test-set-test-00000-of-00002.arrow",
        "cache-0123456789abcdef.arrow",
    ):
        (folder / name).write_bytes(stream(table))
    (folder / "dataset_info.json").write_text(json.dumps({"splits": {"train": {}, "test": {}}}))
    facts = read_dataset(tmp_path / "owner___name")
    assert facts.rows["split"].to_list() == ["test", "train"]
    assert "only 1 of the 2 shards" in facts.reason
    other = tmp_path / "owner___name" / "other" / "0.0.0" / "abc"
    other.mkdir(parents=True)
    (other / "name-train.arrow").write_bytes(stream(table))
    (other / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match=r"found the configs default/0\.0\.0/abc, other/0\.0\.0/abc\. Name one"):
        read_dataset(tmp_path / "owner___name")


def downloaded(folder: Path, head: str) -> Path:
    for config in ("main", "socratic"):
        (folder / config).mkdir(parents=True)
        for split in ("train", "test"):
            pl.DataFrame([RECORD]).write_parquet(folder / config / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text(f"---\nlicense: mit\n{head}\n---\n# About\n")
    for name in ("dataset_infos.json", ".gitattributes", "_SUCCESS", "main/dataset_info.json", "main/_metadata"):
        (folder / name).write_text('{"default": {"question": "x", "answer": "y"}}')
    return folder


CONFIGS = """configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_dir: socratic"""


def test_several_configs_are_never_mixed(tmp_path: Path) -> None:
    folder = downloaded(tmp_path / "gsm", CONFIGS)
    with pytest.raises(InputError, match=r"found the configs main, socratic\. Name one: .*gsm/main"):
        read_dataset(folder)
    assert read_dataset(folder / "main").rows["split"].to_list() == ["test", "train"]
    (folder / "README.md").write_text(f"---\n{CONFIGS}\n  default: true\n---\n")
    facts = read_dataset(folder)
    assert facts.total == 2
    assert "the default config 'socratic' of README.md; not read: main" in facts.reason


@pytest.mark.parametrize(
    "head", ["", "configs: 7", "configs:\n- config_name: x\n  data_files: nothing/*", "a: [", "configs:\n- 7"]
)
def test_a_card_without_configs_changes_nothing(tmp_path: Path, head: str) -> None:
    assert read_dataset(downloaded(tmp_path / "gsm", head)).total == 4


@pytest.mark.parametrize(("path", "rows"), [("*.jsonl", 1), ("**/*.jsonl", 3), ("old/*", 1), ("old/**", 2)])
def test_patterns_of_a_card_are_read_as_datasets_reads_them(tmp_path: Path, path: str, rows: int) -> None:
    (tmp_path / "old" / "older").mkdir(parents=True)
    for name in ("a.jsonl", "old/b.jsonl", "old/older/c.jsonl"):
        (tmp_path / name).write_text(json.dumps(RECORD))
    (tmp_path / "README.md").write_text(f'---\nconfigs:\n- config_name: x\n  data_files: "{path}"\n---\n')
    assert read_dataset(tmp_path).total == rows


def test_a_card_whose_files_are_not_here_is_said(tmp_path: Path) -> None:
    facts = read_dataset(downloaded(tmp_path / "gsm", "configs:\n- config_name: x\n  data_files: nothing/*"))
    assert "README.md names files for its configs, and none of them is here" in facts.reason
    assert facts.total == 4


def test_files_about_data_are_never_data(tmp_path: Path) -> None:
    names = ["dataset_info.json", "a/state.json", "a/dataset_dict.json", "tokenizer_config.json", "b/croissant.json",
             "x.manifest.json", "train.csv.crc", "train.jsonl.lock", "_common_metadata.parquet"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps([RECORD]))
    (tmp_path / "train.jsonl").write_text(json.dumps(RECORD))
    facts = read_dataset(tmp_path)
    assert facts.total == 1
    assert f"{len(names)} left out" in facts.reason


def test_shards_that_are_missing_are_said(tmp_path: Path) -> None:
    for number in (0, 2):
        pl.DataFrame([RECORD]).write_parquet(tmp_path / f"train-{number:05}-of-00003.parquet")
    assert "only 2 of the 3 shards of train" in read_dataset(tmp_path).reason


# the whole road


def test_a_saved_data_set_is_audited_and_mixed_and_each_output_opens_as_datasets_opens_it(
    tmp_path: Path, tiny_folder: Path
) -> None:
    facts = fact_rows()
    sides = {
        "train": [row for row in facts if row["split"] == "train"],
        "dev": [r for r in facts if r["split"] == "dev"],
    }
    both = DatasetDict({name: Dataset.from_list(rows).remove_columns("split") for name, rows in sides.items()})
    both.save_to_disk(tmp_path / "in", num_shards={"train": 2, "dev": 1})
    audit = foreknow.audit(str(tmp_path / "in"), model=str(tiny_folder), out=str(tmp_path / "run"), dtype="float32")
    assert audit.rows.filter(pl.col("split") == "dev").height == len(sides["dev"])
    back = load_from_disk(str(tmp_path / "run" / "annotated"))
    assert {name: len(one) for name, one in back.items()} == {name: len(one) for name, one in both.items()}
    labels = dict(zip(back["train"]["question"][:], back["train"]["category"][:], strict=True))
    known = audit.rows.filter(pl.col("split") == "train")
    assert labels == dict(known.select("question", "category").iter_rows())
    mixed = write_mix(MixConfig(audit=tmp_path / "run", out=tmp_path / "mixed.arrow", drop=("unknown",)))
    rows = Dataset.from_file(str(mixed.path))
    assert "Unknown" not in rows["category"][:]
    assert rows["question"][:] == mixed.mix.rows["question"].to_list()
    assert set(rows["split"][:]) <= {"train", "dev"}
