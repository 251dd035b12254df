"""A name in a config is a module's file name: adding a variant is adding a file, there is no registry to edit."""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TypeVar

from configs.errors import ConfigError
from configs.parsing.nearest import no_such

T = TypeVar("T")


def names(package: ModuleType) -> list[str]:
    """Modules of `package` that a config may name; those that begin with an underscore are helpers."""
    return sorted(module.name for module in iter_modules(package.__path__) if not module.name.startswith("_"))


def find(package: ModuleType, name: str, base: type[T]) -> type[T]:
    """The one subclass of `base` that module `package.name` defines."""
    if name not in names(package):
        raise ConfigError(f"{package.__name__}: {no_such(base.__name__.lower(), name, names(package))}")
    module = _imported(f"{package.__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}, it defines {len(found)}")
    return found[0]


def _imported(name: str) -> ModuleType:
    """A variant's module; what is wrong with its code is the writer's to mend, and said in a sentence."""
    try:
        return import_module(name)
    except Exception as error:
        raise ConfigError(
            f"expected a module {name} that can be imported, it raised {type(error).__name__} ({error}): mend the file, or "
            "take it out of the folder"
        ) from error


def find_all(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """Every variant of `package` by its file's name."""
    return {name: find(package, name, base) for name in names(package)}
