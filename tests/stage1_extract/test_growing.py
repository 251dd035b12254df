"""A store that grows: more images, changed images, images that could not be read before, more arrays."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from configs.errors import ConfigError
from configs.experiment import Experiment
from stage1_extract.checking.verify import changed_sources, encode_again
from stage1_extract.diagnose.run import run as diagnose
from stage1_extract.dry_run import dry_run
from stage1_extract.errors import TooManyFailures, WorkerFailed
from stage1_extract.extract import extract
from store.care.compare import differences_between
from store.care.derive import derive_projected
from store.care.drop import drop
from store.care.inspect import as_text as inspected
from store.care.inspect import report
from store.care.status import status
from store.care.verify import verify
from store.copies.contents import Contents
from store.copies.copies import write_copy
from store.errors import (
    CheckpointMissing,
    FingerprintMismatch,
    IntegrityError,
    RowUnavailable,
    StoreError,
    StoreMissing,
)
from store.layout.environment import torch_environment
from store.reading.dataset import StoreDataset
from store.reading.reader import FeatureStore
from tests.helpers.data import come
from tests.helpers.stores import flip_bit

ROOT = Path(__file__).parents[2]
ALL = ["raw", "projected", "cls_hidden", "cls_attention"]


def experiment(folder: Path, checkpoint: Path, images: Path, arrays: list[str] = ALL, **extraction) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(folder),
            "model": {"checkpoint": str(checkpoint), "device": "cpu"},
            "data": {"images": str(images)},
            "store": {"shard_images": 2, "arrays": arrays},
            "extract": {"tower_batch": 2} | extraction,
        }
    )


def by_name(path: Path) -> dict[tuple[str, str], bytes]:
    """What a store says of each image, wherever its row is."""
    store = FeatureStore.open(path)
    return {
        (name, one): store.gather(one, [row]).tobytes()
        for one in store.arrays
        for row in store.rows_with([one])
        for name in store.ids.names(row)
    }


def in_turn(extractions: list[Experiment], **named) -> list[dict]:
    return [extract(one, overwrite=False, **named) for one in extractions]


def test_appended_images_have_the_bits_of_an_extraction_of_all_at_once(tmp_path, checkpoint, images):
    grown = experiment(tmp_path / "grown", checkpoint, images)
    extract(grown, overwrite=False)
    before = by_name(grown.store_path)
    come(tmp_path, range(5, 12))
    with pytest.raises(StoreError, match="--append"):
        extract(grown, overwrite=False)
    assert by_name(grown.store_path) == before
    price = dry_run(grown, append=True)
    done = extract(grown, overwrite=False, append=True)
    assert (price["images"], price["distinct"]) == (12, 12) and done["tower_images"] == 7
    whole = experiment(tmp_path / "whole", checkpoint, images)
    extract(whole, overwrite=False)
    assert by_name(grown.store_path) == by_name(whole.store_path)
    assert verify(grown.store_path, quick=False) == []
    again = extract(grown, overwrite=False)
    assert again["tower_images"] == again["bytes_written"] == 0


def test_a_changed_image_is_encoded_as_what_it_is_now_and_found_by_its_name(tmp_path, checkpoint, images):
    grown = experiment(tmp_path / "grown", checkpoint, images)
    extract(grown, overwrite=False)
    Image.new("RGB", (64, 64), "red").save(images / "image_002.png")
    assert [vars(one) for one in changed_sources(grown)] == [{"name": "image_002.png", "reason": "changed"}]
    assert extract(grown, overwrite=False, append=True)["tower_images"] == 1
    whole = experiment(tmp_path / "whole", checkpoint, images)
    extract(whole, overwrite=False)
    assert by_name(grown.store_path) == by_name(whole.store_path)
    assert changed_sources(grown) == []
    assert len(StoreDataset(FeatureStore.open(grown.store_path), ["raw"])) == 5  # without the former content


def test_a_shard_of_a_changed_image_that_is_lost_is_made_again_without_it(tmp_path, checkpoint, images):
    grown = experiment(tmp_path / "grown", checkpoint, images)
    extract(grown, overwrite=False)
    Image.new("RGB", (64, 64), "red").save(images / "image_002.png")
    extract(grown, overwrite=False, append=True)
    before = by_name(grown.store_path)
    (grown.store_path / "commits" / "1.json").unlink()
    done = extract(grown, overwrite=False)
    assert (done["tower_images"], done["failures"]) == (1, {})
    assert by_name(grown.store_path) == before
    with pytest.raises(RowUnavailable, match="superseded"):
        FeatureStore.open(grown.store_path).gather("raw", [2])
    assert status(grown.store_path)["failed"] == 0


def test_images_that_could_not_be_decoded_are_tried_again_when_asked_for(tmp_path, checkpoint, images):
    Image.new("RGB", (300, 300), "red").save(images / "large.png")
    strict = experiment(tmp_path / "run", checkpoint, images, max_pixels=64 * 80, max_failures="1")
    assert extract(strict, overwrite=False)["failures"] == {"large.png": "too_many_pixels"}
    generous = experiment(tmp_path / "run", checkpoint, images)
    again = extract(generous, overwrite=False)
    assert again["tower_images"] == 0 and again["failures"] == {"large.png": "too_many_pixels"}
    retried = extract(generous, overwrite=False, retry_failed=True)
    assert retried["failures"] == {} and retried["shards_written"] == 1
    whole = experiment(tmp_path / "whole", checkpoint, images)
    extract(whole, overwrite=False)
    assert differences_between(whole.store_path, generous.store_path) == []


def test_what_cannot_be_made_again_is_not_given_up_for_another_try(tmp_path, checkpoint, images, caplog):
    Image.new("RGB", (300, 300), "red").save(images / "image_0000.png")  # in one shard with image_000.png
    strict = experiment(tmp_path / "run", checkpoint, images, max_pixels=64 * 80, max_failures="1")
    extract(strict, overwrite=False)
    before = by_name(strict.store_path)
    (images / "image_000.png").unlink()
    generous = experiment(tmp_path / "run", checkpoint, images, max_failures="1")
    done = extract(generous, overwrite=False, retry_failed=True)
    assert done["failures"] == {"image_0000.png": "too_many_pixels"} and "shards [0]" in caplog.text
    assert by_name(generous.store_path) == before


def test_a_file_that_could_not_be_read_at_all_is_appended_when_it_is_back(tmp_path, checkpoint, images):
    good = (images / "image_001.png").read_bytes()
    (images / "image_001.png").write_bytes(b"")
    wanted = experiment(tmp_path / "run", checkpoint, images, max_failures="1")
    assert extract(wanted, overwrite=False)["failures"] == {"image_001.png": "empty_file"}
    (images / "image_001.png").write_bytes(good)
    assert extract(wanted, overwrite=False, retry_failed=True)["failures"] == {}
    whole = experiment(tmp_path / "whole", checkpoint, images)
    extract(whole, overwrite=False)
    assert by_name(wanted.store_path) == by_name(whole.store_path)


def test_a_file_that_is_gone_keeps_its_features_while_others_are_appended(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images, max_failures="1")
    extract(wanted, overwrite=False)
    before = by_name(wanted.store_path)
    (images / "image_001.png").unlink()
    come(tmp_path, range(5, 8))
    extract(wanted, overwrite=False, append=True)
    assert before.items() <= by_name(wanted.store_path).items()


def test_an_image_that_is_gone_while_an_array_is_added_lacks_that_array_alone(tmp_path, checkpoint, images, capsys):
    wanted = experiment(tmp_path / "run", checkpoint, images, ["raw", "cls_hidden"])
    extract(wanted, overwrite=False)
    before = by_name(wanted.store_path)
    (images / "image_001.png").rename(tmp_path / "gone.png")
    more = experiment(tmp_path / "run", checkpoint, images, ["raw", "cls_hidden", "keys"], max_failures="1")
    assert extract(more, overwrite=False, append=True)["failures"] == {"image_001.png": "missing_file"}
    assert before.items() <= by_name(more.store_path).items()
    store = FeatureStore.open(more.store_path)
    assert store.failed(["raw", "cls_hidden"]) == {} and store.rows_with(["raw"]) == [0, 1, 2, 3, 4]
    assert store.failed() == store.failed(["raw", "keys"]) == {1: "missing_file"}
    with pytest.raises(RowUnavailable, match=r"keys of row 1 \(image_001.png\) could not be encoded: missing_file"):
        store.gather("keys", [1])
    assert StoreDataset(store, ["raw"]).rows.tolist() == [0, 1, 2, 3, 4]
    assert StoreDataset(store, ["raw", "keys"]).rows.tolist() == [0, 2, 3, 4]
    assert "row 1 image_001.png: missing_file (keys only)" in inspected(report(more.store_path))
    assert [one.name for one in changed_sources(more)] == ["image_001.png"]
    assert encode_again(more, 5)["compared"] == 4
    (tmp_path / "gone.png").rename(images / "image_001.png")
    assert extract(more, overwrite=False, retry_failed=True)["failures"] == {}
    assert FeatureStore.open(more.store_path).failed() == {} and changed_sources(more) == []


def test_what_is_derived_and_copied_of_a_store_in_which_an_image_lacks_an_array(tmp_path, checkpoint, images, caplog):
    wanted = experiment(tmp_path / "run", checkpoint, images, ["raw"])
    extract(wanted, overwrite=False)
    (images / "image_001.png").unlink()
    more = experiment(tmp_path / "run", checkpoint, images, ["raw", "keys"], max_failures="1")
    extract(more, overwrite=False, append=True)
    derive_projected(more.store_path, "cpu")
    store = FeatureStore.open(more.store_path)
    assert store.rows_with(["raw", "projected"]) == [0, 1, 2, 3, 4]
    write_copy(Contents.of(store), tmp_path / "copy")
    assert "left out, because some arrays lack them (`drop` these arrays to keep the images): 1 image" in caplog.text
    copy = FeatureStore.open(tmp_path / "copy")
    assert copy.failed(["raw"]) == {1: "missing_file"} and verify(tmp_path / "copy", quick=False) == []


def test_an_added_array_is_encoded_alone_and_equals_that_of_a_whole_extraction(tmp_path, checkpoint, images):
    extract(experiment(tmp_path / "run", checkpoint, images, ["raw"]), overwrite=False)
    wanted = experiment(tmp_path / "run", checkpoint, images)
    raw = {path: path.stat().st_mtime_ns for path in (wanted.store_path / "features.zarr" / "raw" / "c").rglob("*")}
    assert raw
    with pytest.raises(StoreError, match="--append"):
        extract(wanted, overwrite=False)
    extract(wanted, overwrite=False, append=True)
    assert raw == {path: path.stat().st_mtime_ns for path in raw}
    whole = experiment(tmp_path / "whole", checkpoint, images)
    extract(whole, overwrite=False)
    assert by_name(wanted.store_path) == by_name(whole.store_path)


def test_images_and_arrays_may_come_in_any_order(tmp_path, checkpoint, images):
    extract(experiment(tmp_path / "run", checkpoint, images, ["raw"]), overwrite=False)
    come(tmp_path, range(5, 8))
    extract(experiment(tmp_path / "run", checkpoint, images, ["raw"]), overwrite=False, append=True)
    both = experiment(tmp_path / "run", checkpoint, images)
    come(tmp_path, range(8, 12))
    extract(both, overwrite=False, append=True)
    whole = experiment(tmp_path / "whole", checkpoint, images)
    extract(whole, overwrite=False)
    assert by_name(both.store_path) == by_name(whole.store_path)


def test_projected_is_made_from_raw_without_an_image_and_is_what_was_extracted(tmp_path, checkpoint, images):
    whole = experiment(tmp_path / "whole", checkpoint, images)
    extract(whole, overwrite=False)
    wanted = experiment(tmp_path / "run", checkpoint, images, ["raw", "cls_hidden", "cls_attention"])
    extract(wanted, overwrite=False)
    shutil.rmtree(images)
    assert derive_projected(wanted.store_path, "cpu") == 3
    assert derive_projected(wanted.store_path, "cpu") == 0
    assert by_name(wanted.store_path) == by_name(whole.store_path)
    derived, extracted = FeatureStore.open(wanted.store_path), FeatureStore.open(whole.store_path)
    assert derived.fingerprint("projected").semantic == extracted.fingerprint("projected").semantic
    assert derived.arrays["projected"] == extracted.arrays["projected"]


def test_projected_can_be_dropped_to_save_space_and_made_again(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    before = by_name(wanted.store_path)
    assert drop(wanted.store_path, "projected") > 0
    with pytest.raises(StoreMissing, match="projected"):
        FeatureStore.open(wanted.store_path).require(["projected"])
    derive_projected(wanted.store_path, "cpu")
    assert by_name(wanted.store_path) == before and verify(wanted.store_path, quick=False) == []


def test_a_store_without_raw_or_without_its_projector_cannot_derive(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images, ["cls_hidden"])
    extract(wanted, overwrite=False)
    with pytest.raises(StoreMissing, match="raw"):
        derive_projected(wanted.store_path, "cpu")


@pytest.fixture
def elsewhere(monkeypatch):
    """Whoever derives within it does so on another device."""

    @contextmanager
    def there():
        with monkeypatch.context() as patched:
            patched.setattr("store.care.derive.torch_environment", lambda device: here(device) | {"device": "another"})
            yield

    here = torch_environment
    return there


def test_what_was_derived_elsewhere_is_recorded_so_and_left_to_derive_when_images_are_appended(
    tmp_path, checkpoint, images, elsewhere, caplog
):
    wanted = experiment(tmp_path / "run", checkpoint, images, ["raw", "cls_hidden"])
    extract(wanted, overwrite=False)
    with elsewhere():
        derive_projected(wanted.store_path, "cpu")
    assert "raw was made elsewhere (device: cpu, here another)" in caplog.text
    raw, projected = (FeatureStore.open(wanted.store_path).fingerprint(name) for name in ("raw", "projected"))
    assert projected.numeric == raw.numeric | {"device": "another", "raw": {"device": "cpu"}}
    assert extract(wanted, overwrite=False)["bytes_written"] == 0
    come(tmp_path, range(5, 9))
    done = extract(wanted, overwrite=False, append=True)
    assert done["tower_images"] == 4 and "still lacks 2 shards" in caplog.text
    store = FeatureStore.open(wanted.store_path)
    appended = [store.ids.row_of_name(f"image_{n:03d}.png") for n in range(5, 9)]
    assert store.gather("raw", appended).shape[0] == 4
    with pytest.raises(RowUnavailable, match="run `python -m store derive projected"):
        store.gather("projected", appended[:1])
    with pytest.raises(StoreMissing, match="2 of 5 shards .* run `python -m store derive projected"):
        store.require_complete(["projected", "raw"], appended)
    with pytest.raises(
        FingerprintMismatch, match=r"device: expected 'another', found 'cpu'[\s\S]*store drop projected"
    ):
        derive_projected(wanted.store_path, "cpu")
    with elsewhere():
        assert derive_projected(wanted.store_path, "cpu") == 2
    whole = experiment(tmp_path / "whole", checkpoint, images)
    extract(whole, overwrite=False)
    assert by_name(wanted.store_path).items() <= by_name(whole.store_path).items()
    assert verify(wanted.store_path, quick=False) == []
    drop(wanted.store_path, "projected")
    assert derive_projected(wanted.store_path, "cpu") == 5
    assert FeatureStore.open(wanted.store_path).fingerprint("projected").numeric == raw.numeric


def test_a_store_with_what_was_derived_elsewhere_is_gone_on_with_by_workers_too(
    tmp_path, checkpoint, images, elsewhere
):
    wanted = experiment(tmp_path / "run", checkpoint, images, ["raw"])
    extract(wanted, overwrite=False)
    with elsewhere():
        derive_projected(wanted.store_path, "cpu")
    before = by_name(wanted.store_path)
    (wanted.store_path / "commits" / "0.json").unlink()
    (wanted.store_path / "commits" / "1" / "1.json").unlink()
    two = experiment(tmp_path / "run", checkpoint, images, ["raw"], workers=2)
    assert extract(two, overwrite=False)["tower_images"] == 2
    assert FeatureStore.open(wanted.store_path).shards_with(["projected"]) == [0, 2]
    with elsewhere():
        assert derive_projected(wanted.store_path, "cpu") == 1
    assert by_name(wanted.store_path) == before


def test_what_was_derived_here_is_extracted_with_the_images_that_are_appended(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images, ["raw"])
    extract(wanted, overwrite=False)
    derive_projected(wanted.store_path, "cpu")
    come(tmp_path, range(5, 9))
    extract(wanted, overwrite=False, append=True)
    store = FeatureStore.open(wanted.store_path)
    assert store.missing_shards == [] and verify(wanted.store_path, quick=False) == []
    whole = experiment(tmp_path / "whole", checkpoint, images, ["raw", "projected"])
    extract(whole, overwrite=False)
    assert by_name(wanted.store_path) == by_name(whole.store_path)


def test_failed_images_stay_failed_in_what_is_derived(tmp_path, checkpoint, images):
    (images / "image_001.png").write_bytes(b"")
    wanted = experiment(tmp_path / "run", checkpoint, images, ["raw"], max_failures="1")
    extract(wanted, overwrite=False)
    derive_projected(wanted.store_path, "cpu")
    store = FeatureStore.open(wanted.store_path)
    row = store.ids.row_of_name("image_001.png")
    with pytest.raises(RowUnavailable, match="empty_file"):
        store.gather("projected", [row])
    store.gather("projected", [other for other in range(5) if other != row])


def test_workers_with_a_share_append_together(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    come(tmp_path, range(5, 12))
    shares = [experiment(tmp_path / "run", checkpoint, images, worker_index=index, num_workers=2) for index in range(2)]
    done = in_turn(shares, append=True)
    assert sum(one["tower_images"] for one in done) == 7
    whole = experiment(tmp_path / "whole", checkpoint, images)
    extract(whole, overwrite=False)
    assert by_name(wanted.store_path) == by_name(whole.store_path)


def test_two_local_workers_append_the_bytes_of_one(tmp_path, checkpoint, images):
    one, two = (experiment(tmp_path / name, checkpoint, images, workers=n) for n, name in ((1, "one"), (2, "two")))
    in_turn([one, two])
    come(tmp_path, range(5, 12))
    in_turn([one, two], append=True)
    assert differences_between(one.store_path, two.store_path) == []


def command(*arguments: object, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return done.stdout


def test_images_are_encoded_again_and_compared_with_the_store_bit_for_bit(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    assert "2 images encoded again: every array is equal" in command(
        "stage1_extract", "verify", wanted.store_path, "--live", 2
    )
    flip_bit(wanted.store_path, "projected", row=0, element=3, bit=1)
    found = encode_again(wanted, 5)
    assert [(one["array"], one["values"], one["name"]) for one in found["unequal"]] == [
        ("projected", 1, "image_000.png")
    ]
    assert "projected differs in 1 value," in command(
        "stage1_extract", "verify", wanted.store_path, "--live", 5, expect=4
    )


def test_changed_sources_are_listed_by_both_commands(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    command("store", "verify", wanted.store_path, "--sources")
    Image.new("RGB", (64, 64), "red").save(images / "image_002.png")
    (images / "image_004.png").unlink()
    said = command("store", "verify", wanted.store_path, "--sources", expect=4)
    assert "image_002.png (changed)" in said and "image_004.png (missing_file)" in said and "--append" in said
    found = json.loads(command("stage1_extract", "verify", wanted.store_path, "--sources", "--json", expect=4))
    assert [one["name"] for one in found["changed"]] == ["image_002.png", "image_004.png"]


def test_sources_are_those_of_the_store_that_is_named_and_never_another_configs(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    Image.new("RGB", (64, 64), "red").save(images / "image_002.png")
    said = command("store", "verify", "--run-dir", tmp_path / "run", "--sources", expect=4)
    assert "image_002.png (changed)" in said
    (wanted.store_path / "config.yaml").unlink()
    command("stage1_extract", "verify", wanted.store_path, "--live", 1, expect=2)


def test_a_damaged_store_is_not_appended_to_silently(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    come(tmp_path, range(5, 8))
    extract(wanted, overwrite=False, append=True)
    plan = wanted.store_path / "plans" / "1.json"
    plan.write_bytes(plan.read_bytes().replace(b'"n_images": 8', b'"n_images": 9'))
    with pytest.raises(IntegrityError):
        extract(wanted, overwrite=False, append=True)


def test_a_store_with_more_arrays_than_the_config_names_is_gone_on_with_whole(tmp_path, checkpoint, images):
    """Resumed, retried and worked on by others, it keeps its side arrays."""
    Image.new("RGB", (300, 300), "red").save(images / "large.png")
    captured = experiment(tmp_path / "run", checkpoint, images, max_pixels=64 * 80, max_failures="1", capture="core")
    extract(captured, overwrite=False)
    lean = experiment(tmp_path / "run", checkpoint, images)
    assert extract(lean, overwrite=False)["tower_images"] == 0
    assert extract(lean, overwrite=False, retry_failed=True)["failures"] == {}
    (lean.store_path / "commits" / "1.json").unlink()
    two = experiment(tmp_path / "run", checkpoint, images, workers=2)
    assert extract(two, overwrite=False)["shards_written"] == 1
    whole = experiment(tmp_path / "whole", checkpoint, images, capture="core")
    extract(whole, overwrite=False)
    assert differences_between(whole.store_path, lean.store_path) == []


def test_a_store_whose_projected_was_derived_is_diagnosed_as_sound(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images, ["raw", "cls_hidden"])
    extract(wanted, overwrite=False)
    derive_projected(wanted.store_path, "cpu")
    assert diagnose(wanted, 2, as_json=False) == 0


def test_a_store_is_not_replaced_before_what_replaces_it_can_be_made(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    before = by_name(wanted.store_path)
    with pytest.raises(CheckpointMissing):
        extract(experiment(tmp_path / "run", tmp_path / "nowhere", images), overwrite=True)
    with pytest.raises(ConfigError, match="--overwrite in a run of its own"):
        extract(experiment(tmp_path / "run", checkpoint, images, worker_index=0, num_workers=2), overwrite=True)
    assert by_name(wanted.store_path) == before


def test_failures_of_all_workers_together_are_held_against_the_limit(tmp_path, checkpoint, images):
    for number in range(4):
        Image.new("RGB", (300, 300 + number), "red").save(images / f"large_{number}.png")
    wanted = experiment(tmp_path / "run", checkpoint, images, workers=2, max_pixels=64 * 80, max_failures="3")
    with pytest.raises((TooManyFailures, WorkerFailed)) as caught:
        extract(wanted, overwrite=False)
    assert caught.value.exit_code == 3


def test_damaged_ids_of_a_store_that_grew_are_made_again_from_its_images_or_said_to_be_restored(
    tmp_path, checkpoint, images
):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    come(tmp_path, range(5, 8))
    extract(wanted, overwrite=False, append=True)
    whole = by_name(wanted.store_path)
    ids = wanted.store_path / "features.zarr" / "ids_1" / "sha256" / "c" / "0" / "0"
    content = ids.read_bytes()
    ids.write_bytes(content[:100] + b"?" + content[101:])
    assert "`make extract` writes it again if" in command("store", "verify", wanted.store_path, expect=4)
    command("store", "repair", wanted.store_path, expect=4)
    with pytest.raises(IntegrityError):
        by_name(wanted.store_path)
    assert extract(wanted, overwrite=False)["tower_images"] == 0
    assert ids.read_bytes() == content and verify(wanted.store_path, quick=False) == []
    assert by_name(wanted.store_path) == whole
    ids.write_bytes(content[:100] + b"?" + content[101:])
    Image.new("RGB", (64, 64), "red").save(images / "image_006.png")
    with pytest.raises(IntegrityError, match="restore .* from a copy, or extract into another folder"):
        extract(wanted, overwrite=False, append=True)
