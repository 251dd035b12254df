"""A pruner that was trained and evaluated once, and a hub on this machine."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from store.checkpoint.files import hub_answers
from tests.helpers.hub import TOKEN, local_hub
from tests.stage2_prune.test_trained_weights import config, run

METHOD = {"name": "learned_scorer", "hidden": 8}
DATA = {"datasets": ["lmms-lab/GQA", "TextVQA, training split"], "licence": "cc-by-4.0"}
LABEL = "learned_scorer"
ADDRESS_OF_A_FILE = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture(scope="module")
def shared(home, tmp_path_factory):
    """The folder of a run with a trained pruner, its evaluation and its card; do not change it."""
    folder = tmp_path_factory.mktemp("shared")
    path = written(home, folder, folder / "run", [{"name": "keep_all"}, METHOD])
    assert run("train", path) == 0 and run("eval", path) == 0
    return folder


@pytest.fixture
def trained(shared, tmp_path):
    """A copy of that run's pruner to break."""
    return Path(shutil.copytree(shared / "run" / "pruner" / LABEL, tmp_path / "copied"))


def written(home, folder, run_dir, method, **changes):
    """A config whose data and weights have licences."""
    changes = {f"data__{key}": value for key, value in DATA.items()} | changes
    path = config(home, folder, run_dir, method, **changes)
    text = path.read_text()
    path.write_text(text.replace("train:\n", "train:\n  licence: apache-2.0\n"))
    return path


@pytest.fixture
def hub(monkeypatch):
    """The hub, for commands in this process."""
    with local_hub() as hub:
        addresses = {"ENDPOINT": hub.address, "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + ADDRESS_OF_A_FILE}
        for name, value in (addresses | {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}).items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub_answers.cache_clear()
        yield hub
    hub_answers.cache_clear()
