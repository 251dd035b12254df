"""Copies of a store: an archive and the way back, each whole or not there, with the same bits."""

import json
import shutil

import numpy as np
import pytest
import zarr

from store.care.compare import differences_between
from store.care.drop import drop
from store.care.inspect import as_text, report
from store.care.repair import repair
from store.care.status import status
from store.care.verify import verify
from store.copies.contents import Contents
from store.copies.copies import write_copy
from store.errors import ArchiveReadOnly, IntegrityError, NoSpace, StoreMissing, TargetExists
from store.layout.plan import read_plan
from store.layout.shard import FileRecord
from store.reading.reader import FEATURES, FeatureStore
from store.writing.growth import grown
from store.writing.writer import StoreWriter
from tests.store.stores import (
    DTYPES,
    flip,
    image_ids,
    plan_of,
    projector,
    sha,
    small_and_large,
    store_of,
    values,
    write_store,
)
from tests.store.test_cli import store_command

FAILED = {1: "truncated PNG"}
READABLE = [0, 2, 3, 4]


@pytest.fixture(params=DTYPES)
def original(request, tmp_path):
    return store_of(tmp_path / "original", 5, request.param, failures=FAILED)


@pytest.fixture
def archive(tmp_path):
    path = store_of(tmp_path / "original", 5, "bfloat16", failures=FAILED)
    return archived(path, tmp_path / "archive")


def archived(path, out):
    write_copy(Contents.of(FeatureStore.open(path)), out, "zstd")
    return out


def unpacked(path, out):
    write_copy(Contents.of(FeatureStore.open(path)), out)
    return out


def grown_store(path):
    """Two generations: five images, then three more; every shard committed."""
    store_of(path, 5, "bfloat16", failures=FAILED)
    store = FeatureStore.open(path)
    more = [(sha(number), [f"image_{number}.png"]) for number in range(5, 8)]
    plan, ids = grown(store.plan, store.ids, more, [])
    return write_store(path, plan, ids, failures={8: "not an image"})


def test_an_archive_reads_as_the_store_and_unpacks_to_the_same_store_byte_for_byte(original, tmp_path):
    archive = archived(original, tmp_path / "archive")
    before, after = FeatureStore.open(original), FeatureStore.open(archive)
    assert after.plan == before.plan and after.failed() == FAILED and after.committed_rows == before.committed_rows
    for name in before.arrays:
        assert after.gather(name, READABLE).tobytes() == before.gather(name, READABLE).tobytes()
    assert verify(archive, quick=False) == []
    assert differences_between(original, unpacked(archive, tmp_path / "unpacked")) == []


def test_any_zarr_reader_opens_an_archive_whose_chunks_zstd_has_compressed(archive):
    stored = FeatureStore.open(archive)
    group = zarr.open_group(archive / FEATURES, mode="r")
    for one in small_and_large("bfloat16"):
        described = json.loads((archive / FEATURES / one.name / "zarr.json").read_text())
        inner = described["codecs"][0]["configuration"]["codecs"]
        assert [codec["name"] for codec in inner] == ["bytes", "zstd", "crc32c"]
        assert np.asarray(group[one.name][...])[READABLE].tobytes() == stored.gather(one.name, READABLE).tobytes()
        record = stored.record(one.name, 0).files[one.name]
        assert record.codec == "zstd"
        assert record.bytes == (archive / FEATURES / record.path).stat().st_size


def test_features_that_repeat_take_less_room_in_an_archive(tmp_path):
    ids, shards = image_ids(4), {one.name: np.ones((2, *one.shape), one.storage) for one in small_and_large()}
    with StoreWriter.open(tmp_path / "store", plan_of(ids), ids, None) as writer:
        for shard in (0, 1):
            writer.commit_shard(shard, shards, {}, {})
    archive = archived(tmp_path / "store", tmp_path / "archive")
    sizes = [sum(f.stat().st_size for f in path.rglob("c/*/*/*")) for path in (tmp_path / "store", archive)]
    assert sizes[1] < sizes[0] / 50


