"""Paths in files that are meant to be shared: they are relative to the file's own folder, so that they name nobody's machine."""

import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import yaml

from configs.experiment import Experiment, StoreLocation

MARKER, HERE = "paths", "relative to this file"
"""Top-level key and value that mark a saved config whose paths are relative to its own folder."""
PLACES = ("run_dir", "data.images", "data.questions", "store.path", "model.checkpoint", "model.clip")
"""Fields that hold a path; the weights of methods are paths too."""
OR_A_NAME = ("model.checkpoint", "model.clip")
"""Fields of PLACES that may hold a hub id instead of a path."""


def saved(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Return the resolved config as JSON values, its paths relative to `folder`, where the caller writes the config."""
    content = experiment.model_dump(mode="json")
    for holder, field, place in _paths(content):
        if place not in OR_A_NAME or is_folder(holder[field]):
            holder[field] = relative(Path(holder[field]), folder)
    return {MARKER: HERE} | content


def read(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of a config file that lies in `folder`.

    The paths of a config that `saved` made become relative to the working directory again.
    """
    if raw.get(MARKER) != HERE:
        return raw
    content = deepcopy({key: value for key, value in raw.items() if key != MARKER})
    for holder, field, _ in _paths(content):
        if holder[field].startswith("."):
            holder[field] = _from_here(folder / holder[field])
    return content


def redacted(config: bytes) -> str:
    """Return a config for a copy that leaves this machine: each path is cut to its last part."""
    content = _mapping(yaml.safe_load(config))
    for holder, field, place in _paths(content):
        if place not in OR_A_NAME or is_folder(holder[field]):
            holder[field] = Path(holder[field]).name
    return yaml.safe_dump({key: value for key, value in content.items() if key != MARKER}, sort_keys=False)


def moved(config: bytes, old: Path, new: Path) -> str:
    """Return a config that moves from the folder `old` to `new`; its paths still lead to the same files."""
    content = _mapping(yaml.safe_load(config))
    if content.get(MARKER) == HERE:
        content = {MARKER: HERE} | read(content, old)
        for holder, field, place in _paths(content):
            if place not in OR_A_NAME or is_folder(holder[field]):
                holder[field] = relative(Path(holder[field]), new)
    return yaml.safe_dump(content, sort_keys=False)


def is_folder(source: str) -> bool:
    """Check whether `source` names a folder and not a hub id; a name that ends in a slash is a folder of another machine."""
    return source.startswith(".") or source.endswith("/") or Path(source).is_absolute() or Path(source).is_dir()


def location(store: StoreLocation, folder: Path) -> str:
    """Return the location of a store for a file in `folder`: a URL unchanged, a path relative to that folder."""
    return relative(store, folder) if isinstance(store, Path) else store


def relative(path: Path, folder: Path) -> str:
    """Return `path` relative to `folder`, beginning with `./` or `../`."""
    way = Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    return way if way.startswith("..") else f"./{way}"


def _from_here(path: Path) -> str:
    """Return a path relative to the working directory if it lies below that directory, otherwise an absolute path."""
    whole = Path(os.path.normpath(path.absolute()))
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)


def _paths(content: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield the fields that hold a path: the mapping, the key in it, and the dotted name."""
    for place in PLACES:
        section, _, field = place.rpartition(".")
        holder = _mapping(content.get(section)) if section else content
        if isinstance(holder.get(field), str) and "://" not in holder[field]:
            yield holder, field, place
    methods: Any = _mapping(content.get("prune")).get("methods")
    listed = cast("list[Any]", methods) if isinstance(methods, list) else []
    for method in map(_mapping, listed):
        if isinstance(method.get("weights"), str):
            yield method, "weights", "prune.methods.weights"


def _mapping(given: Any) -> dict[str, Any]:
    """Return `given` if it is a mapping, otherwise an empty mapping: the config's types refuse anything else later."""
    return cast("dict[str, Any]", given) if isinstance(given, dict) else {}
