"""One small experiment for the whole folder: its checkpoint, its data, and the store that nothing disturbed."""

from pathlib import Path

import pytest

from configs.load import load
from stage1_extract.extract import extract
from tests.faults.runs import config_file
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions

IMAGES = 24


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """`checkpoint`, `data` and `run/store`: twelve shards of two images."""
    folder = tmp_path_factory.mktemp("home")
    tiny_llava(folder / "checkpoint")
    tiny_questions(folder / "data", IMAGES)
    extract(load(config_file(folder, folder / "checkpoint"), {}), overwrite=False)
    return folder


@pytest.fixture(scope="session")
def whole(home) -> Path:
    """The store of an extraction that nothing disturbed."""
    return home / "run" / "store"
