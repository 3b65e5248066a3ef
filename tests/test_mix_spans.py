"""Training sets by the labels of spans inside long answers: a share of new spans, rows dropped, masked or cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.config import MixConfig
from foreknow.data.dataset import read_dataset
from foreknow.data.sentences import sentences, without_breaks_inside, without_sentences
from foreknow.data.spans.column import ColumnFinder
from foreknow.data.spans.finder import AnswerText
from foreknow.data.spans.schema import SPAN_COUNTS, is_new, span_labels
from foreknow.errors import ConfigError, InputError
from foreknow.io.run_dir import write_frame
from foreknow.stages.mix.run import write_mix
from foreknow.stages.mix.sampling import read_manifest, rows_of
from foreknow.stages.mix.span_edits import cut_sentences, mask_spans
from foreknow.stages.mix.span_mix import span_mix_table
from foreknow.stages.mix.span_sampling import SpanRow, draw_share
from span_files import Label, add_spans, by_turns, span_table
from test_mix_run import audited


def answer(n: int) -> str:
    return (
        f"Anna Berg met number {n} on day {n + 100}. They were friends. Then Dr. Carl paid 3.5 crowns to House {n}.\n\n"
        f"In the end {n + 7} people saw it."
    )


FLAT = [{"id": n, "question": f"What of {n}?", "answer": answer(n)} for n in range(40)]
CHATS = [
    {
        "id": n,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": f"What of {n}?"},
            {"role": "assistant", "content": answer(n)},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": answer(n + 500)},
        ],
    }
    for n in range(12)
]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def few_new(text: str, at: int) -> Label:
    """Rows differ in their share of new spans."""
    return ("Unknown", at % 3 == 0) if text.isdigit() and int(text) % 5 < 2 else ("HighlyKnown", True)


@pytest.mark.parametrize("share", [0.13, 0.15, 0.2, 0.22])
@pytest.mark.parametrize("size", [None, 12])
def test_a_set_has_the_share_of_new_spans_that_was_asked_for(tmp_path: Path, share: float, size: int | None) -> None:
    audit = audited(tmp_path, FLAT)
    spans = add_spans(audit, few_new, list(range(40)))
    written = write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", new_share=share, size=size))
    rows = written.mix.rows["row"].to_list()
    drawn = spans.filter(pl.col("row").is_in(rows))
    reached = drawn.filter(is_new()).height / drawn.height
    manifest = read_manifest(tmp_path / "mix.jsonl")
    assert manifest["spans"]["new_share"] == {"asked": share, "achieved": pytest.approx(reached)}
    assert abs(reached - share) <= 0.01
    assert rows_of(manifest) == rows == [line["id"] for line in lines_of(tmp_path / "mix.jsonl")]
    assert size is None or len(rows) == size
    assert f"asked for {share:.2%}" in "\n".join(written.mix.notes)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=2, max_size=9),
    st.integers(0, 10),
    st.data(),
)
def test_a_drawn_share_is_close_to_the_best_of_all_sets_of_its_size(
    counts: list[tuple[int, int]], tenths: int, data: st.DataObject
) -> None:
    from itertools import combinations

    rows = [SpanRow(n, (n * 7919) % 31, spans, min(new, spans)) for n, (spans, new) in enumerate(counts)]
    share = tenths / 10
    size = data.draw(st.integers(1, len(rows)))
    ends = [row.new / row.spans for row in rows]
    if not min(ends) <= share <= max(ends):
        with pytest.raises(InputError, match="the share of new spans in a row runs"):
            draw_share(rows, share, size)
        return
    chosen = draw_share(rows, share, size)

    def off(numbers: tuple[int, ...] | list[int]) -> float:
        return abs(sum(rows[n].new - share * rows[n].spans for n in numbers))

    assert len(set(chosen)) == size
    best = min(off(some) for some in combinations(range(len(rows)), size))
    one_swap = [off([*(set(chosen) - {old}), new]) for old in chosen for new in range(len(rows)) if new not in chosen]
    assert off(chosen) <= min(one_swap, default=off(chosen)) + 1e-9
    assert off(chosen) >= best - 1e-9


def test_rows_above_a_share_are_dropped_and_counted(tmp_path: Path) -> None:
    audit = audited(tmp_path, FLAT)
    spans = add_spans(audit, few_new, list(range(30)))  # the last ten rows are short ones
    config = MixConfig(audit=audit, out=tmp_path / "mix.jsonl", drop_new_above=0.25)
    written = write_mix(config)
    share = dict(spans.group_by("row").agg(is_new().mean()).iter_rows())
    assert written.mix.rows["row"].to_list() == [n for n in range(40) if share.get(n, 0.0) <= 0.25]
    assert written.mix.manifest["spans"]["drop_new_above"] == {"share": 0.25, "rows": 40 - written.mix.rows.height}
    assert written.mix.manifest["spans"]["rows"]["short"] == 10


@pytest.mark.parametrize("how", [{"mask": "new"}, {"cut": "new"}, {"drop_new_above": 0.9}])
def test_short_rows_that_the_audit_could_not_ask_stay(tmp_path: Path, how: dict[str, Any]) -> None:
    """A file of long answers has too few short ones for exemplars."""
    audit = audited(tmp_path, FLAT)
    add_spans(audit, few_new, list(range(30)))
    file, short = audit / "rows.parquet", pl.col("row") >= 30
    rows = pl.read_parquet(file).with_columns(
        category=pl.when(~short).then("category"),
        flags=pl.when(short).then(pl.lit(["no_exemplars"])).otherwise("flags"),
    )
    write_frame(file, rows)
    written = write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", **how))
    assert set(range(30, 40)) <= set(written.mix.rows["row"])
    assert written.mix.manifest["spans"]["rows"]["short"] == 10
    assert not [note for note in written.mix.notes if "never drawn" in note]
    if "drop_new_above" in how:  # it does not go with --drop
        return
    without = write_mix(MixConfig(audit=audit, out=tmp_path / "other.jsonl", drop=("Unknown",), **how))
    assert not set(range(30, 40)) & set(without.mix.rows["row"]), "whether they are Unknown is not known"
    assert any("10 rows with a short answer that the audit could not ask" in note for note in without.mix.notes)


@pytest.mark.parametrize("labelled_spans", [False, True])
def test_rows_above_a_share_of_unknown_facts_are_dropped_and_counted(tmp_path: Path, labelled_spans: bool) -> None:
    """Facts are those of `foreknow extract`: 4 in each row but every fifth, which has none, and its short rows."""
    audit = audited(tmp_path, FLAT)
    add_spans(audit, few_new, list(range(30)))
    if not labelled_spans:
        (audit / "spans.parquet").unlink()
    without = MixConfig(audit=audit, out=tmp_path / "none.jsonl", drop_facts_above=0.5)
    file = audit / "rows.parquet"
    bare = pl.read_parquet(file).with_columns(n_facts=pl.lit(None, pl.Int64), unknown_facts=pl.lit(None, pl.Float64))
    write_frame(file, bare)
    with pytest.raises(InputError, match="found no row with labelled facts, which --drop-facts-above needs"):
        write_mix(without)
    has = (pl.col("row") < 30) & (pl.col("row") % 5 != 0)
    share = (pl.col("row") % 5 - 1) / 4 + 0.25
    write_frame(file, bare.with_columns(n_facts=pl.when(has).then(4), unknown_facts=pl.when(has).then(share)))
    written = write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", drop_facts_above=0.5))
    assert written.mix.rows["row"].to_list() == [n for n in range(40) if n >= 30 or n % 5 in (0, 1, 2)]
    assert written.mix.manifest["spans"]["drop_facts_above"] == {"share": 0.5, "rows": 12}
    assert any("12 rows dropped: more than 50.0% of their facts are Unknown" in note for note in written.mix.notes)
    if labelled_spans:
        masked = write_mix(MixConfig(audit=audit, out=tmp_path / "masked.jsonl", drop_facts_above=0.5, mask="new"))
        assert masked.mix.rows["row"].to_list() == written.mix.rows["row"].to_list()
        assert masked.mix.rows["loss_exclude"].list.len().sum() > 0


@pytest.mark.parametrize("which", ["new", "unknown"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_masked_characters_are_those_of_the_spans_and_the_answer_stays(tmp_path: Path, which: Any, suffix: str) -> None:
    audit = audited(tmp_path, FLAT, suffix)
    spans = add_spans(audit, by_turns, list(range(40)))
    out = tmp_path / f"mix{suffix}"
    written = write_mix(MixConfig(audit=audit, out=out, mask=which))
    lines = lines_of(out) if suffix == ".jsonl" else json.loads(out.read_text())
    chosen = spans.filter(is_new() if which == "new" else pl.col("category") == "Unknown")
    for line in lines:
        assert line["answer"] == answer(line["id"])
        texts = [line["answer"][start:end] for start, end in line["loss_exclude"]]
        assert texts == chosen.filter(pl.col("row") == line["id"])["text"].to_list()
    mask = written.mix.manifest["spans"]["mask"]
    assert mask["spans"] == chosen.height
    assert mask["characters"] == chosen["text"].str.len_chars().sum()
    assert mask["of_characters"] == sum(len(answer(n)) for n in range(40))


def test_in_chats_every_answer_has_its_own_ranges(tmp_path: Path) -> None:
    audit = audited(tmp_path, CHATS)
    spans = add_spans(audit, by_turns, list(range(24)))
    out = tmp_path / "mix.jsonl"
    write_mix(MixConfig(audit=audit, out=out, mask="new"))
    facts = read_dataset(out)
    assert facts.rows.height == 24
    read = facts.extra(["loss_exclude"])
    for row, text in read.iter_rows():
        own = facts.rows.filter(pl.col("row") == row)["answers"][0][0]
        new = spans.filter(is_new(), pl.col("row") == row)["text"].to_list()
        assert [own[start:end] for start, end in json.loads(text)] == new


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_masked_ranges_survive_flat_formats(tmp_path: Path, suffix: str) -> None:
    audit = audited(tmp_path, FLAT)
    spans = add_spans(audit, by_turns, list(range(40)))
    annotated = audit / "annotated.jsonl"
    frame = pl.read_ndjson(annotated)
    annotated.unlink()
    target = audit / f"annotated{suffix}"
    frame.write_csv(target) if suffix == ".csv" else frame.write_parquet(target)
    out = tmp_path / f"mix{suffix}"
    write_mix(MixConfig(audit=audit, out=out, mask="new"))
    read = dict(read_dataset(out).extra(["loss_exclude"]).iter_rows())
    for row, text in read.items():
        new = spans.filter(is_new(), pl.col("row") == row)["text"].to_list()
        assert [answer(row)[start:end] for start, end in json.loads(text)] == new


def test_sentences_go_whose_only_spans_are_new(tmp_path: Path) -> None:
    records = [
        {"question": "a?", "answer": "Anna came in 1990. Nobody saw 2000. It was cold.\n\nBerg paid 3000 to Dr. Carl."},
        {"question": "b?", "answer": "Only 4000 remain."},
        {"question": "c?", "answer": "Anna stays."},
    ]
    audit = audited(tmp_path, records)

    def label(text: str, _: int) -> Label:
        return ("Unknown", False) if text in ("2000", "3000", "4000", "Nobody", "Only") else ("HighlyKnown", True)

    add_spans(audit, label, [0, 1, 2])
    written = write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", cut="new"))
    lines = lines_of(tmp_path / "mix.jsonl")
    assert [line["answer"] for line in lines] == [
        "Anna came in 1990. It was cold.\n\nBerg paid 3000 to Dr. Carl.", "Anna stays.",
    ]  # fmt: skip
    cut = written.mix.manifest["spans"]["cut"]
    assert cut == {
        "rows": 1, "sentences": 2, "spans": 4, "characters": len("Nobody saw 2000. ") + len("Only 4000 remain."),
        "empty_rows": {"rows": 1, "first": [1]},
        "before": {"labelled": 12, "unknown": 5, "new": 5, "new_share": 5 / 12, "rows": 3},
    }  # fmt: skip
    assert "1 row dropped, as nothing was left of their answer (row 1, counted from 0)" in written.mix.notes
    assert all("loss_exclude" not in line for line in lines)


def annotate(audit: Path, spans: pl.DataFrame, suffix: str) -> None:
    """Write the labels of spans into the annotated file, as an audit does."""
    rows = pl.read_parquet(audit / "rows.parquet").select("row", *(n for n in SPAN_COUNTS if n != "row"))
    labels = rows.join(span_labels(spans), on="row", how="left", maintain_order="left")
    labels = labels.with_columns(answer_tokens=pl.lit(40, pl.Int64()), logprob=pl.lit(-90.5))
    file = audit / "annotated.jsonl"
    bare = audit.parent / f"bare{suffix}"
    if suffix == ".parquet":
        pl.read_ndjson(file).write_parquet(bare)
    elif suffix == ".csv":
        pl.read_ndjson(file).write_csv(bare)
    else:
        bare.write_bytes(file.read_bytes())
    file.unlink()
    read_dataset(bare).annotate(labels, audit / f"annotated{suffix}")


def third_sentence_new(text: str, at: int) -> Label:
    """In every answer the second sentence is new to the model, in every other one the third too."""
    known = text in ("Anna Berg", "In") or (text != "They" and at // 13 % 2 == 0)
    return ("HighlyKnown", True) if known else ("Unknown", False)


@pytest.mark.parametrize(
    ("records", "suffix"),
    [(FLAT[:8], ".jsonl"), (FLAT[:8], ".parquet"), (FLAT[:8], ".csv"), (CHATS, ".jsonl"), (CHATS, ".parquet")],
    ids=["flat", "flat-parquet", "flat-csv", "chats", "chats-parquet"],
)
@pytest.mark.parametrize("how", [{}, {"drop_new_above": 0.7}], ids=["cut", "cut-and-drop"])
def test_after_a_cut_spans_and_counts_speak_of_the_answers_as_written(
    tmp_path: Path, records: list[dict[str, Any]], suffix: str, how: dict[str, Any]
) -> None:
    audit = audited(tmp_path, records)
    spans = add_spans(audit, third_sentence_new, list(range(8 if records is not CHATS else 24)))
    annotate(audit, spans, suffix)
    out = tmp_path / f"mix{suffix}"
    written = write_mix(MixConfig(audit=audit, out=out, cut="new", **how))
    facts = read_dataset(out)
    names = ["spans", "n_spans", "new_spans", "spans_category"]
    if records is not CHATS:
        is_cut = written.mix.rows["new_answer"].is_not_null().to_list()
        for name in ("answer_tokens", "logprob"):  # they hold for the whole answer
            has_value = [value not in (None, "") for value in facts.extra([name])[name]]
            assert has_value == [not cut for cut in is_cut], name
    learnt = facts.rows.filter(pl.col("answers").is_not_null())  # the others are marked not to be learnt
    read = learnt.join(facts.extra(names), on="row", suffix="_read")
    found = []
    for row, answers, *values in read.select("row", "answers", "spans_read", *names[1:]).iter_rows():
        own, counts = json.loads(values[0] or "[]"), values[1:]
        assert [answers[0][span["start"] : span["end"]] for span in own] == [span["text"] for span in own], row
        assert [int(count) for count in counts[:2]] == [len(own), sum(span["new"] for span in own)]
        assert counts[2] == ("mixed" if any(span["category"] == "Unknown" for span in own) else "known")
        found += own
    of = written.mix.manifest["spans"]
    assert written.mix.rows["new_answer"].count() == of["cut"]["rows"] > 0
    assert (of["labelled"], of["new"]) == (len(found), sum(span["new"] for span in found))
    assert of["new_share"]["achieved"] == pytest.approx(of["new"] / of["labelled"])
    assert of["cut"]["before"]["labelled"] - of["cut"]["spans"] == of["labelled"]
    assert span_mix_table(written.mix)["spans"].to_list() == [len(found)]
    assert any(f"written: {written.mix.rows.height} rows with {len(found)} labelled" in n for n in written.mix.notes)


def _own(n: int) -> list[object]:
    """A user's own spans, in each of the forms that the column takes."""
    text = answer(n)
    place = text.index("Carl")
    last = text.index("people")
    return [
        "Anna Berg",
        "They",
        [place, place + 4],
        {"start": last, "end": last + 6, "text": "people", "type": "name"},
        {"text": "saw"},
    ]


