"""Whether a checkpoint can be had at all: a question that needs neither torch nor transformers, so it is asked first."""

from pathlib import Path

from store.checkpoint.files import checkpoint_file, names_of


def require_checkpoint(source: str, revision: str | None = None) -> None:
    """Raise CheckpointMissing (exit 5) if a checkpoint of the hub is not in the cache and the hub cannot be reached.

    Folders are left to whoever opens them, and so is a checkpoint of which some files are known.
    """
    is_path = Path(source).exists() or Path(source).is_absolute() or source.startswith(".")
    if not is_path and not names_of(source, revision):
        checkpoint_file(source, "config.json", revision)
