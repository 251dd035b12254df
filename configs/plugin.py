"""Variants of a method, a family or a tower: one file defines one variant, and a config names it.

A variant's name is that of a file in the project's folder for its kind, or of an entry point of an installed distribution, or
it is the path of a file. Adding a variant means writing a file; there is no registry to edit.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, TypeVar

from configs.errors import ConfigError
from configs.import_code import import_path, imported, only_class
from configs.parsing.nearest import no_such

T = TypeVar("T")
R = TypeVar("R")

GROUPS = {
    "stage2_prune.pruners": "encode_once.pruners",
    "stage2_prune.families": "encode_once.language_families",
    "stage1_extract.families": "encode_once.vision_families",
    "stage1_extract.towers": "encode_once.towers",
}
"""The group of entry points of each folder. A folder without a group takes its own files alone: a store names its projector,
and what a store says must run no code from elsewhere."""
KEYS = {
    "stage2_prune.families": "model.language_family",
    "stage1_extract.families": "model.vision_family",
    "stage1_extract.towers": "model.tower",
}
"""The key of the config that chooses a variant of each folder; without it, the checkpoint's type chooses."""
_log = logging.getLogger(__name__)


class Variants(Mapping[str, type[T]]):
    """All variants of one kind by name; the file of a variant is imported when the variant is asked for.

    The listed names are the names of files and of entry points. A path that ends in `.py` is a name too, but is not listed.
    """

    def __init__(self, package: ModuleType, base: type[T]) -> None:
        """Look for files and entry points.

        Args:
            package: The project's folder of this kind.
            base: The class that a variant is derived from.

        """
        self._package, self._base = package, base
        self._group = GROUPS.get(package.__name__)
        self._files = names(package)
        self._published: Mapping[str, tuple[EntryPoint, ...]] = {} if self._group is None else published(self._group)

    def __getitem__(self, name: str) -> type[T]:
        """Return the variant of that name.

        Raises:
            KeyError: There is no such name.
            ConfigError: (exit 2) The name is taken twice, or its file cannot be imported or does not define one variant.

        """
        if name not in self:
            raise KeyError(name)
        if is_path(name):
            return only_class(import_path(Path(name)), self._base, name)
        points = self._published.get(name, ())
        if points and not re.fullmatch(r"[\w-][\w.-]*", name):
            raise ConfigError(
                f"expected a name of letters, digits, _, - and ., as files are named after it: rename {_of(points[0])}"
            )
        sources = [f"{self._package.__name__.replace('.', '/')}/{name}.py"] * (name in self._files)
        sources += [_of(point) for point in points]
        if len(sources) > 1:
            raise ConfigError(
                f"expected one {self._base.__name__.lower()} called {name}, {' and '.join(sources)} both have that name: "
                "rename one, or uninstall its distribution"
            )
        return only_class(self._load(name, points), self._base, sources[0])

    def _load(self, name: str, points: tuple[EntryPoint, ...]) -> Any:
        if points:
            advice = f"uninstall {_distribution(points[0])}, or mend it"
            return imported(f"{_of(points[0])} ({points[0].value})", points[0].load, advice=advice)
        module = f"{self._package.__name__}.{name}"
        return imported(f"a module {module}", lambda: import_module(module), Path(self._package.__path__[0]))

    def __contains__(self, name: object) -> bool:
        """Check for a name of a file or of an entry point; a path is always a name, whether or not its file is there."""
        listed = name in self._files or name in self._published
        return listed or (self._group is not None and isinstance(name, str) and is_path(name))

    def __iter__(self) -> Iterator[str]:
        """Yield the names of files and entry points."""
        return iter(sorted({*self._files, *self._published}))

    def is_foreign(self, name: str) -> bool:
        """Check whether installed distributions alone have that name."""
        return name in self._published and name not in self._files

    def __len__(self) -> int:
        """Return the number of names that are listed."""
        return len({*self._files, *self._published})


def is_path(name: str) -> bool:
    """Check whether the name of a variant is the path of a file."""
    return name.endswith(".py")


def names(package: ModuleType) -> list[str]:
    """List the modules of `package` that a config may name; modules that begin with an underscore are helpers."""
    return sorted(module.name for module in iter_modules(package.__path__) if not module.name.startswith("_"))


