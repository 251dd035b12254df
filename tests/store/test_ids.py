"""Which image is in which row, by name and by sha256, for whatever people call their files."""

import hashlib
import shutil
import tempfile

import pytest
import zarr
from hypothesis import example, given
from hypothesis import strategies as st

from store.errors import IntegrityError
from store.layout import ids as module
from store.layout.ids import ImageIds
from tests.store.stores import quick

# Also lone surrogates (undecodable file names), newlines, NUL, and names longer than any path.
NAMES = st.one_of(
    st.text(st.characters(codec=None), min_size=1, max_size=12),
    st.sampled_from(
        ["\udcff.png", "a\nb.png", "a\tb", "\x00", "é", "e\u0301", "x" * 70_000, "\ud83d\ude00", "😀", " "]
    ),
)


def image(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


@st.composite
def stores(draw):
    names = draw(st.lists(NAMES, unique=True, max_size=12))
    rows = draw(st.integers(1, 6))
    owners = [draw(st.integers(0, rows - 1)) for _ in names]
    return [(image(row), [n for n, owner in zip(names, owners, strict=True) if owner == row]) for row in range(rows)]


@quick
@given(images=stores(), stranger=NAMES)
@example(images=[(image(0), [])], stranger="a")
@example(images=[(image(0), ["a\nb", "a", "b", "\udcff", "x" * 70_000]), (image(1), ["\x00"])], stranger="a\x00")
def test_names_rows_and_hashes_survive_the_way_through_zarr(images, stranger):
    built = ImageIds.build(images)
    known = {name for _, names in images for name in names}
    with tempfile.TemporaryDirectory() as folder:
        built.write(zarr.create_group(folder), "ids")
        group = zarr.open_group(folder, mode="r")["ids"]
        for read in (ImageIds.read(group), built):
            assert len(read) == len(images)
            assert read.digest() == built.digest()
            for row, (sha, names) in enumerate(images):
                assert read.names(row) == names
                assert read.sha_of_row(row) == sha
                assert read.row_of_sha(sha) == row
                assert all(read.row_of_name(name) == row for name in names)
            assert stranger in known or read.row_of_name(stranger) is None
            assert read.row_of_sha(image("none of them")) is None


@quick
@given(images=stores(), data=st.data())
def test_the_digest_changes_with_any_name(images, data):
    named = [(row, place) for row, (_, names) in enumerate(images) for place in range(len(names))]
    if not named:
        return
    row, place = data.draw(st.sampled_from(named))
    changed = [(sha, list(names)) for sha, names in images]
    changed[row][1][place] = data.draw(NAMES.filter(lambda name: name != images[row][1][place]))
    assert ImageIds.build(changed).digest() != ImageIds.build(images).digest()


def test_the_digest_changes_where_a_name_moves_or_the_boundary_between_two_does():
    def digest(*names):
        return ImageIds.build([(image(row), given) for row, given in enumerate(names)]).digest()

    digests = [
        digest(["ab", "c"], []),
        digest(["a", "bc"], []),
        digest(["abc"], []),
        digest(["ab"], ["c"]),
        digest([], ["ab", "c"]),
        digest(["c", "ab"], []),
    ]
    assert len(set(digests)) == len(digests)


@quick
@given(images=stores(), row=st.integers(0, 5))
def test_the_digest_of_a_shard_is_that_of_the_hashes_of_its_rows(images, row):
    row = row % len(images)
    rows = range(row, len(images))
    built = ImageIds.build(images)
    expected = hashlib.sha256(b"".join(bytes.fromhex(sha) for sha, _ in images[row:])).hexdigest()
    assert built.digest(rows) == expected
    changed = [*images[:-1], (image("other"), images[-1][1])]
    assert ImageIds.build(changed).digest(rows) != expected
    assert ImageIds.build([(sha, []) for sha, _ in images]).digest(rows) == expected


def test_one_image_has_all_the_names_of_its_copies_in_the_order_given():
    built = ImageIds.build([(image(0), ["b", "a", "c"]), (image(1), ["d"])])
    assert built.names(0) == ["b", "a", "c"] and built.names(1) == ["d"] and built.names(2) == []


def test_names_whose_hashes_collide_are_told_apart(monkeypatch):
    monkeypatch.setattr(module, "_hash", lambda name: len(name))
    built = ImageIds.build([(image(row), [f"{row}", f"long {row}"]) for row in range(9)])
    assert [built.row_of_name(f"{row}") for row in range(9)] == list(range(9))
    assert [built.row_of_name(f"long {row}") for row in range(9)] == list(range(9))
    assert built.row_of_name("x") is None and built.row_of_name("much longer than any") is None


def test_ten_thousand_names_are_found_and_no_other():
    built = ImageIds.build([(image(row), [f"{row}.png"]) for row in range(10_000)])
    assert all(built.row_of_name(f"{row}.png") == row for row in range(0, 10_000, 97))
    assert built.row_of_name("10000.png") is None and built.row_of_name("") is None


def test_a_store_without_images_has_no_names():
    built = ImageIds.build([])
    assert len(built) == 0 and built.row_of_name("a") is None and built.row_of_sha(image(0)) is None


ARRAYS = ["name_offsets", "name_rows", "names_utf8", "sha256", "sorted_hashes", "sorted_names", "sorted_rows"]
IMAGES = [(image(row), [f"{row}.png", f"copy/{row}.png"]) for row in range(3)]


def written(folder):
    ImageIds.build(IMAGES).write(zarr.create_group(folder), "ids")
    return {name: next(file for file in (folder / "ids" / name / "c").rglob("*") if file.is_file()) for name in ARRAYS}


def opened(folder):
    return ImageIds.read(zarr.open_group(folder, mode="r")["ids"])


def look_up_everything(ids):
    """All that can be asked, as it was built; `names` and `row_of_sha` come first in turn, so that each meets damage."""
    for row, (sha, names) in enumerate(IMAGES):
        assert ids.row_of_sha(sha) == row
        assert ids.names(row) == names
        assert [ids.row_of_name(name) for name in names] == [row, row]
        assert ids.sha_of_row(row) == sha
    assert ids.digest(range(3)) == ImageIds.build(IMAGES).digest(range(3))


def test_the_arrays_are_those_that_the_format_names(tmp_path):
    written(tmp_path)
    assert (
        sorted(path.name for path in (tmp_path / "ids").iterdir() if path.is_dir()) == ARRAYS == sorted(module.ARRAYS)
    )


@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_bit_anywhere_in_the_ids_is_an_error_before_anything_wrong_is_answered(tmp_path, name):
    file = written(tmp_path)[name]
    data = file.read_bytes()
    for bit in {*range(0, 8 * len(data), 43), 8 * len(data) - 1}:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=f"{file} is damaged.*make extract"):
            look_up_everything(opened(tmp_path))
    file.write_bytes(data)
    look_up_everything(opened(tmp_path))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("damage", ["missing", "empty", "short", "long"])
