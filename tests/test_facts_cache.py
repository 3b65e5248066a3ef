"""The cache of compiled facts: read where nothing changed, and never where it is damaged or of other code."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from foreknow.data.builtin.facts_cache import cached_frame
from foreknow.errors import MissingExtra
from foreknow.io.remote_paths import cache_folder

FRAME = pl.DataFrame(
    {"question": ["q?"], "answers": [["a", "b"]], "popularity": [None]}, schema_overrides={"popularity": pl.Float64}
)


class Compiler:
    """Counts how often it compiles."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> pl.DataFrame:
        self.times += 1
        return FRAME


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOREKNOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "code.py"
    path.write_text("1")
    return path


def test_it_is_compiled_once_until_the_code_changes(code: Path) -> None:
    compiler = Compiler()
    for _ in range(3):
        assert cached_frame(compiler, ["polars"], [code]).equals(FRAME)
    assert cached_frame(compiler, ["polars"], [code]).schema == FRAME.schema
    assert compiler.times == 1
    code.write_text("2")
    cached_frame(compiler, ["polars"], [code])
    assert compiler.times == 2
    cached_frame(compiler, ["polars", "numpy"], [code])
    assert compiler.times == 3


def test_a_damaged_file_is_compiled_again(code: Path) -> None:
    compiler = Compiler()
    cached_frame(compiler, ["polars"], [code])
    (file,) = (cache_folder() / "facts").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-3])
    assert cached_frame(compiler, ["polars"], [code]).equals(FRAME)
    assert compiler.times == 2


def test_a_cache_that_cannot_be_written_is_no_error(code: Path, cache: Path) -> None:
    cache.write_text("a file where the folder would be")
    compiler = Compiler()
    assert cached_frame(compiler, ["polars"], [code]).equals(FRAME)
    assert cached_frame(compiler, ["polars"], [code]).equals(FRAME)
    assert compiler.times == 2


def test_a_missing_package_is_for_the_compiler_to_say(code: Path) -> None:
    def missing() -> pl.DataFrame:
        raise MissingExtra("install it")

    with pytest.raises(MissingExtra, match="install it"):
        cached_frame(missing, ["no-such-package-anywhere"], [code])
