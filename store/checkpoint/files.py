"""The files of a checkpoint, which is a folder or a repository of the Hugging Face hub."""

import ssl
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from store.checkpoint.json_files import FileState, state_of
from store.checkpoint.kinds import refuse_file, refuse_without
from store.errors import CheckpointMissing

_HUB_SECONDS = 3.0


def checkpoint_file(source: str, name: str, revision: str | None = None) -> Path:
    """Return the local path of a checkpoint's file, downloading the file if the checkpoint is on the hub.

    Raises CheckpointMissing (exit 5) where the file cannot be had, UnusableCheckpoint (exit 5) where other files show that
    the checkpoint is of a kind that cannot be read.
    """
    path = optional_checkpoint_file(source, name, revision)
    if path is not None:
        return path
    refuse_without(source, name, names_of(source, revision))
    if Path(source).is_dir():
        raise CheckpointMissing(
            f"expected {name} in the checkpoint folder {source}, it is not there: correct its path in the config"
        )
    at = f" --revision {revision}" if revision else ""
    raise CheckpointMissing(
        f"{source} is neither a folder nor in the Hugging Face cache ({name} not found), and the hub cannot be reached: "
        f"run `hf download {source}{at}` on a machine with a network, or set HF_HOME to a cache that has it"
    )


def optional_checkpoint_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """Return the local path of a checkpoint's file as `checkpoint_file` does, or None where the checkpoint lacks that file.

    None also means that the checkpoint is neither in the cache nor can be downloaded.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if folder.is_file():
        refuse_file(source)
        raise CheckpointMissing(
            f"expected a checkpoint folder at {source}, it is a file: name the folder that holds config.json and "
            "model.safetensors"
        )
    if folder.is_absolute() or source.startswith("."):
        raise CheckpointMissing(
            f"expected a checkpoint folder at {source}, there is none: correct its path in the config"
        )
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    stock: Any = huggingface_hub
    try:
        return Path(stock.hf_hub_download(source, name, revision=revision, local_files_only=not hub_answers()))
    except (EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return None
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointMissing(
            f"expected {name} of {source} from the hub, it cannot be fetched ({' '.join(str(error).split()):.300}): try again "
            "later, free space in the cache, or log in with `hf auth login` where the repository wants it"
        ) from None
    except HFValidationError:
        raise CheckpointMissing(f"{source!r} is neither a folder nor a hub id: correct it in the config") from None


def local_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """Return the path of a checkpoint's file that is on this machine already, or None where it would have to be downloaded."""
    folder = _local_folder(source, revision)
    return folder / name if folder is not None and (folder / name).is_file() else None


def states_of(source: str, wanted: Callable[[str], bool], revision: str | None = None) -> dict[str, FileState]:
    """Return the state of each file of a checkpoint that is on this machine already and whose name is `wanted`."""
    folder = _local_folder(source, revision)
    paths = () if folder is None else sorted(folder.iterdir())
    return {path.name: state_of(path) for path in paths if wanted(path.name) and path.is_file()}


def names_of(source: str, revision: str | None = None) -> frozenset[str]:
    """Return the names of a checkpoint's files: of a folder all names, of a hub repository the names that are known.

    Where the hub cannot be reached, these are the names of the files in the cache.
    """
    if not Path(source).is_dir() and hub_answers() and (listed := _listed_on_hub(source, revision)):
        return listed
    folder = _local_folder(source, revision)
    return frozenset() if folder is None else frozenset(path.name for path in folder.iterdir())


def _local_folder(source: str, revision: str | None) -> Path | None:
    """Return the folder of a checkpoint: the source itself, or the snapshot that the hub's cache keeps; None for neither."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        repository = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model")
    except HFValidationError:
        return None  # it is no hub id but a path, to a folder that does not exist
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision or "main"
    snapshot = repository / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


@cache
def _listed_on_hub(source: str, revision: str | None) -> frozenset[str]:
    """List a repository's files; an empty list where the hub, or a mirror in its place, gives no answer."""
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return frozenset(list_repo_files(source, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError):
        return frozenset()


@cache
def hub_answers() -> bool:
    """Check whether the hub can be reached, once and briefly, because its own client goes on trying for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_HUB_SECONDS).close()  # noqa: S310 (an https address)
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the hub's client may know other certificates
    except OSError:
        return False
    return True
