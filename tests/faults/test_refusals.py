"""What is refused instead of mixed, and stores of earlier releases: fault cases 18, 19, 31 and 42."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.load import load
from stage1_extract.checking.verify import changed_sources
from stage1_extract.encoding import processor
from stage1_extract.extract import extract
from stage1_extract.families.llava import LlavaEncoder
from store.care.compare import differences_between
from store.care.verify import verify
from store.errors import RowUnavailable
from store.log.commits import read_commits
from store.reading.reader import FeatureStore
from tests.faults.conftest import IMAGES
from tests.faults.runs import config_file, invoke, run, snapshot, trial
from tests.helpers.checkpoints import edit_config, tiny_llava


def edit_processor(checkpoint: Path, **fields: object) -> None:
    """Change fields of the image processor's settings."""
    path = checkpoint / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"] |= fields
    path.write_text(json.dumps(content))


OTHER = {
    "revision": (["--model.revision", "v2"], lambda checkpoint: None, ["semantic.revision: expected 'v2', found None"]),
    "layer": (
        [],
        lambda checkpoint: edit_config(checkpoint, vision_feature_layer=-1),
        ["semantic.vision_feature_layer: expected -1, found -2"],
    ),
    "strategy": (
        [],
        lambda checkpoint: edit_config(checkpoint, vision_feature_select_strategy="full"),
        ["semantic.vision_feature_select_strategy: expected 'full', found 'default'", "semantic.geometry.tokens"],
    ),
    "dtype": (
        ["--model.dtype", "bfloat16"],
        lambda checkpoint: None,
        ["semantic.dtype: expected 'bfloat16', found 'float32'"],
    ),
    "aspect": (
        [],
        lambda checkpoint: edit_processor(checkpoint, do_center_crop=False, size={"height": 56, "width": 56}),
        ["semantic.image_processor.config.do_center_crop: expected False, found True", "image_processor.config.size"],
    ),
}


@pytest.mark.parametrize(("flags", "change", "named"), OTHER.values(), ids=OTHER.keys())
def test_features_of_another_kind_are_refused_field_by_field(home, tmp_path, capsys, flags, change, named):
    shutil.copytree(home / "data", tmp_path / "data")
    config = config_file(tmp_path, tiny_llava(tmp_path / "checkpoint"))
    extract(load(config, {}), overwrite=False)
    before = snapshot(tmp_path / "run" / "store")
    change(tmp_path / "checkpoint")
    said = invoke(capsys, "extract", "--config", config, *flags, expect=4)
    assert all(name in said for name in named), said
    assert "--overwrite" in said and str(tmp_path / "run" / "store") in said
    assert snapshot(tmp_path / "run" / "store") == before


def test_another_backend_of_the_image_processor_is_refused(home, whole, tmp_path, capsys, monkeypatch):
    shutil.copytree(whole, tmp_path / "run" / "store")
    of_pillow = processor.processor_fingerprint
    monkeypatch.setattr(processor, "processor_fingerprint", lambda *given: of_pillow(*given) | {"backend": "other"})
    said = invoke(capsys, "extract", "--config", trial(home, tmp_path), expect=4)
    assert "semantic.image_processor.backend: expected 'other', found 'pil'" in said


def test_knobs_of_speed_are_in_no_fingerprint(home, whole, tmp_path):
    store = Path(shutil.copytree(whole, tmp_path / "run" / "store"))
    knobs = {"tower_batch": 4, "decode_threads": 5, "workers": 1, "stall_seconds": 7, "max_failures": 3}
    before = snapshot(store / "plans")
    done = extract(load(trial(home, tmp_path, extract=knobs), {}), overwrite=False)
    assert done["tower_images"] == 0 and snapshot(store / "plans") == before


