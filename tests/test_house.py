"""The layout: who may import whom, and what a `--help` may cost."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "configs": {"configs"},
    "store": {"configs", "store"},
    "stage1_extract": {"configs", "store", "stage1_extract"},
    "stage2_prune": {"configs", "store", "stage2_prune"},
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_downwards(package):
    for path in (ROOT / package).rglob("*.py"):
        ours = {module.split(".")[0] for module in imported(path)} & MAY_IMPORT.keys()
        assert ours <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {ours - MAY_IMPORT[package]}"


def test_nothing_but_the_demo_imports_the_demo():
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            if "demo" not in path.parts:
                assert not any(module.startswith("stage1_extract.demo") for module in imported(path)), path


def test_progress_is_shown_in_one_way():
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            if path != ROOT / "configs" / "progress.py":
                assert "tqdm" not in imported(path), f"{path.relative_to(ROOT)}: use configs.progress"


def test_a_spawned_worker_finds_the_packages_from_any_folder_even_beside_folders_of_their_names(tmp_path):
    for name in MAY_IMPORT:
        (tmp_path / name).mkdir()
    script = (
        "import multiprocessing\n"
        "from store.layout.schema import ArraySpec, default_shard_images\n"
        "if __name__ == '__main__':\n"
        "    spec = ArraySpec(name='raw', axes=('patch',), shape=(576,), dtype='float16')\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        assert pool.apply(default_shard_images, ([spec], 3)) == 4\n"
    )
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["store", "stage1_extract", "stage2_prune"])
def test_every_help_is_quick_because_it_imports_no_framework(package, tmp_path):
    script = (
        "import sys\n"
        f"from {package}.cli import group\n"
        "for command in ([], *([name] for name in group.commands)):\n"
        "    try:\n"
        "        group.main([*command, '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'zarr'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") > 4


def test_the_type_checker_is_silenced_no_more_often_than_now():
    lines = [
        line
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
    ]
    assert sum("# type: ignore" in line or "# pyright:" in line for line in lines) <= 18


def test_make_help_lists_the_targets():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in (
        "demo",
        "extract",
        "train",
        "eval",
        "sweep",
        "parity",
        "inspect",
        "test",
        "test-faults",
        "check",
        "bench",
    ):
        assert f"make {target} " in listed


CASES = [
    line.split("|") for line in (ROOT / "tests" / "README.md").read_text().splitlines() if re.match(r"\| \d", line)
]


def test_every_fault_case_has_its_line_and_names_a_test_or_says_why_there_is_none():
    assert [int(case[1]) for case in CASES] == list(range(1, 46))
    assert [int(case[1]) for case in CASES if "::" not in case[4]] == [43]
    assert all("belongs to no feature here: " in case[3] for case in CASES if "::" not in case[4])


def test_every_test_that_the_page_about_the_tests_names_exists():
    text = (ROOT / "tests" / "README.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", text))
    assert len(named) > 80 and text.count("::") == len(re.findall(r"`[\w/]+\.py::\w+`", text))
    for path in {path for path, _ in named}:
        there = {node.name for node in ast.parse((ROOT / "tests" / path).read_text()).body if hasattr(node, "name")}
        assert {name for of, name in named if of == path} <= there, path


def test_every_file_of_tests_that_the_drawing_names_exists():
    drawing = (ROOT / "tests" / "README.md").read_text().split("```mermaid")[1].split("```")[0]
    for label in re.findall(r'"([^"]+)"', drawing):
        for part in label.split(" · "):
            folder = Path(part.rpartition("/")[0])
            for name in part.rpartition("/")[2].split(", "):
                place = ROOT / "tests" / folder / name
                assert place.is_dir() if not name else place.with_suffix(".py").is_file(), part
