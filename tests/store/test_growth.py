"""A store grows by generations: what was there stays as it was, byte for byte, and what is new is found beside it."""

import contextlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from store.care.drop import drop
from store.care.repair import repair
from store.care.status import status
from store.care.verify import verify
from store.errors import FingerprintMismatch, IntegrityError, RowUnavailable, StoreError, StoreMissing
from store.layout.fingerprint import Fingerprint
from store.layout.ids import ImageIds
from store.layout.plan import Plan, plan_path, read_plan
from store.log.commits import compact, read_commits
from store.reading.reader import FEATURES, FeatureStore
from store.writing.growth import grown, plan_to_follow, without
from store.writing.writer import StoreWriter
from tests.store.stores import (
    flip,
    image_ids,
    plan_of,
    projector,
    quick,
    sha,
    shard_values,
    small_and_large,
    spec,
    store_of,
    values,
    write_store,
)

PRINT = Fingerprint(semantic={"checkpoint": "tiny", "layer": -2}, numeric={"torch": "2"})
THIRD = spec("third", (7, 1), "float32")


def images(first: int, count: int) -> list[tuple[str, list[str]]]:
    return [(sha(number), [f"image_{number}.png"]) for number in range(first, first + count)]


def appended(path: Path, first: int = 5, count: int = 3) -> tuple[Plan, ImageIds]:
    """The plan of the next generation of a store, with more images."""
    store = FeatureStore.open(path)
    return grown(store.plan, store.ids, images(first, count), [])


