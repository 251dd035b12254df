"""How long a run takes to open beyond the loading of its weights, the first time and the second."""

import os
import time

from stage2_prune.find_family import open_language
from tests.benchmarks.gpu import before
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows


def measure(place: Place, rows: Rows) -> None:
    """Load the language half alone, then open a run twice; the last opened run stays open for the parts that follow."""
    place.require_store()
    place.release()
    loading = min(_loading(place) for _ in range(2))
    rows.add("opening", "loading the language half", loading, "s")
    for file in place.checkpoint.glob("*.safetensors"):
        os.utime(file)  # whatever was kept of the weights must not be believed any more
    for turn in ("first", "second"):
        place.release()
        begun = time.perf_counter()
        session = place.session()
        opened = time.perf_counter()
        assert session.conditions
        identified = time.perf_counter()
        rows.add("opening", f"{turn} opening of a run", identified - begun, "s")
        rows.add("opening", f"{turn} opening of a run, beyond loading", identified - begun - loading, "s")
        if turn == "first":
            rows.add("opening", before.DIGEST, identified - opened, "s")
        del session


def _loading(place: Place) -> float:
    begun = time.perf_counter()
    language = open_language(place.asking().model)
    language.model.lm_head.weight.sum().item()
    seconds = time.perf_counter() - begun
    del language
    place.release()
    return seconds
