"""Which versions of transformers are supported, and what is said about any other."""

import importlib.metadata
import logging
import re
import sys
import tomllib
from pathlib import Path

import pytest
import transformers
from packaging.requirements import Requirement
from packaging.version import Version

from configs.cli import run_to_exit_code
from stage1_extract.cli import group as stage_1
from stage2_prune.cli import group as stage_2
from store.checkpoint import versions

ROOT = Path(__file__).parents[1]


def pinned(end: str) -> dict[str, str]:
    lines = (ROOT / "tests" / "versions" / f"{end}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def required() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(line) for line in project["dependencies"]]
    return {requirement.name.replace("-", "_"): requirement for requirement in requirements}


def test_the_versions_that_messages_name_are_those_that_are_tested():
    assert pinned("oldest")["transformers"] == versions.OLDEST_TESTED
    assert pinned("newest")["transformers"] == versions.NEWEST_TESTED


def test_the_lower_bounds_of_the_package_are_the_oldest_versions_that_are_tested():
    for name in ("transformers", "huggingface_hub"):
        oldest = pinned("oldest")[name]
        assert str(required()[name].specifier) == f">={oldest.removesuffix('.0')}"
        assert all(pinned(end)[name] in required()[name].specifier for end in ("oldest", "newest"))


def test_the_environment_that_everything_else_is_tested_in_lies_within_the_window():
    own = re.search(r"^transformers==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert Version(versions.OLDEST_TESTED) <= Version(own[1]) <= Version(versions.NEWEST_TESTED)


def test_the_transformers_that_is_imported_is_the_one_that_is_installed_here():
    """An environment of `make test-versions` shares the packages of the main one, whose transformers is another."""
    assert Path(transformers.__file__).is_relative_to(sys.prefix)
    assert transformers.__version__ == versions.installed() == importlib.metadata.version("transformers")


def test_every_file_that_runs_with_each_version_is_there():
    files = (ROOT / "tests" / "versions" / "files.txt").read_text().split()
    assert len(files) == len(set(files)) and all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize("group", [stage_1, stage_2], ids=["stage1_extract", "stage2_prune"])
@pytest.mark.parametrize(
    ("name", "tested", "said"),
    [
        ("NEWEST_TESTED", "5.1.0", "is newer than 5.1.0, the newest version that was tested"),
        ("OLDEST_TESTED", "99.0", "is older than 99.0, the oldest version that was tested"),
    ],
    ids=["newer", "older"],
)
def test_a_transformers_outside_the_tested_versions_is_noted_once_with_both_versions(
    monkeypatch, caplog, tmp_path, group, name, tested, said
):
    monkeypatch.setattr(versions, "NEWEST_TESTED", versions.installed())
    monkeypatch.setattr(versions, name, tested)
    versions.note_untested.cache_clear()
    command = {stage_1: "extract", stage_2: "eval"}[group]
    config = tmp_path / "config.yaml"
    config.write_text("name: missing\ndata: {images: images, questions: questions.jsonl}\n")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            run_to_exit_code(lambda: group.main([command, "--config", str(config)], standalone_mode=False))
    notes = [record.getMessage() for record in caplog.records if record.name == "store.checkpoint.versions"]
    assert notes == [f"note: transformers {transformers.__version__} {said}"]
    versions.note_untested.cache_clear()


def test_a_tested_transformers_is_not_noted(monkeypatch, caplog):
    monkeypatch.setattr(versions, "NEWEST_TESTED", versions.installed())
    versions.note_untested.cache_clear()
    versions.note_untested()
    assert not caplog.records