def snapshot(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@quick
@given(
    n=st.integers(1, 40),
    shard_images=st.integers(1, 9),
    added=st.lists(st.integers(1, 20), max_size=4),
)
def test_every_image_is_in_one_shard_and_every_shard_of_one_generation(n, shard_images, added):
    ids = image_ids(n)
    plan = plan_of(ids, shard_images=shard_images)
    total = n
    for count in added:
        plan, ids = grown(plan, ids, images(total, count), [])
        total += count
    rows = [row for shard in range(plan.n_shards) for row in plan.rows(shard)]
    assert len(rows) == len(set(rows)) == plan.n_images == total
    assert [number for number in range(total) if ids.row_of_sha(sha(number)) not in rows] == []
    assert all(row // shard_images == shard for shard in range(plan.n_shards) for row in plan.rows(shard))
    shards = [shard for one in range(plan.generation + 1) for shard in plan.shards_of(one)]
    assert sorted(shards) == list(range(plan.n_shards))
    assert plan.total_bytes == sum(
        plan.layout(a.name).file_bytes(len(plan.rows(s))) for a in plan.arrays for s in range(plan.n_shards)
    )


def test_appended_images_begin_a_shard_and_nothing_that_was_there_is_touched(tmp_path):
    path = store_of(tmp_path / "store", 5)
    before = snapshot(path)
    plan, ids = appended(path)
    write_store(path, plan, ids)
    after = snapshot(path)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {f"{FEATURES}/{one}/zarr.json" for one in ("small", "large")}
    store = FeatureStore.open(path)
    assert store.plan.n_images == 8 and store.plan.n_rows == 9 and store.missing_shards == []
    assert [store.ids.row_of_sha(sha(number)) for number in range(8)] == [0, 1, 2, 3, 4, 6, 7, 8]
    for one in small_and_large():
        assert np.array_equal(
            store.gather(one.name, [4, 6, 8]), np.concatenate([values(one, range(r, r + 1)) for r in (4, 6, 8)])
        )
    assert verify(path, quick=False) == []


def test_a_row_between_two_generations_holds_no_image_and_is_never_data(tmp_path):
    path = store_of(tmp_path / "store", 5)
    plan, ids = appended(path)
    write_store(path, plan, ids)
    for access in ("mmap", "preadv", "zarr"):
        store = FeatureStore.open(path, access=access)
        store.gather("large", [4])
        for row in (5, 9, -1):
            with pytest.raises(RowUnavailable, match="no such image"):
                store.gather("large", [row])
    assert np.isnan(zarr.open_group(path / FEATURES, mode="r")["large"][5]).all()


def test_a_reader_that_was_open_before_reads_on_as_before(tmp_path):
    path = store_of(tmp_path / "store", 5)
    before = FeatureStore.open(path)
    plan, ids = appended(path)
    write_store(path, plan, ids)
    assert before.ids.row_of_name("image_4.png") == 4
    assert np.array_equal(before.gather("large", [4]), FeatureStore.open(path).gather("large", [4]))


def test_a_name_whose_file_has_changed_is_the_new_images(tmp_path):
    path = store_of(tmp_path / "store", 4)
    store = FeatureStore.open(path)
    plan, ids = grown(store.plan, store.ids, [(sha(9), ["image_1.png"])], [])
    write_store(path, plan, ids)
    store = FeatureStore.open(path)
    assert store.ids.row_of_name("image_1.png") == 4 and store.ids.names(1) == ["copy/1.png"]


def test_another_name_of_a_known_image_adds_no_row(tmp_path):
    path = store_of(tmp_path / "store", 4)
    store = FeatureStore.open(path)
    plan, ids = grown(store.plan, store.ids, [(sha(2), ["again.png"])], [])
    write_store(path, plan, ids)
    store = FeatureStore.open(path)
    assert store.ids.row_of_name("again.png") == 2 and store.plan.n_rows == 4 and store.missing_shards == []


def test_an_added_array_has_its_own_commits_and_the_old_records_stay(tmp_path):
    path = store_of(tmp_path / "store", 5)
    before = snapshot(path)
    store = FeatureStore.open(path)
    plan, ids = grown(store.plan, store.ids, [], [(THIRD, PRINT)])
    write_store(path, plan, ids, shards=[0, 2])
    store = FeatureStore.open(path)
    assert {name for name in before if snapshot(path).get(name) != before[name]} == set()
    assert store.missing_shards == [1] and store.gather("small", [2]).shape == (1, 3, 5)
    assert np.array_equal(store.gather("third", [4]), values(THIRD, range(4, 5)))
    with pytest.raises(RowUnavailable, match="not committed"):
        store.gather("third", [2])
    store.require_complete(["small"], range(5))
    with pytest.raises(StoreMissing, match="1 of 3 shards"):
        store.require_complete(["small", "third"], range(5))
    assert status(path)["images_committed"] == 3
    write_store(path, plan, ids)
    assert sorted(read_commits(path, 1)) == [0, 1, 2] and FeatureStore.open(path).missing_shards == []
    assert verify(path, quick=False) == []


def test_images_and_arrays_may_be_added_one_after_the_other_in_any_number(tmp_path):
    path = store_of(tmp_path / "store", 5)
    for generation in range(1, 4):
        store = FeatureStore.open(path)
        arrays = [(spec(f"more_{generation}", (2, generation), "float16"), PRINT)]
        plan, ids = grown(store.plan, store.ids, images(10 * generation, 3), arrays)
        write_store(path, plan, ids)
    store = FeatureStore.open(path)
    assert store.plan.n_images == 14 and store.missing_shards == [] and len(store.arrays) == 5
    for one in store.plan.arrays:
        for row in store.committed_rows:
            assert np.array_equal(store.gather(one.name, [row])[0], values(one, range(row, row + 1))[0])
    assert verify(path, quick=False) == []
    assert [compact(path, generation) for generation in range(4)] == [3, 5, 7, 9]
    assert np.array_equal(FeatureStore.open(path).gather("more_3", [0]), store.gather("more_3", [0]))


def test_a_damaged_file_of_an_added_array_is_withdrawn_from_its_own_log(tmp_path):
    path = store_of(tmp_path / "store", 5)
    store = FeatureStore.open(path)
    plan, ids = grown(store.plan, store.ids, [], [(THIRD, PRINT)])
    write_store(path, plan, ids)
    whole = snapshot(path)
    flip(path / FEATURES / plan.layout("third").relative_path(1), 100)
    with pytest.raises(IntegrityError, match="shard 1"):
        FeatureStore.open(path).gather("third", [2])
    assert repair(path, quick=False).withdrawn == {1: [1]}
    with StoreWriter.open(path, plan, ids, projector()) as writer:
        assert writer.missing_shards() == [1] and writer.missing_arrays(1) == ["third"]
        writer.commit_shard(1, shard_values(plan, 1), {}, {"host": "here"})
    assert snapshot(path / FEATURES) == {
        name[len(FEATURES) + 1 :]: data for name, data in whole.items() if name.startswith(FEATURES)
    }


def test_a_dropped_array_is_off_the_disk_and_the_others_are_untouched(tmp_path):
    path = store_of(tmp_path / "store", 5)
    size = sum(file.stat().st_size for file in (path / FEATURES / "large").rglob("*") if file.is_file())
    assert drop(path, "large") == size and not (path / FEATURES / "large").exists()
    store = FeatureStore.open(path)
    assert list(store.arrays) == ["small"] and store.missing_shards == [] and store.gather("small", [4]).shape
    assert list(zarr.open_group(path / FEATURES, mode="r").array_keys()) == ["small"]
    assert verify(path, quick=False) == []
    with pytest.raises(StoreMissing, match="it has small"):
        drop(path, "large")
    with pytest.raises(StoreMissing, match="remove the whole store"):
        drop(path, "small")


def test_an_array_that_was_dropped_may_come_back(tmp_path):
    path = store_of(tmp_path / "store", 5)
    drop(path, "large")
    store = FeatureStore.open(path)
    plan, ids = grown(store.plan, store.ids, [], [(small_and_large()[1], PRINT)])
    write_store(path, plan, ids)
    assert np.array_equal(FeatureStore.open(path).gather("large", [3]), values(small_and_large()[1], range(3, 4)))
    assert verify(path, quick=False) == []


class Crash(BaseException):
    pass


def test_a_crash_at_any_step_of_growing_leaves_one_generation_or_the_other(tmp_path, monkeypatch):
    small = store_of(tmp_path / "small", 5)
    shutil.copytree(small, tmp_path / "whole")
    plan, ids = appended(tmp_path / "whole")
    write_store(tmp_path / "whole", plan, ids)
    step = crashed = 0
    while crashed == step:
        step += 1
        path = Path(shutil.copytree(small, tmp_path / f"cut_{step}"))
        with monkeypatch.context() as patched:
            left = [step]

            def counted(call, left=left):
                def run(*arguments, **named):
                    left[0] -= 1
                    if left[0] == 0:
                        raise Crash
                    return call(*arguments, **named)

                return run

            for name in ("replace", "rename", "link", "fsync"):
                patched.setattr(os, name, counted(getattr(os, name)))
            try:
                with StoreWriter.open(path, *appended(path), projector()):
                    pass
            except Crash:
                crashed += 1
        store = FeatureStore.open(path)  # whichever it is, it is whole
        assert store.plan.generation in (0, 1) and store.gather("large", [4]).shape
        plan, ids = appended(path) if store.plan.generation == 0 else (store.plan, store.ids)
        write_store(path, plan, ids)
        assert verify(path, quick=False) == []
        assert snapshot(path / FEATURES) == snapshot(tmp_path / "whole" / FEATURES)
    assert step > 10


def test_a_flipped_bit_in_any_plan_is_found_and_never_read_past(tmp_path):
    path = store_of(tmp_path / "store", 5)
    plan, ids = appended(path)
    write_store(path, plan, ids)
    for generation in (0, 1):
        file = plan_path(path, generation)
        whole = file.read_bytes()
        for bit in range(8 * whole.index(b"n_images"), 8 * len(whole), 97):
            flip(file, bit)
            with contextlib.suppress(IntegrityError):
                assert verify(path, quick=True) != []
            if generation:
                with pytest.raises(StoreError):
                    FeatureStore.open(path).gather("large", [0, 4, 6])
            file.write_bytes(whole)
    assert verify(path, quick=True) == []


def test_what_a_store_already_has_is_served_by_its_own_plan(tmp_path):
    path = store_of(tmp_path / "store", 5)
    plan, ids = appended(path)
    write_store(path, plan, ids)
    fewer = image_ids(3)
    assert plan_to_follow(path, plan_of(fewer), fewer, (), append=False)[0] == plan


def test_what_a_store_does_not_have_needs_to_be_asked_for(tmp_path):
    path = store_of(tmp_path / "store", 5)
    plan, ids = appended(path)
    write_store(path, plan, ids)
    more = ImageIds.build(images(0, 12))
    wanted = plan_of(more, [*small_and_large(), THIRD])
    with pytest.raises(StoreError, match="4 images, third are not in it: add them with --append"):
        plan_to_follow(path, wanted, more, (), append=False)
    followed, ids = plan_to_follow(path, wanted, more, (), append=True)
    assert followed.generation == 2 and followed.n_images == 12 and followed.added == {"third": 2}
    assert plan_to_follow(path, wanted, more, {f"image_{n}.png" for n in range(12)}, append=True)[0].n_images == 12


def test_an_image_that_cannot_be_read_now_keeps_the_row_that_it_has(tmp_path):
    path = store_of(tmp_path / "store", 5)
    now = ImageIds.build([*images(0, 4), ("ab" * 32, ["image_4.png"])])
    plan, ids = plan_to_follow(path, plan_of(now), now, {"image_4.png"}, append=True)
    assert plan.generation == 0 and ids.row_of_name("image_4.png") == 4


def test_what_is_made_by_something_else_is_not_appended(tmp_path):
    path = store_of(tmp_path / "store", 5)
    more = ImageIds.build(images(0, 12))
    with pytest.raises(FingerprintMismatch, match="layer: expected -1, found -2"):
        plan_to_follow(path, plan_of(more, layer=-1), more, (), append=True)
    with pytest.raises(StoreError, match="other small"):
        plan_to_follow(path, plan_of(more, small_and_large("float16")), more, (), append=True)


def test_a_plan_of_another_generation_under_a_name_is_refused(tmp_path):
    path = store_of(tmp_path / "store", 5)
    plan_path(path, 1).write_bytes(plan_path(path, 0).read_bytes())
    with pytest.raises(IntegrityError, match="another generation"):
        read_plan(path)


def test_a_copy_has_no_past(tmp_path):
    path = store_of(tmp_path / "store", 5)
    plan, _ = appended(path)
    flat = without(plan, "small").flattened()
    assert flat.generation == 0 and flat.n_rows == plan.n_rows and [a.name for a in flat.arrays] == ["large"]
    assert list(flat.shards_of(0)) == list(range(plan.n_shards))
    assert [flat.rows(shard) for shard in range(plan.n_shards)] == [plan.rows(shard) for shard in range(plan.n_shards)]
