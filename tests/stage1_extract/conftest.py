"""A small checkpoint and a folder of images that may grow, for the tests of extractions."""

import pytest

from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import come, tiny_images


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture
def images(tmp_path):
    """A folder of five images; seven more may come."""
    tiny_images(tmp_path / "more", 12)
    (tmp_path / "images").mkdir()
    come(tmp_path, range(5))
    return tmp_path / "images"
