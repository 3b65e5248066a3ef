"""Downloads a hub model's files into the hub's own cache; reports a refusal in one line, with what to do."""

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
    """Download a hub model's files (safetensors, or else older weights) and return their folder. Raises ModelError.

    `revision`: a branch, tag or commit. `known`: names of packaged models, to suggest for a misspelt one.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging

    logging.set_verbosity(40)  # errors only: it would log each of its retries
    wanted = [*_WANTED, *(["*.py"] if trust_remote_code else [])]
    names = list(known)
    try:
        try:
            folder = Path(snapshot_download(hub_id, allow_patterns=wanted, local_files_only=True, revision=revision))
            if (trust_remote_code and _lacks_code(folder)) or not _has_all_weights(folder):
                raise FileNotFoundError(folder)
            return folder
        except (FileNotFoundError, HfHubHTTPError):
            files = HfApi().list_repo_files(hub_id, revision=revision)
            if not any(n.endswith(".safetensors") for n in files):
                wanted.append("*.bin")
            return Path(snapshot_download(hub_id, allow_patterns=wanted, revision=revision))
    except ModelError:
        raise
    except Exception as error:
        # the hub's client raises many kinds of error for "no such model", "no access" and "no network"
        packaged_hint = f"\nPackaged models, which need no hub: {', '.join(names)}" if names else ""
        raise ModelError(f"--model {hub_id}: {format_hub_error(hub_id, error)}{packaged_hint}") from None


def format_hub_error(hub_id: str, error: Exception) -> str:
    """Return an error of the hub's client in one line, with what to do."""
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


def closest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to a misspelt one; None if none is close."""
    by_lower_name = {known_name.lower(): known_name for known_name in known}
    matches = difflib.get_close_matches(name.lower(), by_lower_name, n=1, cutoff=0.75)
    return by_lower_name[matches[0]] if matches else None


def check_spelling(hub_id: str, known: list[str]) -> None:
    """Raise ModelError for a name without owner that is close to one of `known`, before the hub is asked."""
    if "/" not in hub_id and (suggestion := closest_name(hub_id, known)):
        raise ModelError(f"--model {hub_id}: no such folder or packaged model; did you mean {suggestion}?")


def _has_all_weights(folder: Path) -> bool:
    """Return whether the folder holds weights and no shard is missing, as after an interrupted download."""
    try:
        files, _ = weight_files(folder)
    except ModelError:
        return False
    return bool(files) or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _lacks_code(folder: Path) -> bool:
    """Return whether a model's custom code is missing, because it was downloaded before the code was trusted."""
    for name in ("config.json", "tokenizer_config.json"):
        auto_map = (read_json(folder / name) or {}).get("auto_map")
        if auto_map and "--" not in json.dumps(auto_map):  # else it lies in another repository
            return not any(folder.glob("*.py"))
    return False
