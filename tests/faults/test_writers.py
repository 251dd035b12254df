"""Several at one store at a time, or one after the other: fault cases 14 to 17. Workers side by side: test_engines."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs.load import load
from stage1_extract.extract import extract
from store.care.compare import differences_between
from store.care.status import status
from store.errors import LeaseLost, RowUnavailable, StoreLocked
from store.layout.plan import read_plan
from store.layout.shard import Aside
from store.log import leases
from store.log.commits import read_commits
from store.log.leases import Lease, live_leases
from store.reading.reader import FeatureStore
from store.writing.writer import StoreWriter
from tests.faults.conftest import IMAGES
from tests.faults.runs import ROOT, invoke, run, trial
from tests.faults.test_kills import SLOWLY, started, wait_for
from tests.helpers.broken import breaking, site_of
from tests.store.stores import image_ids, plan_of, projector, shard_values, store_of, values, write_store

SHARDS = IMAGES // 2
COUNT = 5


def test_a_second_extraction_is_told_which_process_is_at_the_store_and_disturbs_nothing(home, whole, tmp_path, capsys):
    config = trial(home, tmp_path)
    experiment = load(config, {})
    with started(config, ["-c", SLOWLY.format(seconds=0.2)]) as process:
        wait_for(process, experiment.store_path / "commits" / "0.json")
        said = invoke(capsys, "extract", "--config", config, expect=6)
        assert f"process {process.pid} on {socket.gethostname()}" in said and "wait for it" in said
        assert process.wait(60) == 0, (tmp_path / "output.txt").read_text()
    assert differences_between(whole, experiment.store_path) == []


def held_by(store: Path, shard: int, **changed: object) -> Path:
    """A lease that some process has on a shard, by default one that is alive."""
    lease = Lease.take(store, shard, 300.0)
    assert lease is not None
    lease.path.write_text(json.dumps(vars(lease.holder) | changed))
    return lease.path


@pytest.fixture
def unfinished(tmp_path) -> Path:
    return store_of(tmp_path / "store", COUNT, shards=[0])


def resume(store: Path) -> None:
    ids = image_ids(COUNT)
    write_store(store, plan_of(ids), ids)


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("how", ["dead", "given again", "not readable"])
def test_a_lease_of_a_process_that_is_provably_dead_is_taken_over_at_once(unfinished, tmp_path, how):
    path = held_by(unfinished, 1)
    holder = json.loads(path.read_text())
    if how == "not readable":
        path.write_text("{")
        os.utime(path, (0, 0))
    else:
        path.write_text(json.dumps(holder | ({"pid": dead_pid()} if how == "dead" else {"started": 1})))
    assert live_leases(unfinished, 300.0) == {}
    resume(unfinished)
    assert differences_between(unfinished, store_of(tmp_path / "whole", COUNT)) == []
    assert not list((unfinished / "leases").iterdir())


def test_a_lease_of_another_machine_holds_until_it_made_no_progress_for_long(unfinished):
    path = held_by(unfinished, 1, host="elsewhere")
    with pytest.raises(StoreLocked, match=r"process \d+ on elsewhere \(shard 1\): wait for it, or stop it") as caught:
        resume(unfinished)
    assert caught.value.exit_code == 6
    assert status(unfinished)["in_flight"] == {"1": f"process {os.getpid()} on elsewhere"}
    assert Lease.take(unfinished, 1, 300.0) is None
    os.utime(path, (time.time() - 301, time.time() - 301))
    assert status(unfinished)["in_flight"] == {}
    resume(unfinished)
    assert FeatureStore.open(unfinished).missing_shards == []


def test_a_lock_file_that_a_killed_writer_left_holds_nobody_up(unfinished):
    (unfinished / "writer.lock").touch()
    (unfinished / "writer.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "presence": "exclusive"}))
    resume(unfinished)
    assert FeatureStore.open(unfinished).missing_shards == []


def test_a_writer_whose_shard_was_taken_over_publishes_nothing(unfinished, tmp_path):
    ids = image_ids(COUNT)
    plan = plan_of(ids)
    with StoreWriter.open(unfinished, plan, ids, projector(), "joined") as writer:
        slow = writer.claim(1)
        assert slow is not None
        os.utime(slow.path, (0, 0))
        fast = writer.claim(1)
        assert fast is not None and not slow.held
        with pytest.raises(LeaseLost, match="taken over"):
            writer.commit_shard(1, shard_values(plan, 1, seed=9), {}, {}, slow)
        assert fast.held and not writer.is_committed(1)
        writer.commit_shard(1, shard_values(plan, 1), {}, {"host": "here"}, fast)
    resume(unfinished)
    assert differences_between(unfinished, store_of(tmp_path / "whole", COUNT)) == []


def test_a_shard_that_is_taken_over_while_its_files_are_put_into_place_is_not_published(unfinished, monkeypatch):
    ids = image_ids(COUNT)
    plan = plan_of(ids)
    settle = Aside.settle
    with StoreWriter.open(unfinished, plan, ids, projector(), "joined") as writer:
        lease = writer.claim(1)
        assert lease is not None

        def overtaken(aside):
            os.utime(lease.path, (0, 0))
            writer.claim(1)
            return settle(aside)

        monkeypatch.setattr(Aside, "settle", overtaken)
        with pytest.raises(LeaseLost, match="taken over"):
            writer.commit_shard(1, shard_values(plan, 1), {}, {}, lease)
    assert FeatureStore.open(unfinished).committed_shards == [0]


def test_of_two_that_take_a_dead_lease_over_at_once_one_gets_it(unfinished, monkeypatch):
    path = held_by(unfinished, 1, pid=dead_pid())
    take_away, winners = leases._take_away, []

    def overtaken(place, expected):
        monkeypatch.setattr(leases, "_take_away", take_away)
        winners.append(Lease.take(unfinished, 1, 300.0))
        return take_away(place, expected)

    monkeypatch.setattr(leases, "_take_away", overtaken)
    assert Lease.take(unfinished, 1, 300.0) is None
    assert winners[0] is not None and winners[0].held and leases.read_holder(path) == winners[0].holder


WRITING = """
import sys, time
from pathlib import Path
from tests.store.stores import image_ids, plan_of, projector, shard_values
from store.writing.writer import StoreWriter
ids = image_ids(60)
plan = plan_of(ids)
with StoreWriter.open(Path(sys.argv[1]), plan, ids, projector()) as writer:
    for shard in writer.missing_shards():
        time.sleep(0.01)
        writer.commit_shard(shard, shard_values(plan, shard), {}, {})
