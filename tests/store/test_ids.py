"""Which image is in which row, by name and by sha256, for whatever people call their files."""

import hashlib
import tempfile

import pytest
import zarr
from hypothesis import example, given
from hypothesis import strategies as st

from store import ids as module
from store.ids import ImageIds
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
    with tempfile.TemporaryDirectory() as folder:
        built.write(zarr.create_group(folder))
        group = zarr.open_group(folder, mode="r")["ids"]
        read = ImageIds.read(group)
    assert len(read) == len(images)
    assert read.digest() == built.digest()
    for row, (sha, names) in enumerate(images):
        assert read.names(row) == names
        assert read.sha_of_row(row) == sha
        assert read.row_of_sha(sha) == row
        assert all(read.row_of_name(name) == row for name in names)
    known = {name for _, names in images for name in names}
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


def test_a_damaged_blob_of_names_is_noticed_when_it_is_read(tmp_path):
    ImageIds.build([(image(0), ["a.png"])]).write(zarr.create_group(tmp_path))
    path = tmp_path / "ids" / "names_utf8" / "c" / "0"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        ImageIds.read(zarr.open_group(tmp_path, mode="r")["ids"])
