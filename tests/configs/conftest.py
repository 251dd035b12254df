"""What the tests of installed distributions share."""

import sys

import pytest


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of the search path, for installed distributions; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(sys.modules[name]):
            del sys.modules[name]
