"""The commit log, in files of their own and compacted: first wins, nothing is lost, damage is named."""

import errno
import json
import os
import tempfile
import threading
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from store.care.compare import differences_between
from store.care.repair import repair
from store.care.verify import verify
from store.cli import group
from store.errors import IntegrityError, NoSpace
from store.log import commits as module
from store.log.commits import (
    COMPACTED,
    CommitRecord,
    compact,
    damaged_records,
    intact_records,
    publish,
    read_commit,
    read_commits,
    withdraw,
)
from store.reading.reader import FeatureStore
from tests.store.stores import flip, image_ids, plan_of, quick, store_of, write_store

SHARDS = range(6)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def record(shard, version=0):
    failures = {10 * shard + 3: 'broken "},"failures":{},"telemetry":{'} if shard % 2 else {}
    telemetry = {"ended": 1.5 + version, "failures": {}, "telemetry": {"failures": {}}}
    return CommitRecord(
        shard=shard, first_row=10 * shard, last_row=10 * shard + 9, ids_digest=f"ids of {shard}, {version}",
        plan_digest=f"plan {version}", files={}, failures=failures, telemetry=telemetry,
    )  # fmt: skip


def sealed(shards, version=0):
    return {shard: record(shard, version).sealed() for shard in shards}


def published(store, shards=SHARDS):
    for shard in shards:
        assert publish(store, record(shard))
    return store


def single_files(store):
    return sorted(path.name for path in (store / "commits").glob("*.json"))


def assert_holds(store, expected):
    """Every way of reading agrees with a plain dict."""
    log = read_commits(store)
    assert log == expected and list(log) == sorted(expected) and len(log) == len(expected)
    assert log.failures == {row: why for one in expected.values() for row, why in one.failures.items()}
    assert list(log.failures) == sorted(log.failures)
    assert log.plan_digests == {one.plan_digest for one in expected.values()}
    assert {shard: read_commit(store, shard) for shard in SHARDS} == {s: expected.get(s) for s in SHARDS}
    assert intact_records(store) == expected and damaged_records(store) == []
    assert not list((store / "commits").glob(".*"))


OPERATIONS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(SHARDS), st.integers(0, 2)),
    st.tuples(st.just("compact")),
    st.tuples(st.just("withdraw"), st.sets(st.sampled_from(SHARDS), max_size=3)),
)


@quick
@given(st.lists(OPERATIONS, max_size=25))
def test_whatever_happens_in_whatever_order_the_log_is_a_dict_that_the_first_enters(operations):
    with tempfile.TemporaryDirectory() as folder:
        store, model = Path(folder), {}
        (store / "commits").mkdir()
        for name, *given_ in operations:
            if name == "publish":
                shard, version = given_
                assert publish(store, record(shard, version)) == (shard not in model)
                model.setdefault(shard, record(shard, version).sealed())
            elif name == "compact":
                assert compact(store) == len(model)
                assert single_files(store) == []
            else:
                withdraw(store, given_[0])
                model = {shard: one for shard, one in model.items() if shard not in given_[0]}
            assert_holds(store, model)


class Killed(BaseException):
    """As SIGKILL: nothing that the process would still do happens."""


def killed_at(step, work):
    """Run `work` in a process that dies before its call number `step` to the disk; whether it came so far."""
    calls = 0

    def dying(real):
        def call(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls > step:
                raise Killed
            return real(*arguments, **named)

        return call

    names = ("link", "unlink", "replace", "fsync", "fchmod")
    patches = [mock.patch.object(os, name, dying(vars(os)[name])) for name in names]
    try:
        for patch in patches:
            patch.start()
        work()
    except Killed:
        return True
    finally:
        for patch in reversed(patches):
            patch.stop()
    return False


def every_kill(prepare, work):
    """A fresh store for each place where `work` can be killed."""
    for step in range(1000):
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder)
            prepare(store)
            died = killed_at(step, lambda store=store: work(store))
            for partial in (store / "commits").glob(".*.partial"):
                partial.unlink()  # what the next writer sweeps
            yield store
            if not died:
                assert step > 3, "nothing was killed"
                return
    raise AssertionError("never done")


