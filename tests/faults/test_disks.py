"""Disks that are full, read-only or broken: fault cases 6, 8 and 9. The check beforehand (7) is tested with `extract`."""

import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from configs.load import load
from stage1_extract.extract import extract
from store.care.compare import differences_between
from store.care.verify import verify
from store.errors import StoreMissing
from store.layout import shard as shard_module
from store.log import leases, processes
from store.log.commits import read_commits
from store.log.leases import live_leases
from store.reading.reader import FEATURES, FeatureStore
from tests.faults import failpoints
from tests.faults.conftest import IMAGES
from tests.faults.runs import invoke, run, snapshot, trial
from tests.store.stores import image_ids, plan_of, store_of, values

SHARDS = IMAGES // 2


@contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[Path]:
    """A mount at `place`, gone afterwards; skips where this process may not mount."""
    place.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"mounting needs root: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def committed_files(store: Path) -> dict[str, tuple[int, int]]:
    files = [file.path for one in read_commits(store).values() for file in one.files.values()]
    status = {path: (store / FEATURES / path).stat() for path in files}
    return {path: (found.st_ino, found.st_mtime_ns) for path, found in status.items()}


def test_a_disk_that_fills_up_is_said_with_path_and_bytes_and_a_larger_one_is_gone_on_with(
    home, whole, tmp_path, capsys
):
    config = trial(home, tmp_path)
    experiment = load(config, {})
    with mounted(tmp_path / "run", "-t", "tmpfs", "-o", "size=480k", "tmpfs") as disk:
        said = invoke(capsys, "extract", "--config", config, expect=7)
        store = experiment.store_path
        needed, free = re.search(r"needs ([\d,]+) bytes, ([\d,]+) are free", said).groups()
        assert str(store) in said and "No space left on device" in said and "go on" in said
        assert int(needed.replace(",", "")) == FeatureStore.open(whole).plan.total_bytes
        assert int(free.replace(",", "")) < 480 * 1024
        committed = FeatureStore.open(store).committed_shards
        assert 0 < len(committed) < SHARDS
        assert verify(store, quick=False) == [] and live_leases(store, 300.0) == {}
        before = committed_files(store)
        remount(disk, "size=4m")
        assert extract(experiment, overwrite=False)["shards_written"] == SHARDS - len(committed)
        assert before.items() <= committed_files(store).items()
        assert differences_between(whole, store) == [] and not list(store.rglob("*.partial"))


LIMITED = """
import resource, sys
from store.writing.writer import StoreWriter
commit = StoreWriter.commit_shard
def limited(self, shard, *arguments):
    if shard == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    return commit(self, shard, *arguments)
StoreWriter.commit_shard = limited
from configs.cli import main
from stage1_extract.cli import group
main(group, sys.argv[1:])
"""