@pytest.mark.parametrize("access", ["mmap", "preadv", "zarr"])
def test_an_archive_reads_alike_however_it_is_opened(archive, access):
    one = small_and_large("bfloat16")[1]
    read = FeatureStore.open(archive, access=access).gather("large", READABLE)
    assert read.tobytes() == values(one, range(5))[READABLE].tobytes()


def test_a_copy_of_a_store_of_two_generations_has_one_and_the_same_values(tmp_path):
    path = grown_store(tmp_path / "grown")
    before = FeatureStore.open(path)
    rows = [row for row in before.committed_rows if row not in before.failed()]
    for name, copy in [("archive", archived), ("store", unpacked)]:
        after = FeatureStore.open(copy(path, tmp_path / name))
        assert after.plan == before.plan.flattened() and after.failed() == before.failed() == FAILED | {
            8: "not an image"
        }
        assert [after.ids.names(row) for row in range(9)] == [before.ids.names(row) for row in range(9)]
        for one in before.arrays:
            assert after.gather(one, rows).tobytes() == before.gather(one, rows).tobytes()
        assert verify(tmp_path / name, quick=False) == []
    assert differences_between(tmp_path / "store", unpacked(tmp_path / "archive", tmp_path / "again")) == []


def test_only_committed_shards_are_copied(tmp_path):
    path = store_of(tmp_path / "store", 5, shards=[0, 2])
    archive = archived(path, tmp_path / "archive")
    assert FeatureStore.open(archive).missing_shards == [1]
    assert differences_between(path, unpacked(archive, tmp_path / "again")) == []


def test_a_shard_that_lacks_an_array_is_left_out_of_a_copy_and_said(tmp_path, caplog):
    path = store_of(tmp_path / "store", 5)
    store = FeatureStore.open(path)
    third = small_and_large()[0].model_copy(update={"name": "third"})
    plan, ids = grown(store.plan, store.ids, [], [(third, None)])
    write_store(path, plan, ids, shards=[1])
    copy = FeatureStore.open(unpacked(path, tmp_path / "copy"))
    assert copy.committed_shards == [1] and "left out, because an array is missing: 2 shards" in caplog.text


def test_a_store_without_a_projector_or_with_its_log_compacted_is_copied_alike(tmp_path):
    ids = image_ids(3)
    path = tmp_path / "store"
    with StoreWriter.open(path, plan_of(ids), ids, None):
        pass
    write_store_without_projector(path, ids)
    assert store_command("compact", path).returncode == 0
    again = unpacked(archived(path, tmp_path / "archive"), tmp_path / "again")
    assert differences_between(path, again) == [] and FeatureStore.open(again).projector is None


def write_store_without_projector(path, ids):
    plan = plan_of(ids)
    with StoreWriter.open(path, plan, ids, None) as writer:
        for shard in writer.missing_shards():
            shards = {one.name: values(one, plan.rows(shard)) for one in plan.arrays}
            writer.commit_shard(shard, shards, {}, {})


def test_verify_inspect_and_status_work_on_an_archive(archive):
    assert verify(archive, quick=True) == []
    found = report(archive)
    assert found["codec"] == "zstd" and "an archive, which is only read" in as_text(found)
    assert found["shards"]["committed"] == [0, 1, 2] and status(archive)["shards_committed"] == 3
    for command in ("inspect", "status", "verify"):
        done = store_command(command, archive)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("array", ["small", "large"])
def test_any_flipped_bit_of_an_archive_is_found_by_verify_and_never_read_as_data(archive, array):
    file = archive / FEATURES / f"{array}/c/1/0/0"
    expected = FeatureStore.open(archive).gather(array, [2, 3]).tobytes()
    for bit in np.random.default_rng(5).choice(8 * file.stat().st_size, 8, replace=False).tolist():
        flip(file, bit)
        assert [one.shard for one in verify(archive, quick=False)] == [1]
        for row in (2, 3):
            try:
                read = FeatureStore.open(archive).gather(array, [row])
            except IntegrityError as error:
                assert str(archive) in str(error)
            else:
                assert read.tobytes() == expected[(row - 2) * len(read.tobytes()) :][: len(read.tobytes())]
        flip(file, bit)


