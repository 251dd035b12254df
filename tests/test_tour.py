"""The notebook of the documentation is run in an empty folder, and what it shows is what it was saved with."""

import re
from pathlib import Path

import pytest
from nbformat import NotebookNode

from tests.helpers.notebook import read, run

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"
pytestmark = pytest.mark.timeout(900)  # a minute of processor time, which a busy machine stretches
LARGEST = 1_000_000
"""Bytes of the notebook, pictures included: larger ones are slow to open, and GitHub does not show them."""


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cell: NotebookNode) -> str:
    """What a cell printed, with the text of its tables."""
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    return printed + "".join(output.data.get("text/markdown", "") for output in cell.outputs if "data" in output)


def shape(cell: NotebookNode) -> list[str]:
    """The kinds of a cell's outputs, with every number of their text left out."""
    kinds = sorted(kind for output in cell.outputs if "data" in output for kind in output.data)
    return kinds + re.sub(r"[-+]?\d[\d.,e-]*", "#", text(cell)).split()


def showing(notebook: NotebookNode, call: str) -> str:
    """What the one cell shows whose code holds `call`."""
    (cell,) = [cell for cell in code(notebook) if call in cell.source]
    return text(cell)


def run_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookNode:
    monkeypatch.setenv("PYTHONPATH", str(TOUR.parents[1]))
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # a kernel that sees it does not show what other processes print
    return run(TOUR, folder)


def test_the_tour_shows_what_it_was_saved_with_pictures_answers_a_comparison_and_the_proof(tmp_path, monkeypatch):
    """One test, because the notebook takes a minute and each process of a parallel run would run it again."""
    tour, saved = run_in(tmp_path, monkeypatch), read(TOUR)

    assert [cell.execution_count for cell in code(saved)] == list(range(1, len(code(saved)) + 1))
    for before, now in zip(code(saved), code(tour), strict=True):
        assert shape(before) == shape(now), f"run `python -m tests.helpers.notebook docs/tour.ipynb`:\n{now.source}"
    assert TOUR.stat().st_size < LARGEST

    pictures = [output for cell in code(tour) for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4
    assert "projected" in showing(tour, "run_extraction(")
    evaluated, compared = showing(tour, "run_evaluation("), showing(tour, "compare_runs(")
    for method in ("random", "uniform_grid", "cls_attention", "learned_scorer"):
        assert evaluated.count(f"| {method} |") == 4 and compared.count(f"| {method}-16-") == (method != "random")

    proof = showing(tour, "run_parity(")
    assert "IDENTICAL: 20 questions" in proof and "identical: True" in proof
