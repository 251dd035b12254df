"""Extraction may die at any moment: what is committed stays, what is missing is made, and the bytes are the same.

Fault cases 1 to 5. ENCODE_ONCE_FAULT_SEEDS says at how many random moments it is killed (`make test-faults`: 30).
"""

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

from configs.experiment import Experiment
from configs.load import load
from stage1_extract.extract import extract
from store.care.compare import differences_between
from store.care.verify import verify
from store.errors import StoreMissing
from store.layout.plan import PLAN
from store.log.commits import read_commits
from store.log.leases import live_leases
from store.reading.reader import FEATURES, FeatureStore
from tests.faults import failpoints
from tests.faults.conftest import IMAGES
from tests.faults.runs import ROOT, trial
from tests.helpers.broken import breaking, site_of
from tests.store.stores import image_ids, plan_of, store_of, values

pytestmark = pytest.mark.usefixtures("real_python")  # sessions, signals and parents are the point
SEEDS = range(int(os.environ.get("ENCODE_ONCE_FAULT_SEEDS", "3")))
SHARDS = IMAGES // 2
REAL = ["-m", "stage1_extract"]
SLOWLY = """
import sys, time
from store.writing.writer import StoreWriter
commit = StoreWriter.commit_shard
def slowly(self, shard, *arguments):
    time.sleep({seconds})
    return commit(self, shard, *arguments)
StoreWriter.commit_shard = slowly
from configs.cli import main
from stage1_extract.cli import group
main(group, sys.argv[1:])
"""


@contextmanager
def started(config: Path, program: list[str], *flags: str) -> Iterator[subprocess.Popen]:
    """The command line at work, in a session of its own; nothing of that is left afterwards."""
    with (config.parent / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *program, "extract", "--config", str(config), *flags],
            cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )  # fmt: skip
        try:
            yield process
        finally:
            for pid in session(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()


def session(leader: int) -> list[int]:
    """Processes, zombies aside, that a process has begun and its children have begun."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for(process: subprocess.Popen, path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, f"it ended with {process.returncode} before it wrote {path}"
        assert time.monotonic() < deadline, f"nothing at {path} after two minutes"
        time.sleep(0.002)


def wait_until_gone(leader: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := session(leader):
        assert time.monotonic() < deadline, f"still there after {seconds} s: {left}"
        time.sleep(0.05)


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
    assert verify(store, quick=False) == []
    return len(cut.committed_shards)


def require_resumed(experiment: Experiment, whole: Path) -> int:
    """Go on with a store that was cut short: only what is missing is made, and nothing tells the two apart.

    Returns how many shards were there.
    """
    store = experiment.store_path
    committed = require_believable(store, whole)
    before = committed_files(store) if committed else {}
    done = extract(experiment, overwrite=False)
    assert done["shards_written"] == SHARDS - committed
    assert done["tower_images"] == IMAGES - 2 * committed
    assert before.items() <= committed_files(store).items()
    assert differences_between(whole, store) == []
    assert not list(store.rglob("*.partial")) and live_leases(store, 300.0) == {}
    return committed


def committed_files(store: Path) -> dict[Path, tuple[int, int]]:
    """Records and the files that they name, each with what changes when it is written again."""
    paths = [store / "commits" / f"{shard}.json" for shard in read_commits(store)]
    paths += [store / FEATURES / file.path for one in read_commits(store).values() for file in one.files.values()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("seed", SEEDS)
def test_an_extraction_killed_at_a_random_moment_goes_on_to_the_same_bytes(home, whole, tmp_path, seed):
    config = trial(home, tmp_path)
    experiment = load(config, {})
    moment = random.Random(seed).random() * writing_time(whole)
    with started(config, REAL) as process:
        wait_for(process, experiment.store_path / PLAN)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0), (tmp_path / "output.txt").read_text()
    require_resumed(experiment, whole)


def test_an_extraction_killed_between_two_commits_goes_on_to_the_same_bytes(home, whole, tmp_path):
    config = trial(home, tmp_path)
    experiment = load(config, {})
    with started(config, ["-c", SLOWLY.format(seconds=0.2)]) as process:
        wait_for(process, experiment.store_path / "commits" / "1.json")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert 2 <= require_resumed(experiment, whole) < SHARDS


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> list[tuple[Path, str]]:
    """Stores whose writer was killed before each of its calls to the disk in turn, and which call that was."""
    folder = tmp_path_factory.mktemp("cut")
    subprocess.run([sys.executable, "-m", "tests.faults.failpoints", str(folder)], cwd=ROOT, check=True)
    notes = sorted(folder.glob("*/cut"), key=lambda note: int(note.parent.name))
    return [
        (note.parent / "store", note.read_text().replace(str(note.parent / "store") + os.sep, "")) for note in notes
    ]


def test_the_failpoints_lie_between_every_two_steps_of_a_commit(cut):
    steps = [step for _, step in cut]
    order = [
        next(n for n, step in enumerate(steps) if step.startswith(begin) and step.endswith(end))
        for begin, end in [
            ("fsync plans/.0.json", ".partial"),
            ("replace plans/0.json", ""),
            ("rename features.zarr", ""),
            ("link leases/0.json", ""),
            ("write features.zarr/small/c/0/0/0.", ".partial"),
            ("fsync features.zarr/small/c/0/0/0.", ".partial"),
            ("replace features.zarr/small/c/0/0/0", ""),
            ("fsync features.zarr/small/c/0/0", "0/0"),
            ("fsync features.zarr/large/c/0/0", "0/0"),
            ("fsync commits/.0.json", ".partial"),
            ("link commits/0.json", ""),
            ("fsync commits", "commits"),
            ("unlink leases/0.json", ""),
        ]
    ]
    assert order == sorted(order) and len(set(order)) == len(order), steps


def test_a_writer_killed_before_any_call_to_the_disk_commits_right_rows_or_none_and_is_gone_on_with(cut, tmp_path):
    reference = store_of(tmp_path / "whole", failpoints.COUNT)
    arrays = plan_of(image_ids(failpoints.COUNT)).arrays
    seen = set()
    for path, step in cut:
        committed: list[int] = []
        try:
            store = FeatureStore.open(path)
        except StoreMissing:
            pass
        else:
            committed = store.committed_shards
            rows = store.committed_rows
            for one in arrays:
                assert all(np.array_equal(store.gather(one.name, [r]), values(one, range(r, r + 1))) for r in rows), (
                    step
                )
            assert verify(path, quick=False) == [], step
        assert committed == [n for n in (0, 1) if (path / "commits" / f"{n}.json").exists()], step
        seen.add(tuple(committed))
        before = committed_files(path) if committed else {}
        failpoints.resume(path)
        assert before.items() <= committed_files(path).items(), step
        assert differences_between(path, reference) == [], step
        assert not list(path.rglob("*.partial")) and live_leases(path, 300.0) == {}, step
    assert seen == {(), (0,), (0, 1)}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_an_extraction_that_is_asked_to_stop_ends_within_ten_seconds_and_goes_on_to_the_same_bytes(
    home, whole, tmp_path, number, code
):
    config = trial(home, tmp_path)
    experiment = load(config, {})
    with started(config, ["-c", SLOWLY.format(seconds=0.2)]) as process:
        wait_for(process, experiment.store_path / "commits" / "0.json")
        process.send_signal(number)
        assert process.wait(10) == code, (tmp_path / "output.txt").read_text()
        assert session(process.pid) == []
    output = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in output
    assert number == signal.SIGINT or "stopped by SIGTERM; run the same command again to go on" in output
    assert not (experiment.store_path / "writer.json").exists()
    assert 1 <= require_resumed(experiment, whole) < SHARDS


def test_a_second_ctrl_c_does_not_wait_for_a_commit_and_is_resumable(home, whole, tmp_path):
    config = trial(home, tmp_path)
    experiment = load(config, {})
    begun = tmp_path / "begun"
    hanging = SLOWLY.format(seconds=f"300 if shard == 2 and not open({str(begun)!r}, 'w').close() else 0")
    with started(config, ["-c", hanging]) as process:
        wait_for(process, begun)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None, "it did not wait for the commit, so there is nothing to cut short"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130, (tmp_path / "output.txt").read_text()
    assert require_resumed(experiment, whole) == 2


STUBBORN = """
import multiprocessing, sys, time
import click
from configs.cli import main

@click.group()
def group(): ...

@group.command()
@click.option("--config")
def extract(config):
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,), daemon=True).start()
    try:
        open(config, "w").close()
        time.sleep(300)
    finally:
        time.sleep(300)