def test_an_array_of_the_ids_of_another_size_is_refused_when_they_are_opened(tmp_path, name, damage):
    file = written(tmp_path)[name]
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "short": data[:-1], "long": data + b"x"}[damage])
    with pytest.raises(IntegrityError, match=f"{file} with {len(data)} bytes"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_not_there_is_named(tmp_path, name):
    written(tmp_path)
    shutil.rmtree(tmp_path / "ids" / name)
    with pytest.raises(IntegrityError, match=f"the arrays {name} in .*make extract"):
        opened(tmp_path)


def test_a_file_that_is_cut_after_the_store_was_opened_is_an_error_and_no_crash(tmp_path):
    files = written(tmp_path)
    ids = opened(tmp_path)
    files["sha256"].write_bytes(files["sha256"].read_bytes()[:-9])
    with pytest.raises(IntegrityError, match="sha256.* is damaged"):
        ids.sha_of_row(0)


def test_ids_of_another_store_under_valid_checksums_are_not_those_of_the_plan(tmp_path):
    (tmp_path / "ours").mkdir()
    ours = written(tmp_path / "ours")
    others = ImageIds.build([*IMAGES[:2], (image("another"), IMAGES[2][1])])
    others.write(zarr.create_group(tmp_path / "others"), "ids")
    assert opened(tmp_path / "others").digest() == others.digest() != opened(tmp_path / "ours").digest()
    shutil.copy(tmp_path / "others" / ours["sha256"].relative_to(tmp_path / "ours"), ours["sha256"])
    with pytest.raises(IntegrityError, match="its checksum differs"):
        opened(tmp_path / "ours").sha_of_row(0)


def test_opening_reads_no_values(tmp_path):
    files = written(tmp_path)
    for file in files.values():
        file.write_bytes(bytes(file.stat().st_size))
    ids = opened(tmp_path)
    assert len(ids) == 3 and ids.digest() == ImageIds.build(IMAGES).digest()


def test_arrays_that_are_compressed_are_read_through_zarr(tmp_path):
    written(tmp_path)
    group = zarr.open_group(tmp_path, mode="r+")["ids"]
    for name, array in list(group.arrays()):
        values, attributes = array[...], dict(array.attrs)
        again = group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=array.shape, overwrite=True)
        again[...] = values
        again.attrs.update(attributes)
        assert again.compressors
    assert opened(tmp_path).digest() == ImageIds.build(IMAGES).digest()
    look_up_everything(opened(tmp_path))
    array = zarr.open_group(tmp_path, mode="r+")["ids"]["name_rows"]
    array[0] = 1
    with pytest.raises(IntegrityError, match="name_rows is damaged"):
        opened(tmp_path).names(0)


def test_arrays_that_are_not_on_this_disk_are_read_through_zarr():
    store = zarr.storage.MemoryStore()
    ImageIds.build(IMAGES).write(zarr.create_group(store), "ids")
    look_up_everything(ImageIds.read(zarr.open_group(store, mode="r")["ids"]))


def test_ids_that_begin_alike_are_told_apart():
    shas = [(bytes(8) + hashlib.sha256(bytes([row])).digest()[:24]).hex() for row in range(20)]
    built = ImageIds.build([(sha, []) for sha in shas])
    assert [built.row_of_sha(sha) for sha in shas] == list(range(20))
    assert built.row_of_sha("00" * 32) is None and built.row_of_sha("ff" * 32) is None


def test_ten_thousand_ids_are_found_and_no_other():
    built = ImageIds.build([(image(row), []) for row in range(10_000)])
    assert all(built.row_of_sha(image(row)) == row for row in range(0, 10_000, 97))
    assert all(built.row_of_sha(image(row)) is None for row in range(10_000, 10_050))
