"""One file per shard: plain Zarr and the memory map read the same bits."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from store.errors import NonFinite, RowUnavailable, StoreError
from store.layout.plan import Plan
from store.layout.schema import ArraySpec, default_shard_images
from store.layout.shard import write_shard
from store.layout.tensors import dtype_name, from_storage, to_storage, torch_dtype
from store.reading.reader import FEATURES, FeatureStore
from store.writing.writer import StoreWriter
from tests.store.stores import (
    DTYPES,
    LARGE,
    SMALL,
    as_floats,
    image_ids,
    plan_of,
    quick,
    shard_values,
    small_and_large,
    spec,
    store_of,
    values,
    write_store,
)


def plain(path, name):
    return np.asarray(zarr.open_group(path / FEATURES, mode="r")[name][...])


def bits(array):
    return array.view(f"u{array.itemsize}")


@quick
@given(n_images=st.integers(1, 20), shard_images=st.integers(1, 8), dtype=st.sampled_from(DTYPES))
def test_plain_zarr_and_the_reader_return_exactly_what_was_committed(n_images, shard_images, dtype):
    ids = image_ids(n_images)
    plan = plan_of(ids, small_and_large(dtype), shard_images)
    with tempfile.TemporaryDirectory() as folder:
        path = write_store(Path(folder), plan, ids)
        store = FeatureStore.open(path)
        for one in plan.arrays:
            expected = values(one, range(n_images))
            assert (one.row_bytes > 64 * 1024) == (one.name == "large") == one.per_image_chunks
            np.testing.assert_array_equal(bits(plain(path, one.name)), bits(expected))
            np.testing.assert_array_equal(bits(store.gather(one.name, range(n_images))), bits(expected))


@quick
@given(
    n_images=st.integers(1, 20),
    shard_images=st.integers(1, 8),
    dtype=st.sampled_from(DTYPES),
    large=st.booleans(),
)
def test_the_size_of_every_file_follows_from_the_plan(n_images, shard_images, dtype, large):
    ids = image_ids(n_images)
    plan = plan_of(ids, [spec("array", LARGE if large else SMALL, dtype)], shard_images)
    with tempfile.TemporaryDirectory() as folder:
        path = write_store(Path(folder), plan, ids)
        layout = plan.layout("array")
        for shard, record in FeatureStore.open(path).logs[0].items():
            size = (path / FEATURES / layout.relative_path(shard)).stat().st_size
            assert size == layout.file_bytes(len(plan.rows(shard))) == record.files["array"].bytes
        assert plan.total_bytes == sum(
            file.stat().st_size for file in (path / FEATURES / "array" / "c").rglob("*") if file.is_file()
        )


def test_rows_come_in_the_order_asked_for_and_as_often(tmp_path):
    store = FeatureStore.open(store_of(tmp_path, count=7, shard_images=3))
    asked = [6, 0, 3, 3, 5, 0]
    for one in store.plan.arrays:
        expected = values(one, range(7))[asked]
        out = np.full_like(expected, 9)
        assert store.gather(one.name, asked, out) is out
        np.testing.assert_array_equal(bits(out), bits(expected))
        assert store.gather(one.name, []).shape == (0, *one.shape)


@pytest.mark.parametrize("shape", [(1,), (64 * 256,), (64 * 256 + 1,), (2, 3, 4), (3, 70, 80)])
def test_one_byte_over_64_kb_changes_the_layout_and_not_the_values(tmp_path, shape):
    ids = image_ids(3)
    one = spec("array", shape, "float32").model_copy(update={"axes": tuple("abc"[: len(shape)])})
    path = write_store(tmp_path, plan_of(ids, [one]), ids)
    assert one.per_image_chunks == (one.row_bytes > 65536)
    np.testing.assert_array_equal(bits(plain(path, "array")), bits(values(one, range(3))))
    np.testing.assert_array_equal(bits(FeatureStore.open(path).gather("array", range(3))), bits(values(one, range(3))))


def test_all_65536_bit_patterns_of_bfloat16_survive_the_way_there_and_back():
    patterns = np.arange(65536, dtype="<u2")
    tensor = from_storage(patterns.copy(), "bfloat16")
    assert tensor.dtype == torch.bfloat16
    np.testing.assert_array_equal(to_storage(tensor), patterns)
    np.testing.assert_array_equal(to_storage(tensor.reshape(256, 256).T), patterns.reshape(256, 256).T)


def test_every_finite_bit_pattern_of_bfloat16_survives_the_store(tmp_path):
    ids = image_ids(1)
    one = spec("array", (256, 256), "bfloat16")
    patterns = np.arange(65536, dtype="<u2").reshape(1, 256, 256)
    patterns[(patterns & 0x7F80) == 0x7F80] = 1
    with StoreWriter.open(tmp_path, plan_of(ids, [one]), ids, None) as writer:
        writer.commit_shard(0, {"array": patterns}, {}, {})
    np.testing.assert_array_equal(plain(tmp_path, "array"), patterns)
    read = FeatureStore.open(tmp_path).gather("array", [0])
    np.testing.assert_array_equal(read, patterns)
    assert torch.equal(
        from_storage(read, "bfloat16"), torch.from_numpy(patterns.view(np.int16).copy()).view(torch.bfloat16)
    )


@pytest.mark.parametrize("name", DTYPES)
def test_tensors_go_to_storage_and_back_with_their_dtype(name):
    dtype = torch_dtype(name)
    assert dtype_name(dtype) == name
    tensor = torch.tensor([0.0, -0.0, 1.5, torch.finfo(dtype).tiny, torch.finfo(dtype).max], dtype=dtype)
    stored = to_storage(tensor)
    assert stored.dtype == spec("array", (5,), name).storage
    back = from_storage(stored, name)
    assert back.dtype == dtype and torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))


def test_a_read_only_array_is_copied_and_a_writable_one_is_shared():
    array = np.zeros(3, "<f4")
    from_storage(array, "float32")[0] = 1
    assert array[0] == 1
    array.setflags(write=False)
    from_storage(array, "float32")[0] = 2
    assert array[0] == 1


def test_a_dtype_that_a_store_cannot_hold_is_named():
    with pytest.raises(ValueError, match="float64"):
        dtype_name(torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_uncommitted_rows_are_nan_in_plain_zarr_and_refused_by_the_reader(tmp_path, dtype):
    path = store_of(tmp_path, count=5, dtype=dtype, shards=[1])
    store = FeatureStore.open(path)
    assert store.committed_rows == [2, 3] and store.missing_shards == [0, 2]
    for one in store.plan.arrays:
        floats = as_floats(plain(path, one.name), dtype)
        assert np.isnan(floats[[0, 1, 4]]).all() and np.isfinite(floats[[2, 3]]).all()
        for row in (0, 1, 4):
            with pytest.raises(RowUnavailable, match=rf"row {row} \(image_{row}\.png.*not committed"):
                store.gather(one.name, [2, row])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("array", ["small", "large"])
def test_features_that_are_not_numbers_are_refused_by_the_name_of_their_image(tmp_path, dtype, bad, array):
    ids = image_ids(5)
    plan = plan_of(ids, small_and_large(dtype))
    rows = shard_values(plan, 1)
    rows[array][1, 2, 3] = to_storage(torch.tensor(bad, dtype=torch_dtype(dtype)).reshape(1))[0]
    with StoreWriter.open(tmp_path, plan, ids, None) as writer:
        with pytest.raises(NonFinite, match=rf"{array} .*1 image \(image_3\.png\)") as caught:
            writer.commit_shard(1, rows, {}, {})
        assert writer.missing_shards() == [0, 1, 2]
    assert caught.value.exit_code == 3


def test_numbers_and_logarithms_are_stored_beside_features_and_what_was_never_written_is_neither(tmp_path):
    numbers = ArraySpec(name="numbers", axes=("top",), shape=(2,), dtype="int32")
    logs = ArraySpec(name="logs", axes=("top",), shape=(1,), dtype="float32", logarithms=True)
    ids = image_ids(4)
    good = {"numbers": np.array([[0, 7], [2**31 - 1, 1]], "<i4"), "logs": np.array([[-np.inf], [-0.5]], "<f4")}
    with StoreWriter.open(tmp_path, plan_of(ids, [numbers, logs]), ids, None) as writer:
        for name, bad in {"numbers": -1, "logs": np.nan}.items():
            with pytest.raises(NonFinite, match=name):
                writer.commit_shard(0, good | {name: np.full_like(good[name], bad)}, {}, {})
        with pytest.raises(NonFinite, match="logs"):
            writer.commit_shard(0, good | {"logs": np.full_like(good["logs"], np.inf)}, {}, {})
        writer.commit_shard(0, good, {}, {})
    for access in ("mmap", "preadv", "zarr"):
        store = FeatureStore.open(tmp_path, access=access)
        for name, written in good.items():
            np.testing.assert_array_equal(store.gather(name, [0, 1]), written)
            np.testing.assert_array_equal(plain(tmp_path, name)[:2], written)
    assert (plain(tmp_path, "numbers")[2:] == -1).all() and np.isnan(plain(tmp_path, "logs")[2:]).all()
    with pytest.raises(RowUnavailable):
        store.gather("numbers", [2])


def test_the_plan_of_features_says_nothing_that_earlier_versions_cannot_read():
    ids = image_ids(2)
    assert not {"maker", "logarithms"} & set(re.findall(r"\w+", plan_of(ids).to_json()))
    taught = plan_of(ids).model_copy(update={"maker": "teach"})
    assert Plan.model_validate_json(taught.to_json()) == taught != plan_of(ids)
    assert taught.flattened().maker == "teach"


@pytest.mark.parametrize("dtype", DTYPES)
def test_failed_rows_hold_fill_are_listed_and_refused_with_their_reason(tmp_path, dtype):
    path = store_of(tmp_path, count=5, dtype=dtype, failures={1: "truncated PNG", 4: "not an image"})
    store = FeatureStore.open(path)
    assert store.failed() == {1: "truncated PNG", 4: "not an image"}
    assert store.committed_rows == [0, 1, 2, 3, 4] and store.missing_shards == []
    for one in store.plan.arrays:
        assert np.isnan(as_floats(plain(path, one.name), dtype)[[1, 4]]).all()
        np.testing.assert_array_equal(bits(plain(path, one.name)[[0, 2, 3]]), bits(values(one, range(5))[[0, 2, 3]]))
        for row, why in store.failed().items():
            with pytest.raises(RowUnavailable, match=rf"row {row} \(image_{row}\.png.*{why}") as caught:
                store.gather(one.name, [0, row])
            assert caught.value.exit_code == 4
        store.gather(one.name, [0, 2, 3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_failed_row_may_hold_anything_and_the_callers_array_stays_as_it_is(tmp_path, dtype):
    ids = image_ids(2)
    plan = plan_of(ids, small_and_large(dtype))
    rows = shard_values(plan, 0)
    nan = to_storage(torch.tensor([float("inf")], dtype=torch_dtype(dtype)))[0]
    for array in rows.values():
        array[1] = nan
    with StoreWriter.open(tmp_path, plan, ids, None) as writer:
        writer.commit_shard(0, rows, {1: "no"}, {})
    assert all((array[1] == nan).all() for array in rows.values())
    for one in plan.arrays:
        assert (bits(plain(tmp_path, one.name)[1]) == bits(np.array(one.fill, one.storage))).all()


@pytest.mark.parametrize("row", [-1, -5, 5, 6, 10**9])
@pytest.mark.parametrize("array", ["small", "large"])
def test_a_row_that_is_not_in_the_store_is_refused(tmp_path, array, row):
    store = FeatureStore.open(store_of(tmp_path, count=5, shard_images=3))
    with pytest.raises(RowUnavailable, match=f"got {row}: there is no such image"):
        store.gather(array, [row])


def test_rows_of_another_shape_dtype_or_number_are_refused(tmp_path):
    plan = plan_of(image_ids(4))
    layout = plan.layout("small")
    for rows in (np.zeros((2, 5, 3), "<f4"), np.zeros((2, 3, 5), "<f2"), np.zeros((3, 3, 5), "<f4")):
        with pytest.raises(StoreError, match="expected rows of small"):
            write_shard(tmp_path, layout, 0, rows)
    with StoreWriter.open(tmp_path, plan, image_ids(4), None) as writer:
        rows = shard_values(plan, 0)
        with pytest.raises(StoreError, match="expected 2 rows of large"):
            writer.commit_shard(0, rows | {"large": rows["large"][:1]}, {}, {})


def test_rows_that_do_not_lie_together_in_memory_are_stored_all_the_same(tmp_path):
    ids = image_ids(2)
    plan = plan_of(ids)
    rows = shard_values(plan, 0)
    scattered = {name: np.asfortranarray(np.repeat(array, 2, axis=0))[::2] for name, array in rows.items()}
    with StoreWriter.open(tmp_path, plan, ids, None) as writer:
        writer.commit_shard(0, scattered, {}, {})
    for name, array in rows.items():
        np.testing.assert_array_equal(bits(FeatureStore.open(tmp_path).gather(name, [0, 1])), bits(array))


def test_more_shards_than_stay_mapped_are_read_all_the_same(tmp_path):
    ids = image_ids(80)
    plan = plan_of(ids, [spec("small", SMALL, "float16")], 1)
    store = FeatureStore.open(write_store(tmp_path, plan, ids))
    for _ in range(2):
        got = store.gather("small", range(80))
        np.testing.assert_array_equal(bits(got), bits(values(plan.arrays[0], range(80))))


def test_the_arrays_say_what_they_are_to_any_zarr_reader(tmp_path):
    group = zarr.open_group(store_of(tmp_path, dtype="bfloat16") / FEATURES, mode="r")
    array = group["large"]
    assert group.attrs["encode_once_format"] == 1
    assert array.metadata.dimension_names == ("image", "patch", "hidden")
    assert dict(array.attrs) == {"logical_dtype": "bfloat16", "layer": -2}


@quick
@given(size=st.integers(1, 10**10), images=st.integers(1, 10**6))
def test_the_default_shard_is_a_power_of_two_within_the_limit_and_no_larger_than_needed(size, images):
    chosen = default_shard_images([spec("a", (size,), "float16"), spec("b", (1,), "float16")], images)
    row_bytes, limit = 2 * size, 320_000_000
    assert chosen & (chosen - 1) == 0
    assert chosen == 1 or (chosen * row_bytes <= limit and chosen < 2 * images)
    assert 2 * chosen * row_bytes > limit or chosen >= images
