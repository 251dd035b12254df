"""Damage is an error that names the file and the way out, never other data; only the commit log is believed."""

import json
import shutil

import numpy as np
import pytest

from store.care.repair import repair
from store.care.verify import verify
from store.errors import IntegrityError, RowUnavailable, StoreMissing
from store.layout.plan import PLAN
from store.log.commits import read_commits
from store.reading.reader import FEATURES, FeatureStore
from tests.store.stores import as_floats, flip, image_ids, plan_of, projector, store_of, values, write_store

COUNT = 5
"""Two full shards of two images, and one of one."""
FILES = {"small": "small/c/1/0/0", "large": "large/c/1/0/0"}
ARRAYS = sorted(FILES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("store"), COUNT)


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "store")


def read_all(path):
    """Everything that a reader can get at."""
    store = FeatureStore.open(path)
    state = store.projector
    assert state is not None
    rows = {name: store.gather(name, store.committed_rows) for name in store.arrays}
    for row in range(len(store.ids)):
        assert store.ids.row_of_sha(store.ids.sha_of_row(row)) == row
        assert all(store.ids.row_of_name(name) == row for name in store.ids.names(row))
    return rows | dict(state.weights), store.failed(), store.plan


def assert_unaltered(path):
    rows, failures, _ = read_all(path)
    for one in plan_of(image_ids(COUNT)).arrays:
        assert rows[one.name].tobytes() == values(one, range(COUNT)).tobytes()
    for name, weight in projector().weights.items():
        assert rows[name].tobytes() == weight.tobytes()
    assert failures == {}


def assert_refused(path, *named, advice=("make extract", "extract anew", "restore")):
    with pytest.raises(IntegrityError) as caught:
        read_all(path)
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert all(str(name) in message for name in named), message
    assert any(way in message for way in advice), message