@pytest.mark.parametrize("content", [None, b"", b"short", b"x" * 70_000])
def test_a_missing_or_cut_file_of_an_archive_is_an_integrity_error(archive, content):
    file = archive / FEATURES / "large/c/1/0/0"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(IntegrityError, match=f"expected {file} .*as committed, found"):
        FeatureStore.open(archive).gather("large", [2])
    assert [one.shard for one in verify(archive, quick=True)] == [1]


def test_nothing_writes_to_an_archive(archive):
    ids = image_ids(5)
    before = {file: file.read_bytes() for file in (archive / FEATURES).rglob("*") if file.is_file()}
    flip(archive / FEATURES / "large/c/1/0/0", 3)
    for write in (
        lambda: write_store(archive, plan_of(ids, small_and_large("bfloat16")), ids),
        lambda: repair(archive, quick=False),
        lambda: drop(archive, "large"),
    ):
        with pytest.raises(ArchiveReadOnly, match=rf"{archive} is an archive.* export {archive} --store") as caught:
            write()
        assert caught.value.exit_code == 7
    flip(archive / FEATURES / "large/c/1/0/0", 3)
    assert before == {file: file.read_bytes() for file in (archive / FEATURES).rglob("*") if file.is_file()}


def test_a_store_without_any_shard_is_not_archived(tmp_path):
    path = store_of(tmp_path / "store", 5, shards=[])
    with pytest.raises(StoreMissing, match="make extract"):
        archived(path, tmp_path / "archive")
    unpacked(path, tmp_path / "copy")
    assert differences_between(path, tmp_path / "copy") == []


def test_a_copy_that_breaks_leaves_nothing(tmp_path):
    path = store_of(tmp_path / "store", 5)
    flip(path / FEATURES / "large/c/2/0/0", 1)
    for copy in (archived, unpacked):
        with pytest.raises(IntegrityError):
            copy(path, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["store"]


def test_a_target_that_exists_is_not_touched(tmp_path):
    path = store_of(tmp_path / "store", 5)
    (tmp_path / "out").mkdir()
    for copy in (archived, unpacked):
        with pytest.raises(TargetExists, match="remove it first"):
            copy(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_copy_that_does_not_fit_is_refused_before_it_begins(tmp_path, monkeypatch):
    path = store_of(tmp_path / "store", 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(NoSpace, match=r"free bytes in .*, there are 10"):
        unpacked(path, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["store"]


def test_the_command_archives_and_unpacks_with_the_config_beside(tmp_path):
    path = store_of(tmp_path / "store", 5, "float16", failures=FAILED)
    (path / "config.yaml").write_text("name: trial\n")
    for source, flag, out in [("store", "--archive", "a"), ("a", "--store", "b"), ("store", "--store", "c")]:
        done = store_command("export", tmp_path / source, flag, tmp_path / out)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / out / "config.yaml").read_text() == "name: trial\n"
    for copy in ("b", "c"):
        assert differences_between(path, tmp_path / copy) == []
    assert read_plan(tmp_path / "a") == read_plan(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "exactly one of"), (["--archive", "a", "--store", "b"], "exactly one of"),
     (["--store", "b", "--overwrite"], "--overwrite replaces a file")],
)  # fmt: skip
def test_an_export_names_one_target(tmp_path, arguments, said):
    done = store_command("export", store_of(tmp_path / "store", 2), *arguments)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_projectors_are_copied_bit_for_bit(archive):
    found, wanted = FeatureStore.open(archive).projector, projector()
    assert (found.kind, found.config, found.sha256, found.dtypes) == (
        wanted.kind, wanted.config, wanted.sha256, wanted.dtypes,
    )  # fmt: skip
    assert all(found.weights[name].tobytes() == wanted.weights[name].tobytes() for name in wanted.weights)


def test_records_of_uncompressed_files_are_written_as_before_and_read_without_a_codec():
    written = FileRecord(path="large/c/0/0/0", bytes=5, crc32c=7).model_dump_json()
    assert written == '{"path":"large/c/0/0/0","bytes":5,"crc32c":7,"codec":"none"}'
    assert FileRecord.model_validate_json('{"path":"a","bytes":5,"crc32c":7}').codec == "none"
