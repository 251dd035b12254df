"""Push a trained pruner to a repository of the Hugging Face hub, and pull one.

<FOLDER>/                            what a pull leaves
weights.safetensors, pruner.json   the pruner: `weights: FOLDER` in a config
README.md                          its card
config.yaml, images.jsonl          how it was trained, and on which images
log.jsonl, curves.png              how the training went
origin.json                        the repository and the commit that these files come from
.<FOLDER>.<commit>.partial/          while files come in; another pull goes on with it
"""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.errors import NO_SPACE_OR_READ_ONLY, WrongCall
from configs.files import portable
from configs.files.atomic import PARTIAL, sync_directory
from configs.files.seal import sealed_as
from configs.progress import say
from stage2_prune.errors import HubRefused
from stage2_prune.session import weights
from stage2_prune.session.sealed import read_object, sealed_object, write_object
from stage2_prune.sharing.card import CARD, record_in, write_card
from stage2_prune.sharing.images import IMAGES
from store.checkpoint.files import hub_answers

CONFIG = "config.yaml"
SHARED = (weights.WEIGHTS, weights.RECORD, CARD, CONFIG, IMAGES, "log.jsonl", "curves.png")
"""The files that are pushed and pulled, and no others: nothing that could be run, and no state of a training."""
ORIGIN = "origin.json"
_SAID = 300
"""The largest number of characters of a hub's own message that is shown."""


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload the trained pruner in a folder as one commit, and return the commit's address.

    Paths in the uploaded config are cut to their last parts, so that they name no machine. A repository that does not exist
    is made; files that it holds beside these stay.

    Args:
        folder: the folder that `train` wrote.
        repository: OWNER/NAME.
        private: whether a repository that is made is private; otherwise it is what its owner has set as the default.

    Raises:
        NotTrained: (exit 5) if the folder holds no trained pruner.
        WeightsMismatch, DamagedRun: (exit 4) if its files are damaged.
        HubRefused: (exit 5) if the hub cannot be reached, or refuses.
        WrongCall: (exit 2) for a name that no repository can have.
    """
    record = record_in(folder)
    weights.read_tensors(folder, record, "copy the folder that `train` wrote again")
    if not (folder / CARD).is_file():
        write_card(folder)
    with _speaking_to_hub(repository) as hub:
        additions = [
            hub.CommitOperationAdd(name, _shared(folder / name, record)) for name in SHARED if (folder / name).is_file()
        ]
        client = hub.HfApi()
        client.create_repo(repository, private=private or None, exist_ok=True)
        done = client.create_commit(
            repository, additions, commit_message=f"Share the trained pruner {record['pruner']}"
        )
        return str(done.commit_url)


def pull(repository: str, folder: Path, revision: str | None = None) -> str:
    """Download a trained pruner into a folder that does not exist yet, and return the commit that it comes from.

    The folder appears when every file is there and whole. A pull that was interrupted is gone on with.

    Args:
        repository: OWNER/NAME.
        folder: the folder to write; the same commit may be in it already.
        revision: a branch, a tag or a commit.

    Raises:
        HubRefused: (exit 5) if the hub cannot be reached, or has no such pruner.
        WeightsMismatch, DamagedRun: (exit 4) if a file that came is damaged, or is not what it is called.
        WrongCall: (exit 2) for a folder that holds something else, or a name that no repository can have.
    """
    with _speaking_to_hub(repository) as hub:
        client = hub.HfApi()
        about = client.model_info(repository, revision=revision)
        there = {sibling.rfilename for sibling in about.siblings or ()}
        if lacking := [name for name in (weights.WEIGHTS, weights.RECORD) if name not in there]:
            raise HubRefused(
                f"expected a trained pruner in {repository}, it has no {' and no '.join(lacking)}: name another"
            )
        origin = {"repository": repository, "commit": str(about.sha)}
        if _is_there(folder, origin):
            say(f"{repository} at {about.sha} is in {folder} already")
            return str(about.sha)
        partial = folder.with_name(f".{folder.name}.{str(about.sha)[:12]}{PARTIAL}")
        for name in SHARED:
            if name in there:
                client.hf_hub_download(repository, name, revision=about.sha, local_dir=partial)
    _finish(partial, folder, origin)
    return origin["commit"]


def _is_there(folder: Path, origin: dict[str, str]) -> bool:
    """Return whether a folder holds this commit; raise WrongCall (exit 2) if it holds something else."""
    if not folder.exists() and not folder.is_symlink():
        return False
    found = read_object(folder / ORIGIN, "remove the folder and pull again") if folder.is_dir() else None
    if found is not None and {key: found.get(key) for key in origin} == origin:
        return True
    holds = "something else" if found is None else f"{found.get('repository')} at {found.get('commit')}"
    raise WrongCall(
        f"expected no folder at {folder} to pull {origin['repository']} at {origin['commit']} into, it holds {holds}: "
        "remove it, or name another with --out"
    )


def _finish(partial: Path, folder: Path, origin: dict[str, str]) -> None:
    """Check the files that came, and give their folder its name."""
    remedy = f"remove {partial} and pull again; if it stays so, tell the owner of {origin['repository']}"
    record = weights.read_record(partial, named=True)
    assert record is not None, "the record was downloaded"
    weights.read_tensors(partial, record, remedy)
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # what the hub's client keeps about a download
    write_object(partial / ORIGIN, origin)
    partial.rename(folder)
    sync_directory(folder.absolute().parent)


def _shared(path: Path, record: dict[str, Any]) -> bytes | Path:
    """Return what is uploaded of a file: the file itself, of the config and the record a copy that names no machine."""
    if path.name == CONFIG:
        config = path.read_bytes()
        return sealed_as(portable.redacted(config), config).encode()
    if path.name == weights.RECORD and "config" in record["training"]:
        config = portable.without_folders(record["training"]["config"])
        return sealed_object(record | {"training": record["training"] | {"config": config}}).encode()
    return path


@contextmanager
def _speaking_to_hub(repository: str) -> Generator[Any, None, None]:
    """Lend the hub's client; turn its errors inside the block into one sentence each."""
    import huggingface_hub
    from huggingface_hub import errors

    stock: Any = errors
    if repository.count("/") != 1:
        raise WrongCall(f"expected the name of a repository as OWNER/NAME, got {repository!r}: correct it")
    if not hub_answers():
        raise HubRefused(
            "expected to reach the hub, it gives no answer or HF_HUB_OFFLINE is set: try again where there is a network, or set "
            "HF_ENDPOINT to the hub's address"
        )
    try:
        yield huggingface_hub
    except stock.HFValidationError as error:
        raise WrongCall(
            f"expected the name of a repository as OWNER/NAME, got {repository!r} ({error}): correct it"
        ) from None
    except (stock.HTTPError, stock.EntryNotFoundError, ValueError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE_OR_READ_ONLY:
            raise
        said = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise HubRefused(
            f"expected {repository} on the hub to be there and to let this user have it, the hub says: {said:.{_SAID}}; correct "
            "the name or the revision, or log in with `hf auth login`"
        ) from None
