"""The house: how large a room, a file and a function may be, and that no way through the rooms leads back."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "store", "stage1_extract", "stage2_prune")
FILES_IN_A_FOLDER, LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 15, 250, 45
ONE_FILE_A_METHOD = ROOT / "stage2_prune" / "pruners"
MODULES = {path.relative_to(ROOT): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def name_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


def room(name: str) -> str:
    """The folder in its package that a module lies in; a module beside the folders is a room of its own."""
    return ".".join(name.split(".")[:2])


def imported(path: Path) -> set[str]:
    """The modules of this project that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[path].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & NAMES.keys()) or {node.module}
    return found & NAMES.keys()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_rooms_of_a_package_lie_on_floors_no_import_leads_back_up(package):
    arrows: dict[str, set[str]] = {}
    for path in MODULES:
        here = room(name_of(path))
        there = {room(name) for name in imported(path) if name.startswith(f"{package}.")}
        if here.startswith(f"{package}."):
            arrows.setdefault(here, set()).update(there - {here})
    list(TopologicalSorter(arrows).static_order())  # a CycleError names the rooms


def test_no_folder_is_crowded_but_the_one_of_methods():
    folders = {path.parent for path in MODULES.values()} - {ONE_FILE_A_METHOD}
    crowded = {
        str(folder.relative_to(ROOT)): len(files)
        for folder in folders
        if len(files := [path for path in folder.glob("*.py") if path.name != "__init__.py"]) > FILES_IN_A_FOLDER
    }
    assert not crowded


def test_no_file_is_long():
    lengths = {str(path): len(file.read_text().splitlines()) for path, file in MODULES.items()}
    assert not {path: lines for path, lines in lengths.items() if lines > LINES_OF_A_FILE}


def test_no_function_is_long():
    long = {
        f"{path}::{node.name}": length
        for path, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > LINES_OF_A_FUNCTION
    }
    assert not long