def half_compacted(store):
    published(store, [0, 1, 2])
    compact(store)
    published(store, [3, 4])


def test_a_compaction_killed_at_any_step_loses_nothing_and_is_done_by_the_next():
    for store in every_kill(half_compacted, compact):
        assert_holds(store, sealed(range(5)))
        assert not publish(store, record(3, version=1))
        assert compact(store) == 5 and single_files(store) == []
        assert_holds(store, sealed(range(5)))


def test_a_withdrawal_killed_at_any_step_takes_back_nothing_else_and_is_done_by_the_next():
    gone = {1, 2, 4}
    for store in every_kill(half_compacted, lambda store: withdraw(store, gone)):
        log = read_commits(store)
        assert sealed([0, 3]).items() <= dict(log).items() <= sealed(range(5)).items()
        withdraw(store, gone)
        assert_holds(store, sealed([0, 3]))


def test_a_record_hidden_by_an_older_one_never_comes_up_in_a_killed_withdrawal():
    def prepare(store):
        published(store, [0, 1])
        compact(store)
        (store / "commits" / "1.json").write_text(record(1, version=1).sealed().model_dump_json())

    for store in every_kill(prepare, lambda store: withdraw(store, [1])):
        assert dict(read_commits(store)) in (sealed([0]), sealed([0, 1]))


def test_a_commit_killed_at_any_step_is_whole_or_absent():
    for store in every_kill(half_compacted, lambda store: publish(store, record(5))):
        assert dict(read_commits(store)) in (sealed(range(5)), sealed(range(6)))
        publish(store, record(5))
        assert_holds(store, sealed(range(6)))


def test_of_two_differing_records_the_compacted_one_counts_and_the_other_is_cleared_away(tmp_path):
    published(tmp_path)
    compact(tmp_path)
    late = tmp_path / "commits" / "3.json"
    late.write_text(record(3, version=1).sealed().model_dump_json())
    assert_holds(tmp_path, sealed(SHARDS))
    assert compact(tmp_path) == len(SHARDS) and not late.exists()
    assert_holds(tmp_path, sealed(SHARDS))


def test_a_commit_that_a_compaction_overtakes_is_told_that_it_was_not_the_first(tmp_path, monkeypatch):
    published(tmp_path, [0])
    real = module.publish_once

    def overtaken(*arguments):
        compact(tmp_path)
        return real(*arguments)

    monkeypatch.setattr(module, "publish_once", overtaken)
    assert not publish(tmp_path, record(0, version=1))
    assert_holds(tmp_path, sealed([0]))


@pytest.mark.parametrize("listing", [1, 2])
def test_a_reader_that_a_compaction_overtakes_misses_nothing(tmp_path, monkeypatch, listing):
    published(tmp_path)
    real, listed = module._single_files, []

    def overtaken(store):
        found = real(store)
        listed.append(found)
        if len(listed) == listing:
            monkeypatch.setattr(module, "_single_files", real)
            compact(store)
        return found

    monkeypatch.setattr(module, "_single_files", overtaken)
    for _ in range(listing):
        assert read_commits(tmp_path) == sealed(SHARDS)


def test_a_reader_whose_listed_files_are_moved_while_it_reads_them_looks_again(tmp_path, monkeypatch):
    published(tmp_path)
    real = module._single

    def overtaken(path):
        monkeypatch.setattr(module, "_single", real)
        compact(tmp_path)
        return real(path)

    monkeypatch.setattr(module, "_single", overtaken)
    assert read_commits(tmp_path) == sealed(SHARDS)


def test_a_record_that_a_compaction_takes_the_moment_it_is_there_is_published(tmp_path, monkeypatch):
    real = module.publish_once

    def taken(path, text):
        published = real(path, text)
        compact(tmp_path)
        return published

    monkeypatch.setattr(module, "publish_once", taken)
    assert publish(tmp_path, record(0)) and not publish(tmp_path, record(0))
    assert read_commits(tmp_path) == sealed([0])


