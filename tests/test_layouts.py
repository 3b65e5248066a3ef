from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import write_jsonl

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from foreknow.data.chat.exchanges import Turn, exchanges, turns_of
from foreknow.data.dataset import read_dataset
from foreknow.data.layouts.registry import LAYOUTS
from foreknow.data.schema import USABLE
from foreknow.errors import ConfigError, InputError
from foreknow.prompts.prompt_template import Template

SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = [
    SYSTEM,
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Capital of France?"},
    {"role": "assistant", "content": "Paris"},
]
ROWS_OF: dict[str, dict[str, Any]] = {
    "question": {"id": 7, "question": "Capital of France?", "answer": "Paris", "note": None},
    "prompt-completion": {"prompt": "Capital of France?", "completion": "Paris", "score": 0.5},
    "messages": {"messages": CHAT, "source": "x"},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Capital of France?"},
            {"from": "gpt", "value": "Paris"},
        ],
        "system": "Be brief.",
    },
    "alpaca": {"instruction": "Name the capital.", "input": "France", "output": "Paris", "history": [["a", "b"]]},
    "popqa": {
        "id": 1, "subj": "France", "prop": "capital", "obj": "Paris", "s_pop": 12, "o_aliases": '["Lutetia"]',
        "question": "Capital of France?", "possible_answers": '["Paris", "City of Paris"]',
    },
    "triples": {"subject": "France", "relation": "capital", "object": "Paris", "question": "Capital of France?"},
    "preference": {"prompt": "Capital of France?", "chosen": "Paris", "rejected": "Rome", "score_chosen": 9},
    "choices": {"question": "Capital of France?", "choices": ["Rome", "Paris"], "answer": 1, "subject": "geography"},
    "reading": {
        "question": "Capital of France?", "context": "Paris is the capital.", "id": "7",
        "answers": {"text": ["Paris"], "answer_start": [0]},
    },
    "trees": {
        "message_tree_id": "t",
        "prompt": {
            "text": "Capital of France?", "role": "prompter",
            "replies": [{"text": "Paris", "role": "assistant", "replies": []}],
        },
    },
    "instances": {"instruction": "Capital of France?", "instances": [{"input": "", "output": "Paris"}]},
    "text": {"text": "<|im_start|>user\nCapital of France?<|im_end|>\n<|im_start|>assistant\nParis<|im_end|>\n"},
}  # fmt: skip


def one(tmp_path: Path, record: Mapping[str, Any], **how: Any) -> dict[str, Any]:
    """The row of a record; of a chat with several answers the last."""
    return read_dataset(write_jsonl(tmp_path / "a.jsonl", [record]), **how).rows.row(-1, named=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_found_with_its_reason(tmp_path: Path, layout: str) -> None:
    facts = read_dataset(write_jsonl(tmp_path / "a.jsonl", [ROWS_OF[layout]]))
    assert facts.layout == layout
    assert facts.reason.startswith(f"layout {layout}: ")
    row = facts.rows.row(-1, named=True)
    assert row["answers"][0] == "Paris"
    asked = {"alpaca": "Name the capital.\nFrance", "reading": "Capital of France?\nParis is the capital."}
    assert row["question"] == asked.get(layout, "Capital of France?")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_can_be_named(tmp_path: Path, layout: str) -> None:
    assert read_dataset(write_jsonl(tmp_path / "a.jsonl", [ROWS_OF[layout]]), layout=layout).layout == layout


def test_a_named_layout_that_the_file_is_not(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS_OF["question"]])
    with pytest.raises(InputError, match=r"--layout alpaca: expected the columns instruction"):
        read_dataset(path, layout="alpaca")
    with pytest.raises(ConfigError, match="no such layout; known are messages"):
        read_dataset(path, layout="parrot")


def test_the_turns_before_a_question_are_its_context(tmp_path: Path) -> None:
    row = one(tmp_path, ROWS_OF["messages"])
    assert [turn["content"] for turn in row["context"]] == ["Be brief.", "Hello?", "Hi."]
    assert "context" in row["flags"]
    assert one(tmp_path, ROWS_OF["question"])["context"] is None


def test_context_stands_in_the_prompt_before_the_question() -> None:
    context = [turn for turn in CHAT if turn["content"] not in ("Capital of France?", "Paris")]
    assert (
        Template().render([], "Capital of France?", context)
        == "Be brief.\nQ: Hello?\nA: Hi.\nQ: Capital of France?\nA:"
    )


