"""`--retry-failed` encodes the images that could not be encoded, and none of those beside them in their shards."""

import shutil

import numpy as np
import pytest
from PIL import Image

from stage1_extract.extract import extract
from store.care.compare import differences_between
from store.care.repair import repair
from store.care.status import status
from store.care.verify import verify
from store.log.commits import read_commits
from store.reading.reader import FEATURES, FeatureStore
from store.writing.retry import FOLDER, kept_of, withdraw_failures
from tests.stage1_extract.test_growing import by_name, experiment
from tests.store.stores import flip, image_ids, plan_of, store_of, values

IMAGES, LARGE = 12, (1, 4, 7)
"""Images, and which of them are larger than the strict limit."""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        rng = np.random.default_rng(number)
        size = (90, 90, 3) if number in LARGE else (64, 64, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return folder


def with_shards_of(images, one):
    return one.model_copy(update={"store": one.store.model_copy(update={"shard_images": images})})


def limited(tmp_path, checkpoint, folder, **extraction):
    """An experiment under whose limit three images are too large."""
    strict = experiment(tmp_path / "run", checkpoint, folder, max_pixels=64 * 80, max_failures="3", **extraction)
    return with_shards_of(4, strict)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_only_the_images_that_failed_pass_through_the_tower_again(tmp_path, checkpoint, folder, workers):
    strict = limited(tmp_path, checkpoint, folder)
    assert extract(strict, overwrite=False)["tower_images"] == IMAGES - len(LARGE)
    generous = with_shards_of(4, experiment(tmp_path / "run", checkpoint, folder, workers=workers))
    done = extract(generous, overwrite=False, retry_failed=True)
    assert (done["tower_images"], done["shards_written"], done["failures"]) == (len(LARGE), 2, {})
    assert status(generous.store_path)["failed"] == 0
    whole = with_shards_of(4, experiment(tmp_path / "whole", checkpoint, folder))
    extract(whole, overwrite=False)
    assert differences_between(whole.store_path, generous.store_path) == []
    assert verify(generous.store_path, quick=False) == []
    assert not list((generous.store_path / FOLDER).rglob("*.json"))


def test_files_that_were_mended_are_encoded_and_nothing_beside_them(tmp_path, checkpoint, folder):
    good = {number: (folder / f"{number:02d}.png").read_bytes() for number in LARGE}
    for number, data in good.items():
        (folder / f"{number:02d}.png").write_bytes(data[: len(data) // 2])
    wanted = with_shards_of(4, experiment(tmp_path / "run", checkpoint, folder, max_failures="3"))
    assert len(extract(wanted, overwrite=False)["failures"]) == len(LARGE)
    for number, data in good.items():
        (folder / f"{number:02d}.png").write_bytes(data)
    done = extract(wanted, overwrite=False, retry_failed=True)
    assert (done["tower_images"], done["failures"]) == (len(LARGE), {})
    assert status(wanted.store_path)["failed"] == 0
    whole = with_shards_of(4, experiment(tmp_path / "whole", checkpoint, folder))
    extract(whole, overwrite=False)
    assert by_name(wanted.store_path) == by_name(whole.store_path)


def test_images_that_fail_again_are_counted_as_failures_and_cost_no_other_image(tmp_path, checkpoint, folder):
    strict = limited(tmp_path, checkpoint, folder)
    before = extract(strict, overwrite=False)["failures"]
    whole = shutil.copytree(strict.store_path, tmp_path / "before")
    done = extract(strict, overwrite=False, retry_failed=True)
    assert (done["tower_images"], done["failures"]) == (0, before)
    assert differences_between(whole, strict.store_path) == []


def test_a_retry_that_was_killed_is_gone_on_with_by_any_extraction_and_still_encodes_the_failed_alone(
    tmp_path, checkpoint, folder
):
    strict = limited(tmp_path, checkpoint, folder)
    extract(strict, overwrite=False)
    store = FeatureStore.open(strict.store_path)
    assert withdraw_failures(strict.store_path, store.plan, "", lambda row: True) == []
    assert sorted(read_commits(strict.store_path)) == [2]
    generous = with_shards_of(4, experiment(tmp_path / "run", checkpoint, folder))
    done = extract(generous, overwrite=False)
    assert (done["tower_images"], done["shards_written"], done["failures"]) == (len(LARGE), 2, {})
    whole = with_shards_of(4, experiment(tmp_path / "whole", checkpoint, folder))
    extract(whole, overwrite=False)
    assert differences_between(whole.store_path, generous.store_path) == []


@pytest.mark.parametrize("damage", ["a row", "a checksum", "another file", "no file", "the record"])
def test_nothing_is_copied_out_of_a_damaged_shard(tmp_path, damage):
    path = store_of(tmp_path / "store", 5, failures={0: "no"})
    ids = image_ids(5)
    plan = plan_of(ids)
    withdraw_failures(path, plan, "", lambda row: True)
    kept = kept_of(path, plan, ids, 0, [0])
    assert kept.rows == {1}
    assert all(np.array_equal(kept.arrays[one.name][1:], values(one, range(1, 2))) for one in plan.arrays)
    file = path / FEATURES / "large/c/0/0/0"
    layout = plan.layout("large")
    if damage == "a row":
        flip(file, 8 * (layout.stride + 100))
    elif damage == "a checksum":
        flip(file, 8 * (layout.stride - 2))
    elif damage == "another file":
        shutil.copy(path / FEATURES / "large/c/1/0/0", file)
    elif damage == "no file":
        file.unlink()
    else:
        flip(path / FOLDER / "0" / "0.json", 200)
    assert kept_of(path, plan, ids, 0, [0]).rows == frozenset()


def test_what_repair_withdraws_is_encoded_as_a_whole(tmp_path, checkpoint, folder):
    wanted = with_shards_of(4, experiment(tmp_path / "run", checkpoint, folder))
    extract(wanted, overwrite=False)
    flip(wanted.store_path / FEATURES / "raw/c/1/0/0", 99)
    assert repair(wanted.store_path, quick=False).withdrawn == {0: [1]}
    assert extract(wanted, overwrite=False)["tower_images"] == 4
