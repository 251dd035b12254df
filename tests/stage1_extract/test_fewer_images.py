"""A store may hold or plan more images than a config names now: that is never in the way of the images that it names."""

import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

from stage1_extract.cli import group
from stage1_extract.errors import TooManyFailures
from stage1_extract.extract import dry_run, extract
from stage1_extract.work.asked import idle_shards, rows_not_asked_for, tolerance
from store.care.inspect import as_text as inspected
from store.care.inspect import report
from store.care.status import as_text, status
from store.care.verify import verify
from store.cli import group as store_group
from store.errors import StoreError
from store.layout.plan import plan_path, spare_of
from store.reading.reader import FeatureStore
from store.writing.growth import grown
from store.writing.lacking import can_be_taken_back
from tests.helpers.data import come, tiny_images
from tests.stage1_extract.test_growing import by_name, experiment
from tests.store.stores import image_ids, plan_of, sha, store_of

FURTHER = "further image{}, which this config does not name"


def cut(path):
    """Leave half of an image, which has an id and cannot be decoded."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wrong_folder(tmp_path, names):
    """A folder of images that cannot be decoded."""
    folder = tmp_path / "wrong"
    tiny_images(folder, len(names), seed=7)
    for made, name in zip(sorted(folder.iterdir()), names, strict=True):
        made.rename(folder / name)
        cut(folder / name)
    return folder


def said_by_verify(wanted):
    return CliRunner().invoke(store_group, ["verify", str(wanted.store_path)], standalone_mode=False).output


def test_bad_images_that_were_removed_from_the_folder_are_waited_for_by_no_run(tmp_path, checkpoint, images, caplog):
    (images / "bad.png").write_bytes(b"")
    extract(experiment(tmp_path / "run", checkpoint, images, max_failures="1"), overwrite=False)
    (images / "bad.png").unlink()
    strict = experiment(tmp_path / "run", checkpoint, images)
    for _ in range(2):
        done = extract(strict, overwrite=False)
        assert (done["bytes_written"], done["asked"]) == (0, {"images": 5, "stored": 5, "failures": {}})
    come(tmp_path, range(5, 8))
    assert extract(strict, overwrite=False, append=True)["tower_images"] == 3
    (images / "image_006.png").unlink()
    assert extract(strict, overwrite=False)["bytes_written"] == 0
    assert caplog.text.count("1 " + FURTHER.format("")) == 1


def test_a_run_that_bad_images_stopped_is_finished_once_they_are_removed(tmp_path, checkpoint, images):
    shutil.copy(images / "image_001.png", images / "image_0000.png")
    cut(images / "image_0000.png")  # in one shard with image_000.png
    wanted = experiment(tmp_path / "run", checkpoint, images)
    with pytest.raises(TooManyFailures, match=r"image_0000\.png: truncated_image"):
        extract(wanted, overwrite=False)
    (images / "image_0000.png").unlink()
    done = extract(wanted, overwrite=False)
    assert (done["tower_images"], done["asked"]["stored"]) == (5, 5)
    assert done["failures"] == {"image_0000.png": "missing_file"}
    assert verify(wanted.store_path, quick=False) == []


def test_fewer_images_than_the_store_has_leave_nothing_to_do_and_are_noted_once(tmp_path, checkpoint, images, caplog):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    before = by_name(wanted.store_path)
    for number in (1, 3):
        (images / f"image_{number:03d}.png").unlink()
    said = CliRunner().invoke(
        group, ["extract", "--config", str(wanted.store_path / "config.yaml")], standalone_mode=False
    )
    assert (
        said.exception is None and "3 images asked for, all stored; the store holds 5; the tower saw 0" in said.output
    )
    assert caplog.text.count("2 " + FURTHER.format("s")) == 1 and by_name(wanted.store_path) == before


def test_an_append_that_committed_nothing_is_not_in_the_way_of_the_images_of_before(
    tmp_path, checkpoint, images, caplog
):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    before = by_name(wanted.store_path)
    wrong = wrong_folder(tmp_path, ["a.png", "b.png", "c.png"])
    mistaken = experiment(tmp_path / "run", checkpoint, wrong)
    with pytest.raises(TooManyFailures):
        extract(mistaken, overwrite=False, append=True)
    done = extract(wanted, overwrite=False)
    assert (done["bytes_written"], done["failures"], done["asked"]["stored"]) == (0, {}, 5)
    assert "3 of them are planned only" in caplog.text
    assert "3 of 5 shards are committed: `make extract` encodes the other shards whose images a config names" in (
        said_by_verify(wanted)
    )
    assert "nothing is in flight: `make extract` encodes the missing shards" in as_text(status(wanted.store_path))
    assert (done["images"], done["distinct"]) == (5, 5)
    price = dry_run(wanted)
    assert (price["images"], price["shards"], price["bytes_total"]) == (5, 0, 0)
    price = dry_run(mistaken)
    assert (price["images"], price["shards"]) == (3, 2) and price["bytes_total"] > 0
    for number in range(5, 8):
        come(tmp_path, range(number, number + 1))
    assert extract(wanted, overwrite=False, append=True)["tower_images"] == 3
    assert before.items() <= by_name(wanted.store_path).items() and verify(wanted.store_path, quick=False) == []


def test_names_that_such_an_append_took_away_go_back_to_the_images_that_have_them(tmp_path, checkpoint, images, caplog):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    before = by_name(wanted.store_path)
    wrong = wrong_folder(tmp_path, [f"image_{number:03d}.png" for number in range(4)])
    with pytest.raises(TooManyFailures):
        extract(experiment(tmp_path / "run", checkpoint, wrong), overwrite=False, append=True)
    assert (
        "of the others, `make extract` encodes" in said_by_verify(wanted)
        and status(wanted.store_path)["eta_seconds"] != 0
    )
    assert extract(wanted, overwrite=False)["bytes_written"] == 0 and "4 images" in caplog.text
    assert by_name(wanted.store_path) == before and said_by_verify(wanted) == "nothing is damaged\n"
    found = status(wanted.store_path)
    assert (found["images_committed"], found["images"], found["eta_seconds"]) == (5, 5, 0.0)
    assert (found["shards_committed"], found["shards"]) == (3, 3) and "ETA" not in as_text(found)
    assert report(wanted.store_path)["shards"]["missing"] == []
    assert extract(wanted, overwrite=False)["asked"] == {"images": 5, "stored": 5, "failures": {}}


def test_names_that_a_committed_append_took_away_stay_where_they_are(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    old = (images / "image_002.png").read_bytes()
    Image.new("RGB", (64, 64), "red").save(images / "image_002.png")
    extract(wanted, overwrite=False, append=True)
    (images / "image_002.png").write_bytes(old)
    with pytest.raises(StoreError, match=r"image image_002\.png now has the bytes of another image of it: --append"):
        extract(wanted, overwrite=False)


def test_a_file_that_changed_is_named_and_so_are_images_that_came(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    Image.new("RGB", (64, 64), "red").save(images / "image_002.png")
    changed = r"image image_002\.png changed since the store was made \(other bytes\): --append encodes it anew beside"
    with pytest.raises(StoreError, match=changed):
        extract(wanted, overwrite=False)
    come(tmp_path, range(5, 7))
    with pytest.raises(StoreError, match=r"2 images are not in it: add them with --append; " + changed):
        extract(wanted, overwrite=False)


@pytest.mark.parametrize("fewer", [False, True])
def test_a_plan_that_was_deleted_is_restored_with_a_note(tmp_path, checkpoint, images, caplog, fewer):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    plan = plan_path(wanted.store_path, 0)
    whole = plan.read_bytes()
    if fewer:
        (images / "image_004.png").unlink()
    for lost in ([plan], [plan, spare_of(plan)])[: 1 if fewer else 2]:
        for file in lost:
            file.unlink()
        caplog.clear()
        assert extract(wanted, overwrite=False)["bytes_written"] == 0
        assert plan.read_bytes() == whole and caplog.text.count(f"note: {plan} was missing or damaged") == len(lost[:1])


def test_a_file_that_has_the_bytes_of_another_stored_image_gives_it_its_name(tmp_path, checkpoint, images):
    wanted = experiment(tmp_path / "run", checkpoint, images)
    extract(wanted, overwrite=False)
    shutil.copy(images / "image_001.png", images / "image_002.png")
    shutil.copy(images / "image_001.png", images / "copy.png")
    moved = (
        r"1 further name of its images is not in it: add it with --append; image image_002\.png now has the bytes of"
    )
    with pytest.raises(StoreError, match=moved + r" another image of it: --append moves the name"):
        extract(wanted, overwrite=False)
    assert extract(wanted, overwrite=False, append=True)["tower_images"] == 0


def test_a_name_in_a_shard_that_no_run_committed_yet_moves_only_with_an_append(tmp_path):
    ids = image_ids(4)
    path = store_of(tmp_path / "store", 4, shards=[0])
    stored = plan_of(ids)
    moved = [(ids.sha_of_row(0), ["image_3.png"])]
    assert not can_be_taken_back(path, stored, ids, moved)
    appended, known = grown(stored, ids, [(sha(9), ["image_0.png"])], [])
    assert can_be_taken_back(path, appended, known, [(ids.sha_of_row(0), ["image_0.png"])])


def test_a_retry_leaves_the_failures_of_images_that_are_not_asked_for(tmp_path, checkpoint, images, caplog):
    for number in (0, 1, 4):  # all of the first shard of two images, and of the last shard
        cut(images / f"image_{number:03d}.png")
    lenient = experiment(tmp_path / "run", checkpoint, images, max_failures="3")
    extract(lenient, overwrite=False)
    for number in (0, 1):
        (images / f"image_{number:03d}.png").unlink()
    done = extract(lenient, overwrite=False, retry_failed=True)
    assert (done["shards_written"], [*done["asked"]["failures"]]) == (1, ["image_004.png"])
    assert "are not tried again" not in caplog.text


def test_a_retry_says_that_a_shard_is_kept_for_images_that_are_not_named(tmp_path, checkpoint, images, caplog):
    cut(images / "image_000.png")
    lenient = experiment(tmp_path / "run", checkpoint, images, max_failures="1")
    extract(lenient, overwrite=False)
    (images / "image_001.png").unlink()
    assert extract(lenient, overwrite=False, retry_failed=True)["shards_written"] == 0
    assert "other images of these shards cannot be read, or are not named by this config" in caplog.text


def test_a_failure_whose_file_was_mended_is_past_and_is_counted_nowhere(tmp_path, checkpoint, images):
    good = (images / "image_001.png").read_bytes()
    (images / "image_001.png").write_bytes(b"")
    lenient = experiment(tmp_path / "run", checkpoint, images, max_failures="1")
    extract(lenient, overwrite=False)
    assert "failures   1" in inspected(report(lenient.store_path))
    (images / "image_001.png").write_bytes(good)
    come(tmp_path, range(5, 7))
    strict = experiment(tmp_path / "run", checkpoint, images)
    done = extract(strict, overwrite=False, append=True)
    assert done["asked"] == {"images": 7, "stored": 7, "failures": {}}
    assert "failures   0" in inspected(report(strict.store_path)) and status(strict.store_path)["failed"] == 0


def test_workers_that_join_tolerate_the_failures_of_images_that_are_not_asked_for(tmp_path):
    path = store_of(tmp_path / "store", 6, failures={0: "empty_file", 2: "superseded"}, shards=[0, 1])
    store = FeatureStore.open(path)
    others = rows_not_asked_for(image_ids(2), store.plan, store.ids)
    assert others == {2, 3, 4, 5} and idle_shards(store.plan, [2], others) == {2}
    assert tolerance(path, store.plan, [2], others) == 2 and tolerance(path, store.plan, [], others) == 0
    assert tolerance(path, store.plan, [], frozenset({0})) == 1
    assert rows_not_asked_for(store.ids, plan_of(store.ids), store.ids) == frozenset()