def test_the_last_assistant_turn_is_an_answer_whatever_follows() -> None:
    (said,) = exchanges([Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")])
    assert (said.question, said.answer, said.context) == ("a", "b", [])
    (said,) = exchanges([Turn("assistant", "b")])
    assert (said.question, said.answer, said.left_out) == (None, None, "no_user_turn")
    (said,) = exchanges([Turn("user", "a")])
    assert (said.question, said.answer) == ("a", None)


def test_contents_may_be_lists_of_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Capital"}, {"type": "input_text", "text": "of France?"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "Paris"}]}]
    row = one(tmp_path, {"messages": chat})
    assert (row["question"], row["answers"]) == ("Capital\nof France?", ["Paris"])


def test_prompt_and_completion_may_be_turns(tmp_path: Path) -> None:
    record = {"prompt": CHAT[:4], "completion": CHAT[4:]}
    row = one(tmp_path, record)
    assert (row["question"], row["answers"], len(row["context"])) == ("Capital of France?", ["Paris"], 3)


def test_a_chat_without_an_answer_is_flagged_and_kept(tmp_path: Path) -> None:
    facts = read_dataset(
        write_jsonl(tmp_path / "a.jsonl", [{"messages": CHAT[:2]}, ROWS_OF["messages"], {"messages": 7}])
    )
    flags = [["context", "no_answer"], ["context"], ["context"], ["no_answer", "no_question"]]
    assert facts.rows["flags"].to_list() == flags
    with pytest.raises(InputError, match=r"a\.jsonl:1: no answer: messages is .*\. 2 of 4 rows cannot be used"):
        read_dataset(tmp_path / "a.jsonl", strict_rows=True)


def test_short_facts_of_a_row_come_with_it(tmp_path: Path) -> None:
    record = {**ROWS_OF["alpaca"], "facts": [{"question": "q", "answer": 7}, {"question": "", "answer": "a"}, 3]}
    assert one(tmp_path, record)["facts"] == [{"question": "q", "answer": "7"}]


def test_validation_is_another_name_of_dev(tmp_path: Path) -> None:
    assert one(tmp_path, {**ROWS_OF["question"], "split": "validation"})["split"] == "dev"


# where rows come from


def as_bytes(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


RECORDS = [{"question": f"q{n}?", "answer": f"a{n}"} for n in range(5)]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd.compress)])
@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_packed_files_read_and_come_back_packed(tmp_path: Path, suffix: str, pack: Any, kind: str) -> None:
    table = pl.DataFrame(RECORDS)
    buffer = io.BytesIO()
    if kind == ".parquet":
        table.write_parquet(buffer)
    elif kind == ".csv":
        table.write_csv(buffer)
    else:
        buffer.write(as_bytes(RECORDS))
    path = tmp_path / f"a{kind}{suffix}"
    path.write_bytes(pack(buffer.getvalue()))
    facts = read_dataset(path)
    assert facts.rows["question"].to_list() == [r["question"] for r in RECORDS]
    assert facts.suffix == kind + suffix
    out = tmp_path / f"b{facts.suffix}"
    facts.annotate(pl.DataFrame({"row": [1], "label": ["x"]}), out)
    assert read_dataset(out).rows.equals(facts.rows)
    assert out.read_bytes()[:2] == path.read_bytes()[:2]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.zip", "a.parquet", "a.parquet.gz"])
@pytest.mark.parametrize("content", [b"", b"not packed at all", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd0", b"PAR1xxxxPAR1"])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match="a\\."):
        read_dataset(path)


def test_a_truncated_gzip_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(as_bytes(RECORDS * 1000))[:-20])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: cannot be read"):
        read_dataset(path)


def tree(folder: Path) -> None:
    for name, records in (("train.jsonl", RECORDS[:3]), ("sub/validation.jsonl", RECORDS[3:])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / name, records)
    (folder / "README.md").write_text("about")
    (folder / "train.jsonl.manifest.json").write_text("{}")
    (folder / ".hidden.jsonl").write_text("broken")


def test_a_folder_is_read_and_written_as_a_folder(tmp_path: Path) -> None:
    tree(tmp_path / "in")
    facts = read_dataset(tmp_path / "in")
    assert facts.rows["split"].to_list() == ["dev", "dev", "train", "train", "train"]
    assert "split from the files' names" in facts.reason
    assert "3 left out" in facts.reason
    facts.annotate(pl.DataFrame({"row": [0], "label": ["x"]}), tmp_path / "out")
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")) == [
        "sub/validation.jsonl", "train.jsonl",
    ]  # fmt: skip
    assert read_dataset(tmp_path / "out").rows.equals(facts.rows)