def test_an_undamaged_store_reads_as_it_was_written(path):
    assert_unaltered(path)


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("damage", ["missing", "empty", "one byte short", "half", "one byte long", "a folder"])
def test_a_committed_file_of_another_size_is_named_with_what_to_do(path, array, damage):
    file = path / FEATURES / FILES[array]
    data = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif damage != "missing":
        cut = {"empty": b"", "one byte short": data[:-1], "half": data[: len(data) // 2], "one byte long": data + b"x"}
        file.write_bytes(cut[damage])
    assert_refused(path, file, "shard 1", f"python -m store repair {path}")
    untouched = FeatureStore.open(path)
    for row in (0, 1, 4):
        assert (
            untouched.gather(array, [row]).tobytes() == values(untouched.arrays[array], range(row, row + 1)).tobytes()
        )


def payload_bits(array, rows, number):
    """Seeded places in the bytes of rows and their checksums, the first and the last bit among them."""
    layout = plan_of(image_ids(COUNT)).layout(array)
    size = 8 * (rows * layout.stride if array == "large" else 2 * layout.spec.row_bytes + 4)
    return [0, size - 1, *np.random.default_rng(3).integers(0, size, number).tolist()]


@pytest.mark.parametrize("array", ARRAYS)
def test_a_flipped_bit_in_a_payload_is_an_error_and_never_other_data(path, array):
    file = path / FEATURES / FILES[array]
    for bit in payload_bits(array, 2, 20):
        flip(file, bit)
        assert_refused(path, file, f"python -m store repair {path}", "shard 1")
        flip(file, bit)
    assert_unaltered(path)


@pytest.mark.parametrize("array", ARRAYS)
def test_verify_finds_a_shard_in_the_place_of_another_though_its_checksums_are_right(path, array):
    assert verify(path, quick=False) == []
    places = [path / FEATURES / array / "c" / shard / "0/0" for shard in ("0", "1")]
    contents = [place.read_bytes() for place in places]
    for place, content in zip(places, reversed(contents), strict=True):
        place.write_bytes(content)
    assert [(one.path, one.shard) for one in verify(path, quick=False)] == [(str(p), n) for n, p in enumerate(places)]


@pytest.mark.parametrize("array", ARRAYS)
def test_verify_finds_a_flipped_bit_wherever_it_is_in_a_shard(path, array):
    file = path / FEATURES / FILES[array]
    for bit in [*payload_bits(array, 2, 5), 8 * file.stat().st_size - 50, 8 * file.stat().st_size - 1]:
        flip(file, bit)
        assert [(one.path, one.shard) for one in verify(path, quick=False)] == [(str(file), 1)]
        flip(file, bit)
    assert verify(path, quick=False) == []


def test_damage_to_one_large_row_leaves_the_others_readable(path):
    file = path / FEATURES / FILES["large"]
    flip(file, 8 * (file.stat().st_size // 4))
    store = FeatureStore.open(path)
    for _ in range(2):
        with pytest.raises(IntegrityError, match="damaged"):
            store.gather("large", [2])
    assert store.gather("large", [3]).tobytes() == values(store.arrays["large"], range(3, 4)).tobytes()


@pytest.mark.parametrize("array", ARRAYS)
def test_a_flipped_bit_in_a_shard_index_changes_nothing_for_the_reader_and_fails_plain_zarr(path, array):
    import zarr

    file = path / FEATURES / FILES[array]
    flip(file, 8 * file.stat().st_size - 50)
    assert_unaltered(path)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(path / FEATURES, mode="r")[array][...]


@pytest.mark.parametrize("array", ARRAYS)
def test_a_bit_that_flips_while_the_store_is_open_is_noticed_at_the_first_read(path, array):
    store = FeatureStore.open(path)
    flip(path / FEATURES / FILES[array], 77)
    with pytest.raises(IntegrityError, match="damaged"):
        store.gather(array, [2])


def test_a_flipped_bit_in_a_weight_of_the_projector_is_an_error(path):
    for name, weight in projector().weights.items():
        file = path / FEATURES / "projector" / name / "c" / "/".join("0" * weight.ndim)
        for bit in np.random.default_rng(5).integers(0, 8 * file.stat().st_size, 10).tolist():
            flip(file, bit)
            assert_refused(path, path / FEATURES, "projector")
            flip(file, bit)
    assert_unaltered(path)


@pytest.mark.parametrize("damage", [pytest.param("missing"), "empty", "half"])
def test_a_weight_of_the_projector_that_is_not_whole_is_an_error(path, damage):
    file = path / FEATURES / "projector" / "linear_1.weight" / "c" / "0" / "0"
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(data[: len(data) // 2] if damage == "half" else b"")
    assert_refused(path, path / FEATURES, "projector")


@pytest.mark.parametrize("name", ["names_utf8", "sha256", "name_rows", "sorted_hashes"])
@pytest.mark.parametrize(
    "damage",
    [
        "missing",
        pytest.param("flipped"),
        pytest.param("half"),
    ],
)
def test_damaged_ids_are_an_error_of_ours(path, name, damage):
    file = next(file for file in (path / FEATURES / "ids" / name / "c").rglob("*") if file.is_file())
    data = file.read_bytes()
    if damage == "flipped":
        flip(file, 9)
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2])
    assert_refused(path, path / FEATURES / "ids")


@pytest.mark.parametrize("member", ["ids/zarr.json", "zarr.json", "ids/sha256/zarr.json", "projector/zarr.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_metadata_that_zarr_cannot_read_is_an_error_of_ours(path, member, content):
    (path / FEATURES / member).write_bytes(content)
    assert_refused(path, path / FEATURES)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"shard": 1}'])
def test_a_commit_record_that_is_none_is_named(path, content):
    record = path / "commits" / "1.json"
    record.write_bytes(content)
    assert_refused(path, record, "remove it")


def flips_that_go_wrong(path, file, bits):
    """Flip each bit in turn: the store is to be refused by name, or to read as it was written."""
    wrong = []
    for bit in bits:
        flip(file, bit)
        try:
            assert_unaltered(path)
        except IntegrityError as error:
            named = (str(file), "commit 1 of", str(path / FEATURES))
            if not any(name in str(error) for name in named):
                wrong.append((bit, str(error)))
        except AssertionError:
            wrong.append((bit, "other data"))
        except Exception as error:
            wrong.append((bit, type(error).__name__))
        flip(file, bit)
    return wrong


def places(file, text):
    """The bits of `text` where it stands in a file."""
    start = file.read_bytes().index(text.encode())
    return range(8 * start, 8 * (start + len(text)))


def test_a_flipped_bit_in_a_commit_record_never_returns_other_data(path):
    file = path / "commits" / "1.json"
    bits = np.random.default_rng(11).choice(8 * file.stat().st_size, 150, replace=False).tolist()
    assert [found for found in flips_that_go_wrong(path, file, bits) if found[1] == "other data"] == []


def test_a_flipped_bit_in_the_name_of_a_committed_array_is_an_error_of_ours(path):
    file = path / "commits" / "1.json"
    assert flips_that_go_wrong(path, file, places(file, "large")) == []


def test_a_flipped_bit_in_the_path_of_a_committed_file_never_returns_another_shard(path):
    file = path / "commits" / "1.json"
    for relative in FILES.values():
        assert flips_that_go_wrong(path, file, places(file, relative)) == []


def test_a_flipped_bit_in_the_row_of_a_failure_never_returns_its_fill(tmp_path):
    path = store_of(tmp_path / "store", COUNT, failures={3: "broken"})
    file = path / "commits" / "1.json"
    bits = places(file, '"3"')
    for bit in bits[8:-8]:
        flip(file, bit)
        try:
            store = FeatureStore.open(path)
            rows = store.gather("small", [3])
        except (IntegrityError, RowUnavailable):
            pass
        else:
            assert np.isfinite(as_floats(rows, "float32")).all(), f"bit {bit - bits[0]}: {store.failed()}"
        flip(file, bit)


def test_a_flipped_bit_in_the_plan_never_returns_other_data(path):
    file = path / PLAN
    bits = np.random.default_rng(12).choice(8 * file.stat().st_size, 150, replace=False).tolist()
    assert [found for found in flips_that_go_wrong(path, file, bits) if found[1] == "other data"] == []


def test_a_flipped_bit_in_the_name_of_a_planned_array_is_an_error_of_ours(path):
    file = path / PLAN
    assert flips_that_go_wrong(path, file, [bit for bit in places(file, "large") if bit % 8 == 0]) == []


def test_a_plan_that_is_not_even_text_is_named(path):
    flip(path / PLAN, 7)
    assert_refused(path, path / PLAN)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}'])
def test_a_plan_that_is_none_is_named(path, content):
    (path / PLAN).write_bytes(content)
    assert_refused(path, path / PLAN)


def test_a_plan_that_changed_since_the_commits_is_noticed(path):
    text = (path / PLAN).read_text()
    (path / PLAN).write_text(text.replace('"checkpoint": "tiny"', '"checkpoint": "tinz"'))
    assert text != (path / PLAN).read_text()
    assert_refused(path, path)


def test_a_record_under_another_number_is_refused(path):
    (path / "commits" / "1.json").rename(path / "commits" / "2.json")
    assert_refused(path, path / "commits" / "2.json")


def test_a_record_of_another_store_is_refused(path, tmp_path):
    other = store_of(tmp_path / "other", 7, shard_images=3)
    shutil.copy(other / "commits" / "1.json", path / "commits" / "1.json")
    assert_refused(path, "commit 1 of", path, advice=("remove it",))


def test_a_file_without_its_record_is_not_believed(path):
    (path / "commits" / "0.json").unlink()
    store = FeatureStore.open(path)
    assert (path / FEATURES / "small/c/0/0/0").is_file()
    assert store.committed_rows == [2, 3, 4] and store.missing_shards == [0]
    for row in (0, 1):
        with pytest.raises(RowUnavailable, match=f"row {row} .*make extract"):
            store.gather("small", [row])
    with pytest.raises(StoreMissing, match="1 of 3 shards"):
        store.require_complete(store.arrays, range(COUNT))
    store.require_complete(store.arrays, [2, 4])


def test_what_the_error_advises_repairs_the_store(path):
    flip(path / FEATURES / FILES["small"], 5)
    assert_refused(path, f"python -m store repair {path}")
    assert repair(path, quick=False).withdrawn == {0: [1]}
    ids = image_ids(COUNT)
    write_store(path, plan_of(ids), ids)
    assert_unaltered(path)


def test_hidden_files_among_the_records_are_no_records(path):
    (path / "commits" / ".1.json").write_text("half")
    (path / "commits" / ".2.json.abc.partial").write_text("half")
    assert sorted(read_commits(path)) == [0, 1, 2]
    assert_unaltered(path)


def test_a_folder_without_a_store_is_said_to_be_none(tmp_path):
    for missing in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(StoreMissing, match=f"feature store at {missing}.*make extract") as caught:
            FeatureStore.open(missing)
        assert caught.value.exit_code == 5
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreMissing, match="feature store"):
        FeatureStore.open(tmp_path / "file")


def test_arrays_that_are_not_in_the_store_are_named(path):
    with pytest.raises(StoreMissing, match="arrays cls_hidden in .*it has small, large"):
        FeatureStore.open(path).require(["small", "cls_hidden"])


def test_records_say_what_lies_on_disk(path):
    record = json.loads((path / "commits" / "2.json").read_text())
    assert (record["first_row"], record["last_row"]) == (4, 4)
    for name in ARRAYS:
        assert record["files"][name]["path"] == f"{name}/c/2/0/0"
