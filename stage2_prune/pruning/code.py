"""The code that a method's choices depend on: its file, and what that imports of this project or from beside it."""

import ast
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("configs", "store", "stage1_extract", "stage2_prune")


@cache
def code_digest(file: Path) -> str:
    """sha256 over a file and all that it imports, however far: files of this project, and files beside the importing one."""
    found: set[Path] = set()
    waiting = [file.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path)
    contents = sorted((_name(path), sha256(path.read_bytes()).hexdigest()) for path in found)
    return sha256(repr(contents).encode()).hexdigest()


def _name(path: Path) -> str:
    """A name that does not depend on where this project and the method's file lie."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _imported(path: Path) -> Iterator[Path]:
    """The files that one file imports."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(path, alias.name.split("."), level=0)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".") if node.module else []
            for alias in node.names:
                yield from _files(path, [*module, alias.name], node.level)


def _files(importer: Path, parts: list[str], level: int) -> Iterator[Path]:
    """The modules along a dotted name, its packages' `__init__` too; nothing of libraries, nor for a name in a module."""
    if level:
        place = importer.parents[level - 1]
    elif parts[0] in PACKAGES:
        place = ROOT
    else:
        place = importer.parent
    for part in parts:
        for candidate in (place / f"{part}.py", place / part / "__init__.py"):
            if candidate.is_file():
                yield candidate.resolve()
        place /= part