def _thoughtful(record: dict[str, Any]) -> dict[str, Any]:
    """The record with a thought before its answer, and its spans counted from the thought on."""
    thought = "<think>Who met whom?</think>\n"

    def moved(entry: object) -> object:
        if isinstance(entry, list):
            return [place + len(thought) for place in entry]
        if isinstance(entry, dict) and "start" in entry:
            return {**entry, "start": entry["start"] + len(thought), "end": entry["end"] + len(thought)}
        return entry

    return {**record, "answer": thought + record["answer"], "spans": [moved(entry) for entry in record["spans"]]}


@pytest.mark.parametrize("kind", ["flat", "thoughts", "chats"])
def test_spans_of_the_users_own_column_move_too(tmp_path: Path, kind: str) -> None:
    of_chat = kind == "chats"
    shift = 500 * of_chat  # spans of a chat are those of its last answer
    records = [{**record, "spans": _own(record["id"] + shift)} for record in (CHATS if of_chat else FLAT)[:4]]
    audit = audited(tmp_path, list(map(_thoughtful, records)) if kind == "thoughts" else records)
    spans = add_spans(audit, third_sentence_new, list(range(4 + 4 * of_chat)))
    annotate(audit, spans, ".jsonl")
    assert "foreknow_spans" in lines_of(audit / "annotated.jsonl")[0]
    write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", cut="new"))
    for line in lines_of(tmp_path / "mix.jsonl"):
        text = line["messages"][-1]["content"] if of_chat else line["answer"]
        first, *others = line["spans"]
        carl = [text[start:end] for start, end in (one for one in others if isinstance(one, list))]
        people, saw = others[-2:]
        assert first == "Anna Berg"
        assert carl == (["Carl"] if "Carl" in text else [])
        assert "They" not in others
        assert text[people["start"] : people["end"]] == people["text"] == "people"
        assert saw == {"text": "saw"}
        text = text.removeprefix("<think>Who met whom?</think>\n")
        ours = line["foreknow_spans"][-1] if of_chat else line["foreknow_spans"]
        assert all(text[span["start"] : span["end"]] == span["text"] for span in ours)
    assert any("Carl" not in json.dumps(line["spans"]) for line in lines_of(tmp_path / "mix.jsonl"))
    read = read_dataset(tmp_path / "mix.jsonl").rows.select("row", "answers", "spans")
    found = ColumnFinder("mix.jsonl").find([AnswerText(row, text[0], "", own) for row, text, own in read.iter_rows()])
    assert sum(map(len, found)) == sum(len(line["spans"]) for line in lines_of(tmp_path / "mix.jsonl"))


