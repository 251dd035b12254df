"""Whatever lies in a store where something else belongs, or nothing: a finding by name, a remedy that works, no traceback."""

import errno
import json
import os
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from configs.cli import run_to_exit_code
from configs.files.seal import is_as_sealed, sealed
from store.care.compare import differences_between
from store.care.repair import repair
from store.care.status import status
from store.care.verify import verify
from store.cli import group
from store.errors import IntegrityError, StoreError
from store.files.disk import STRAYS
from store.layout.plan import PLAN
from store.log.commits import COMPACTED, compact, read_commits
from store.log.finding import MOVE, REPAIR
from store.reading.reader import FEATURES, FeatureStore
from tests.faults.runs import invoke
from tests.store.stores import image_ids, plan_of, store_of, values, write_store
from tests.store.test_healing import grown_store

COUNT = 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("whole") / "store", COUNT)


@pytest.fixture
def path(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "store"))


def extract(path):
    """What `make extract` does with a store whose images are at hand."""
    ids = image_ids(COUNT)
    write_store(path, plan_of(ids), ids)


def a_copy_of_a_record(place):
    shutil.copy(place.parent / "1.json", place)


def a_folder(place):
    place.mkdir()


def a_link_to_itself(place):
    place.symlink_to(place)


def a_link_to_nowhere(place):
    place.symlink_to(place.parent / "nowhere")


def a_pipe(place):
    os.mkfifo(place)


def an_empty_file(place):
    place.write_bytes(b"")


def a_file_that_cannot_be_read(place):
    """Reading the memory of a process from its beginning is an EIO, also for root."""
    place.symlink_to("/proc/self/mem")


KINDS = [
    a_folder, a_link_to_itself, a_link_to_nowhere, a_pipe, an_empty_file, a_file_that_cannot_be_read,
]  # fmt: skip
NAMES = [
    "3 (copy).json", "1 (copy).json", "01.json", "1.json~", ".DS_Store", "1.JSON", "1.json.json", "+1.json", "1_0.json",
    "\N{ARABIC-INDIC DIGIT ONE}.json", " 1.json", "-1.json", "1.json ", ".1.json.swp", "compacted (1).jsonl", "00",
    "1" * 200 + ".json",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"), [*zip(NAMES, KINDS * 3, strict=False), *((name, a_copy_of_a_record) for name in NAMES[:6])]
)
def test_a_stray_among_the_records_is_found_by_name_moved_out_and_stops_nobody(whole, path, name, kind):
    stray = path / "commits" / name
    kind(stray)
    FeatureStore.open(path).gather("large", range(COUNT))
    assert status(path)["shards_committed"] == 3
    assert [(one.path, one.shard, one.remedy) for one in verify(path, quick=True)] == [(str(stray), None, MOVE)]
    done = repair(path, quick=True)
    assert (done.withdrawn, done.left, [*done.moved]) == ({}, [], [stray])
    assert [place.parent for place in done.moved.values()] == [path / STRAYS]
    assert os.path.lexists(done.moved[stray]) and not os.path.lexists(stray)
    assert verify(path, quick=False) == [] and differences_between(whole, path) == []


@pytest.mark.parametrize(
    "name", ["0 (copy).json", "00.json", "0.json~", ".DS_Store", "99999999.json.spare", "99999999.json"]
)
def test_a_stray_among_the_plans_is_found_by_name_moved_out_and_stops_nobody(whole, path, name):
    stray = path / "plans" / name
    shutil.copy(path / PLAN, stray)
    began = time.monotonic()
    FeatureStore.open(path).gather("large", range(COUNT))
    extract(path)
    assert [(one.path, one.shard, one.remedy) for one in verify(path, quick=True)] == [(str(stray), None, MOVE)]
    assert [*repair(path, quick=True).moved] == [stray]
    assert verify(path, quick=False) == [] and differences_between(whole, path) == []
    assert time.monotonic() - began < 60  # counting to 99,999,999 takes longer


def test_files_that_are_being_written_are_no_strays(path):
    for name in (".3.json.abc.partial", f".{COMPACTED}.abc.partial", ".nfs0001"):
        (path / "commits" / name).write_text("half")
        (path / "plans" / name).write_text("half")
    assert verify(path, quick=True) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard", [1, 7])
