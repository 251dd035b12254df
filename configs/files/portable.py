"""Paths in files that are meant to be shared: they are relative to the file's own folder, so that they name no machine."""

import os
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import yaml

from configs.experiment import Experiment, StoreLocation
from configs.parsing.field_types import as_list
from configs.plugin import is_path

MARKER, HERE = "paths", "relative to this file"
"""Top-level key and value that mark a saved config whose paths are relative to its own folder."""
PLACES = ("run_dir", "data.images", "data.questions", "store.path", "teach.path", "model.checkpoint", "model.clip")
"""Fields that hold a path; the weights of methods are paths too, and so are names of methods that end in `.py`."""
LISTS = ("claims.beside",)
"""Fields that hold a list of paths."""
OR_A_NAME = ("model.checkpoint", "model.clip")
"""Fields of PLACES that may hold a hub id instead of a path."""
CODE = ("vision_family", "tower", "language_family")
"""Fields of `model` that name a variant by the path of its file, or by its name; so do the methods of `prune` and `sweep`."""
IS_CODE = "code"
"""Stands for the dotted name of every field that holds the path of code."""


def saved(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Return the resolved config as JSON values, its paths relative to `folder`, where the caller writes the config."""
    content = experiment.model_dump(mode="json")
    for holder, field, place in _paths(content):
        if place not in OR_A_NAME or is_folder(holder[field]):
            holder[field] = relative(Path(holder[field]), folder)
    return {MARKER: HERE} | content


def read(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of a config file that lies in `folder`.

    The paths of a config that `saved` made become relative to the working directory again. The paths of code do so in every
    config, because a file of code is written beside the config that names it.
    """
    marked = raw.get(MARKER) == HERE
    content = deepcopy({key: value for key, value in raw.items() if key != MARKER or not marked})
    for holder, field, place in _paths(content):
        if holder[field].startswith(".") if marked else place == IS_CODE:
            holder[field] = _from_here(folder / holder[field])
    return content


def redacted(config: bytes) -> str:
    """Return a config for a copy that leaves this machine: each path is cut to its last part."""
    return yaml.safe_dump(without_folders(_mapping(yaml.safe_load(config))), sort_keys=False)


def without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a config for a copy that leaves this machine: each path is cut to its last part."""
    content = deepcopy({key: value for key, value in config.items() if key != MARKER})
    for holder, field, place in _paths(content):
        if place not in OR_A_NAME or is_folder(holder[field]):
            holder[field] = Path(holder[field]).name
    return content


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
    from_folder = Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    return from_folder if from_folder.startswith("..") else f"./{from_folder}"


def _from_here(path: Path) -> str:
    """Return a path relative to the working directory if it lies below that directory, otherwise an absolute path."""
    absolute = Path(os.path.normpath(path.absolute()))
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def _paths(content: dict[str, Any]) -> Iterator[tuple[Any, Any, str]]:
    """Yield the fields that hold a path: the mapping or list, the key or index in it, and the dotted name."""
    for place in PLACES:
        section, _, field = place.rpartition(".")
        holder = _mapping(content.get(section)) if section else content
        if isinstance(holder.get(field), str) and "://" not in holder[field]:
            yield holder, field, place
    for place in LISTS:
        section, _, field = place.rpartition(".")
        listed = _list_in(_mapping(content.get(section)), field)
        yield from ((listed, number, place) for number, path in enumerate(listed) if isinstance(path, str))
    model, sweep = _mapping(content.get("model")), _mapping(content.get("sweep"))
    methods = _list_in(_mapping(content.get("prune")), "methods")
    for method in map(_mapping, methods):
        if isinstance(method.get("weights"), str):
            yield method, "weights", "prune.methods.weights"
    yield from _code(model, ((field, model.get(field)) for field in CODE))
    for listed in (methods, _list_in(sweep, "methods"), _list_in(sweep, "without")):
        yield from _code(listed, enumerate(listed))
    for method in map(_mapping, methods):
        yield from _code(method, method.items())  # a parameter may name a method too, as combination's `before` does


def _code(holder: Any, values: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any, str]]:
    """Yield the fields of a mapping or a list whose values are paths of code."""
    for key, value in values:
        if isinstance(value, str) and is_path(value):
            yield holder, key, IS_CODE


def _list_in(section: dict[str, Any], key: str) -> list[Any]:
    """Return the list under a key; a text that names code is split at its commas. Anything else gives an empty list."""
    given: Any = section.get(key)
    if isinstance(given, str) and any(map(is_path, given.split(","))):
        given = section[key] = as_list(given, list[str])
    return cast("list[Any]", given) if isinstance(given, list) else []


def _mapping(given: Any) -> dict[str, Any]:
    """Return `given` if it is a mapping, otherwise an empty mapping: the config's types refuse anything else later."""
    return cast("dict[str, Any]", given) if isinstance(given, dict) else {}
