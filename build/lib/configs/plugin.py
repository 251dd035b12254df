"""Variants of a method, a family or a tower: each is a file in a folder, and a config names it by the file's name.

Adding a variant means adding a file; there is no registry to edit.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, TypeVar

from configs.errors import ConfigError
from configs.parsing.nearest import no_such

T = TypeVar("T")


def names(package: ModuleType) -> list[str]:
    """List the modules of `package` that a config may name; modules that begin with an underscore are helpers."""
    return sorted(module.name for module in iter_modules(package.__path__) if not module.name.startswith("_"))


def find(package: ModuleType, name: str, base: type[T]) -> type[T]:
    """Return the only subclass of `base` that the module `package.name` defines.

    Raises:
        ConfigError: (exit 2) The package has no module of that name, or the module cannot be imported.
        TypeError: The module defines no such class, or several.

    """
    if name not in names(package):
        raise ConfigError(f"{package.__name__}: {no_such(base.__name__.lower(), name, names(package))}")
    module = _imported(f"{package.__name__}.{name}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}, it defines {len(classes)}")
    return classes[0]


def find_all(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """Return every variant of `package` by its file's name; raises as `find` does."""
    return {name: find(package, name, base) for name in names(package)}


def find_by_model_type(package: ModuleType, model_type: str, base: type[T]) -> type[T] | None:
    """Return the variant of `package` whose class attribute `model_types` holds the `model_type` of a checkpoint's config.

    Returns None where no file serves that type; raises as `find` does.
    """
    variants = find_all(package, base).values()
    return next((variant for variant in variants if model_type in _model_types(variant)), None)


def no_file_for(package: ModuleType, model_type: str, base: type, what: str) -> str:
    """Compose the message about a `model_type` that no file of `package` serves.

    Args:
        package: The folder that was searched.
        model_type: The type that a checkpoint's config gives.
        base: The class whose variants were searched.
        what: What is of that type, with its article, such as "a vision tower".

    """
    known = sorted(kind for variant in find_all(package, base).values() for kind in _model_types(variant))
    return (
        f"expected {what} of type {', '.join(known)}, this one is {model_type!r}: "
        f"add {package.__name__.replace('.', '/')}/{model_type}.py"
    )


def _model_types(variant: type) -> frozenset[str]:
    served: Any = variant  # `base` declares the attribute; only some of the classes that `find` returns have it
    return served.model_types


def _imported(name: str) -> ModuleType:
    """Import the module of a variant; whatever its code raises becomes a sentence for the author of the file."""
    try:
        return import_module(name)
    except Exception as error:
        raise ConfigError(
            f"expected a module {name} that can be imported, it raised {type(error).__name__} ({error}): mend the file, or "
            "take it out of the folder"
        ) from error
