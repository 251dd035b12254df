"""What a worker pays to bring features from the device to host memory."""

from importlib.util import find_spec

from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows


def measure(place: Place, rows: Rows) -> None:
    """Say that there is nothing to measure yet."""
    if find_spec("stage1_extract.work.copying") is None:
        rows.say("ring", "not measured: features are copied by `OpenEncoder.encode` alone")
