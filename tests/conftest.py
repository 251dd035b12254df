"""Every test: offline, one thread, shapes in signatures checked, files in memory, commands forked off a preloaded process."""

import os

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling this project anew costs each process most of a second
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side
os.environ.setdefault("MPLBACKEND", "Agg")

import shutil
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import spawn
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from tests.helpers.preloaded import preloaded_python

ROOT = Path(__file__).parents[1]
PACKAGES = ("configs", "store", "stage1_extract", "stage2_prune")
MEMORY = Path("/dev/shm")
REAL_PYTHON = sys.executable
sys.dont_write_bytecode = False


def with_shapes() -> list[str]:
    """List the modules whose signatures give shapes; checking each call of the others took a fifth of the tests' time."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    shaped = [path.relative_to(ROOT).with_suffix("") for path in files if "jaxtyping" in path.read_text("utf-8")]
    return [".".join(path.parts).removesuffix(".__init__") for path in shaped]


install_import_hook(with_shapes(), "beartype.beartype")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 6e9 and "TMPDIR" not in os.environ:
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)  # on a disk each of thousands of fsyncs takes milliseconds


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep digests of weights in a folder of the tests, and not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENCODE_ONCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _preloaded(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Iterator[None]:
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