"""


def test_a_reader_that_looks_all_the_time_sees_committed_rows_only_and_never_fill(tmp_path):
    path = store_of(tmp_path / "store", 60, shards=[0])
    arrays = plan_of(image_ids(60)).arrays
    expected = {one.name: values(one, range(60)) for one in arrays}
    writer = subprocess.Popen([sys.executable, "-c", WRITING, str(path)], cwd=ROOT)
    seen = set()
    try:
        while len(seen) < 2 or max(seen) < 60:
            running = writer.poll() is None
            store = FeatureStore.open(path)
            rows = store.committed_rows
            seen.add(len(rows))
            for one in arrays:
                found = store.gather(one.name, rows)
                assert np.array_equal(found, expected[one.name][rows]) and np.isfinite(found).all()
            for row in [row for row in (10, 30, 59) if row not in rows]:
                with pytest.raises(RowUnavailable, match="not committed"):
                    store.gather("small", [row])
            assert running or max(seen) == 60
    finally:
        writer.kill()
        assert writer.wait() in (0, -signal.SIGKILL)
    assert len(seen) > 3 and sorted(seen)[0] >= 2


def test_machines_with_other_numbers_of_cores_make_the_bytes_of_the_one_that_began(home, tmp_path):
    """A Ray actor has one core; matrix products of two are split, and rounded, in another way."""
    config, two, one = trial(home, tmp_path), {"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "1"}
    run("extract", "--config", config, cwd=tmp_path, env=two)
    begun = Path(shutil.copytree(tmp_path / "run" / "store", tmp_path / "begun"))
    assert read_plan(begun).fingerprints["raw"].numeric["cpu_threads"] == 2
    for shard in range(0, SHARDS, 2):
        (tmp_path / "run" / "store" / "commits" / f"{shard}.json").unlink()
    said = run("extract", "--config", config, "--worker-index", 0, "--num-workers", 4, cwd=tmp_path, env=one).stderr
    assert "computing with 2 CPU threads instead of 1" in said
    run("extract", "--config", config, "--workers", 2, cwd=tmp_path, env=one)
    assert differences_between(begun, tmp_path / "run" / "store") == []


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("submitit") is None,
    reason="ray and submitit are extras",
)
def test_one_process_then_ray_then_slurm_make_the_bytes_of_one(home, whole, tmp_path):
    config = trial(home, tmp_path, extract={"tower_batch": 2})
    share = load(config, {"extract.worker_index": 0, "extract.num_workers": 4})
    assert extract(share, overwrite=False)["shards_written"] == SHARDS // 4
    broken = breaking(tmp_path, [SHARDS - 1], 99, "raise RuntimeError('stopped here')")
    stopped = run(
        "extract", "--config", config, "--engine", "ray", "--workers", 2, cwd=tmp_path, expect=3,
        env=site_of(tmp_path, broken),
    )  # fmt: skip
    assert f"shard {SHARDS - 1} failed: " in stopped.stderr and "stopped here" in stopped.stderr
    there = read_commits(share.store_path)
    labels = {record.telemetry["worker"].split()[0] for record in there.values()}
    assert SHARDS // 4 < len(there) < SHARDS and labels == {"alone", "ray"}
    slurm = "{cluster: local, timeout_min: 5}"
    run("extract", "--config", config, "--engine", "slurm", "--workers", 2, "--slurm", slurm, cwd=tmp_path)
    assert "slurm" in read_commits(share.store_path)[SHARDS - 1].telemetry["worker"]
    assert differences_between(whole, share.store_path) == []
    assert live_leases(share.store_path, 300.0) == {}
