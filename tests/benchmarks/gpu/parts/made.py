"""Make what all parts work on."""

import time

from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows


def measure(place: Place, rows: Rows) -> None:
    """Make the checkpoint, the photographs and the questions."""
    begun = time.perf_counter()
    size = sum(file.stat().st_size for file in place.checkpoint.iterdir())
    rows.add("made", f"random weights, {size / 1e9:.2f} GB", time.perf_counter() - begun, "s")
    begun = time.perf_counter()
    photos = len(list(place.photos.iterdir()))
    rows.add("made", f"{photos} photographs", time.perf_counter() - begun, "s")
    assert place.questions.is_file()
    rows.add("made", "peak of matrix products, measured", place.peaks.flops_per_second / 1e12, "TFLOP/s")
    rows.add("made", "peak of the device's memory, measured", place.peaks.bytes_per_second / 1e12, "TB/s")
