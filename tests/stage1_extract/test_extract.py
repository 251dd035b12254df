"""From images to a store: each distinct picture once, nothing twice, and the same bytes however it was done."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.experiment import Experiment
from stage1_extract.checking.verify import as_text, encode_again
from stage1_extract.dry_run import dry_run
from stage1_extract.errors import DeviceTooSmall
from stage1_extract.extract import extract
from stage1_extract.families.llava import LlavaEncoder
from store.care.compare import differences_between
from store.errors import CheckpointMissing, DataMissing, FingerprintMismatch, NoSpace, StoreError, TargetExists
from store.reading.reader import FeatureStore
from store.writing.own_entries import remove_store
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.data import tiny_images, tiny_questions

IMAGES = 7


@pytest.fixture
def images(tmp_path):
    """A folder of distinct images."""
    tiny_images(tmp_path / "images", IMAGES)
    return tmp_path / "images"


def experiment(folder: Path, checkpoint: Path, images: Path, **sections) -> Experiment:
    """An experiment that writes under `folder`; keyword arguments are laid over its sections."""
    content = {
        "name": "tiny",
        "run_dir": str(folder),
        "model": {"checkpoint": str(checkpoint), "device": "cpu"},
        "data": {"images": str(images)},
        "store": {"shard_images": 2},
        "extract": {"tower_batch": 2},
    }
    for section, fields in sections.items():
        content[section] = content[section] | fields
    return Experiment.model_validate(content)


def bytes_on_disk(store: FeatureStore) -> int:
    return sum(record.bytes for log in store.logs for commit in log.values() for record in commit.files.values())


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def test_one_picture_under_many_names_is_encoded_once_and_found_by_each_name(tmp_path, checkpoint, images):
    for name in ("copy.png", "zz/deep.png"):
        (images / name).parent.mkdir(exist_ok=True)
        shutil.copy(images / "image_003.png", images / name)
    (images / "linked.png").symlink_to("image_003.png")
    wanted = experiment(tmp_path / "run", checkpoint, images)
    done = extract(wanted, overwrite=False)
    assert (done["images"], done["distinct"], done["tower_images"]) == (IMAGES + 3, IMAGES, IMAGES)
    ids = FeatureStore.open(wanted.store_path).ids
    rows = {ids.row_of_name(name) for name in ("image_003.png", "copy.png", "zz/deep.png", "linked.png")}
    assert len(rows) == 1 and None not in rows
    assert ids.names(rows.pop()) == ["copy.png", "image_003.png", "linked.png", "zz/deep.png"]


def test_a_changed_file_is_another_image(tmp_path, checkpoint, images):
    before = experiment(tmp_path / "before", checkpoint, images)
    extract(before, overwrite=False)
    Image.new("RGB", (64, 64), "red").save(images / "image_002.png")
    with pytest.raises(StoreError, match=r"image image_002\.png changed since the store was made"):
        extract(before, overwrite=False)
    after = experiment(tmp_path / "after", checkpoint, images)
    extract(after, overwrite=False)
    old, new = FeatureStore.open(before.store_path), FeatureStore.open(after.store_path)
    for number in range(IMAGES):
        name = f"image_{number:03d}.png"
        rows = [store.ids.row_of_name(name) for store in (old, new)]
        same_id = old.ids.sha_of_row(rows[0]) == new.ids.sha_of_row(rows[1])
        same_features = np.array_equal(old.gather("raw", rows[:1]), new.gather("raw", rows[1:]))
        assert same_id == same_features == (number != 2)


def test_a_dry_run_writes_nothing_and_its_bytes_are_those_that_are_written_then(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    before = snapshot(tmp_path)
    found = dry_run(wanted)
    assert snapshot(tmp_path) == before and not wanted.run_dir.exists()
    done = extract(wanted, overwrite=False)
    store = FeatureStore.open(wanted.store_path)
    assert found["bytes_total"] == bytes_on_disk(store)
    assert (found["images"], found["distinct"], found["shards"]) == (IMAGES, IMAGES, done["shards"]) == (7, 7, 4)
    assert found["bytes"] == {name: spec.row_bytes * IMAGES for name, spec in store.arrays.items()}
    files = {str(p.relative_to(store.path / "features.zarr")) for p in store.path.rglob("features.zarr/*/c/*/*/*")}
    committed = {record.path for log in store.logs for commit in log.values() for record in commit.files.values()}
    assert files <= committed and len(committed) == found["shards"] * len(store.arrays)


def test_by_default_a_few_images_with_small_features_make_a_small_store(tmp_path, checkpoint, images):
    found = dry_run(experiment(tmp_path / "run", checkpoint, images, store={"shard_images": None}))
    assert found["bytes_total"] < 3 * sum(found["bytes"].values()) + 100_000


def test_a_dry_run_reads_no_weights(tmp_path, images):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").unlink()
    wanted = experiment(tmp_path / "run", checkpoint, images)
    assert dry_run(wanted)["distinct"] == IMAGES
    with pytest.raises(CheckpointMissing, match=r"model\.safetensors"):
        extract(wanted, overwrite=False)


def test_a_second_run_encodes_nothing_and_changes_no_byte_of_the_store(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    first = extract(wanted, overwrite=False)
    assert (first["shards_written"], first["tower_images"]) == (4, IMAGES)
    shutil.copytree(wanted.store_path, tmp_path / "before")
    second = extract(wanted, overwrite=False)
    assert (second["shards_written"], second["tower_images"], second["bytes_written"]) == (0, 0, 0)
    assert differences_between(tmp_path / "before", wanted.store_path) == []


@pytest.mark.parametrize("shard", [0, 1, 3])
def test_a_shard_whose_record_is_removed_is_computed_again_with_the_same_bytes(tmp_path, checkpoint, images, shard):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    shutil.copytree(wanted.store_path, tmp_path / "before")
    (wanted.store_path / "commits" / f"{shard}.json").unlink()
    done = extract(wanted, overwrite=False)
    assert (done["shards_written"], done["tower_images"]) == (1, 1 if shard == 3 else 2)
    assert differences_between(tmp_path / "before", wanted.store_path) == []


def test_overwriting_replaces_a_store_that_was_made_by_something_else(tmp_path, checkpoint, images):
    extract(experiment(tmp_path / "run", checkpoint, images), overwrite=False)
    other = experiment(tmp_path / "run", checkpoint, images, model={"dtype": "bfloat16"})
    extract(other, overwrite=True)
    clean = experiment(tmp_path / "clean", checkpoint, images, model={"dtype": "bfloat16"})
    extract(clean, overwrite=False)
    assert differences_between(other.store_path, clean.store_path) == []


def test_a_store_made_otherwise_is_not_gone_on_with_and_what_differs_is_named(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    shutil.copytree(wanted.store_path, tmp_path / "before")
    with pytest.raises(FingerprintMismatch, match="dtype") as caught:
        extract(experiment(tmp_path / "run", checkpoint, images, model={"dtype": "bfloat16"}), overwrite=False)
    assert caught.value.exit_code == 4
    assert differences_between(tmp_path / "before", wanted.store_path) == []


@pytest.mark.parametrize("tower_batch", [1, 3, 8])
def test_the_batch_of_the_tower_changes_no_byte_and_no_fingerprint(tmp_path, checkpoint, images, tower_batch):
    first = experiment(tmp_path / "first", checkpoint, images)
    other = experiment(tmp_path / "other", checkpoint, images, extract={"tower_batch": tower_batch})
    extract(first, overwrite=False)
    extract(other, overwrite=False)
    assert differences_between(first.store_path, other.store_path) == []


def test_a_device_out_of_memory_gets_smaller_batches_and_the_bytes_stay(tmp_path, checkpoint, monkeypatch, caplog):
    tiny_images(images := tmp_path / "images", 12)
    whole = experiment(tmp_path / "whole", checkpoint, images)
    extract(whole, overwrite=False)
    encode = LlavaEncoder.encode

    def small_device(self, batch):
        if len(batch) > 2 and self.__dict__.setdefault("started", 0) >= 3:  # the self-test of the batch sees all of it
            raise torch.OutOfMemoryError("out of memory")
        self.started = self.__dict__.get("started", 0) + 1
        return encode(self, batch)

    monkeypatch.setattr(LlavaEncoder, "encode", small_device)
    wanted = experiment(tmp_path / "run", checkpoint, images, extract={"tower_batch": 8}, store={"shard_images": 16})
    reference = experiment(tmp_path / "reference", checkpoint, images, store={"shard_images": 16})
    extract(wanted, overwrite=False)
    assert "out of memory, going on with 4 images" in caplog.text and "with 2 images" in caplog.text
    monkeypatch.setattr(LlavaEncoder, "encode", encode)
    extract(reference, overwrite=False)
    assert differences_between(wanted.store_path, reference.store_path) == []


def test_a_device_too_small_for_one_image_is_said_to_be_so(tmp_path, checkpoint, images, monkeypatch):
    def no_memory(self, batch):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(LlavaEncoder, "encode", no_memory)
    wanted = experiment(tmp_path / "run", checkpoint, images, extract={"tower_batch": 1})
    with pytest.raises(DeviceTooSmall, match="free the device") as caught:
        extract(wanted, overwrite=False)
    assert caught.value.exit_code == 7 and FeatureStore.open(wanted.store_path).committed_shards == []


@pytest.mark.parametrize("changed", ["tower", "projector", "layer"])
def test_a_store_of_other_weights_or_another_layer_is_not_gone_on_with(tmp_path, images, changed):
    from safetensors.torch import load_file, save_file

    checkpoint = tiny_llava(tmp_path / "checkpoint")
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    if changed == "layer":
        edit_config(checkpoint, vision_feature_layer=-1)
    else:
        weights = load_file(checkpoint / "model.safetensors")
        part = {"tower": "vision_tower", "projector": "multi_modal_projector"}[changed]
        name = next(name for name in sorted(weights) if part in name and name.endswith("bias"))
        weights[name][0] += 1
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        FingerprintMismatch, match="vision_feature_layer" if changed == "layer" else f"{changed}_sha256"
    ):
        extract(wanted, overwrite=False)


def test_other_weights_of_the_language_model_change_nothing(tmp_path, images):
    from safetensors.torch import load_file, save_file

    checkpoint = tiny_llava(tmp_path / "checkpoint")
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    weights = load_file(checkpoint / "model.safetensors")
    language = [name for name in weights if "vision_tower" not in name and "multi_modal_projector" not in name]
    assert language
    for name in language:
        weights[name] += 1
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    assert extract(wanted, overwrite=False)["tower_images"] == 0


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_number_of_decoding_threads_changes_no_byte(tmp_path, checkpoint, images, threads):
    alone = experiment(tmp_path / "alone", checkpoint, images, extract={"decode_threads": 1})
    many = experiment(tmp_path / "many", checkpoint, images, extract={"decode_threads": threads})
    for wanted in (alone, many):
        extract(wanted, overwrite=False)
    assert differences_between(alone.store_path, many.store_path) == []


@pytest.mark.parametrize("layout", ["hub4", "v4_52"])
def test_the_key_layout_of_the_checkpoint_changes_no_byte(tmp_path, images, layout):
    stores = []
    for number, wanted_layout in enumerate(["v5", layout]):
        tiny_llava(tmp_path / "checkpoint", layout=wanted_layout)
        wanted = experiment(tmp_path / str(number), tmp_path / "checkpoint", images)
        extract(wanted, overwrite=False)
        stores.append(wanted.store_path)
        shutil.rmtree(tmp_path / "checkpoint")
    assert differences_between(*stores) == []


def test_by_name_two_names_are_two_images_and_no_file_is_hashed(tmp_path, checkpoint, images, monkeypatch):
    shutil.copy(images / "image_000.png", images / "twin.png")
    monkeypatch.setattr("stage1_extract.work.decoding.content_id", None)
    monkeypatch.setattr("stage1_extract.sources.content_id", None)
    wanted = experiment(tmp_path / "run", checkpoint, images, data={"identity": "name"})
    done = extract(wanted, overwrite=False)
    assert done["distinct"] == done["tower_images"] == IMAGES + 1
    store = FeatureStore.open(wanted.store_path)
    twins = [store.ids.row_of_name(name) for name in ("image_000.png", "twin.png")]
    assert twins[0] != twins[1] and store.ids.sha_of_row(twins[0]) != store.ids.sha_of_row(twins[1])
    assert np.array_equal(*(store.gather("projected", [row]) for row in twins))
    assert store.plan.identity == "name"


def test_without_questions_every_image_of_the_folder_is_encoded_and_nothing_else(tmp_path, checkpoint):
    images = tmp_path / "images"
    tiny_images(images / "b", 2, seed=1)
    tiny_images(images / "a" / "deep", 1, seed=2)
    (images / "notes.txt").write_text("not a picture")
    Image.new("RGB", (30, 30), "blue").save(images / "UPPER.JPG")
    (images / "folder.png").mkdir()
    wanted = experiment(tmp_path / "run", checkpoint, images)
    assert extract(wanted, overwrite=False)["tower_images"] == 4
    ids = FeatureStore.open(wanted.store_path).ids
    names = [ids.names(row)[0] for row in range(len(ids))]
    assert names == ["UPPER.JPG", "a/deep/image_000.png", "b/image_000.png", "b/image_001.png"]


def test_with_questions_only_the_images_they_name_are_encoded_in_order_of_first_appearance(tmp_path, checkpoint):
    questions = tiny_questions(tmp_path / "data", images=5)
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    kept = [row for row in reversed(rows) if row["image"] != "image_001.png"]
    questions.write_text("".join(json.dumps(row) + "\n" for row in kept))
    images = tmp_path / "data" / "images"
    wanted = experiment(tmp_path / "run", checkpoint, images, data={"questions": str(questions)})
    assert extract(wanted, overwrite=False)["tower_images"] == 4
    ids = FeatureStore.open(wanted.store_path).ids
    assert [ids.names(row)[0] for row in range(4)] == [f"image_{number:03d}.png" for number in (4, 3, 2, 0)]


def test_questions_beyond_the_splits_limits_cost_no_tower_image(tmp_path, checkpoint):
    questions = tiny_questions(tmp_path / "data", images=9, per_image=1)
    limits = {"questions": str(questions), "train": 1, "val": 1, "test": 2}
    wanted = experiment(tmp_path / "run", checkpoint, tmp_path / "data" / "images", data=limits)
    assert extract(wanted, overwrite=False)["tower_images"] == 4


def test_llavas_own_conversation_json_is_read(tmp_path, checkpoint, images):
    entries = [
        {
            "id": f"conversation {number}",
            "image": f"image_{number:03d}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nwhat color is it ?"},
                {"from": "gpt", "value": "red"},
                {"from": "human", "value": "is it red ?"},
                {"from": "gpt", "value": "yes"},
            ],
        }
        for number in (2, 0)
    ]
    entries.append(
        {"id": "text", "conversations": [{"from": "human", "value": "what"}, {"from": "gpt", "value": "no"}]}
    )
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(entries))
    wanted = experiment(tmp_path / "run", checkpoint, images, data={"questions": str(path)})
    done = extract(wanted, overwrite=False)
    assert (done["images"], done["tower_images"]) == (2, 2)
    ids = FeatureStore.open(wanted.store_path).ids
    assert [ids.names(row) for row in range(2)] == [["image_002.png"], ["image_000.png"]]


def test_an_empty_folder_and_a_missing_one_are_said_to_be_so(tmp_path, checkpoint):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataMissing, match="found none"):
        extract(experiment(tmp_path / "run", checkpoint, tmp_path / "empty"), overwrite=False)
    with pytest.raises(DataMissing, match="there is none") as caught:
        extract(experiment(tmp_path / "run", checkpoint, tmp_path / "nowhere"), overwrite=False)
    assert caught.value.exit_code == 5 and not (tmp_path / "run").exists()


def test_a_disk_that_is_too_small_is_known_before_anything_is_encoded(tmp_path, checkpoint, images, monkeypatch):
    needed = dry_run(experiment(tmp_path / "run", checkpoint, images))["bytes_total"]
    wanted = experiment(tmp_path / "run", checkpoint, images)
    monkeypatch.setattr("stage1_extract.work.price.free_bytes", lambda path: needed - 1)
    with pytest.raises(NoSpace, match=f"{needed:,} bytes") as caught:
        extract(wanted, overwrite=False)
    assert caught.value.exit_code == 7
    assert FeatureStore.open(wanted.store_path).committed_shards == []
    monkeypatch.setattr("stage1_extract.work.price.free_bytes", lambda path: needed)
    assert extract(wanted, overwrite=False)["tower_images"] == IMAGES


def test_a_reader_without_this_project_sees_the_same_features(tmp_path, checkpoint, images):
    import zarr

    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    store = FeatureStore.open(wanted.store_path)
    group = zarr.open_group(wanted.store_path / "features.zarr", mode="r")
    for name in store.arrays:
        assert np.array_equal(group[name][...], store.gather(name, range(IMAGES)))


def test_the_config_that_made_the_store_lies_in_it(tmp_path, checkpoint, images):
    from configs.load import load

    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    assert load(wanted.store_path / "config.yaml", {}) == wanted


def test_a_folder_of_other_files_is_no_place_for_a_store(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    wanted.store_path.mkdir(parents=True)
    (wanted.store_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(TargetExists, match=r"an empty folder or a store at .*, it holds thesis.txt: name another"):
            extract(wanted, overwrite=overwrite)
    assert [path.name for path in wanted.store_path.iterdir()] == ["thesis.txt"]


def test_what_a_killed_run_left_before_there_was_a_store_stops_no_other_run(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    (wanted.store_path / "leases").mkdir(parents=True)
    for name in ("writer.lock", "writer.json", ".0.json.x1.partial"):
        (wanted.store_path / name).write_text("")
    assert extract(wanted, overwrite=False)["tower_images"] == IMAGES


def test_overwriting_removes_the_store_and_nothing_that_lies_beside_it(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    (wanted.store_path / "notes").mkdir()
    (wanted.store_path / "notes" / "thesis.txt").write_text("years of work")
    assert extract(wanted, overwrite=True)["tower_images"] == IMAGES
    assert (wanted.store_path / "notes" / "thesis.txt").read_text() == "years of work"
    remove_store(wanted.store_path, 300.0)
    assert [path.name for path in wanted.store_path.iterdir()] == ["notes"]
    extract(other := experiment(tmp_path / "other", checkpoint, images), overwrite=False)
    remove_store(other.store_path, 300.0)
    assert not other.store_path.exists()


def test_a_dry_run_says_that_the_extraction_would_stop_at_images_that_cannot_be_read(tmp_path, checkpoint, images):
    (images / "empty.png").write_bytes(b"")
    wanted = experiment(tmp_path / "run", checkpoint, images)
    assert any("the extraction will stop, as 1 image cannot be read" in note for note in dry_run(wanted)["notes"])
    tolerant = experiment(tmp_path / "run", checkpoint, images, extract={"max_failures": "1"})
    assert not any("will stop" in note for note in dry_run(tolerant)["notes"])


def test_verify_says_of_rows_of_another_shape_what_was_expected_and_what_the_store_has(tmp_path, images):
    model = tiny_llava(tmp_path / "model")
    wanted = experiment(tmp_path / "run", model, images)
    extract(wanted, overwrite=False)
    edit_config(model, vision_feature_select_strategy="full")
    found = encode_again(wanted, 2)
    assert {array["array"] for array in found["unequal"]} >= {"raw", "projected"}
    said = as_text(found, wanted.store_path)
    assert "raw: expected rows of 17x" in said and "the store has 16x" in said
    assert f"diagnose {wanted.store_path}" in said and json.dumps(found)


def test_verify_says_that_nothing_was_compared_where_no_image_could_be_read(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    for path in images.iterdir():
        Image.new("RGB", (8, 8), "red").save(path)
    said = as_text(encode_again(wanted, 2))
    assert "nothing was compared" in said and "bit for bit" not in said