main(group, sys.argv[1:])
"""


def test_a_second_ctrl_c_takes_the_workers_with_it(tmp_path):
    with started(tmp_path / "begun", ["-c", STUBBORN]) as process:
        wait_for(process, tmp_path / "begun")
        assert len(session(process.pid)) == 2
        for _ in range(2):
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130, (tmp_path / "output.txt").read_text()
        wait_until_gone(process.pid, 5)


def test_workers_whose_parent_is_killed_do_not_outlive_it(home, whole, tmp_path, monkeypatch):
    config = trial(home, tmp_path)
    experiment = load(config, {})
    slow = site_of(tmp_path, breaking(tmp_path, list(range(SHARDS)), 99, "time.sleep(0.2)"))
    monkeypatch.setenv("PYTHONPATH", slow["PYTHONPATH"])
    with started(config, REAL, "--workers", "2") as process:
        wait_for(process, experiment.store_path / "commits" / "0.json")
        process.send_signal(signal.SIGKILL)
        wait_until_gone(process.pid, 10)
    assert 1 <= require_resumed(experiment, whole) < SHARDS


@pytest.mark.parametrize("kind", ["file", "record", "zarr"])
def test_half_written_leftovers_of_a_killed_writer_are_removed_and_never_believed(home, whole, tmp_path, kind):
    experiment = load(trial(home, tmp_path), {})
    store = Path(shutil.copytree(whole, experiment.store_path))
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
    assert extract(experiment, overwrite=False)["shards_written"] == 1
    assert not leftover.exists() and not list(store.rglob("*.partial"))
    assert differences_between(whole, store) == []
