"""Extraction may die at any moment: what is committed stays, what is missing is made, and the bytes are the same."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.experiment import Experiment
from stage1_extract.extract import extract
from store.commits import read_commits
from store.compare import differences_between
from store.plan import PLAN
from store.reader import FeatureStore
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_images

ROOT = Path(__file__).parents[2]
IMAGES = 40
SLOWLY = """
import sys, time
from store.writer import StoreWriter
commit = StoreWriter.commit_shard
def slowly(self, shard, *arguments):
    time.sleep(0.2)
    return commit(self, shard, *arguments)
StoreWriter.commit_shard = slowly
from configs.cli import main
from stage1_extract.cli import group
main(group, sys.argv[1:])
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A checkpoint, images, and the store that an uninterrupted run makes of them."""
    folder = tmp_path_factory.mktemp("killed")
    tiny_llava(folder / "checkpoint")
    tiny_images(folder / "images", IMAGES)
    extract(experiment(folder, folder / "whole"), overwrite=False)
    return folder


def experiment(home: Path, run_dir: Path) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(run_dir),
            "model": {"checkpoint": str(home / "checkpoint"), "device": "cpu"},
            "data": {"images": str(home / "images")},
            "store": {"shard_images": 2},
            "extract": {"tower_batch": 2, "max_failures": "3"},
        }
    )


@contextmanager
def started(wanted: Experiment, folder: Path, program: list[str]) -> Iterator[subprocess.Popen]:
    """The command line at work, in a process of its own that has begun to write."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *program, "extract", "--config", str(config)], cwd=ROOT, stdout=output, stderr=output
        )
        try:
            wait_for(process, wanted.store_path / PLAN)
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(process: subprocess.Popen, path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, f"it ended with {process.returncode} before it wrote {path}"
        assert time.monotonic() < deadline, f"nothing at {path} after two minutes"
        time.sleep(0.002)


def writing_time(store: Path) -> float:
    """Seconds from the plan to the last commit record."""
    ended = max(path.stat().st_mtime for path in (store / "commits").glob("*.json"))
    return ended - (store / PLAN).stat().st_mtime


def require_believable(store: Path, whole: Path) -> int:
    """Every committed row of a store that was cut short is the right one; returns how many shards there are."""
    if not (store / "features.zarr").exists():
        return 0
    cut, reference = FeatureStore.open(store), FeatureStore.open(whole)
    rows = cut.committed_rows
    for name in cut.arrays:
        assert np.array_equal(cut.gather(name, rows), reference.gather(name, rows))
    return len(cut.committed_shards)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_extraction_killed_at_a_random_moment_goes_on_to_the_same_bytes(home, tmp_path, seed):
    wanted = experiment(home, tmp_path / "run")
    moment = random.Random(seed).random() * writing_time(home / "whole" / "store")
    with started(wanted, tmp_path, ["-m", "stage1_extract"]) as process:
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0), (tmp_path / "output.txt").read_text()
    committed = require_believable(wanted.store_path, home / "whole" / "store")
    done = extract(wanted, overwrite=False)
    assert done["shards_written"] == IMAGES // 2 - committed
    assert done["tower_images"] == IMAGES - 2 * committed
    assert differences_between(home / "whole" / "store", wanted.store_path) == []
    assert not list(wanted.store_path.rglob("*.partial"))


def test_an_extraction_killed_between_two_commits_goes_on_to_the_same_bytes(home, tmp_path):
    wanted = experiment(home, tmp_path / "run")
    with started(wanted, tmp_path, ["-c", SLOWLY]) as process:
        wait_for(process, wanted.store_path / "commits" / "1.json")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    committed = require_believable(wanted.store_path, home / "whole" / "store")
    assert 2 <= committed < IMAGES // 2
    assert extract(wanted, overwrite=False)["shards_written"] == IMAGES // 2 - committed
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


def test_an_extraction_that_is_asked_to_stop_exits_with_75_and_goes_on_to_the_same_bytes(home, tmp_path):
    wanted = experiment(home, tmp_path / "run")
    with started(wanted, tmp_path, ["-c", SLOWLY]) as process:
        wait_for(process, wanted.store_path / "commits" / "0.json")
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    output = (tmp_path / "output.txt").read_text()
    assert code == 75, output
    assert "stopped by SIGTERM; run the same command again to go on" in output and "Traceback" not in output
    assert not (wanted.store_path / "writer.json").exists()
    committed = require_believable(wanted.store_path, home / "whole" / "store")
    assert 1 <= committed < IMAGES // 2
    assert extract(wanted, overwrite=False)["tower_images"] == IMAGES - 2 * committed
    assert differences_between(home / "whole" / "store", wanted.store_path) == []


@pytest.mark.parametrize("kind", ["file", "record", "zarr"])
def test_half_written_leftovers_of_a_killed_writer_are_removed_and_never_believed(home, tmp_path, kind):
    wanted = experiment(home, tmp_path / "run")
    shutil.copytree(home / "whole" / "store", wanted.store_path)
    store = wanted.store_path
    (store / "commits" / "3.json").unlink()
    leftover = {
        "file": store / "features.zarr" / "raw" / "c" / "3" / "0" / "0.partial",
        "record": store / "commits" / ".3.json.abcd.partial",
        "zarr": store / "features.zarr.partial" / "zarr.json",
    }[kind]
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(os.urandom(50))
    # A file without its record may hold anything: only the record is the commit.
    (store / "features.zarr" / "raw" / "c" / "3" / "0" / "0").write_bytes(b"torn")
    assert 3 not in read_commits(store)
    assert extract(wanted, overwrite=False)["shards_written"] == 1
    assert not leftover.exists() and not list(store.rglob("*.partial"))
    assert differences_between(home / "whole" / "store", store) == []
