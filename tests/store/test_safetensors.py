"""safetensors out of a store: the same bits for the format's own reader."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from store.copies.safetensors_export import INDEX, export_safetensors
from store.errors import IntegrityError, TargetExists
from store.layout.tensors import to_storage, torch_dtype
from store.reading.reader import FEATURES, FeatureStore
from tests.store.stores import DTYPES, flip, sha, store_of, values
from tests.store.test_cli import store_command
from tests.store.test_copies import grown_store

FAILED = {1: "truncated PNG"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tensors_are_the_stores_bit_for_bit_and_know_their_images(tmp_path, dtype):
    path, out = store_of(tmp_path / "store", 5, dtype, shards=[0, 2], failures=FAILED), tmp_path / "out"
    done = store_command("export", path, "--safetensors", out)
    assert done.returncode == 0, done.stderr
    index = json.loads((out / INDEX).read_text())
    assert [one["rows"] for one in index["files"]] == [[0], [4]]
    assert sorted(file.name for file in out.iterdir()) == [INDEX, *(one["file"] for one in index["files"])]
    for one in index["files"]:
        tensors = load_file(out / one["file"])
        assert tensors.keys() == {"small", "large"}
        for spec in FeatureStore.open(path).arrays.values():
            assert tensors[spec.name].dtype == torch_dtype(dtype)
            expected = values(spec, range(5))[one["rows"]]
            assert to_storage(tensors[spec.name]).tobytes() == expected.tobytes()
        with safe_open(out / one["file"], "pt") as file:
            assert json.loads(file.metadata()["rows"]) == one["rows"]
            assert json.loads(file.metadata()["sha256"]) == one["sha256"] == [sha(row) for row in one["rows"]]
        assert one["names"] == [[f"image_{row}.png", f"copy/{row}.png"] for row in one["rows"]]
    assert index["failures"] == [{"row": 1, "names": ["image_1.png", "copy/1.png"], "reason": "truncated PNG"}]
    assert index["arrays"][1]["axes"] == ["patch", "hidden"] and index["fingerprints"]["small"]["numeric"]


def test_bfloat16_is_bfloat16_in_the_file(tmp_path):
    export_safetensors(FeatureStore.open(store_of(tmp_path / "store", 2, "bfloat16")), tmp_path / "out")
    with safe_open(tmp_path / "out" / "shard-00000.safetensors", "pt") as file:
        assert file.get_slice("large").get_dtype() == "BF16"


def test_a_store_of_two_generations_is_one_folder(tmp_path):
    store = FeatureStore.open(grown_store(tmp_path / "store"))
    export_safetensors(store, tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert [one["rows"] for one in index["files"]] == [[0], [2, 3], [4], [6, 7], []]
    for one in index["files"]:
        read = load_file(tmp_path / "out" / one["file"])["large"]
        assert torch.equal(read.view(torch.int16), torch.from_numpy(store.gather("large", one["rows"]).view("i2")))


def test_a_shard_without_any_readable_image_is_an_empty_tensor(tmp_path):
    path = store_of(tmp_path / "store", 3, failures={0: "no", 1: "no"})
    export_safetensors(FeatureStore.open(path), tmp_path / "out")
    assert load_file(tmp_path / "out" / "shard-00000.safetensors")["large"].shape == (0, 160, 210)


def test_an_export_that_breaks_leaves_nothing_and_one_that_exists_is_not_touched(tmp_path):
    path = store_of(tmp_path / "store", 5)
    flip(path / FEATURES / "large/c/2/0/0", 1)
    with pytest.raises(IntegrityError):
        export_safetensors(FeatureStore.open(path), tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["store"]
    (tmp_path / "out").mkdir()
    with pytest.raises(TargetExists):
        export_safetensors(FeatureStore.open(path), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
