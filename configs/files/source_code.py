"""The code that a variant depends on: its file and all files that it imports from this project or from beside it."""

import ast
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("configs", "store", "stage1_extract", "stage2_prune")


@cache
def code_digest(file: Path) -> str:
    """Compute the sha256 over a file and all that it imports, directly or through other files.

    Imports count where they lead to a file of this project or to a file beside the importing one; libraries do not.
    """
    return _digest(_reached(file))


def own_code_digest(file: Path) -> str | None:
    """Compute the digest of a user's file as `code_digest` does, but without the files of this project.

    A new version of this project leaves the digest as it is. None for a file of this project.
    """
    own = {path for path in _reached(file) if not path.is_relative_to(ROOT)}
    return _digest(own) if own else None


def _reached(file: Path) -> set[Path]:
    """Collect a file and all that it imports, directly or through other files."""
    files: set[Path] = set()
    waiting = [file.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += _imported(path)
    return files


def _digest(files: set[Path]) -> str:
    contents = sorted((_name(path), sha256(path.read_bytes()).hexdigest()) for path in files)
    return sha256(repr(contents).encode()).hexdigest()


def _name(path: Path) -> str:
    """Return a name for a file that does not depend on where this project and the method's file lie."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _imported(path: Path) -> Iterator[Path]:
    """Yield the files that one file imports."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(path, alias.name.split("."), level=0)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            for alias in node.names:
                yield from _files(path, [*module, alias.name], node.level)


def _files(importer: Path, parts: list[str], level: int) -> Iterator[Path]:
    """Yield the modules along a dotted name, with the `__init__` files of its packages.

    Parts of the name that are no files, such as names inside a module, and libraries yield nothing.
    """
    if level:
        folder = importer.parents[level - 1]
    elif parts[0] in PACKAGES:
        folder = ROOT
    else:
        folder = importer.parent
    for part in parts:
        for candidate in (folder / f"{part}.py", folder / part / "__init__.py"):
            if candidate.is_file():
                yield candidate.resolve()
        yield from _exported(folder, part)
        folder /= part


def _exported(package: Path, name: str) -> Iterator[Path]:
    """Yield the module behind a name that a package exports lazily, as its stub says, with the packages along its way."""
    stub = package / "__init__.pyi"
    for node in ast.parse(stub.read_bytes()).body if stub.is_file() else ():
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.asname for alias in node.names}:
            yield from _files(stub, node.module.split("."), node.level)