def published(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points that installed distributions have in a group, by name; nothing is imported."""
    return _published(group, tuple(sys.path))


def find_all(package: ModuleType, base: type[T]) -> Variants[T]:
    """Return every variant of `package` by name."""
    return Variants(package, base)


def find(package: ModuleType, name: str, base: type[T]) -> type[T]:
    """Return the variant of `package` called `name`.

    Raises:
        ConfigError: (exit 2) There is no such name, it is taken twice, or its file cannot be imported or does not define one
            variant.

    """
    variants = find_all(package, base)
    if name not in variants:
        raise ConfigError(f"{package.__name__}: {no_such(base.__name__.lower(), name, variants)}")
    return variants[name]


def usable(variants: Mapping[str, type[T]], read: Callable[[type[T]], R]) -> dict[str, tuple[type[T], R]]:
    """Return every variant that is listed, with what `read` reads of it.

    An entry point that cannot be used is left out with a note, because an installed distribution that nobody asked for must
    not stop a command. For one of this project's own files that cannot be used, ConfigError (exit 2) is raised.
    """
    by_name: dict[str, tuple[type[T], R]] = {}
    for name in variants:
        try:
            kind = variants[name]
            by_name[name] = kind, read(kind)
        except ConfigError as error:
            if not (isinstance(variants, Variants) and variants.is_foreign(name)):
                raise
            _note(f"{name} is left out: {error}")
    return by_name


def find_by_model_type(
    package: ModuleType, model_type: str, base: type[T], named: str | None = None
) -> type[T] | None:  # fmt: skip
    """Return the variant of `package` whose class attribute `model_types` holds the `model_type` of a checkpoint's config.

    Args:
        package: The folder to search.
        model_type: The type that a checkpoint's config gives.
        base: The class whose variants are searched.
        named: The name of the variant that the config chose; None searches all.

    Returns:
        None where no variant serves that type.

    Raises:
        ConfigError: (exit 2) As `find` does, for two variants of one type, and for a chosen variant of another type.

    """
    if named is None:
        variants = usable(find_all(package, base), _model_types)
        serving = {name: kind for name, (kind, types) in variants.items() if model_type in types}
        if len(serving) > 1:
            raise ConfigError(
                f"expected one variant for {model_type!r}, there are {', '.join(serving)}: name one as "
                f"{KEYS[package.__name__]} in the config"
            )
        return next(iter(serving.values()), None)
    chosen = find(package, named, base)
    if _model_types(chosen) and model_type not in _model_types(chosen):  # a variant without types serves any
        raise ConfigError(
            f"expected a {base.__name__.lower()} for {model_type!r}, {named} serves {', '.join(sorted(_model_types(chosen)))}: "
            f"add the type to its `model_types`, or take {KEYS[package.__name__]} out of the config"
        )
    return chosen


def no_file_for(package: ModuleType, model_type: str, base: type[Any], what: str) -> str:
    """Compose the message about a `model_type` that no variant of `package` serves.

    Args:
        package: The folder that was searched.
        model_type: The type that a checkpoint's config gives.
        base: The class whose variants were searched.
        what: What is of that type, with its article, such as "a vision tower".

    """
    known = sorted(kind for _, types in usable(find_all(package, base), _model_types).values() for kind in types)
    return (
        f"expected {what} of type {', '.join(known)}, this one is {model_type!r}: "
        f"add {package.__name__.replace('.', '/')}/{model_type}.py"
    )


def _model_types(variant: type) -> frozenset[str]:
    served: Any = variant  # `base` declares the attribute; only some of the classes that `find` returns have it
    try:
        return served.model_types
    except AttributeError:
        raise ConfigError(
            f"expected `model_types` in {variant.__name__}, it has none: list the types that it serves"
        ) from None


@cache
def _published(group: str, path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Read the entry points of a group once for each search path, because a method may be looked up in every batch."""
    points = entry_points(group=group)
    return {name: tuple(points.select(name=name)) for name in sorted(points.names)}


def _of(point: EntryPoint) -> str:
    return f"the entry point {point.name} of {_distribution(point)}"


def _distribution(point: EntryPoint) -> str:
    return "an unknown distribution" if point.dist is None else point.dist.name


@cache
def _note(message: str) -> None:
    """Print a note, once."""
    _log.warning("note: %s", message)