def test_a_limit_on_the_size_of_files_ends_like_a_full_disk(home, whole, tmp_path):
    config = trial(home, tmp_path)
    experiment = load(config, {})
    done = run("extract", "--config", config, cwd=tmp_path, expect=7, program=LIMITED)
    assert str(experiment.store_path) in done.stderr and "File too large" in done.stderr
    assert re.search(r"needs [\d,]+ bytes, [\d,]+ are free", done.stderr) and "Traceback" not in done.stderr
    assert FeatureStore.open(experiment.store_path).committed_shards == [0, 1, 2]
    assert not list(experiment.store_path.rglob("*.partial"))
    extract(experiment, overwrite=False)
    assert differences_between(whole, experiment.store_path) == []


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that nobody can write to, root included."""
    with mounted(folder, "--bind", str(folder)):
        remount(folder, "bind,ro")
        with pytest.raises(OSError, match="Read-only"):
            (folder / "probe").touch()
        yield


@pytest.fixture
def unfinished(home, whole, tmp_path) -> tuple[Path, Path]:
    """A config, and its store without its last shard."""
    config = trial(home, tmp_path)
    store = Path(shutil.copytree(whole, tmp_path / "run" / "store"))
    (store / "commits" / f"{SHARDS - 1}.json").unlink()
    return config, store


def test_a_read_only_store_is_refused_by_whoever_writes_and_read_by_all_others(unfinished, tmp_path, capsys):
    config, store = unfinished
    before = snapshot(store)
    with read_only(store):
        said = invoke(capsys, "extract", "--config", config, expect=7)
        assert str(store) in said and "Read-only file system" in said
        assert re.search(r"needs [\d,]+ bytes, [\d,]+ are free", said) and "make it writable" in said
        assert str(store) in invoke(capsys, "compact", store, expect=7)
        for reading in ("status", "verify", "inspect", "repair"):
            invoke(capsys, reading, store)
        rows = FeatureStore.open(store).committed_rows
        assert len(rows) == IMAGES - 2
        assert np.isfinite(FeatureStore.open(store).gather("projected", rows)).all()
    assert snapshot(store) == before


def test_damage_in_a_read_only_store_is_found_and_its_repair_says_what_is_in_the_way(unfinished, capsys):
    _, store = unfinished
    (store / FEATURES / "raw" / "c" / "0" / "0" / "0").write_bytes(b"")
    with read_only(store):
        invoke(capsys, "verify", store, expect=4)
        said = invoke(capsys, "repair", store, expect=7)
        assert str(store) in said and "Read-only file system" in said
        assert 0 in FeatureStore.open(store).committed_shards


def test_stage_2_trains_and_answers_from_a_read_only_store(home, whole, tmp_path, capsys):
    config = trial(home, tmp_path)
    store = Path(shutil.copytree(whole, tmp_path / "archive"))
    with read_only(store):
        for command in ("train", "eval"):
            invoke(capsys, command, "--config", config, "--store.path", store)
    assert (tmp_path / "run" / "eval" / "summary.json").is_file()
    assert snapshot(store) == snapshot(whole)


def test_a_folder_where_no_store_can_be_made_is_refused_without_a_trace(home, tmp_path, capsys):
    config = trial(home, tmp_path)
    (tmp_path / "run").mkdir()
    with read_only(tmp_path / "run"):
        said = invoke(capsys, "extract", "--config", config, expect=7)
    assert str(tmp_path / "run" / "store") in said and list((tmp_path / "run").iterdir()) == []


class Broken(OSError):
    """The error of these tests, told from a real one."""


CALLS = {
    "before": ("replace", "rename", "link", "unlink", "mkdir", "fsync", "fchmod", "write"),
    "after": ("replace", "rename", "link"),
    "torn": ("fsync",),
}
"""The call does nothing; it is done and fails all the same, as over a network; what it was to make durable is lost."""


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, step: int | str, way: str) -> Iterator[list[str]]:
    """Call number `step` to the disk, or the first whose text holds `step`, fails with EIO; the list says which it was."""
    seen = 0
    failed: list[str] = []

    def counted(name, call):
        def run(*arguments, **named):
            nonlocal seen
            place = failpoints.target(arguments[:1] if name in ("mkdir", "fchmod") else arguments)
            seen += f"{FEATURES}.partial/" not in place
            text = f"{name} {place}"
            if failed or not (seen == step if isinstance(step, int) else step in text):
                return call(*arguments, **named)
            failed.append(text)
            if way == "after":
                call(*arguments, **named)
            elif way == "torn" and name == "fsync" and Path(place).is_file():
                os.truncate(place, Path(place).stat().st_size // 2)
            raise Broken(errno.EIO, os.strerror(errno.EIO), place)

        return run

    with monkeypatch.context() as patched:
        for name in CALLS[way]:
            module, attribute = (shard_module, "_write_payload") if name == "write" else (os, name)
            patched.setattr(module, attribute, counted(name, getattr(module, attribute)))
        yield failed


@pytest.fixture
def another_process(monkeypatch):
    """Whoever goes on is not the process that failed: that one is dead."""
    begun, age = processes.process_start, count()

    def later() -> None:
        passed = next(age)  # of leases alone: temporary folders of other processes are theirs
        monkeypatch.setattr(leases, "own_start", lambda: processes.own_start() + passed)
        monkeypatch.setattr(leases, "has_ended", lambda pid, started: (begun(pid) or 0) + passed != started)

    return later


@pytest.mark.parametrize("way", CALLS)
def test_a_disk_error_at_any_call_never_commits_a_wrong_shard_and_is_gone_on_from(
    tmp_path, monkeypatch, another_process, way
):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nobody pulls the plug
    reference = store_of(tmp_path / "whole", failpoints.COUNT)
    arrays = plan_of(image_ids(failpoints.COUNT)).arrays
    met: list[str] = []
    for step in count(1):
        path = tmp_path / str(step)
        with failing(monkeypatch, step, way) as failed:
            with suppress(Broken):
                store_of(path, failpoints.COUNT)
        if not failed:
            break
        met += failed
        with suppress(StoreMissing):
            store = FeatureStore.open(path)
            for one in arrays:
                for row in store.committed_rows:
                    assert np.array_equal(store.gather(one.name, [row]), values(one, range(row, row + 1))), failed
            assert verify(path, quick=False) == [], failed
        another_process()
        failpoints.resume(path)
        assert differences_between(path, reference) == [], failed
        assert not list(path.rglob("*.partial")) and live_leases(path, 300.0) == {}, failed
        shutil.rmtree(path)
    assert {one.split()[0] for one in met} == set(CALLS[way])


@pytest.mark.parametrize("call", ["write ", "replace ", "link "])
def test_a_disk_error_while_images_are_encoded_ends_the_run_and_the_next_one_goes_on(
    home, whole, tmp_path, monkeypatch, call
):
    experiment = load(trial(home, tmp_path), {})
    store = experiment.store_path
    place = store / ("commits/5.json" if call == "link " else f"{FEATURES}/projected/c/5/0/0")
    with failing(monkeypatch, f"{call}{place}", "before") as failed:
        with pytest.raises(Broken):
            extract(experiment, overwrite=False)
    assert failed and live_leases(store, 300.0) == {}
    assert verify(store, quick=False) == [] and 5 not in FeatureStore.open(store).committed_shards
    extract(experiment, overwrite=False)
    assert differences_between(whole, store) == []


def test_the_tests_of_this_file_can_mount_or_say_that_they_cannot():
    with (
        tempfile.TemporaryDirectory() as folder,
        mounted(Path(folder) / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as disk,
    ):
        assert shutil.disk_usage(disk).total == 1 << 20