def test_writers_compactions_and_readers_at_once_never_lose_a_record(tmp_path):
    done, seen, wrong = threading.Event(), [], []

    def compactions():
        while not done.is_set():
            compact(tmp_path)

    def readings():
        while not done.is_set():
            known = set(range(len(seen)))
            missed = known - read_commits(tmp_path).keys()
            alone = {shard for shard in list(known)[-3:] if read_commit(tmp_path, shard) is None}
            wrong.extend(missed | alone)

    threads = [threading.Thread(target=work) for work in (compactions, compactions, readings, readings)]
    (tmp_path / "commits").mkdir()
    for thread in threads:
        thread.start()
    try:
        for shard in range(120):
            assert publish(tmp_path, record(shard))
            seen.append(shard)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert read_commits(tmp_path) == sealed(range(120))


def test_compacting_again_changes_nothing(tmp_path):
    published(tmp_path)
    assert compact(tmp_path) == len(SHARDS)
    file = tmp_path / "commits" / COMPACTED
    before, inode = file.read_bytes(), file.stat().st_ino
    assert compact(tmp_path) == len(SHARDS)
    assert (file.read_bytes(), file.stat().st_ino) == (before, inode)


def test_there_is_nothing_to_compact_where_nothing_is_committed(tmp_path):
    assert compact(tmp_path) == 0 and list(tmp_path.iterdir()) == []
    assert read_commits(tmp_path) == {} and read_commit(tmp_path, 0) is None


def test_the_compacted_log_is_lines_of_json(tmp_path):
    published(tmp_path, [0, 1, 2, 5])
    compact(tmp_path)
    first, *lines = [json.loads(line) for line in (tmp_path / "commits" / COMPACTED).read_text().splitlines()]
    assert first["shards"] == [[0, 2], [5, 5]]
    assert [line["shard"] for line in lines] == [0, 1, 2, 5]
    assert CommitRecord.model_validate(lines[1]) == record(1).sealed()


def test_a_flipped_bit_anywhere_in_the_compacted_log_is_named_and_never_another_record(tmp_path):
    published(tmp_path)
    compact(tmp_path)
    file = tmp_path / "commits" / COMPACTED
    title = 8 * len(file.read_bytes().split(b"\n")[0])
    bits = 8 * file.stat().st_size
    noticed = 0
    for bit in {*range(0, title, 5), *range(title, bits, 97), *range(title, title + 8), bits - 1}:
        flip(file, bit)
        whole = dict(intact_records(tmp_path))
        for shard, one in whole.items():  # telemetry is sealed by the checksum over all lines, not by its own
            assert one.model_copy(update={"telemetry": {}}) == sealed(SHARDS)[shard].model_copy(
                update={"telemetry": {}}
            )
        lost = set(SHARDS) - whole.keys()
        assert lost <= {shard for _, shard in damaged_records(tmp_path)}
        if lost:
            noticed += 1
            with pytest.raises(IntegrityError, match=f"{file} .*repair.*make extract"):
                read_commits(tmp_path)
        flip(file, bit)
    assert noticed > 50
    assert_holds(tmp_path, sealed(SHARDS))


@pytest.mark.parametrize("cut", ["at a line", "in a line", "in the first line", "empty"])
def test_a_compacted_log_that_was_cut_is_repaired_shard_by_shard(tmp_path, cut):
    published(tmp_path)
    compact(tmp_path)
    file = tmp_path / "commits" / COMPACTED
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes({
        "at a line": b"".join(lines[:4]), "in a line": b"".join(lines[:4]) + lines[4][:50],
        "in the first line": lines[0][:9], "empty": b"",
    }[cut])  # fmt: skip
    if cut in ("at a line", "in a line"):
        assert damaged_records(tmp_path) == [(file, 3), (file, 4), (file, 5)]
        assert read_commit(tmp_path, 1) == record(1).sealed()
        with pytest.raises(IntegrityError, match="shard 4"):
            read_commit(tmp_path, 4)
        with pytest.raises(IntegrityError, match="shard 3"):
            compact(tmp_path)
        withdraw(tmp_path, [3, 4])
        assert damaged_records(tmp_path) == [(file, 5)]
        withdraw(tmp_path, [5])
        assert_holds(tmp_path, sealed(range(3)))
    else:
        assert len(intact_records(tmp_path)) == 0 and len(damaged_records(tmp_path)) > 0
        withdraw(tmp_path, [shard for _, shard in damaged_records(tmp_path)])
        assert_holds(tmp_path, {})
    published(tmp_path, [shard for shard in SHARDS if shard not in read_commits(tmp_path)])
    assert_holds(tmp_path, sealed(SHARDS))


