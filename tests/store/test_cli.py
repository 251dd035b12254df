"""`python -m store`: what is in a store, as text, JSON and HDF5."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from configs.cli import run_to_exit_code
from store.care.inspect import as_text, report
from store.cli import group
from store.copies.hdf5 import export_hdf5
from store.errors import TargetExists
from store.layout.ids import ImageIds
from store.layout.plan import PLAN
from store.reading.reader import FEATURES, FeatureStore
from tests.store.stores import DTYPES, as_floats, image_ids, plan_of, sha, store_of, values, write_store

ROOT = Path(__file__).parents[2]
FAILED = {1: "truncated PNG"}
BOTH = ["small", "large"]
"""Arrays of the store that an image that failed lacks."""


def store_command(*arguments, **environment):
    command = [sys.executable, "-m", "store", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, encoding="utf-8", errors="surrogateescape"
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Shard 1 of three is missing, row 1 has failed."""
    return store_of(tmp_path_factory.mktemp("store"), 5, "bfloat16", shards=[0, 2], failures=FAILED)


def test_inspect_as_json_says_what_is_there_what_is_missing_and_what_failed(path):
    done = store_command("inspect", path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == report(path)
    assert (found["path"], found["format"], found["images"], found["identity"]) == (str(path), 1, 5, "content")
    assert found["shards"] == {"images_per_shard": 2, "total": 3, "committed": [0, 2], "missing": [1]}
    assert found["failures"] == [
        {"row": 1, "names": ["image_1.png", "copy/1.png"], "reason": "truncated PNG", "arrays": BOTH}
    ]
    assert found["arrays"][0] == {
        "name": "small", "axes": ["image", "patch", "hidden"], "shape": [5, 3, 5], "dtype": "bfloat16",
        "stored_as": "<u2", "bytes": 5 * 3 * 5 * 2,
    }  # fmt: skip
    assert found["geometry"] == {"grid": [2, 2], "has_cls": True, "tokens": 4}
    assert found["projector"] == "llava_mlp" and found["notes"] == ["a store of the tests"]
    assert found["fingerprints"]["large"]["semantic"] == {"checkpoint": "tiny", "layer": -2}
    assert found["fingerprints"]["large"]["numeric"] == {"torch": "2"}


def test_inspect_as_text_says_the_same(path):
    done = store_command("inspect", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == as_text(report(path)) + "\n"
    for expected in (
        f"{path}: 5 images of 2x2 patches", "2 of 3 committed, 2 images each; missing 1", "5 x 3 x 5", "bfloat16",
        "row 1 image_1.png, copy/1.png: truncated PNG", "llava_mlp", "a store of the tests", "fingerprint of large",
        "checkpoint: tiny",
    ):  # fmt: skip
        assert expected in done.stdout


def test_a_long_list_of_missing_shards_is_cut_in_the_text_and_whole_in_the_report(tmp_path):
    path = store_of(tmp_path, 60, shards=[0])
    found = report(path)
    assert found["shards"]["missing"] == list(range(1, 30))
    assert ", 20 …" in as_text(found) and ", 21" not in as_text(found)


def test_inspect_imports_no_framework(path):
    script = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from store.care.inspect import report\n"
        f"print(json.dumps(report(Path({str(path)!r}))))\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 5


def test_inspect_without_a_path_takes_the_store_of_the_config(path, tmp_path):
    config = tmp_path / "trial.yaml"
    config.write_text("model: {checkpoint: x}\ndata: {images: images}\n")
    done = store_command("inspect", "--config", config, "--store.path", path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(path)


@pytest.mark.parametrize("command", [["inspect"], ["export", "--hdf5", "out.h5"]])
def test_a_folder_without_a_store_is_exit_5(tmp_path, command):
    done = store_command(command[0], tmp_path / "none", *command[1:])
    assert done.returncode == 5 and "expected a feature store at" in done.stderr and "Traceback" not in done.stderr
    assert not (ROOT / "out.h5").exists()


def test_a_damaged_plan_is_exit_4(tmp_path):
    path = store_of(tmp_path)
    (path / PLAN).write_text("{")
    done = store_command("inspect", path)
    assert done.returncode == 4 and str(path / PLAN) in done.stderr and "Traceback" not in done.stderr


def test_inspect_changes_nothing(path):
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    report(path)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def named_store(path, name):
    ids = ImageIds.build([(sha(0), [name]), (sha(1), ["plain.png"])])
    return write_store(path, plan_of(ids), ids, failures={0: "broken"})


@pytest.mark.parametrize(
    "name",
    [
        "naïve é 图.png",
        "line\nbreak.png",
        pytest.param(
            "\udcff.png",
        ),
    ],
)
def test_inspect_prints_whatever_a_failed_image_is_called(tmp_path, name):
    path = named_store(tmp_path, name)
    as_json = store_command("inspect", path, "--json")
    assert json.loads(as_json.stdout)["failures"] == [{"row": 0, "names": [name], "reason": "broken", "arrays": BOTH}]
    as_text = store_command("inspect", path, PYTHONIOENCODING="utf-8:strict")
    assert as_text.returncode == 0, as_text.stderr
    assert "broken" in as_text.stdout


@pytest.mark.parametrize("dtype", DTYPES)
def test_exported_values_are_the_stores(tmp_path, dtype):
    path = store_of(tmp_path / "store", 5, dtype, failures=FAILED)
    export_hdf5(FeatureStore.open(path), tmp_path / "out.h5", overwrite=False)
    rows = [0, 2, 3, 4]
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["rows"][...].tolist() == rows
        for one in FeatureStore.open(path).arrays.values():
            data = file[one.name]
            assert data.attrs["axes"].tolist() == ["image", "patch", "hidden"]
            expected = as_floats(values(one, range(5))[rows], dtype)
            np.testing.assert_array_equal(data[...].astype(np.float32), expected)
            assert data.id.get_type().get_size() == one.storage.itemsize
            if dtype == "bfloat16":
                assert data.dtype == np.float32
            else:
                assert data.dtype == one.storage


def test_the_bits_of_exported_bfloat16_are_the_stores(tmp_path):
    path = store_of(tmp_path / "store", 4, "bfloat16")
    export_hdf5(FeatureStore.open(path), tmp_path / "out.h5", overwrite=False)
    with h5py.File(tmp_path / "out.h5") as file:
        for one in FeatureStore.open(path).arrays.values():
            read = np.empty((4, *one.shape), "<u2")
            data = file[one.name].id
            data.read(h5py.h5s.ALL, h5py.h5s.ALL, read, data.get_type())
            assert read.tobytes() == values(one, range(4)).tobytes()


def test_export_writes_the_committed_rows_with_their_names(path, tmp_path):
    out = tmp_path / "out.h5"
    done = store_command("export", path, "--hdf5", out)
    assert done.returncode == 0, done.stderr
    assert f"written to {out}" in done.stderr and done.stdout == ""
    with h5py.File(out) as file:
        assert file["rows"][...].tolist() == [0, 4]
        assert [name.decode() for name in file["sha256"][...]] == [sha(0), sha(4)]
        assert file["names"].asstr()[...].tolist() == ["image_0.png\ncopy/0.png", "image_4.png\ncopy/4.png"]
        assert file["failed"].asstr()[...].tolist() == ["1\ttruncated PNG"]
        assert json.loads(file.attrs["plan"]) == json.loads((path / PLAN).read_text())
        for one in plan_of(image_ids(5)).arrays:
            stored = FeatureStore.open(path).gather(one.name, [0, 4])
            np.testing.assert_array_equal(file[one.name][...], as_floats(stored, "bfloat16"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.h5"]


def test_an_existing_file_is_replaced_only_when_asked_to(path, tmp_path):
    out = tmp_path / "out.h5"
    out.write_bytes(b"precious")
    refused = store_command("export", path, "--hdf5", out)
    assert refused.returncode == 2 and str(out) in refused.stderr and "--overwrite" in refused.stderr
    assert out.read_bytes() == b"precious"
    with pytest.raises(TargetExists):
        export_hdf5(FeatureStore.open(path), out, overwrite=False)
    replaced = store_command("export", path, "--hdf5", out, "--overwrite")
    assert replaced.returncode == 0, replaced.stderr
    with h5py.File(out) as file:
        assert file["rows"][...].tolist() == [0, 4]


def test_an_export_that_breaks_leaves_the_old_file(tmp_path):
    path = store_of(tmp_path / "store", 5)
    damaged = path / FEATURES / "large/c/2/0/0"
    damaged.write_bytes(b"")
    out = tmp_path / "out.h5"
    out.write_bytes(b"precious")
    done = store_command("export", path, "--hdf5", out, "--overwrite")
    assert done.returncode == 4 and str(damaged) in done.stderr
    assert out.read_bytes() == b"precious"


def test_an_empty_store_exports_as_empty_arrays(tmp_path):
    path = store_of(tmp_path / "store", 5, shards=[])
    export_hdf5(FeatureStore.open(path), tmp_path / "out.h5", overwrite=False)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["large"].shape[0] == file["rows"].shape[0] == file["names"].shape[0] == 0


def test_a_list_of_no_failures_is_still_a_list_of_text(tmp_path):
    path = store_of(tmp_path / "store", 2)
    export_hdf5(FeatureStore.open(path), tmp_path / "out.h5", overwrite=False)
    with h5py.File(tmp_path / "out.h5") as file:
        assert h5py.check_string_dtype(file["failed"].dtype) is not None


@pytest.mark.parametrize(
    "name",
    [
        "naïve é 图.png",
        pytest.param(
            "\udcff.png",
        ),
    ],
)
def test_names_of_any_file_are_exported(tmp_path, name):
    ids = ImageIds.build([(sha(0), [name])])
    path = write_store(tmp_path / "store", plan_of(ids), ids)
    export_hdf5(FeatureStore.open(path), tmp_path / "out.h5", overwrite=False)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["names"][0] == os.fsencode(name)


def refused(capsys, *arguments):
    """The exit code of a command, and what it says."""
    code = run_to_exit_code(lambda: group.main([str(one) for one in arguments], standalone_mode=False))
    return code, "".join(capsys.readouterr())


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_run_folder_in_place_of_its_store_is_told_where_the_store_is(tmp_path, capsys, command):
    (tmp_path / "run").mkdir()
    store_of(tmp_path / "run" / "store", 2, "float32")
    code, said = refused(capsys, command, tmp_path / "run")
    assert code == 5 and f"did you mean {tmp_path / 'run' / 'store'}?" in said
    code, said = refused(capsys, command, tmp_path / "nothing")
    assert code == 5 and "there is none: name the folder of a store" in said and "this config" not in said


def test_verify_says_how_many_shards_there_are_where_some_are_missing(path, tmp_path, capsys):
    assert refused(capsys, "verify", path) == (
        0,
        "nothing is damaged; 2 of 3 shards are committed: `make extract` encodes the other shards whose images a config names\n",
    )
    assert refused(capsys, "verify", store_of(tmp_path, 4, "float32")) == (0, "nothing is damaged\n")


def test_verify_counts_the_shards_for_programs_too(path):
    done = CliRunner().invoke(group, ["verify", str(path), "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found == {"findings": [], "changed_sources": [], "shards_committed": 2, "shards": 3}
