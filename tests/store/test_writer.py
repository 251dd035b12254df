"""Writing: one at a time, to one plan, and nothing that a killed writer left is believed."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from store.care.compare import differences_between
from store.errors import (
    FingerprintMismatch,
    IntegrityError,
    NonFinite,
    NoSpace,
    StoreError,
    StoreLocked,
    StoreMissing,
)
from store.layout import shard as shard_module
from store.layout.ids import ImageIds
from store.layout.plan import PLAN, read_plan
from store.log.commits import CommitRecord, publish, read_commits
from store.reading.reader import FEATURES, FeatureStore
from store.writing import prepare as prepare_module
from store.writing import writer as writer_module
from store.writing.lock import HOLDER
from store.writing.writer import StoreWriter
from tests.store.stores import image_ids, plan_of, projector, shard_values, spec, store_of, values, write_store

ROOT = Path(__file__).parents[2]
SECOND = """
import sys
from pathlib import Path
from store.errors import StoreError
from store.writing.writer import StoreWriter
from tests.store.stores import image_ids, plan_of
try:
    with StoreWriter.open(Path(sys.argv[1]), plan_of(image_ids(5)), image_ids(5), None):
        print("opened")
except StoreError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def second_writer(path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SECOND, str(path)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_second_writer_is_told_who_writes_and_may_write_afterwards(tmp_path):
    ids = image_ids(5)
    with StoreWriter.open(tmp_path, plan_of(ids), ids, None):
        refused = second_writer(tmp_path)
        assert refused.returncode == 6, refused.stderr
        assert str(tmp_path) in refused.stdout and f"process {os.getpid()} on" in refused.stdout
        with pytest.raises(StoreLocked, match="wait for it"), StoreWriter.open(tmp_path, plan_of(ids), ids, None):
            pass
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    allowed = second_writer(tmp_path)
    assert (allowed.returncode, allowed.stdout) == (0, "opened\n"), allowed.stderr
    assert not (tmp_path / HOLDER).exists()


def test_the_lock_is_free_again_after_an_error(tmp_path):
    ids = image_ids(5)
    with pytest.raises(KeyboardInterrupt), StoreWriter.open(tmp_path, plan_of(ids), ids, None):
        raise KeyboardInterrupt
    write_store(tmp_path, plan_of(ids), ids)


def test_a_reader_needs_no_lock(tmp_path):
    ids = image_ids(5)
    plan = plan_of(ids)
    with StoreWriter.open(tmp_path, plan, ids, None) as writer:
        assert FeatureStore.open(tmp_path).missing_shards == [0, 1, 2]
        writer.commit_shard(1, shard_values(plan, 1), {}, {})
        store = FeatureStore.open(tmp_path)
        assert store.committed_rows == [2, 3]
        np.testing.assert_array_equal(store.gather("small", [3]), values(plan.arrays[0], range(3, 4)))


def test_another_fingerprint_is_refused_field_by_field(tmp_path):
    ids = image_ids(5)
    write_store(tmp_path, plan_of(ids, checkpoint="tiny", layer=-2), ids, shards=[0])
    other = plan_of(ids, checkpoint="large", layer=-3)
    with pytest.raises(FingerprintMismatch) as caught, StoreWriter.open(tmp_path, other, ids, None):
        pass
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert "semantic.checkpoint: expected 'large', found 'tiny'" in message
    assert "semantic.layer: expected -3, found -2" in message
    assert "2 fields" in message and str(tmp_path) in message and "--overwrite" in message
    assert read_plan(tmp_path) != other


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("shard_images", lambda ids, plan: plan.model_copy(update={"shard_images": 3})),
        ("notes", lambda ids, plan: plan.model_copy(update={"notes": ()})),
        ("identity", lambda ids, plan: plan.model_copy(update={"identity": "name"})),
        ("n_images", lambda ids, plan: plan_of(image_ids(6))),
        ("arrays", lambda ids, plan: plan_of(ids, [spec("small", (3, 6), "float32"), plan.arrays[1]])),
    ],
)
def test_another_plan_is_refused_by_the_fields_that_differ(tmp_path, field, change):
    ids = image_ids(5)
    plan = plan_of(ids)
    write_store(tmp_path, plan, ids, shards=[0])
    with pytest.raises(StoreError, match=rf"another plan: .*{field} \(stored ") as caught:
        with StoreWriter.open(tmp_path, change(ids, plan), ids, None):
            pass
    assert "--overwrite" in str(caught.value)
    assert FeatureStore.open(tmp_path).committed_rows == [0, 1]


