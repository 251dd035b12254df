"""Notebooks of the documentation, run as a reader runs them.

python -m tests.helpers.notebook docs/tour.ipynb     run a notebook in an empty folder, and save it with its outputs
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def run(path: Path, folder: Path) -> NotebookNode:
    """Run all cells in `folder`, and return the notebook with its outputs; an error of a cell is raised."""
    notebook = read(path)
    settings = {"timeout": 300, "record_timing": False, "coalesce_streams": True}
    return NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **settings).execute()


def main(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        notebook = run(path, Path(folder))
    notebook.metadata["language_info"] = {"name": "python"}  # not the version of whoever ran it last
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
