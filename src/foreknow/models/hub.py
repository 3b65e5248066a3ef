"""A hub id -> the model's files in the hub's own cache; what the hub refuses is said in a line, with what to do."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path

from foreknow.errors import ModelError, first_line
from foreknow.io.run_dir import read_json
from foreknow.models.weight_files import weight_files

_WANTED = ("*.json", "*.safetensors", "*.model", "*.jinja", "tokenizer*", "*.txt")


def hub_folder(
    hub_id: str, trust_remote_code: bool = False, revision: str | None = None, known: Iterable[str] = ()
) -> Path:
    """A hub model's files: safetensors, or where there are none the older weights. Raises ModelError.

    `revision`: a branch, tag or commit. `known`: names that are no hub ids, for what was misspelt.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging

    logging.set_verbosity(40)  # errors only: its retries would be told one by one
    wanted = [*_WANTED, *(["*.py"] if trust_remote_code else [])]
    names = list(known)
    try:
        try:
            found = Path(snapshot_download(hub_id, allow_patterns=wanted, local_files_only=True, revision=revision))
            if (trust_remote_code and _lacks_code(found)) or not _has_all_weights(found):
                raise FileNotFoundError(found)
            return found
        except (FileNotFoundError, HfHubHTTPError):
            _check_spelling(hub_id, names)
            files = HfApi().list_repo_files(hub_id, revision=revision)
            if not any(n.endswith(".safetensors") for n in files):
                wanted.append("*.bin")
            return Path(snapshot_download(hub_id, allow_patterns=wanted, revision=revision))
    except ModelError:
        raise
    except Exception as error:
        # the hub's client raises many kinds of error for "no such model", "no access" and "no network"
        told = f"\nPackaged models, which need no hub: {', '.join(names)}" if names else ""
        raise ModelError(f"--model {hub_id}: {refusal(hub_id, error)}{told}") from None


def refusal(hub_id: str, error: Exception) -> str:
    """What the hub's client says, in a line, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{hub_id}"
    if isinstance(error, GatedRepoError):
        return (
            f"a gated model of the hub: accept its licence at {page}, then set HF_TOKEN to a token of that account "
            "(or run hf auth login)"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "not a folder here, and the hub has no such model, or it is private: check the spelling (owner/name), or "
            "set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the hub has this model, but not in that revision"
    if isinstance(error, DisabledRepoError):
        return f"the hub has switched this model off; see {page}"
    if isinstance(error, HFValidationError):
        return "not a folder here, and no hub id; expected a folder, a .gguf file, or owner/name"
    status = (
        getattr(getattr(error, "response", None), "status_code", None) if isinstance(error, HfHubHTTPError) else None
    )
    if status == 401:
        return "the hub does not take the token in HF_TOKEN: renew it, or unset it for a public model"
    if status == 403:
        return f"the hub refuses access with this token: see {page}"
    if status == 429:
        return "the hub asks to wait (too many requests); set HF_TOKEN, or try again later"
    if constants.HF_HUB_OFFLINE:
        return (
            "not a folder here and not in the hub's cache, and HF_HUB_OFFLINE is set: fetch it once where there is a "
            f"network (hf download {hub_id}), or unset HF_HUB_OFFLINE"
        )
    if status is not None:
        return f"not a folder here, and the hub did not give it (status {status}): try again later"
    if isinstance(error, (LocalEntryNotFoundError, OSError)) or "timed out" in str(error).lower():
        return (
            "not a folder here and not in the hub's cache, and the hub could not be reached "
            f"({first_line(error)}): check the network or a proxy, or bring the files here (hf download {hub_id} "
            "--local-dir FOLDER) and name the folder"
        )
    return f"not a folder here, and the hub did not give it: {first_line(error)}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one is closest to; None where none is close."""
    plain = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower(), plain, n=1, cutoff=0.75)
    return plain[found[0]] if found else None


def _check_spelling(hub_id: str, known: list[str]) -> None:
    if "/" not in hub_id and (meant := closest(hub_id, known)):
        raise ModelError(f"--model {hub_id}: no such folder or packaged model; did you mean {meant}?")


def _has_all_weights(folder: Path) -> bool:
    """Whether weights are there, and no shard of them lacks, as where a download was broken off."""
    try:
        found, _ = weight_files(folder)
    except ModelError:
        return False
    return bool(found) or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _lacks_code(folder: Path) -> bool:
    """Whether a model's own code is not there, as it was fetched before it was trusted."""
    for name in ("config.json", "tokenizer_config.json"):
        told = (read_json(folder / name) or {}).get("auto_map")
        if told and "--" not in json.dumps(told):  # else it lies in another repository
            return not any(folder.glob("*.py"))
    return False
