"""Settings: YAML < flags, and a message that names the key and where it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from foreknow.config import AuditConfig
from foreknow.errors import ConfigError
from foreknow.settings import settings_of


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "audit.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def fault(given: dict[str, Any], file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        settings_of(AuditConfig, given, file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_the_papers() -> None:
    found = settings_of(AuditConfig, {"data": "facts"})
    assert (found.shots, found.exemplar_sets, found.samples) == (4, 10, 16)
    assert (found.temperature, found.top_k, found.match, found.protocol) == (0.5, 40, "strict", "exact")
    with pytest.raises(ValidationError):
        found.shots = 3  # type: ignore[misc]


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "data: a.jsonl\nshots: 2\nexemplar-sets: 3\ntop_k: 5\nout: somewhere\n")
    found = settings_of(AuditConfig, {"shots": 1, "top_k": 6}, file)
    assert (found.data, found.shots, found.exemplar_sets, found.top_k) == ("a.jsonl", 1, 3, 6)
    assert found.out == Path("somewhere")
    assert settings_of(AuditConfig, {"data": "b.jsonl"}, file).data == "b.jsonl"
    assert settings_of(AuditConfig, {"data": "x"}, written(tmp_path, "")) == AuditConfig(data="x")


def test_an_unknown_key_is_refused_by_name(tmp_path: Path) -> None:
    file = written(tmp_path, "data: a\nshot: 2\n")
    assert fault({}, file).startswith(f"{file}: shot: no such setting; known are backoff, base, ")
    assert fault({"data": "a", "exemplar_setz": 2}).startswith("--exemplar-setz: no such setting; known are ")
    assert fault({"shot": 3}, file).startswith("--shot: no such setting"), "the flag is the one that counts"


def test_the_file_is_named_for_its_keys_and_the_flag_for_its_own(tmp_path: Path) -> None:
    file = written(tmp_path, "data: a\nexemplar-sets: 0\n")
    assert fault({}, file) == f"{file}: exemplar_sets: found 0: input should be greater than or equal to 1"
    assert fault({"exemplar_sets": -1}, file).startswith("--exemplar-sets: found -1: ")
    assert settings_of(AuditConfig, {"exemplar_sets": 2}, file).exemplar_sets == 2


def test_data_must_be_given(tmp_path: Path) -> None:
    assert fault({}) == "data: missing; give it as an argument or in --config"
    assert fault({}, written(tmp_path, "shots: 2")) == "data: missing; give it as an argument or in --config"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe\x00\x01", "not YAML: "),
        ("a: [", "not YAML: "),
        ("- a", "found a list, expected keys with values"),
        ("words", "found a str, expected keys with values"),
        ("data: !!python/object/apply:os.getcwd []", "not YAML: "),
    ],
)
def test_a_file_that_is_not_settings(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = written(tmp_path, text)
    assert fault({}, file).startswith(f"--config {file}: {message}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in fault({}, tmp_path / "none.yaml")
    assert "cannot be read: Is a directory" in fault({}, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("data", 3, "--data: found 3: input should be a valid string"),
        ("limit", 0, "--limit: found 0: "),
        ("shots", -1, "--shots: found -1: "),
        ("shots", 1.5, "--shots: found 1.5: "),
        ("shots", "four", "--shots: found 'four': "),
        ("exemplar_sets", 0, "--exemplar-sets: found 0: "),
        ("samples", 0, "--samples: found 0: "),
        ("temperature", 0, "--temperature: found 0: "),
        ("temperature", float("nan"), "--temperature: found nan: "),
        ("top_k", -1, "--top-k: found -1: "),
        ("tolerance", 0, "--tolerance: found 0: "),
        ("max_expansions", 0, "--max-expansions: found 0: "),
        ("max_answer_tokens", 0, "--max-answer-tokens: found 0: "),
        ("max_unknown", 1.1, "--max-unknown: found 1.1: "),
        ("max_unknown", -0.1, "--max-unknown: found -0.1: "),
        ("batch_tokens", 0, "--batch-tokens: found 0: "),
        ("chunk_rows", 0, "--chunk-rows: found 0: "),
        ("seed", -1, "--seed: found -1: "),
        ("bos", "maybe", "--bos: found 'maybe': input should be 'auto', 'yes' or 'no'"),
        ("match", "loose", "--match: found 'loose': input should be 'strict' or 'lenient'"),
        ("protocol", "fast", "--protocol: found 'fast': input should be 'exact' or 'sampled'"),
        ("dtype", "int8", "--dtype: found 'int8', expected auto, float32, bfloat16 or float16"),
        ("strict_rows", "perhaps", "--strict-rows: found 'perhaps': "),
        ("out", 3, "--out: found 3: "),
    ],
)
def test_wrong_types_and_ranges(key: str, value: Any, told: str) -> None:
    assert fault({"data": "a", key: value}).startswith(told)


@pytest.mark.parametrize(
    ("word", "means"), [("no", "no"), ("yes", "yes"), ("off", "no"), ("'no'", "no"), ("auto", "auto")]
)
def test_yaml_may_say_bos_without_quotes(tmp_path: Path, word: str, means: str) -> None:
    assert settings_of(AuditConfig, {"data": "a"}, written(tmp_path, f"bos: {word}\n")).bos == means


@pytest.mark.parametrize(
    "value",
    [
        "question=q,answer=a",
        " question = q , answer=a,",
        ["question=q", "answer=a"],
        ("question=q,answer=a",),
        {"question": "q", "answer": "a"},
    ],
)
def test_forms_of_map(value: Any) -> None:
    assert settings_of(AuditConfig, {"data": "x", "map": value}).map == {"question": "q", "answer": "a"}


def test_map_keeps_what_follows_the_first_equals_sign() -> None:
    assert settings_of(AuditConfig, {"data": "x", "map": "question=a=b"}).map == {"question": "a=b"}
    assert settings_of(AuditConfig, {"data": "x", "map": ""}).map == {}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("question", "--map: found 'question': 'question': expected NAME=COLUMN, such as question=q,answer=a"),
        ("=q", "--map: found '=q': '=q': expected NAME=COLUMN"),
        (["question="], "--map: 'question=': expected NAME=COLUMN"),
        (3, "--map: found 3: input should be a valid dictionary"),
        ({"question": 1}, "--map: found 1: input should be a valid string"),
    ],
)
def test_a_map_that_is_none(value: Any, told: str) -> None:
    assert fault({"data": "x", "map": value}).startswith(told)


@settings(deadline=None, max_examples=40)
@given(
    st.fixed_dictionaries(
        {"data": st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1)},
        optional={
            "shots": st.integers(0, 20),
            "bos": st.sampled_from(["auto", "yes", "no"]),
            "temperature": st.floats(1e-3, 5),
            "limit": st.none() | st.integers(1, 10**6),
            "map": st.dictionaries(st.sampled_from(["question", "answer"]), st.text("abc=,: ", min_size=1)),
            "out": st.just("some/folder"),
            "dtype": st.sampled_from(["auto", "bfloat16"]),
        },
    )
)
def test_the_settings_written_to_a_run_folder_read_back(given: dict[str, Any]) -> None:
    config = settings_of(AuditConfig, given)
    again = yaml.safe_load(yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True))
    assert settings_of(AuditConfig, again) == config
    assert set(again) == set(AuditConfig.model_fields)


def test_the_json_schema_describes_every_field() -> None:
    schema = json.loads(json.dumps(AuditConfig.model_json_schema()))
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["data"]
    assert set(schema["properties"]) == set(AuditConfig.model_fields)
    for name, field in schema["properties"].items():
        assert field["description"].endswith("."), name
        assert len(field["description"]) > 15, name
        assert name == "data" or "default" in field, name