def test_what_lies_in_place_of_a_record_is_a_damaged_shard_that_repair_withdraws(whole, path, kind, shard):
    record = path / "commits" / f"{shard}.json"
    record.unlink(missing_ok=True)
    kind(record)
    with pytest.raises(IntegrityError, match=f"{record} is not the commit record of shard {shard}.*repair {path}"):
        FeatureStore.open(path)
    assert [(one.path, one.shard) for one in verify(path, quick=True)] == [(str(record), shard)]
    assert repair(path, quick=True).withdrawn == {0: [shard]}
    extract(path)
    assert verify(path, quick=False) == [] and differences_between(whole, path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_in_place_of_the_compacted_log_is_found_and_withdrawn(whole, path, kind):
    compact(path)
    (path / "commits" / COMPACTED).unlink()
    kind(path / "commits" / COMPACTED)
    with pytest.raises(IntegrityError, match=f"{COMPACTED} was changed.*repair {path}"):
        FeatureStore.open(path)
    assert [one.path for one in verify(path, quick=True)] == [str(path / "commits" / COMPACTED)]
    repair(path, quick=True)
    assert read_commits(path) == {}
    extract(path)
    assert verify(path, quick=False) == [] and differences_between(whole, path) == []


def places_of(store):
    """Every file and folder of a store by its path in it, but for what only writers hold."""
    found = [place.relative_to(store).as_posix() for place in store.rglob("*")]
    return sorted(place for place in found if not place.startswith(("writer.", "leases", "commits.lock")))


KINDS_EACH = 2
"""How many of the kinds are tried in each place; all six are in every third place."""


def test_whatever_lies_in_place_of_anything_in_a_store_no_command_ends_in_a_traceback(whole, tmp_path):
    """Each command says what is wrong (exit 4 or 5) or is right, and what is advised makes the store as it was."""
    places = places_of(whole)
    assert len(places) > 60
    for number, place in enumerate(places):
        for chosen in (KINDS * 2)[number % len(KINDS) :][:KINDS_EACH]:
            kind = a_pipe if (place, chosen) == ("commits", a_folder) else chosen  # an empty log is one
            path = Path(shutil.copytree(whole, tmp_path / "store"))
            odd = path / place
            shutil.rmtree(odd) if odd.is_dir() else odd.unlink()
            kind(odd)
            assert_found(path, place)
            assert_refused_or_right(path)
            mend(path)
            assert verify(path, quick=False) == [] and differences_between(whole, path) == [], (place, kind)
            shutil.rmtree(path)


def assert_found(path, place):
    try:
        found = [one.path for one in verify(path, quick=False)]
        assert any(Path(one).is_relative_to(path / place) or (path / place).is_relative_to(one) for one in found), place
    except StoreError as error:
        assert place in ("plans", "plans/0.json") and error.exit_code in (4, 5), (place, error)


def assert_refused_or_right(path):
    for command, *more in (["inspect"], ["status"], ["export", "--store", path.with_name("out")]):
        code = run_to_exit_code(partial(group.main, [command, str(path), *map(str, more)], standalone_mode=False))
        assert code in (0, 4, 5), (command, path)
    out = path.with_name("out")
    if out.exists():
        copied = FeatureStore.open(out)
        rows = copied.committed_rows
        for one in copied.plan.arrays:
            assert np.array_equal(copied.gather(one.name, rows), values(one, range(COUNT))[rows])
        shutil.rmtree(out)


def mend(path):
    """Do what is advised: repair, then an extraction; plans that are lost with their spares are made anew."""
    try:
        repair(path, quick=False)
    except StoreError as error:
        plans = path / "plans"
        assert error.exit_code in (4, 5) and not (plans / "0.json.spare").is_file()
        if os.path.lexists(plans):
            shutil.rmtree(plans) if plans.is_dir() and not plans.is_symlink() else plans.unlink()
    extract(path)


def test_a_disk_that_fails_to_deliver_a_file_is_a_finding(path, monkeypatch):
    import store.layout.shard as module

    real = module.crc

    def failing(data, before=0):
        if len(data) > 60_000:  # of a large row
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(data, before)

    monkeypatch.setattr(module, "crc", failing)
    files = [str(path / FEATURES / f"large/c/{shard}/0/0") for shard in range(3)]
    found = verify(path, quick=False)
    assert [(one.path, one.problem) for one in found] == [
        (file, "cannot be read (Input/output error)") for file in files
    ]
    assert repair(path, quick=False).withdrawn == {0: [0, 1, 2]}


def test_without_its_features_a_store_is_not_taken_for_done(whole, path, capsys):
    shutil.rmtree(path / FEATURES)
    with pytest.raises(IntegrityError, match=f"repair {path}.* withdraws"):
        extract(path)
    for command in ("inspect", "repair"):
        said = invoke(capsys, command, path, expect=4)
        assert command == "repair" or f"repair {path}" in said
    assert read_commits(path) == {}
    extract(path)
    assert differences_between(whole, path) == []


CLAIMS = [
    [[0, 300_000_000]], [[0, 10**17]], [[0, 2], [5, 300_000_000]], [[10**17, 10**17]], [[2, 0]], [[0, 10**40]], [[-5, 2]],
    [[0, 1.5]], [["a", "b"]], [0, 2], [[0, 2], [1, 3]], "0-2", [[0, True]],
]  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS, ids=str)
def test_a_log_that_claims_to_hold_any_number_of_shards_stalls_nobody(whole, path, claim):
    compact(path)
    file = path / "commits" / COMPACTED
    title, *lines = file.read_bytes().splitlines(keepends=True)
    described = json.loads(title) | {"shards": claim}
    file.write_bytes(json.dumps(described).encode() + b"\n" + b"".join(lines))
    began = time.monotonic()
    try:
        FeatureStore.open(path).gather("large", range(COUNT))
    except IntegrityError as error:
        assert f"repair {path}" in str(error)
        assert [one.path for one in verify(path, quick=True)] == [str(file)]
    repair(path, quick=True)
    extract(path)
    assert verify(path, quick=False) == [] and differences_between(whole, path) == []
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("title", [b"[" * 100_000 + b"\n", b'{"shards": ' + b"9" * 5000 + b"}\n"])
def test_a_first_line_that_no_parser_takes_loses_nothing(path, title):
    compact(path)
    file = path / "commits" / COMPACTED
    file.write_bytes(title + b"".join(file.read_bytes().splitlines(keepends=True)[1:]))
    FeatureStore.open(path).gather("large", range(COUNT))


