"""Paths in files that are meant to be shared: relative to the file's own folder, so that they name nobody's machine."""

import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import yaml

from configs.experiment import Experiment, StoreLocation

MARKER, HERE = "paths", "relative to this file"
"""Top-level key and value of a saved config whose paths lead from its own folder."""
PLACES = ("run_dir", "data.images", "data.questions", "store.path", "model.checkpoint", "model.clip")
"""Fields that hold a path; the weights of methods do too."""
OR_A_NAME = ("model.checkpoint", "model.clip")
"""Those of them that may be a hub id."""


def saved(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Return the resolved config as JSON values, its paths relative to `folder`, where it is about to be written."""
    content = experiment.model_dump(mode="json")
    for holder, field, place in _paths(content):
        if place not in OR_A_NAME or is_folder(holder[field]):
            holder[field] = relative(Path(holder[field]), folder)
    return {MARKER: HERE} | content


def read(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of a config file; where `saved` wrote it, its paths lead from the working directory again."""
    if raw.get(MARKER) != HERE:
        return raw
    content = deepcopy({key: value for key, value in raw.items() if key != MARKER})
    for holder, field, _ in _paths(content):
        if holder[field].startswith("."):
            holder[field] = _from_here(folder / holder[field])
    return content


def redacted(config: bytes) -> str:
    """Return a config for a copy that leaves this machine: of each path only its last part."""
    content = _mapping(yaml.safe_load(config))
    for holder, field, place in _paths(content):
        if place not in OR_A_NAME or is_folder(holder[field]):
            holder[field] = Path(holder[field]).name
    return yaml.safe_dump({key: value for key, value in content.items() if key != MARKER}, sort_keys=False)


def moved(config: bytes, old: Path, new: Path) -> str:
    """Return a saved config for another folder, with paths that lead to the same places."""
    content = _mapping(yaml.safe_load(config))
    if content.get(MARKER) == HERE:
        content = {MARKER: HERE} | read(content, old)
        for holder, field, place in _paths(content):
            if place not in OR_A_NAME or is_folder(holder[field]):
                holder[field] = relative(Path(holder[field]), new)
    return yaml.safe_dump(content, sort_keys=False)


def is_folder(source: str) -> bool:
    """Whether a checkpoint's name is a folder and no hub id; one that ends in a slash is a folder of another machine."""
    return source.startswith(".") or source.endswith("/") or Path(source).is_absolute() or Path(source).is_dir()


def location(store: StoreLocation, folder: Path) -> str:
    """Return where a store is, for a file in `folder`: a URL as it is, a path as it leads from there."""
    return relative(store, folder) if isinstance(store, Path) else store


def relative(path: Path, folder: Path) -> str:
    """Return a path as it leads from `folder`, beginning with `./` or `../`."""
    found = Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    return found if found.startswith("..") else f"./{found}"


def _from_here(path: Path) -> str:
    """Return a path as it leads from the working directory, where it lies below it; otherwise from the root."""
    whole = Path(os.path.normpath(path.absolute()))
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)


def _paths(content: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Find the fields that hold a path: the mapping, the key in it, and the dotted name."""
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
    """The same mapping; an empty one for anything else, which the config's types will refuse."""
    return cast("dict[str, Any]", given) if isinstance(given, dict) else {}