def test_a_damaged_first_line_alone_loses_nothing_and_is_written_again(tmp_path):
    published(tmp_path)
    compact(tmp_path)
    file = tmp_path / "commits" / COMPACTED
    whole = file.read_bytes()
    file.write_bytes(b"x" + whole[1:])
    assert_holds(tmp_path, sealed(SHARDS))
    compact(tmp_path)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_line_that_is_damaged_while_the_log_is_open_is_noticed_when_it_is_read(tmp_path, damage):
    published(tmp_path)
    compact(tmp_path)
    log = read_commits(tmp_path)
    file = tmp_path / "commits" / COMPACTED
    if damage == "gone":
        os.truncate(file, 300)
    else:
        with file.open("r+b") as opened:
            opened.seek(file.read_bytes().index(b"ids of 4"))
            opened.write(b"idz")
    with pytest.raises(IntegrityError, match="record of shard 4 is damaged"):
        log[4]


def test_a_log_that_is_open_keeps_its_records_while_others_are_compacted_or_withdrawn(tmp_path):
    published(tmp_path)
    compact(tmp_path)
    log = read_commits(tmp_path)
    withdraw(tmp_path, [2])
    assert log == sealed(SHARDS)
    assert 2 not in read_commits(tmp_path)


@pytest.mark.parametrize("what", ["folder", "link that leads nowhere"])
def test_what_is_no_file_among_the_records_is_named(tmp_path, what):
    published(tmp_path, [0])
    odd = tmp_path / "commits" / "1.json"
    odd.mkdir() if what == "folder" else odd.symlink_to(tmp_path / "nowhere")
    with pytest.raises(IntegrityError, match=str(odd)):
        read_commits(tmp_path)
    assert damaged_records(tmp_path) == [(odd, 1)]


def test_a_full_disk_while_compacting_is_said_and_loses_nothing(tmp_path, monkeypatch):
    published(tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(NoSpace, match=f"{tmp_path}.*no record is lost"):
            compact(tmp_path)
    assert_holds(tmp_path, sealed(SHARDS))


def test_a_compacted_store_is_the_same_store(tmp_path):
    path, other = store_of(tmp_path / "store", 9), store_of(tmp_path / "other", 9)
    done = CliRunner().invoke(group, ["compact", str(path)])
    assert done.exit_code == 0 and "5 commit records" in done.output
    assert differences_between(path, other) == [] and verify(path, quick=False) == []
    store, plain = FeatureStore.open(path), FeatureStore.open(other)
    assert store.committed_rows == plain.committed_rows and store.missing_shards == []
    for name in store.arrays:
        assert store.gather(name, range(9)).tobytes() == plain.gather(name, range(9)).tobytes()


def test_a_damaged_line_of_a_store_is_repaired_by_computing_that_shard_again(tmp_path):
    path, ids = store_of(tmp_path / "store", 9), image_ids(9)
    compact(path)
    file = path / "commits" / COMPACTED
    flip(file, 8 * (file.read_bytes().index(b'"shard":3') + 20))
    assert [(one.path, one.shard) for one in verify(path, quick=True)] == [(str(file), 3)]
    with pytest.raises(IntegrityError, match=f"repair {path}"):
        FeatureStore.open(path)
    assert repair(path, quick=True).withdrawn == {0: [3]}
    write_store(path, plan_of(ids), ids)
    assert differences_between(path, store_of(tmp_path / "other", 9)) == []
