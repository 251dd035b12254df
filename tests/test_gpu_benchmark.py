"""What `make bench-gpu` needs to run anywhere, and the page that it writes; the benchmark itself is run by .ci/run."""

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.gpu.before import BEFORE
from tests.benchmarks.gpu.page import Shown, page

ROOT = Path(__file__).parents[1]
DEVELOPERS = (
    "pytest",
    "hypothesis",
    "beartype",
    "moto",
    "flask",
    "tensorstore",
    "zarrs",
    "pyarrow",
    "obstore",
    "ray",
    "submitit",
)


def test_the_benchmark_of_a_gpu_imports_nothing_that_only_developers_have(real_python):
    folder = ROOT / "tests" / "benchmarks" / "gpu"
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(folder.rglob("*.py"))]
    script = (
        "import importlib, sys\n"
        f"sys.modules |= dict.fromkeys({DEVELOPERS!r})\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_sets_the_figures_before_beside_those_after_and_has_a_cell_for_each():
    rows = [
        Shown("selectors", "div_prune, 1 at once", "2.5", "ms/image", "a card"),
        Shown("selectors", "with 1 at once no method costs more than that", "", "", "a card"),
        Shown("opening", "loading the language half", "2", "s", "a card"),
    ]
    text = page(rows)
    assert "| div_prune | 23 | 2.5 |" in text
    assert "| loading the language half | 2.9 | 2 | s |" in text
    assert "With 1 at once no method costs more than that.\n" in text
    assert "measured on a card" in text
    assert text.count("|  |") > 0 and "still to be measured" not in text


def test_the_page_without_a_run_holds_every_figure_before_and_says_that_the_others_are_to_be_measured():
    text = page([])
    assert "still to be measured" in text
    assert all(f"| {figure.value} |" in text for figure in BEFORE.values())
