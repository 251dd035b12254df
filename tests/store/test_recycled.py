"""Memory is used again when nobody can see it any more, and not before."""

import gc
import threading

import numpy as np
import pytest
import torch

from store.files.recycled import Recycled
from store.reading.reader import FeatureStore
from tests.store.stores import image_ids, plan_of, spec, values, write_store

SHAPE, DTYPE = (4, 512, 1024), np.dtype("<f2")


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_comes_back_when_the_array_is_gone():
    recycled = Recycled()
    array = recycled.empty(SHAPE, DTYPE)
    array[:] = 1  # it can be written to
    before = address(array)
    del array
    assert address(recycled.empty(SHAPE, DTYPE)) == before


@pytest.mark.parametrize(
    "held",
    [
        lambda array: array[1:2].reshape(-1)[3:],
        lambda array: array.view("<u2").T,
        lambda array: memoryview(array)[1:],
        lambda array: torch.from_numpy(array),
        lambda array: torch.from_numpy(array.view("<i2")).view(torch.bfloat16)[2, 5:].flatten(),
        lambda array: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(torch.from_numpy(array))),
        lambda array: iter(array),
    ],
)
def test_whatever_still_looks_at_an_array_keeps_its_memory(held):
    recycled = Recycled()
    array = recycled.empty(SHAPE, DTYPE)
    before = address(array)
    view = held(array)
    del array
    gc.collect()
    others = [recycled.empty(SHAPE, DTYPE) for _ in range(3)]
    assert before not in {address(other) for other in others}
    del view
    gc.collect()
    assert address(recycled.empty(SHAPE, DTYPE)) == before


def test_arrays_of_another_size_and_small_ones_have_memory_of_their_own():
    recycled = Recycled()
    before = address(recycled.empty(SHAPE, DTYPE))
    assert recycled.empty((3, 512, 1024), DTYPE).shape == (3, 512, 1024)
    assert recycled.empty((2, 2), DTYPE).base is None
    assert address(recycled.empty((2, 1024, 1024), DTYPE)) == before  # of the same bytes


def test_of_much_that_was_in_use_little_is_kept_for_later():
    recycled = Recycled()
    many = [recycled.empty(SHAPE, DTYPE) for _ in range(9)]
    assert len({address(array) for array in many}) == 9
    del many
    assert len(recycled._idle) == 4


def test_threads_never_share_an_array():
    recycled, wrong = Recycled(), []

    def work(number):
        for _ in range(50):
            array = recycled.empty(SHAPE, DTYPE)
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_batch_that_is_kept_is_not_changed_by_those_after_it(tmp_path):
    ids = image_ids(12)
    one = spec("array", (300, 600), "float16")
    store = FeatureStore.open(write_store(tmp_path, plan_of(ids, [one], 4), ids))
    kept = [batch["array"] for batch in store.stream(["array"], [range(first, first + 3) for first in (0, 3, 6, 9)])]
    assert np.concatenate(kept).tobytes() == values(one, range(12)).tobytes()
