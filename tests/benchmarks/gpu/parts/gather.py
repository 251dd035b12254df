"""Features of the store on their way from the page cache to the device, beside a plain copy from pinned memory."""

import torch

from stage2_prune.session.features import Features
from stage2_prune.session.session import open_features
from store.questions.question import Question
from tests.benchmarks.gpu.making import photo
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows

BATCH = 32
IMAGES = 512


def measure(place: Place, rows: Rows) -> None:
    """Read `projected` of many images in batches of different ones; a first pass fills the page cache and checks sums."""
    place.require_store()
    features = open_features(place.asking(), ())
    numbers = range(min(IMAGES, place.scale.photos))
    asked = [Question(question_id=str(number), image=photo(number), question="") for number in numbers]
    batches = [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]
    row = features.store.arrays["projected"].row_bytes
    seconds = place.clock.median(lambda: _read(features, batches), rounds=3, warm_up=1)
    rate = len(asked) * row / seconds
    plain = len(batches[0]) * row / _plain(place, len(batches[0]) * row)
    rows.add("gather", "features of the store, from the page cache", rate / 1e9, "GB/s")
    rows.add("gather", "a plain copy from pinned memory", plain / 1e9, "GB/s")
    rows.add("gather", "share of the plain copy", rate / plain)


def _read(features: Features, batches: list[list[Question]]) -> None:
    for batch in features.batches(batches):
        assert len(batch.projected) == len(batch.questions)


def _plain(place: Place, size: int) -> float:
    source = torch.empty(size, dtype=torch.uint8, pin_memory=place.device.type == "cuda")
    target = torch.empty(size, dtype=torch.uint8, device=place.device)
    return place.clock.median(lambda: target.copy_(source, non_blocking=True), rounds=9)
