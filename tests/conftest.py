"""Every test: offline, one thread, shapes in signatures checked."""

import os

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling this project anew costs each process most of a second
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side
os.environ.setdefault("MPLBACKEND", "Agg")

import sys
from collections.abc import Iterator
from multiprocessing import spawn

import pytest
from jaxtyping import install_import_hook

from tests.helpers.preloaded import preloaded_python

REAL_PYTHON = sys.executable
sys.dont_write_bytecode = False
install_import_hook(["configs", "store", "stage1_extract", "stage2_prune"], "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def _preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let commands that tests start fork off a process that has imported torch and transformers."""
    with preloaded_python(tmp_path_factory.mktemp("preloaded")) as python, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        spawn.set_executable(python)
        yield


@pytest.fixture
def real_python(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start commands with the interpreter itself, where the process is the point."""
    preloaded = spawn.get_executable()
    monkeypatch.setattr(sys, "executable", REAL_PYTHON)
    spawn.set_executable(REAL_PYTHON)
    yield
    spawn.set_executable(preloaded)