def test_cut_in_a_chat_changes_that_turn_only(tmp_path: Path) -> None:
    audit = audited(tmp_path, CHATS)
    add_spans(audit, lambda text, _: ("Unknown", False) if text.isdigit() else ("HighlyKnown", True), list(range(24)))
    write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", cut="new"))
    for line in lines_of(tmp_path / "mix.jsonl"):
        turns = [turn["content"] for turn in line["messages"]]
        first = answer(line["id"])
        assert turns[0] == "Be kind."
        assert turns[2] == first  # its last sentence has a span of its own that is known: In
        assert "people saw it" in turns[4]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Dr. Smith paid 3.5 kr. in 1990. He left.", ["Dr. Smith paid 3.5 kr. in 1990. ", "He left."]),
        ("At 5 p.m. on Monday the U.S. Navy came. It left!", ["At 5 p.m. on Monday the U.S. Navy came. ", "It left!"]),
        ("1. Open it. 2. Close it.\n- and\n- more", ["1. Open it. ", "2. Close it.\n", "- and\n", "- more"]),
        ("“Come!” he said. J. K. Rowling went.", ["“Come!” he said. ", "J. K. Rowling went."]),
        ("東京です。大阪です。", ["東京です。", "大阪です。"]),
        ("It cost 1.234.567. Then 12.5. End", ["It cost 1.234.567. ", "Then 12.5. ", "End"]),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text: str, parts: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == parts


