"""A store read over s3://, from a server on this machine: the same values, and damage is never data."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from configs.load import load
from store.care.compare import differences_between
from store.care.status import status
from store.care.verify import verify
from store.copies.contents import Contents
from store.copies.copies import write_copy
from store.errors import IntegrityError, RowUnavailable, StoreMissing
from store.layout.plan import FEATURES
from store.log.commits import compact
from store.reading.reader import FeatureStore
from tests.helpers.s3 import Copy, s3_server
from tests.store.stores import DTYPES, store_of
from tests.store.test_cli import store_command
from tests.store.test_copies import archived, grown_store

FAILED = {1: "truncated PNG"}
READABLE = [4, 0, 3, 2]


@pytest.fixture(scope="module", autouse=True)
def server():
    with s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def mirrors(monkeypatch, tmp_path):
    folder = tmp_path / "mirrors"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def path(tmp_path):
    return store_of(tmp_path / "store", 5, "bfloat16", failures=FAILED)


@pytest.fixture
def copy(path):
    return Copy(path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_store_behind_a_url_says_what_the_folder_says(tmp_path, dtype):
    path = store_of(tmp_path / "store", 5, dtype, shards=[0, 1, 2], failures=FAILED)
    here, there = FeatureStore.open(path), FeatureStore.open(Copy(path).url)
    assert there.plan == here.plan and there.failed() == FAILED and there.committed_rows == here.committed_rows
    assert [there.ids.names(row) for row in range(5)] == [here.ids.names(row) for row in range(5)]
    assert there.projector.weights.keys() == here.projector.weights.keys()
    for name in here.arrays:
        assert there.gather(name, READABLE).tobytes() == here.gather(name, READABLE).tobytes()
    batches = list(there.stream(["large"], [[0, 2], [4]]))
    assert batches[1]["large"].tobytes() == here.gather("large", [4]).tobytes()
    with pytest.raises(RowUnavailable, match="truncated PNG"):
        there.gather("large", [1])


def test_grown_compacted_and_archived_stores_are_read_alike(tmp_path):
    grown = grown_store(tmp_path / "grown")
    compact(grown, 0)
    here = FeatureStore.open(grown)
    rows = [row for row in here.committed_rows if row not in here.failed()]
    for path in (grown, archived(grown, tmp_path / "archive")):
        there = FeatureStore.open(Copy(path).url + "/")
        assert there.failed() == here.failed()
        for name in here.arrays:
            assert there.gather(name, rows).tobytes() == here.gather(name, rows).tobytes()
        assert verify(Copy(path).url, quick=False) == []


def test_shards_that_are_not_committed_are_said_to_be_missing(tmp_path):
    there = FeatureStore.open(Copy(store_of(tmp_path / "store", 5, shards=[0])).url)
    assert there.missing_shards == [1, 2]
    with pytest.raises(RowUnavailable, match="not committed"):
        there.gather("large", [2])


def test_a_store_is_copied_from_a_url_byte_for_byte(path, copy, tmp_path):
    write_copy(Contents.of(FeatureStore.open(copy.url)), tmp_path / "again")
    assert differences_between(path, tmp_path / "again") == []


@pytest.mark.parametrize("array", ["small", "large"])
def test_a_damaged_object_is_never_read_as_data(path, copy, array):
    name = f"{FEATURES}/{array}/c/1/0/0"
    whole, rng = copy.get(name), np.random.default_rng(3)
    expected = FeatureStore.open(path).gather(array, [2, 3])
    for place in rng.choice(len(whole), 5, replace=False).tolist():
        copy.put(name, whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert [one.shard for one in verify(copy.url, quick=False)] == [1]
        for row in (2, 3):
            try:
                read = FeatureStore.open(copy.url).gather(array, [row])[0]
            except IntegrityError as error:
                assert copy.url in str(error) or f"{array} " in str(error), error
            else:
                assert read.tobytes() == expected[row - 2].tobytes()


@pytest.mark.parametrize("content", [None, b"", b"short"])
def test_a_missing_or_cut_object_is_an_integrity_error(copy, content):
    name = f"{FEATURES}/large/c/1/0/0"
    store = FeatureStore.open(copy.url)
    copy.remove(name) if content is None else copy.put(name, content)
    with pytest.raises(IntegrityError, match=f"expected {copy.url}/{name} with .* bytes as committed.*copy the files"):
        store.gather("large", [2])
    findings = verify(copy.url, quick=True)
    assert [(one.path, one.shard) for one in findings] == [(f"{copy.url}/{name}", 1)]


def test_an_object_that_vanishes_while_it_is_read_is_no_data(copy):
    store = FeatureStore.open(copy.url)
    store.gather("large", [2])
    copy.remove(f"{FEATURES}/large/c/1/0/0")
    with pytest.raises(IntegrityError, match="row 3"):
        store.gather("large", [3])


@pytest.mark.parametrize(
    "name", [f"{FEATURES}/large/zarr.json", f"{FEATURES}/ids/sha256/c/0/0", "commits/1.json", "plans/0.manifest.json"]
)
def test_damage_beside_the_features_is_found_when_a_store_is_opened(copy, name):
    whole = copy.get(name)
    copy.put(name, whole[:20] + b"#" + whole[21:])
    with pytest.raises(IntegrityError, match=copy.url) as caught:
        FeatureStore.open(copy.url)
    assert tempfile.gettempdir() not in str(caught.value)
    copy.remove(name)
    if name != "commits/1.json":
        with pytest.raises(IntegrityError):
            FeatureStore.open(copy.url)


def test_a_manifest_that_names_files_elsewhere_is_refused(copy, tmp_path):
    from store.layout.manifest import Manifest

    manifest = Manifest.model_validate_json(copy.get("plans/0.manifest.json"))
    odd = Manifest(plan=manifest.plan, files=manifest.files | {"../../../../escaped": "0" * 64}).sealed()
    copy.put("plans/0.manifest.json", odd.model_dump_json().encode())
    with pytest.raises(IntegrityError, match="names of files inside"):
        FeatureStore.open(copy.url)


def test_the_commands_read_a_url(copy):
    for command in (["inspect", "--json"], ["status"], ["verify", "--quick"]):
        done = store_command(command[0], copy.url, *command[1:])
        assert done.returncode == 0, done.stderr
        if command == ["inspect", "--json"]:
            found = json.loads(done.stdout)
            assert found["path"] == copy.url and found["shards"]["committed"] == [0, 1, 2]
    assert status(copy.url)["images_committed"] == 5
    copy.remove(f"{FEATURES}/small/c/0/0/0")
    done = store_command("verify", copy.url)
    assert done.returncode == 4 and f"{copy.url}/{FEATURES}/small/c/0/0/0: missing" in done.stdout


def test_a_config_names_a_url_and_keeps_both_slashes(copy, tmp_path):
    config = tmp_path / "trial.yaml"
    config.write_text(f"model: {{checkpoint: x}}\ndata: {{images: images}}\nstore: {{path: '{copy.url}'}}\n")
    experiment = load(config, {})
    assert experiment.store_location == copy.url
    assert FeatureStore.open(experiment.store_location).plan.n_images == 5
    done = store_command("inspect", "--config", config, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["path"] == copy.url, done.stderr


def test_what_writes_refuses_a_url(copy, tmp_path):
    for command in (["repair"], ["drop", "large"]):
        done = store_command(*command, copy.url)
        assert done.returncode == 2 and f"got {copy.url}, which is only read" in done.stderr, done.stderr


def test_where_there_is_no_store_no_bucket_or_no_server_is_exit_5(monkeypatch):
    with pytest.raises(StoreMissing, match="expected a feature store at s3://bucket/nothing"):
        FeatureStore.open("s3://bucket/nothing")
    with pytest.raises(StoreMissing, match="cannot read s3://nobucket/x .*AWS_ENDPOINT_URL"):
        FeatureStore.open("s3://nobucket/x")
    monkeypatch.setattr("store.reading.remote._RETRIES", {"max_retries": 0})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreMissing, match="cannot read s3://bucket/x") as caught:
        FeatureStore.open("s3://bucket/x")
    assert caught.value.exit_code == 5 and "\n" not in str(caught.value)


def test_a_server_that_stops_while_a_store_is_read_is_not_taken_for_damage(path, monkeypatch):
    monkeypatch.setattr("store.reading.remote._RETRIES", {"max_retries": 0})
    with s3_server():
        copy = Copy(path)
        store = FeatureStore.open(copy.url)
        store.gather("large", [0])
    with pytest.raises(StoreMissing, match=f"cannot read {copy.url}"):
        store.gather("large", [0])


def test_without_the_extra_the_error_names_it(copy):
    script = (
        "import sys; sys.modules['obstore'] = None\n"
        "sys.argv = ['store', 'inspect', sys.argv[1]]\n"
        "import runpy; runpy.run_module('store', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", script, copy.url]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 5 and "pip install 'encode-once[remote]'" in done.stderr, done.stderr


def test_what_was_mirrored_is_removed_with_the_reader(copy, mirrors):
    store = FeatureStore.open(copy.url)
    [mirror] = mirrors.iterdir()
    assert (mirror / FEATURES / "ids").is_dir() and not (mirror / FEATURES / "large" / "c").exists()
    del store
    assert not mirror.exists()


def test_opening_imports_no_framework(copy):
    script = (
        "import sys\nfrom store.care.inspect import report\nfrom store.care.status import status\n"
        "from store.care.verify import verify\n"
        f"report({copy.url!r}); status({copy.url!r}); verify({copy.url!r}, quick=True)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_metadata_that_vanishes_after_opening_is_an_error_that_names_the_url(copy):
    store = FeatureStore.open(copy.url)
    copy.remove(f"{FEATURES}/large/zarr.json")
    with pytest.raises(IntegrityError, match=f"{copy.url}/{FEATURES}/large is damaged") as caught:
        store.gather("large", [0])
    assert tempfile.gettempdir() not in str(caught.value)
