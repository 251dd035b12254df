"""The manifest holds a digest of every file of a store that is no shard, so that damage to these files is noticed.

These files are the metadata, the ids and the projector; the manifest is written once, with the plan. Zarr checks chunks, but
it checks no `zarr.json`, where a flipped bit means another shape or another activation.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from configs.errors import EXTRACT
from configs.files.atomic import write_atomically
from store.errors import IntegrityError
from store.files.disk import Unreadable, content, without_waiting
from store.layout.plan import spare_of

METADATA = "zarr.json"
HEAL = f"`python -m store repair` writes it again, or says whether {EXTRACT} can, or what to restore"


class Manifest(BaseModel):
    """The sha256 of every file in `features.zarr` that is no shard, and of the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: str
    """Digest of the plan that the manifest belongs to."""
    files: dict[str, str]
    """Digest of each file, by its path inside `features.zarr`."""
    sha256: str = ""
    """Digest of the other fields."""

    def sealed(self) -> "Manifest":
        """Return the manifest with its own digest filled in."""
        return self.model_copy(update={"sha256": self._digest()})

    @property
    def intact(self) -> bool:
        """Whether the manifest's own digest is right."""
        return self.sha256 == self._digest()

    def damaged(self, root: Path, metadata_only: bool = False) -> list[str]:
        """List the files that are missing or changed, by their paths in `root`; `metadata_only` checks only the metadata."""
        wanted = [name for name in self.files if not metadata_only or name.endswith(METADATA)]
        return [name for name in wanted if file_digest(root / name) != self.files[name]]

    def _digest(self) -> str:
        content = {"plan": self.plan, "files": dict(sorted(self.files.items()))}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def manifest_path(store: Path, generation: int) -> Path:
    """Return the path of the manifest of a generation's plan."""
    return store / "plans" / f"{generation}.manifest.json"


def make_manifest(root: Path, plan_digest: str, arrays: Iterable[str]) -> Manifest:
    """Make the manifest of a folder `features.zarr`, without the chunks of `arrays`, which the commit log describes."""
    shards = tuple(f"{name}/c/" for name in arrays)
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    digests = {name: file_digest(path) or "" for name, path in files.items() if not name.startswith(shards)}
    return Manifest(plan=plan_digest, files=digests).sealed()


def write_manifest(store: Path, generation: int, manifest: Manifest) -> None:
    """Write the manifest of a generation's plan, then its spare."""
    path, text = manifest_path(store, generation), manifest.model_dump_json(indent=1) + "\n"
    write_atomically(path, text)
    write_atomically(spare_of(path), text)


def read_manifest(store: Path, generation: int) -> Manifest:
    """Read the manifest of a generation's plan. Raises IntegrityError (exit 4) if it is missing or damaged."""
    return manifest_in(manifest_path(store, generation))


def manifest_in(path: Path) -> Manifest:
    """Read a manifest or its spare from a file. Raises IntegrityError (exit 4) if it is missing or damaged."""
    try:
        manifest = Manifest.model_validate_json(content(path))
    except FileNotFoundError:
        raise IntegrityError(f"expected the manifest {path}, there is none: {HEAL}") from None
    except Unreadable as error:
        raise IntegrityError(f"{error}: {HEAL}") from None
    except ValidationError:
        raise IntegrityError(f"{path} is damaged (not a manifest): {HEAL}") from None
    if not manifest.intact:
        raise IntegrityError(f"{path} is damaged (its checksum differs): {HEAL}")
    return manifest


def file_digest(path: Path) -> str | None:
    """Compute the sha256 of a file, in hex; None if there is no such file, or it cannot be read."""
    try:
        with open(path, "rb", opener=without_waiting) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