@given(st.text(alphabet='aB1. !?\n。,"e', max_size=60), st.data())
def test_sentences_cover_the_text_and_what_is_cut_is_gone(text: str, data: st.DataObject) -> None:
    places = sentences(text)
    assert "".join(text[start:end] for start, end in places) == text
    whole = data.draw(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8)).map(lambda p: (p[0], sum(p)))))
    joined = without_breaks_inside(places, whole)
    borders = {end for _, end in joined[:-1]}
    assert all(not start < border < end for border in borders for start, end in whole)
    assert without_sentences(text, places, []) == text.strip()
    assert without_sentences(text, places, places) == ""


def test_a_sentence_with_a_span_that_is_not_labelled_stays() -> None:
    answers = {0: "Known 12 is here. New 34 is here. Bare 56 is here."}
    labels = {"Known": "HighlyKnown", "12": "Unknown", "New": "Unknown", "34": "Unknown", "56": "Unknown"}
    spans = span_table(answers, lambda text, _: (labels.get(text), None))
    cut = cut_sentences(answers, spans)
    assert cut.answers == {0: "Known 12 is here. Bare 56 is here."}
    assert mask_spans(spans, "new").ranges[0] == [[6, 8], [18, 21], [22, 24], [39, 41]]


def test_an_audit_without_labels_of_spans_and_settings_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    audit = audited(tmp_path, FLAT)
    with pytest.raises(
        InputError, match=r"no row with a long answer, which --mask new is for; .* --drop unknown, --we"
    ):
        write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", mask="new"))
    add_spans(audit, by_turns, list(range(40)))
    (audit / "spans.parquet").unlink()
    with pytest.raises(InputError, match=r"found no labels of spans .* which --mask new needs; audit the file again"):
        write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", mask="new"))
    for wrong, what in (
        ({"mask": "new", "cut": "new"}, "found both"),
        ({"mask": "new", "unknown": 0.5}, "draws rows by their own category"),
        ({"new_share": 0.2, "idk": True}, "--idk is for rows with a category"),
        ({"new_share": 0.2, "drop": ("Unknown",)}, "found both"),
        ({"natural": True, "model": "x"}, "--model: found without --mask"),
    ):
        with pytest.raises(ConfigError, match=what):
            MixConfig(audit=audit, out=tmp_path / "mix.jsonl", **wrong)
    add_spans(audit, by_turns, list(range(40)))
    spans = pl.read_parquet(audit / "spans.parquet").with_columns(start=pl.col("start") + 1)
    spans.write_parquet(audit / "spans.parquet")
    with pytest.raises(InputError, match=r"row 0: found .* at characters 1 to"):
        write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", mask="new"))


def test_drop_goes_with_mask_and_takes_short_rows_only(tmp_path: Path) -> None:
    audit = audited(tmp_path, FLAT)
    add_spans(audit, by_turns, list(range(20)))
    written = write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", mask="new", drop=("Unknown",)))
    rows = written.mix.rows
    assert rows.filter(pl.col("row") < 20).height == 20
    assert set(rows["category"].drop_nulls()) == {"HighlyKnown", "MaybeKnown", "WeaklyKnown"}


def test_rows_of_other_splits_are_not_counted_as_too_long(tmp_path: Path) -> None:
    audit = audited(tmp_path, [{**row, "split": "train" if row["id"] < 30 else "test"} for row in FLAT])
    add_spans(audit, by_turns, list(range(40)))
    written = write_mix(MixConfig(audit=audit, out=tmp_path / "mix.jsonl", mask="new"))
    assert written.mix.rows.height == 30
    assert written.mix.manifest["left_out"] == {}
    assert not [note for note in written.mix.notes if "never drawn" in note]
