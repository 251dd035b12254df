"""A store in torch's DataLoader: pickled into workers however they are started, collated as torch does by default."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from store.errors import RowUnavailable, StoreMissing
from store.layout.ids import ImageIds
from store.reading.by_name import read_features
from store.reading.dataset import StoreDataset
from store.reading.reader import FeatureStore
from tests.store.stores import image_ids, plan_of, sha, store_of, write_store


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    """A store of seven images in four shards."""
    return store_of(tmp_path_factory.mktemp("dataset") / "store", count=7)


def batches(dataset, **options):
    return list(DataLoader(dataset, batch_size=3, **options))


def same(one, other):
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def test_the_default_collate_gives_the_batches_that_the_datasets_own_gives(location):
    dataset = StoreDataset(FeatureStore.open(location), ["small", "large"])
    own = batches(dataset, collate_fn=StoreDataset.collate)
    assert sum(len(batch["small"]) for batch in own) == len(dataset) > 3
    assert same(own, batches(dataset))
    assert all(
        torch.equal(dataset[place][name], own[place // 3][name][place % 3]) for place in (0, 4) for name in own[0]
    )


@pytest.mark.parametrize("access", ["mmap", "preadv", "zarr"])
def test_a_pickled_store_reads_the_same_rows_in_the_same_way_from_another_folder(
    location, access, tmp_path, monkeypatch
):
    monkeypatch.chdir(location.parent)
    store = FeatureStore.open(location.relative_to(location.parent), access=access, verify="always")
    store.gather("small", [0])  # a store in use, with its files and threads
    text = pickle.dumps(StoreDataset(store, ["small"]))
    monkeypatch.chdir(tmp_path)
    copy = pickle.loads(text)
    assert (copy.store._access, copy.store._verify) == (access, "always")
    assert (copy.store.gather("small", [1, 2]) == FeatureStore.open(location).gather("small", [1, 2])).all()


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_workers_that_are_spawned_or_served_read_the_batches_with_the_default_collate(location, start):
    dataset = StoreDataset(FeatureStore.open(location), ["small"])
    assert same(batches(dataset), batches(dataset, num_workers=2, multiprocessing_context=start))


def test_named_images_are_given_in_their_order_without_those_that_could_not_be_encoded(tmp_path):
    ids = image_ids(7)
    store = FeatureStore.open(write_store(tmp_path / "store", plan_of(ids), ids, [0, 1, 2], {2: "no image"}))
    dataset = StoreDataset(store, ["small"], images=["image_5.png", "image_2.png", "image_0.png"])
    assert dataset.rows.tolist() == [5, 0]
    assert torch.equal(dataset[0]["small"], read_features(store, ["image_5.png"], "small")[0])
    with pytest.raises(RowUnavailable, match="has none called 'no.png'"):
        StoreDataset(store, ["small"], images=["no.png"])
    with pytest.raises(StoreMissing, match="not extracted yet"):
        StoreDataset(store, ["small"], images=["image_6.png"])
    assert len(StoreDataset(store, ["small"], images=[])) == 0


def test_features_of_an_image_that_has_no_name_any_more_are_left_out(tmp_path):
    ids = ImageIds.build([(sha(0), ["old.png"]), (sha(1), []), (sha(2), ["a.png", "b.png"])])
    store = FeatureStore.open(write_store(tmp_path / "store", plan_of(ids), ids))
    assert StoreDataset(store, ["small"]).rows.tolist() == [0, 2]
