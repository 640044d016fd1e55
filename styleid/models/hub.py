"""Models by their names on the Hugging Face hub: only the files that are needed, kept in the hub's own cache.

Settings are huggingface_hub's: HF_HOME (the cache), HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_DISABLE_PROGRESS_BARS.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from styleid.models.weights import STEMS, weight_files

NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # owner/name, and a branch, tag or commit
SMALL_FILES = re.compile(
    r"(unet|vae|text_encoder)/config\.json|scheduler/scheduler_config\.json|context\.safetensors"
    r"|tokenizer/(tokenizer|tokenizer_config|special_tokens_map|vocab)\.json|tokenizer/merges\.txt"
)


def fetch(source: str) -> Path:
    """The folder in the hub's cache that holds the model "owner/name" or "owner/name@revision", downloaded if necessary.

    Without a connection it is what was downloaded the last time. Raises a ValueError that names the model and the fault.
    """
    return _fetch(source, needed, "unet/config.json")


def fetch_vae(source: str) -> Path:
    """The folder of a repository that holds a VAE alone, as for `fetch`."""
    return _fetch(source, needed_of_vae, "config.json")


def _fetch(source: str, choose: Callable[[Sequence[str]], Iterable[str]], marker: str) -> Path:
    """Downloads the files that `choose` takes of all; a folder that has the marker is an earlier download."""
    # It is imported here, because only this needs it, it takes a second, and it reads its settings when it is imported.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    repository, _, revision = source.partition("@")
    try:
        try:
            found = HfApi().model_info(repository, revision=revision or None)
            files = [file.rfilename for file in found.siblings or ()]
        except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except Exception:
            if cached := _cached(repository, revision, marker):
                return cached
            raise
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(choose(files))))
    except Exception as error:  # of requests or httpx, as the library's version has it
        raise ValueError(f"{source}: no such file or folder, and as a model on the hub: {reason(error)}") from error


def needed(files: Sequence[str]) -> Iterator[str]:
    """The files of a repository that a model is read from. Raises ValueError if it is not in diffusers' layout."""
    if "unet/config.json" not in files:
        raise ValueError("not in the layout of diffusers, there is no unet/config.json")
    yield from filter(SMALL_FILES.fullmatch, files)
    for part, stem in STEMS.items():
        yield from _weights(files, f"{part}/", stem)


def needed_of_vae(files: Sequence[str]) -> Iterator[str]:
    """The files of a repository that a VAE is read from. Raises ValueError if it is not in diffusers' layout."""
    if "config.json" not in files:
        raise ValueError("not a VAE in the layout of diffusers, there is no config.json")
    yield "config.json"
    yield from _weights(files, "", STEMS["vae"])


def _weights(files: Sequence[str], folder: str, stem: str) -> Iterator[str]:
    """The weights of one part, in the form that is read: one file, or an index and its shards."""
    for single, index in weight_files(stem):
        if folder + single in files:
            yield folder + single
            break
        if folder + index in files:
            yield folder + index
            kind = "safetensors" if ".safetensors." in index else "bin"
            shard = re.compile(rf"{folder}[^/]+-of-\d+[^/]*\.{kind}")
            yield from filter(shard.fullmatch, files)
            break


def _cached(repository: str, revision: str, marker: str) -> Path | None:
    """The folder of an earlier download, found by the path of the marker in it."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repository, marker, revision=revision or None)
    return Path(config).parents[marker.count("/")] if isinstance(config, str) else None


def reason(error: Exception) -> str:
    """What the user can do about it, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return "its owner gives access on request only; ask on its page, then log in or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"{constants.ENDPOINT} has none of this name, or a private one: then log in or set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, OfflineModeIsEnabled):
        return "it was not downloaded before, and HF_HUB_OFFLINE is set"
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return reason(error.__cause__)  # it was looked for in the cache, because of this
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