def test_of_another_plan_without_a_committed_shard_it_is_said_that_replacing_it_loses_nothing(tmp_path):
    ids = image_ids(5)
    write_store(tmp_path, plan_of(ids), ids, shards=[])
    with pytest.raises(StoreError, match="no shard of it is committed, so that --overwrite replaces it at no loss"):
        with StoreWriter.open(tmp_path, plan_of(image_ids(6)), image_ids(6), None):
            pass


def test_the_same_plan_goes_on_where_it_stopped(tmp_path):
    ids = image_ids(5)
    plan = plan_of(ids)
    write_store(tmp_path / "two steps", plan, ids, shards=[1])
    with StoreWriter.open(tmp_path / "two steps", plan, ids, projector()) as writer:
        assert writer.missing_shards() == [0, 2]
    write_store(tmp_path / "two steps", plan, ids)
    write_store(tmp_path / "one step", plan, ids)
    assert differences_between(tmp_path / "one step", tmp_path / "two steps") == []


def test_shards_may_be_committed_in_any_order(tmp_path):
    ids = image_ids(5)
    plan = plan_of(ids)
    a = write_store(tmp_path / "a", plan, ids, shards=[2, 0, 1])
    b = write_store(tmp_path / "b", plan, ids, shards=[0, 1, 2])
    assert differences_between(a, b) == []


def test_a_comparison_names_what_differs(tmp_path):
    ids = image_ids(5)
    plan = plan_of(ids)
    a = write_store(tmp_path / "a", plan, ids)
    b = write_store(tmp_path / "b", plan, ids, shards=[0, 1], failures={1: "broken"})
    found = differences_between(a, b)
    assert "bytes differ: small/c/0/0/0" in found and "only in one: large/c/2/0/0" in found
    assert "commit records differ" in found and "plans differ" not in found
    c = write_store(tmp_path / "c", plan_of(ids, layer=-3), ids)
    assert "plans differ" in differences_between(a, c)


def test_telemetry_is_no_difference(tmp_path):
    ids = image_ids(2)
    plan = plan_of(ids)
    for name in "ab":
        with StoreWriter.open(tmp_path / name, plan, ids, None) as writer:
            writer.commit_shard(0, shard_values(plan, 0), {}, {"host": name})
    assert differences_between(tmp_path / "a", tmp_path / "b") == []


