"""Digests of weights, each computed once and remembered beside the state of the files that the weights were loaded from.

    <cache>/digests/<name>.json
      name     sha256 of what was asked for: the files' paths, the names, dtypes and shapes of the tensors, transformers' version
      files    size, times of the last change, and inode of every file that decides on the weights, by its resolved path
      sha256   what `weights_digest` returned for the loaded weights
      seal     sha256 of the two fields above

The cache is $ENCODE_ONCE_CACHE, else $XDG_CACHE_HOME/encode-once, else ~/.cache/encode-once. It saves time and proves nothing:
an entry that is not as it was written, or whose files changed, counts as absent, and so does a cache that cannot be used.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from configs.files.atomic import write_atomically
from store.checkpoint.json_files import as_object
from store.checkpoint.weights import canonical, weight_files, weights_digest

Origin = Mapping[str, list[int]]
"""By resolved path, the state of every file that decides on some weights: size, mtime and ctime in ns, and inode."""
SETTLED_SECONDS = 2.0
"""Files that changed more recently are not remembered: their next change could carry the same time."""


def origin_of(source: str, prefixes: Iterable[str], revision: str | None = None) -> Origin:
    """Return the files that tensors with one of `prefixes` come from, and their state; call it before the weights are loaded.

    A hub file's resolved path ends in its content's own name. Config, index and code of the checkpoint are among the files,
    because they decide which tensors a stock model makes of the weights. Raises as `weight_files` does.
    """
    weights, wanted = weight_files(source, revision), tuple(prefixes)
    named = {file for name, file in weights.file_of.items() if canonical(name).startswith(wanted)}
    beside = weights.fetch(weights.name).parent.iterdir()
    small = (path for path in beside if path.suffix == ".py" or path.name in ("config.json", weights.name))
    paths = {path.resolve() for path in (*map(weights.fetch, sorted(named)), *small)}
    return {str(path): _state(path) for path in sorted(paths)}


def remembered_digest(tensors: Mapping[str, Shaped[Tensor, "..."]], origin: Origin) -> str:
    """Return `weights_digest(tensors)`, from the cache if the files of `origin` are as they were when it was computed."""
    path = _path(tensors, origin)
    known = None if path is None else _recall(path, origin)
    if known is not None:
        return known
    digest = weights_digest(tensors)
    latest = max(moment for _, *moments, _ in origin.values() for moment in moments)
    if path is not None and latest < time.time_ns() - SETTLED_SECONDS * 1e9:
        _remember(path, origin, digest)
    return digest


def cache_folder() -> Path | None:
    """Return the folder in which what can be computed again is kept; None where the user has no home."""
    if own := os.environ.get("ENCODE_ONCE_CACHE"):
        return Path(own)
    try:
        shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home
        return None
    return shared / "encode-once"


def _path(tensors: Mapping[str, Shaped[Tensor, "..."]], origin: Origin) -> Path | None:
    import transformers  # its versions may name or merge tensors differently

    folder = cache_folder()
    listed = [f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items())]
    name = _sha256([sorted(origin), listed, transformers.__version__])
    return None if folder is None else folder / "digests" / f"{name}.json"


def _recall(path: Path, origin: Origin) -> str | None:
    """Return the digest in an entry; None if there is no entry, if it is damaged, or if a file has changed since."""
    try:
        entry: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    digest = as_object(entry).get("sha256")
    return digest if isinstance(digest, str) and entry == _entry(origin, digest) else None


def _remember(path: Path, origin: Origin, digest: str) -> None:
    try:
        write_atomically(path, json.dumps(_entry(origin, digest), indent=1) + "\n")
    except OSError:  # a cache that is full, read-only or no folder costs time and nothing else
        return


def _entry(origin: Origin, digest: str) -> dict[str, Any]:
    return {"files": dict(origin), "sha256": digest, "seal": _sha256([origin, digest])}


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
