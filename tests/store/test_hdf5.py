"""HDF5 out of a store and back: the same store again, or one sentence and no store."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from store.care.compare import differences_between
from store.care.verify import verify
from store.copies.copies import write_copy
from store.copies.hdf5 import export_hdf5
from store.copies.hdf5_import import opened
from store.errors import NonFinite, StoreError, StoreMissing, TargetExists
from store.layout.ids import ImageIds
from store.reading.reader import FeatureStore
from tests.store.stores import DTYPES, image_ids, plan_of, sha, small_and_large, store_of, write_store
from tests.store.test_cli import ROOT, store_command
from tests.store.test_copies import grown_store, write_store_without_projector

FAILED = {1: "truncated PNG"}


def exported(path, out):
    export_hdf5(FeatureStore.open(path), out, overwrite=False)
    return out


def imported(file, out):
    with opened(file) as contents:
        write_copy(contents, out)
    return out


def there_and_back(path, folder):
    return imported(exported(path, folder / "out.h5"), folder / "again")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [None, [0, 2], [], [1]])
def test_a_store_is_identical_after_the_way_through_hdf5(tmp_path, dtype, shards):
    path = store_of(tmp_path / "store", 5, dtype, shards=shards, failures=FAILED)
    again = there_and_back(path, tmp_path)
    assert differences_between(path, again) == []
    assert verify(again, quick=False) == []
    assert sorted(one.name for one in tmp_path.iterdir()) == ["again", "out.h5", "store"]


def test_a_shard_whose_images_all_failed_comes_back_as_one(tmp_path):
    path = store_of(tmp_path / "store", 5, failures={2: "no", 3: "tab\there and \0", 0: "line\nbreak"})
    assert differences_between(path, there_and_back(path, tmp_path)) == []


@pytest.mark.parametrize(
    "names",
    [["naïve é 图.png"], ["line\nbreak.png", ""], ["\udcff.png"], ["\ud800.png", "a\0b"], [], ["a", "b", "c/d e.png"]],
)
def test_all_names_of_an_image_come_back_whatever_they_are(tmp_path, names):
    ids = ImageIds.build([(sha(0), names), (sha(1), []), (sha(2), ["other.png"])])
    path = write_store(tmp_path / "store", plan_of(ids), ids)
    again = there_and_back(path, tmp_path)
    assert differences_between(path, again) == []
    assert FeatureStore.open(again).ids.names(0) == names


def test_a_store_without_a_projector_comes_back_without_one(tmp_path):
    write_store_without_projector(tmp_path / "store", image_ids(3))
    again = there_and_back(tmp_path / "store", tmp_path)
    assert differences_between(tmp_path / "store", again) == [] and FeatureStore.open(again).projector is None


def test_a_store_of_two_generations_comes_back_as_one_with_the_same_values(tmp_path):
    before = FeatureStore.open(grown_store(tmp_path / "store"))
    after = FeatureStore.open(there_and_back(tmp_path / "store", tmp_path))
    rows = [row for row in before.committed_rows if row not in before.failed()]
    assert after.plan == before.plan.flattened() and after.failed() == before.failed()
    assert [after.ids.names(row) for row in range(9)] == [before.ids.names(row) for row in range(9)]
    for name in before.arrays:
        assert after.gather(name, rows).tobytes() == before.gather(name, rows).tobytes()
    once_more = tmp_path / "more"
    once_more.mkdir()
    assert differences_between(tmp_path / "again", there_and_back(tmp_path / "again", once_more)) == []


def test_plain_h5py_sees_floats_names_and_what_failed(tmp_path):
    path = store_of(tmp_path / "store", 3, "bfloat16", failures=FAILED)
    with h5py.File(exported(path, tmp_path / "out.h5")) as file:
        assert file["large"].dtype == np.float32 and np.isfinite(file["large"][...]).all()
        assert file["names"].asstr()[...].tolist() == ["image_0.png\ncopy/0.png", "image_2.png\ncopy/2.png"]
        assert file["sha256"].asstr()[...].tolist() == [sha(0), sha(2)]
        assert file["failed"].asstr()[...].tolist() == ["1\ttruncated PNG"]
        assert file["projector"].attrs["kind"] == "llava_mlp"
        assert json.loads(file.attrs["plan"])["n_images"] == 3


def test_the_command_imports_what_it_has_exported(tmp_path):
    path = store_of(tmp_path / "store", 5, "bfloat16", failures=FAILED)
    assert store_command("export", path, "--hdf5", tmp_path / "out.h5").returncode == 0
    done = store_command("import", tmp_path / "out.h5", tmp_path / "again")
    assert done.returncode == 0 and f"written to {tmp_path / 'again'}" in done.stderr, done.stderr
    assert differences_between(path, tmp_path / "again") == []
    refused = store_command("import", tmp_path / "out.h5", tmp_path / "again")
    assert refused.returncode == 2 and "it exists" in refused.stderr
    missing = store_command("import", tmp_path / "none.h5", tmp_path / "new")
    assert missing.returncode == 5 and "expected an HDF5 file" in missing.stderr


def test_a_target_that_exists_is_not_touched(tmp_path):
    file = exported(store_of(tmp_path / "store", 2), tmp_path / "out.h5")
    (tmp_path / "again").mkdir()
    with pytest.raises(TargetExists):
        imported(file, tmp_path / "again")
    assert list((tmp_path / "again").iterdir()) == []


def test_an_import_that_is_killed_leaves_no_store(tmp_path):
    file = exported(store_of(tmp_path / "store", 40, shard_images=1), tmp_path / "out.h5")
    command = [sys.executable, "-m", "store", "import", str(file), str(tmp_path / "again")]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ.copy(), stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("again.*.partial/commits/3.json")) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "again").exists()
    imported(file, tmp_path / "again")
    assert differences_between(tmp_path / "store", tmp_path / "again") == []


def remove(name):
    return lambda file: file.pop(name)


def replaced(name, values):
    def change(file):
        del file[name]
        file[name] = values

    return change


def planned(**changes):
    def change(file):
        file.attrs["plan"] = json.dumps(json.loads(file.attrs["plan"]) | changes)

    return change


def renamed_array(name):
    def change(file):
        plan = json.loads(file.attrs["plan"])
        plan["arrays"][0]["name"] = name
        file.attrs["plan"] = json.dumps(plan)
        file.copy("small", name) if name not in file and ".." not in name else None

    return change


def linked(name, link):
    def change(file):
        del file[name]
        file[name] = link

    return change


ODD = {
    "no plan": lambda file: file.attrs.pop("plan"),
    "a plan that is no JSON": lambda file: file.attrs.modify("plan", "{"),
    "a plan that is a number": lambda file: file.attrs.create("plan", 3),
    "a plan of another format": planned(format=2),
    "a plan of a later generation": planned(generation=1, earlier=["x"]),
    "a plan of other images": planned(n_images=6),
    "a plan of fewer images": planned(n_images=4),
    "a plan of no shards": planned(shard_images=0),
    "a plan of huge shards": planned(shard_images=10**15),
    "segments that overlap": planned(segments=[
        {"generation": 0, "first_row": 0, "n_images": 4}, {"generation": 0, "first_row": 2, "n_images": 1}
    ]),
    "a negative segment": planned(segments=[
        {"generation": 0, "first_row": -2, "n_images": 4}, {"generation": 0, "first_row": 4, "n_images": 1}
    ]),
    "other ids than the plan's": planned(ids_digest="0" * 64),
    "no arrays in the plan": planned(arrays=[]),
    "an array that is missing": remove("large"),
    "an array that is a group": lambda file: (remove("large")(file), file.create_group("large")),
    "an array of another shape": replaced("large", np.zeros((4, 3), "<f4")),
    "an array of fewer rows": replaced("small", np.zeros((3, 3, 5), "<f4")),
    "an array of doubles": replaced("small", np.zeros((4, 3, 5), "<f8")),
    "an array of big-endian floats": replaced("small", np.zeros((4, 3, 5), ">f4")),
    "an array named as a path": renamed_array("../../out"),
    "an array named as the ids": renamed_array("ids"),
    "an array linked from another file": linked("small", h5py.ExternalLink("/etc/hostname", "/x")),
    "an array linked inside": linked("small", h5py.SoftLink("/large")),
    "no rows": remove("rows"),
    "rows that are text": replaced("rows", ["a", "b", "c", "d"]),
    "rows of no image": replaced("rows", np.array([0, 2, 3, 400])),
    "rows below zero": replaced("rows", np.array([-1, 0, 2, 3])),
    "rows twice": replaced("rows", np.array([0, 2, 2, 3])),
    "half a shard": replaced("rows", np.array([0, 2, 4, 4])),
    "rows in two dimensions": replaced("rows", np.zeros((2, 2), np.int64)),
    "no ids": remove("ids"),
    "ids of another shape": replaced("ids/sha256", np.zeros((5, 16), np.uint8)),
    "offsets beyond the names": replaced("ids/name_offsets", np.full(11, 10**6)),
    "names of no row": replaced("ids/name_rows", np.full(10, 9)),
    "names that are not text": replaced("ids/names_utf8", np.full(200, 255, np.uint8)),
    "no failures": remove("failures"),
    "failures that are a list": replaced("failures", "[1]"),
    "failures of no row": replaced("failures", '{"1": "x", "9": "y"}'),
    "failures without a reason": replaced("failures", '{"1": 3}'),
    "a projector without a kind": lambda file: file["projector"].attrs.pop("kind"),
    "a projector whose config is no object": lambda file: file["projector"].attrs.modify("config", "[]"),
    "a projector with NaN": replaced("projector/linear_1.weight", np.full((2, 2), np.nan, "<f4")),
    "a projector of integers": replaced("projector/linear_1.weight", np.zeros((2, 2), "<i4")),
    "a projector that is an array": lambda file: replaced("projector", np.zeros(2))(file),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    file = exported(store_of(folder / "store", 5, failures=FAILED), folder / "out.h5")
    unseal(file)  # so that what is changed meets the check that is made for it, and not the checksums
    return file.read_bytes()


def unseal(path):
    """Make a file such as earlier versions wrote."""
    with h5py.File(path, "r+") as file:
        del file["checksums"]
        del file.attrs["sha256"]


@pytest.mark.parametrize("case", ODD)
def test_a_file_that_holds_no_whole_store_is_one_sentence_and_no_store(tmp_path, exported_bytes, case):
    path = tmp_path / "odd.h5"
    path.write_bytes(exported_bytes)
    with h5py.File(path, "r+") as file:
        ODD[case](file)
    with pytest.raises(StoreError) as caught:
        imported(path, tmp_path / "store")
    assert "\n" not in str(caught.value) and ("expected" in str(caught.value))
    assert [one.name for one in tmp_path.iterdir()] == ["odd.h5"]


def test_an_array_that_lies_in_another_file_is_refused(tmp_path, exported_bytes):
    (tmp_path / "secret").write_bytes(bytes(4 * 60))
    path = tmp_path / "odd.h5"
    path.write_bytes(exported_bytes)
    with h5py.File(path, "r+") as file:
        del file["small"]
        file.create_dataset("small", (4, 3, 5), "<f4", external=[(str(tmp_path / "secret"), 0, 240)])
    with pytest.raises(StoreError, match="small in the file itself"):
        imported(path, tmp_path / "store")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_numbers_are_not_imported(tmp_path, exported_bytes, bad):
    path = tmp_path / "odd.h5"
    path.write_bytes(exported_bytes)
    with h5py.File(path, "r+") as file:
        file["small"][2, 0, 1] = bad
    with pytest.raises(NonFinite, match=r"image_3\.png"):
        imported(path, tmp_path / "store")
    assert [one.name for one in tmp_path.iterdir()] == ["odd.h5"]


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_is_no_hdf5_is_one_sentence(tmp_path, content):
    (tmp_path / "odd.h5").write_bytes(content)
    with pytest.raises(StoreError, match="HDF5 export of a store"):
        imported(tmp_path / "odd.h5", tmp_path / "store")
    with pytest.raises(StoreMissing):
        imported(tmp_path / "none.h5", tmp_path / "store")


def test_a_cut_file_is_one_sentence(tmp_path, exported_bytes):
    for size in np.linspace(100, len(exported_bytes) - 1, 12, dtype=int).tolist():
        (tmp_path / "odd.h5").write_bytes(exported_bytes[:size])
        with pytest.raises(StoreError, match="HDF5 export of a store"):
            imported(tmp_path / "odd.h5", tmp_path / "store")
    assert [one.name for one in tmp_path.iterdir()] == ["odd.h5"]


def test_bits_of_bfloat16_come_back_from_the_file(tmp_path):
    path = store_of(tmp_path / "store", 4, "bfloat16")
    again = FeatureStore.open(there_and_back(path, tmp_path))
    for one in small_and_large("bfloat16"):
        assert (
            again.gather(one.name, range(4)).tobytes() == FeatureStore.open(path).gather(one.name, range(4)).tobytes()
        )


def test_no_flipped_bit_of_an_export_is_imported_as_another_value(tmp_path):
    path = store_of(tmp_path / "store", 5, "bfloat16", failures=FAILED)
    file = exported(path, tmp_path / "out.h5")
    whole = file.read_bytes()
    large = whole.index(FeatureStore.open(path).gather("large", [0]).tobytes()[:64])
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 8 * len(whole), 30).tolist() + rng.integers(0, 8 * large, 50).tolist()
    bits += rng.integers(8 * (len(whole) - 30_000), 8 * len(whole), 50).tolist()
    refused = 0
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            again = imported(file, tmp_path / "again")
        except StoreError as error:
            assert error.exit_code == 4
            refused += 1
        else:  # what nobody reads: free space, times
            assert differences_between(path, again) == [], bit
            shutil.rmtree(again)
        assert not (tmp_path / "again").exists()
    assert refused > 30


@pytest.mark.parametrize("name", ["checksums", "checksums/large", "sha256"])
def test_a_file_that_lost_a_part_of_its_checksums_is_refused(tmp_path, name):
    file = exported(store_of(tmp_path / "store", 5), tmp_path / "out.h5")
    with h5py.File(file, "r+") as opened_file:
        if name == "sha256":
            del opened_file.attrs[name]
        else:
            del opened_file[name]
    with pytest.raises(StoreError, match="expected a whole HDF5 export"):
        imported(file, tmp_path / "again")


def test_a_file_of_an_earlier_version_is_imported_and_said_to_have_no_checksums(tmp_path, caplog):
    path = store_of(tmp_path / "store", 5, failures=FAILED)
    file = exported(path, tmp_path / "out.h5")
    unseal(file)
    assert differences_between(path, imported(file, tmp_path / "again")) == []
    assert "no checksums" in caplog.text


def test_names_and_ids_for_other_tools_are_checked_too(tmp_path):
    file = exported(store_of(tmp_path / "store", 5), tmp_path / "out.h5")
    with h5py.File(file, "r+") as opened_file:
        opened_file["names"][2] = "another.png"
    with pytest.raises(StoreError, match="names as they were written"):
        imported(file, tmp_path / "again")