def test_what_a_killed_writer_left_half_written_is_swept_on_the_next_open(tmp_path):
    ids = image_ids(5)
    plan = plan_of(ids)
    write_store(tmp_path, plan, ids, shards=[0])
    left = [
        tmp_path / FEATURES / "small/c/1/0/0.partial",
        tmp_path / "commits" / ".1.json.abc.partial",
        tmp_path / "plans" / ".0.json.xyz.partial",
        tmp_path / (FEATURES + ".partial") / "zarr.json",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert FeatureStore.open(tmp_path).missing_shards == [1, 2]
    write_store(tmp_path, plan, ids)
    assert [path for path in tmp_path.rglob("*") if "partial" in path.name] == []
    assert differences_between(tmp_path, write_store(tmp_path.with_name("whole"), plan, ids)) == []


def test_a_crash_between_a_shard_and_its_record_leaves_the_shard_uncommitted(tmp_path, monkeypatch):
    ids = image_ids(5)
    plan = plan_of(ids)
    a, b = tmp_path / "a", tmp_path / "b"

    def crash(store, record, generation):
        raise KeyboardInterrupt

    write_store(a, plan, ids, shards=[0])
    with monkeypatch.context() as patched:
        patched.setattr(writer_module, "publish", crash)
        with pytest.raises(KeyboardInterrupt):
            write_store(a, plan, ids, shards=[1])
    store = FeatureStore.open(a)
    assert (a / FEATURES / "small/c/1/0/0").is_file()
    assert store.committed_rows == [0, 1] and store.missing_shards == [1, 2]
    with StoreWriter.open(a, plan, ids, projector()) as writer:
        assert writer.missing_shards() == [1, 2]
    write_store(a, plan, ids)
    assert differences_between(a, write_store(b, plan, ids)) == []


STEPS = {"write_plan": prepare_module, "write_manifest": prepare_module, "build": prepare_module}


@pytest.mark.parametrize("step", [*STEPS, "write_aside"])
def test_a_crash_at_any_step_is_made_good_by_the_next_run(tmp_path, monkeypatch, step):
    ids = image_ids(5)
    plan = plan_of(ids)
    module = STEPS.get(step, writer_module)
    real = getattr(module, step)

    def before(*arguments):
        raise KeyboardInterrupt

    def after(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    for number, crash in enumerate((before, after)):
        path = tmp_path / str(number)
        with monkeypatch.context() as patched:
            patched.setattr(module, step, crash)
            with pytest.raises(KeyboardInterrupt):
                write_store(path, plan, ids)
        write_store(path, plan, ids)
        assert differences_between(path, write_store(tmp_path / f"whole {number}", plan, ids)) == []


def test_a_crash_while_the_arrays_are_created_leaves_none_of_them(tmp_path, monkeypatch):
    ids = image_ids(5)
    plan = plan_of(ids)

    def crash(self, parent, group_name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ImageIds, "write", crash)
        with pytest.raises(KeyboardInterrupt):
            write_store(tmp_path, plan, ids)
    assert not (tmp_path / FEATURES).exists()
    with pytest.raises(StoreMissing, match="go on"):
        FeatureStore.open(tmp_path)
    write_store(tmp_path, plan, ids)
    assert FeatureStore.open(tmp_path).missing_shards == []


def record_of(shard, **changed):
    fields = {
        "shard": shard, "first_row": 0, "last_row": 1, "ids_digest": "a", "plan_digest": "b", "files": {},
        "failures": {}, "telemetry": {},
    }  # fmt: skip
    return CommitRecord(**(fields | changed))


def test_of_two_records_of_a_shard_the_first_counts(tmp_path):
    assert publish(tmp_path, record_of(0))
    assert not publish(tmp_path, record_of(0, ids_digest="other"))
    assert publish(tmp_path, record_of(1))
    assert read_commits(tmp_path) == {0: record_of(0).sealed(), 1: record_of(1).sealed()}
    assert sorted(path.name for path in (tmp_path / "commits").iterdir()) == ["0.json", "1.json"]


def test_the_same_rows_committed_twice_leave_the_first_record(tmp_path):
    ids = image_ids(2)
    plan = plan_of(ids)
    with StoreWriter.open(tmp_path, plan, ids, None) as writer:
        writer.commit_shard(0, shard_values(plan, 0), {}, {"run": 1})
        writer.commit_shard(0, shard_values(plan, 0), {}, {"run": 2})
    assert read_commits(tmp_path)[0].telemetry == {"run": 1}
    for one in plan.arrays:
        np.testing.assert_array_equal(FeatureStore.open(tmp_path).gather(one.name, [0, 1]), values(one, range(2)))


@pytest.mark.parametrize("array", ["small", "large"])
def test_committing_other_rows_to_a_committed_shard_changes_no_row(tmp_path, array):
    ids = image_ids(2)
    plan = plan_of(ids)
    with StoreWriter.open(tmp_path, plan, ids, None) as writer:
        writer.commit_shard(0, shard_values(plan, 0, seed=1), {}, {})
        writer.commit_shard(0, shard_values(plan, 0, seed=2), {}, {})
    expected = values(plan.array(array), range(2), seed=1)
    np.testing.assert_array_equal(FeatureStore.open(tmp_path).gather(array, [0, 1]), expected)


def test_a_shard_that_the_plan_does_not_have_is_refused(tmp_path):
    ids = image_ids(5)
    plan = plan_of(ids)
    with StoreWriter.open(tmp_path, plan, ids, None) as writer:
        for shard in (-1, 3):
            with pytest.raises(ValueError, match=r"0\.\.2"):
                writer.commit_shard(shard, shard_values(plan, 0), {}, {})


def test_a_commit_of_another_plan_is_not_taken_for_work_done(tmp_path):
    ids = image_ids(5)
    write_store(tmp_path, plan_of(ids), ids, shards=[0])
    path = tmp_path / "commits" / "0.json"
    other = read_commits(tmp_path)[0].model_copy(update={"plan_digest": "0" * 64})
    path.write_text(other.sealed().model_dump_json())
    with StoreWriter.open(tmp_path, plan_of(ids), ids, None) as writer:
        with pytest.raises(IntegrityError, match="shard 0 .* another plan"):
            writer.missing_shards()


def test_a_refused_shard_writes_nothing(tmp_path):
    ids = image_ids(2)
    plan = plan_of(ids)
    rows = shard_values(plan, 0)
    rows["large"][0, 0, 0] = np.nan
    with StoreWriter.open(tmp_path, plan, ids, None) as writer, pytest.raises(NonFinite):
        writer.commit_shard(0, rows, {}, {})
    assert not (tmp_path / FEATURES / "small" / "c").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_while_a_shard_is_written_is_said_with_path_and_bytes(tmp_path, monkeypatch, number):
    ids = image_ids(5)
    plan = plan_of(ids)

    def full(file, layout, rows):
        file.write(b"half a shard")
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(shard_module, "_write_payload", full)
        with pytest.raises(NoSpace) as caught:
            write_store(tmp_path, plan, ids)
    assert caught.value.exit_code == 7
    for expected in (str(tmp_path), os.strerror(number), f"{plan.total_bytes:,} bytes", "free", "go on"):
        assert expected in str(caught.value)
    assert FeatureStore.open(tmp_path).committed_rows == []
    write_store(tmp_path, plan, ids)
    assert differences_between(tmp_path, write_store(tmp_path.with_name("whole"), plan, ids)) == []


@pytest.mark.parametrize("call", [*STEPS, "publish"])
def test_a_full_disk_at_any_other_step_is_said_too(tmp_path, monkeypatch, call):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(STEPS.get(call, writer_module), call, full)
    with pytest.raises(NoSpace, match=str(tmp_path)):
        store_of(tmp_path)


def test_an_error_that_is_not_about_the_disk_is_left_as_it_is(tmp_path, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writer_module, "write_aside", broken)
    with pytest.raises(OSError, match="Input/output error"):
        store_of(tmp_path)


def test_an_image_that_may_not_be_read_is_not_called_a_full_store(tmp_path):
    ids = image_ids(2)
    with pytest.raises(PermissionError), StoreWriter.open(tmp_path, plan_of(ids), ids, None):
        raise PermissionError(errno.EACCES, "Permission denied", "images/private.png")


def test_a_writer_of_a_new_store_writes_the_plan_first(tmp_path, monkeypatch):
    seen = []
    build = prepare_module.build

    def watched(aside, *rest):
        seen.append((tmp_path / PLAN).is_file())
        return build(aside, *rest)

    monkeypatch.setattr(prepare_module, "build", watched)
    with StoreWriter.open(tmp_path, plan_of(image_ids(2)), image_ids(2), None):
        pass
    assert seen == [True]
