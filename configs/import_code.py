"""Import the code of a variant: a module of this project, an entry point, or a file anywhere.

Whatever that code raises while it is imported becomes a sentence for its author.
"""

import sys
import traceback
from collections.abc import Callable
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from configs.errors import ConfigError
from configs.parsing.nearest import did_you_mean

T = TypeVar("T")
_PREFIX = "_encode_once_"
"""Beginning of the private names of modules that were imported from a path."""
MEND = "mend the file, or take it out of the folder or the config"
"""What the author of a file can do about code that cannot be imported."""


def import_path(path: Path) -> ModuleType:
    """Import a file under a private name that is made from its resolved path, once per process.

    The file is imported as if it were a package of its folder, so that `from .helper import …` reads a file beside it.
    """
    file = path.resolve()
    name = f"{_PREFIX}{sha256(str(file).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        beside = sorted(other.name for other in file.parent.glob("*.py"))
        raise ConfigError(f"expected a file at {path}, there is none{did_you_mean(file.name, beside)}")
    spec = spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
    loader = None if spec is None else spec.loader
    assert spec is not None and loader is not None, "a file that ends in .py has a loader"
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        imported(f"a file {path}", lambda: loader.exec_module(module), file.parent)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def imported(what: str, load: Callable[[], Any], folder: Path | None = None, advice: str = MEND) -> Any:
    """Import the code of a variant; whatever error that code raises becomes a sentence for the author of the file."""
    try:
        return load()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"expected {what} that can be imported, it raised {type(error).__name__} ({error}){place_of(error, folder)}: "
            f"{advice}"
        ) from error


def place_of(error: BaseException, folder: Path | None) -> str:
    """Name the file and the line that raised an error, the innermost ones in `folder`, as the end of a sentence."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" in {error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if folder is not None and Path(frame.filename).parent == folder]
    return f" in {inside[-1].filename}, line {inside[-1].lineno}" if inside else ""


def line_of_a_path(error: BaseException) -> str | None:
    """Return the file and the line where a file that was imported from a path raised an error; None for other errors."""
    places = [
        f"{frame.f_code.co_filename}, line {line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith(_PREFIX)
    ]
    return places[-1] if places else None


def only_class(loaded: Any, base: type[T], source: str) -> type[T]:
    """Return the variant that an entry point names, or the only one that a module defines."""
    if isinstance(loaded, type) and issubclass(loaded, base):
        return loaded
    classes = [
        value
        for value in (vars(loaded).values() if isinstance(loaded, ModuleType) else ())
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == loaded.__name__
    ]
    if len(classes) != 1:
        defined = f"{len(classes)} ({', '.join(kind.__name__ for kind in classes)})" if classes else "none"
        raise ConfigError(
            f"expected exactly one {base.__name__} in {source}, it defines {defined}: leave one in the file"
        )
    return classes[0]
