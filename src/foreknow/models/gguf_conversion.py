"""Converts GGUF files to safetensors.

A file is converted once, into a folder of the user's cache that is named after its checksum; later loads read that
folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from foreknow.errors import ModelError, ResourceError, first_line
from foreknow.io.remote_paths import cache_folder
from foreknow.models.checkpoint_check import LoadedTensors, check_loaded
from foreknow.models.checksums import checksums_of
from foreknow.models.gguf_files import check_tensor_count, read_gguf, scale_rope
from foreknow.models.model_checks import check_finite
from foreknow.models.quiet import quiet
from foreknow.models.weight_files import WeightFiles

CONVERSION: Final = 2
"""Raise this when the conversion below writes something else: cached conversions of another number are not used."""


def converted_folder(gguf_sha256: str, conversion: int = CONVERSION) -> Path:
    """Return the cache folder of a converted GGUF file with this checksum. `conversion`: see `CONVERSION`."""
    return cache_folder() / "models" / f"{gguf_sha256[:16]}-v{conversion}"


def convert(gguf: Path, checksum: str, name: str, log: Callable[[str], None]) -> Path:
    """Return the safetensors folder of a GGUF file; the first process that needs it converts it."""
    done = converted_folder(checksum)
    return convert_once(done, lambda: write_converted(gguf, checksum, name, done, log))


def convert_once(done: Path, write: Callable[[], Path]) -> Path:
    """Return the folder `done`, which the first process that needs it writes; others wait until it is complete."""
    if (done / "foreknow.json").is_file():
        return done
    with _lock(done):
        return done if (done / "foreknow.json").is_file() else write()


def write_converted(gguf: Path, checksum: str, name: str, done: Path, log: Callable[[str], None]) -> Path:
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
            "files": checksums_of(part),
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


@contextmanager
def _lock(done: Path) -> Iterator[None]:
    """Lock a conversion: one process converts a model; others wait until it is done."""
    try:
        done.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{done.parent}: the model cache cannot be made: {error.strerror}") from None
    with FileLock(str(done.parent / f".{done.name}.lock")):
        yield