def test_an_image_that_changed_since_is_listed_and_encoded_anew_beside_the_old_one(home, tmp_path, capsys):
    shutil.copytree(home / "data", tmp_path / "data")
    shutil.copytree(home / "run" / "store", tmp_path / "run" / "store")
    config, store = (
        trial(tmp_path, tmp_path, model={"checkpoint": str(home / "checkpoint")}),
        tmp_path / "run" / "store",
    )
    Image.new("RGB", (64, 64), "red").save(tmp_path / "data" / "images" / "image_003.png")
    listed = run("verify", "--config", config, "--sources", cwd=tmp_path, expect=4).stdout
    differing = [line for line in listed.splitlines() if "differs from what was encoded" in line]
    assert len(differing) == 1 and "image_003.png (changed)" in differing[0] and "extract --append" in listed
    before = FeatureStore.open(store)
    said = invoke(capsys, "extract", "--config", config, expect=4)
    assert "another plan" in said and str(store) in said
    done = extract(load(config, {}), overwrite=False, append=True)
    assert (done["tower_images"], done["shards_written"]) == (1, 1)
    after = FeatureStore.open(store)
    old, new = before.ids.row_of_name("image_003.png"), after.ids.row_of_name("image_003.png")
    assert new not in range(IMAGES) and np.array_equal(after.gather("raw", [old]), before.gather("raw", [old]))
    assert not np.array_equal(after.gather("raw", [new]), after.gather("raw", [old]))
    assert list(changed_sources(load(config, {}))) == []


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_features_that_are_not_numbers_end_the_run_with_the_images_and_advice(
    home, whole, tmp_path, capsys, monkeypatch, value
):
    config = trial(home, tmp_path)
    experiment = load(config, {})
    encode, seen = LlavaEncoder.encode, []

    def overflowing(self, batch):
        found = encode(self, batch)
        seen.append(len(batch))
        if sum(seen) == 10:
            found["raw"][0, 3, 5] = value
        return found

    with monkeypatch.context() as patched:
        patched.setattr(LlavaEncoder, "encode", overflowing)
        said = invoke(capsys, "extract", "--config", config, expect=3)
    assert "raw has NaN or infinity for 1 image (" in said and "model.dtype bfloat16 or float32" in said
    store = FeatureStore.open(experiment.store_path)
    names = {name for row in range(8, 10) for name in store.ids.names(row)}
    assert any(f"({name})" in said for name in names), said
    assert 4 not in store.committed_shards and set(range(4)) <= set(store.committed_shards)
    extract(experiment, overwrite=False)
    assert differences_between(whole, experiment.store_path) == []


V1 = Path(__file__).parent / "v1_store" / "store"


@pytest.mark.parametrize("access", ["mmap", "preadv", "zarr"])
def test_a_store_of_the_first_release_is_read_as_it_was_written(access):
    assert verify(V1, quick=False) == []
    store = FeatureStore.open(V1, access=access)
    assert store.committed_rows == [0, 1, 2] and store.missing_shards == []
    raw = [[0x3F80, 0x3F81, 0x3F82], [0x3F83, 0x3F84, 0x3F85]]
    assert store.arrays["raw"].dtype == "bfloat16" and store.arrays["raw"].attributes == {"layer": -2}
    assert store.gather("raw", [0]).tolist() == [raw]
    assert store.gather("raw", [2]).tolist() == [(np.array(raw) + 12).tolist()]
    assert store.gather("cls_attention", [2, 0]).tolist() == [[[0.5, 0.625]], [[0.0, 0.125]]]
    assert store.failed() == {1: "truncated_image"}
    with pytest.raises(RowUnavailable, match="b/ü 图.png.* could not be encoded: truncated_image"):
        store.gather("raw", [1])
    assert [store.ids.names(row) for row in range(3)] == [["a.png", "copy of a.png"], ["b/ü 图.png"], ["c.png"]]
    assert store.ids.row_of_name("copy of a.png") == 0 and store.ids.row_of_sha(f"{3:064x}") == 2
    projector = store.projector
    assert projector is not None
    assert (projector.kind, dict(projector.config), projector.sha256) == ("llava_mlp", {"act": "gelu"}, "0" * 64)
    assert projector.dtypes == {"linear_1.bias": "bfloat16", "linear_1.weight": "float32"}
    assert projector.weights["linear_1.bias"].tolist() == [0x3F80, 0xC000]
    assert projector.weights["linear_1.weight"].tolist() == [[1, 0, 0], [0, 1, 0]]
    plan = store.plan
    assert (plan.format, plan.generation, plan.shard_images, plan.notes) == (1, 0, 2, ("written to be kept",))
    assert plan.fingerprints["raw"].semantic == {"checkpoint": "tiny", "dtype": "bfloat16"}
    assert read_commits(V1)[1].telemetry == {"began": 0.0, "ended": 1.0, "tower_images": 1}


def test_a_store_of_the_first_release_is_what_is_written_today(tmp_path):
    from tests.faults.v1_store.make import main

    main(tmp_path / "store")
    found = differences_between(V1, tmp_path / "store")
    assert [one for one in found if not one.endswith("/zarr.json")] == []  # zarr's own versions differ in those


def test_a_store_of_a_later_format_is_refused_by_its_plan(tmp_path, capsys):
    store = Path(shutil.copytree(V1, tmp_path / "store"))
    plan = store / "plans" / "0.json"
    plan.write_text(plan.read_text().replace('"format": 1', '"format": 2'))
    assert f"{plan} is not a plan of store format 1 (format" in invoke(capsys, "status", store, expect=4)
