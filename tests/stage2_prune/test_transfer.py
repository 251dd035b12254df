"""Rows of a store reach the device bit for bit, and a batch that is in use is not written over by those read ahead."""

import time

import pytest
import torch

from stage2_prune.session.features import AHEAD, Features
from stage2_prune.session.transfer import Transfer
from store.layout.tensors import from_storage
from store.questions.question import Question
from store.reading.reader import FeatureStore

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]
NAMES = ("cls_attention", "projected")


@pytest.fixture
def store(home):
    return FeatureStore.open(home / "store")


def rows_of(store, name, rows):
    return from_storage(store.gather(name, rows).copy(), store.arrays[name].dtype)


def same_bits(left, right):
    return left.dtype == right.dtype and torch.equal(left.cpu().view(torch.uint8), right.view(torch.uint8))


@pytest.mark.parametrize("device", DEVICES)
def test_rows_arrive_in_the_order_asked_for_bit_for_bit(store, device):
    transfer = Transfer(store, torch.device(device))
    buffer = transfer.buffer(NAMES, 5)
    for rows in ([4, 0, 2, 3, 1], [1], [3, 2]):
        arrived = transfer.received(transfer.read(rows, buffer))
        assert arrived.keys() == set(NAMES)
        assert all(same_bits(arrived[name], rows_of(store, name, rows)) for name in NAMES)


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_in_use_stays_while_others_are_read_ahead(store, device):
    features = Features(store, {"cls_attention"}, torch.device(device))
    images = [name for row in store.rows_with(set(NAMES)) for name in store.ids.names(row)[:1]]
    asked = [[Question(question_id=f"{n}", image=images[n % len(images)], question="?")] for n in range(4 * AHEAD)]
    for number, batch in enumerate(features.batches(asked)):
        time.sleep(0.02)  # the reader has filled every buffer that it may fill
        row = [features.row(asked[number][0])]
        assert same_bits(batch.projected, rows_of(store, "projected", row))
        assert same_bits(batch.tokens.arrays["cls_attention"], rows_of(store, "cls_attention", row))


def test_what_reading_raises_comes_out_of_the_batches(store, monkeypatch):
    features = Features(store, set(), torch.device("cpu"))
    question = Question(question_id="0", image=store.ids.names(0)[0], question="?")

    def broken(*given):
        raise OSError("the disk is gone")

    monkeypatch.setattr(Transfer, "read", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        next(features.batches([[question]]))