def test_a_zip_is_read_and_written_as_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../train.jsonl", as_bytes(RECORDS[:3]))
        archive.writestr("d/test.csv", "question,answer\nq9?,a9\n")
    facts = read_dataset(tmp_path / "a.zip")
    assert facts.rows["split"].to_list() == ["train"] * 3 + ["test"]
    for out in ("b.zip", "c.zip"):
        facts.annotate(pl.DataFrame({"row": [3], "label": ["x"]}), tmp_path / out)
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "c.zip").read_bytes()
    assert read_dataset(tmp_path / "b.zip").rows.equals(facts.rows)
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert archive.read("d/test.csv") == b"question,answer,label\nq9?,a9,x\n"
    assert not (tmp_path.parent / "train.jsonl").exists()


def test_the_tree_of_entityquestions_tells_relation_split_and_subject(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / "dataset" / split).mkdir(parents=True)
        for relation, form in (("P17", "Which country is {} located in?"), ("P40", "Who is {}'s child?")):
            rows = [{"question": form.format(f"{chr(97 + n)} Place{n}"), "answers": ["x"]} for n in range(26)]
            (tmp_path / "dataset" / split / f"{relation}.{split}.json").write_text(json.dumps(rows))
    facts = read_dataset(tmp_path / "dataset")
    assert facts.rows["subject"].to_list() == [f"{chr(97 + n)} Place{n}" for n in range(26)] * 6
    assert facts.rows.select("relation", "split").unique().height == 6
    assert facts.rows["group"].equals(facts.rows["relation"].alias("group"))