LEASES = {
    "1 (copy).json": '{"host": "h", "pid": 1, "started": 0, "token": ""}', "0\N{SUPERSCRIPT TWO}.json": "{}",
    "9" * 200 + ".json": "{}", "2.json~": "{}",
}  # fmt: skip
HOLDERS = [
    '{"host": "here", "pid": "../../etc/passwd", "started": 0, "token": ""}', "[" * 100_000, "{}", "\0", '{"pid": 1e999}',
    '{"host": {"a": 1}, "pid": [], "started": {}, "token": 3}', f'{{"host": "h", "pid": {10**60}, "started": 0, "token": ""}}',
]  # fmt: skip


def test_crafted_names_of_leases_stop_nobody(path):
    (path / "leases").mkdir(exist_ok=True)
    for name, text in LEASES.items():
        (path / "leases" / name).write_text(text)
    assert status(path)["in_flight"] == {}
    extract(path)


@pytest.mark.parametrize("text", HOLDERS, ids=range(len(HOLDERS)))
def test_a_crafted_lease_is_somebody_unknown_until_it_stalls(path, text):
    lease = path / "leases" / "1.json"
    lease.parent.mkdir(exist_ok=True)
    lease.write_text(text)
    assert [*status(path)["in_flight"]] in (["1"], [])
    os.utime(lease, (0, 0))
    assert status(path)["in_flight"] == {}


@pytest.mark.parametrize("kind", [a_folder, a_link_to_itself, a_link_to_nowhere, a_pipe, a_file_that_cannot_be_read])
@pytest.mark.parametrize("name", ["leases", "leases/1.json", "writer.lock", "writer.json", "commits.lock"])
def test_what_lies_in_place_of_a_lock_or_a_lease_is_nobodys(whole, path, name, kind):
    odd = path / name
    odd.parent.mkdir(exist_ok=True)
    if odd.is_dir():
        odd.rmdir()
    odd.unlink(missing_ok=True)
    kind(odd)
    status(path)
    (path / "commits" / "1.json").write_bytes(b"")
    assert repair(path, quick=True).withdrawn == {0: [1]}
    extract(path)
    assert differences_between(whole, path) == []


def test_damaged_ids_of_an_earlier_generation_are_found_and_written_again_where_they_can_be(tmp_path):
    path = grown_store(tmp_path / "store")
    for file in sorted(file for file in (path / FEATURES / "ids").rglob("*") if file.is_file()):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        found = verify(path, quick=False)
        assert [one.path for one in found] == [str(file)]
        done = repair(path, quick=False)
        if found[0].remedy == REPAIR:
            assert file.read_bytes() == content and done.left == []
        else:
            assert "an older generation" in found[0].remedy and len(done.left) == 1
            file.write_bytes(content)
        assert verify(path, quick=False) == []


def test_any_flipped_bit_of_a_stores_config_is_found(path):
    file = path / "config.yaml"
    text = sealed("model:\n  dtype: bfloat16\n")
    file.write_text(text)
    assert verify(path, quick=True) == []
    for bit in range(8 * len(text)):
        data = bytearray(text.encode())
        data[bit // 8] ^= 1 << bit % 8
        assert not is_as_sealed(bytes(data)), bit
        if bit % 97 == 0:
            file.write_bytes(data)
            assert [one.path for one in verify(path, quick=True)] == [str(file)]
    file.write_text("model:\n  dtype: bfloat16\n")  # as earlier versions wrote it
    assert verify(path, quick=True) == []