@pytest.mark.parametrize("content", [as_bytes(RECORDS), json.dumps(RECORDS).encode(), b"question,answer\nq0?,a0\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input_is_told_by_its_beginning(content: bytes, pack: Any) -> None:
    code = (
        "from foreknow.data.dataset import read_dataset; f = read_dataset('-'); print(f.rows['question'][0], f.suffix)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pack(content), capture_output=True, check=True)
    assert done.stdout.decode().startswith("q0? .")


def test_names_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file.*write hub:owner/name"):
        read_dataset("owner/name")
    for name in ("hub:../../etc", "hub:owner"):
        with pytest.raises(InputError, match=r"expected hub:owner/name|cannot be fetched"):
            read_dataset(name)
    with pytest.raises(InputError, match=r"hub:owner/name: cannot be fetched from the hub"):
        read_dataset("hub:owner/name")
    (tmp_path / "a.txt").write_text("Paris is the capital of France.\n")
    with pytest.raises(InputError, match=r"unknown suffix '\.txt'"):
        read_dataset(tmp_path / "a.txt")


# a limit


def test_a_limit_keeps_the_drawn_rows_and_candidates_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreknow.data.dataset.CANDIDATES", 3)
    records = [
        {"question": f"q{n}?", "answer": "a", "relation": f"r{n % 2}", "split": "dev" if n % 10 == 0 else "train"}
        for n in range(200)
    ] + [{"question": "q1?", "answer": "b", "relation": "r1"}]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    whole, part = read_dataset(path), read_dataset(path, limit=20)
    assert part.total == 201
    assert part.digest == whole.digest
    assert part.audited.len() == 20
    assert part.rows.height == 20 + 3 + 3
    assert part.rows.equals(whole.rows.filter(pl.col("row").is_in(part.rows["row"].implode())))
    assert whole.rows.filter(pl.col("flags").list.contains("conflicting"))["row"].to_list() == [1, 200]


def test_a_limit_above_the_rows_is_no_limit(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*RECORDS, {"question": None, "answer": "x"}])
    assert read_dataset(path, limit=9).rows.equals(read_dataset(path).rows)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", RECORDS)
    import foreknow.data.dataset

    def meddle(*given: Any) -> pl.Series:
        write_jsonl(path, RECORDS[:4])
        return original(*given)

    original = foreknow.data.dataset.sample_rows
    monkeypatch.setattr(foreknow.data.dataset, "sample_rows", meddle)
    with pytest.raises(InputError, match="changed while it was read"):
        read_dataset(path, limit=2)


# round trips

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=8).filter(
    lambda text: bool(text.strip())
)
turn_lists = st.lists(
    st.builds(lambda r, c: {"role": r, "content": c}, st.sampled_from(["user", "assistant", "system"]), texts),
    max_size=4,
)


def made(layout: str, question: str, answer: str, turns: list[dict[str, str]]) -> dict[str, Any]:
    ends = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {
        "question": {"question": question, "answer": answer},
        "prompt-completion": {"prompt": [*turns, ends[0]], "completion": ends[1:]},
        "messages": {"messages": [*turns, *ends]},
        "sharegpt": {"conversations": [{"from": t["role"], "value": t["content"]} for t in [*turns, *ends]]},
        "alpaca": {"instruction": question, "input": "", "output": answer},
        "popqa": {"subj": "s", "prop": "p", "obj": answer, "question": question, "possible_answers": [answer]},
        "triples": {"subject": "s", "relation": "r", "object": answer, "question": question},
        "preference": {"prompt": [*turns, ends[0]], "chosen": ends[1:], "rejected": [{**ends[1], "content": "no"}]},
        "choices": {
            "question": question,
            "choices": {"text": [answer, f"{answer}!"], "label": ["1", "2"]},
            "answerKey": "1",
        },
        "reading": {
            "question": question,
            "context": f"It is {answer}.",
            "answers": {"text": [answer], "answer_start": [6]},
        },
        "trees": {"prompt": {"text": question, "role": "prompter", "replies": [{"text": answer, "role": "assistant"}]}},
        "instances": {"instruction": question, "instances": [{"input": "", "output": answer}]},
        "text": {"text": "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in [*turns, *ends])},
    }[layout]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(LAYOUTS),
    st.lists(st.tuples(texts, texts, turn_lists), min_size=1, max_size=4),
    st.sampled_from([".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet"]),
    st.data(),
)
def test_read_write_read_is_the_identity(layout: str, rows: list[Any], suffix: str, data: st.DataObject) -> None:
    if layout == "text":  # which has no way to mark an earlier answer
        rows = [(q, a, [turn for turn in turns if turn["role"] != "assistant"]) for q, a, turns in rows]
    records = [{"n": n, **made(layout, *row), "x": {"y": n}} for n, row in enumerate(rows)]
    with tempfile.TemporaryDirectory() as folder:
        path, out, some = (Path(folder, f"{name}{suffix}") for name in "abc")
        if suffix == ".parquet":
            pl.DataFrame(records).write_parquet(path)
        else:
            body = json.dumps(records).encode() if suffix == ".json" else as_bytes(records)
            path.write_bytes(
                gzip.compress(body) if suffix.endswith("gz") else zstd.compress(body) if "zst" in suffix else body
            )
        facts = read_dataset(path, layout=layout)
        last = facts.rows.group_by("record", maintain_order=True).last()
        passage = {"reading": "\nIt is {}."}.get(layout, "")
        asked = [f"{q.strip()}{passage.format(a)}" for q, a, _ in rows]
        assert last["question"].to_list() == asked
        facts.annotate(pl.DataFrame({"row": [0], "label": ["x"]}), out)
        assert read_dataset(out, layout=layout).rows.equals(facts.rows)
        untouched = read_dataset(out, layout=layout).extra(["n", "x"])
        assert untouched.equals(facts.extra(["n", "x"]))
        # a subset with one answer replaced: all else as it was, and no other answer is one to learn
        usable = facts.rows.filter(USABLE)
        kept = sorted(data.draw(st.sets(st.sampled_from(usable["row"].to_list()), min_size=1)))
        facts.write(pl.DataFrame({"row": kept, "label": ["x"] * len(kept)}), some, {kept[-1]: "I don't know."})
        back = read_dataset(some, layout=layout)
        again = back.rows.filter(USABLE)
        same = ["question", "context", "turn", "subject", "relation"]
        chosen = facts.rows[kept]
        assert again.select(same).equals(chosen.select(same))
        assert again["answers"].to_list() == [*chosen["answers"].to_list()[:-1], ["I don't know."]]
        assert back.extra(["n"])["n"][again["row"].to_list()].to_list() == facts.extra(["n"])["n"][kept].to_list()


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda v: (
            st.lists(v, max_size=3)
            | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text"]), v, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_any_value_is_a_chat_or_none(value: Any) -> None:
    for said in exchanges(turns_of(value) or []):
        assert said.question is None or isinstance(said.question, str)


def test_a_first_line_that_is_a_row_is_not_offered_as_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Capital of Peru?,Lima\nCapital of Chad?,N'Djamena\n", encoding="utf-8")
    with pytest.raises(InputError, match="look like a row and not like names") as caught:
        read_dataset(path)
    assert "--map" not in str(caught.value)
