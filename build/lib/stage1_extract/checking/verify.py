"""Does a store still say what its images are? Compared with their files, and with the tower's own work, bit for bit."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.experiment import Experiment
from configs.progress import ProgressBar
from stage1_extract.checking.sample import spread_out
from stage1_extract.engines.joined import devices
from stage1_extract.errors import BadImage
from stage1_extract.sources import stored_sources
from stage1_extract.sources.images import content_id
from stage1_extract.work.worker import OpenEncoder, decode, use_threads_of
from store.layout.fingerprint import differences
from store.layout.ids import printable
from store.layout.tensors import from_storage
from store.reading.reader import FeatureStore


@dataclass(frozen=True)
class Changed:
    """An image whose file is not the one that was encoded."""

    name: str
    reason: str


@dataclass(frozen=True)
class Unequal:
    """An array of an image that is not what the tower makes of it now."""

    name: str
    array: str
    values: int
    """How many differ."""
    largest: float
    """Largest absolute difference."""


def changed_sources(experiment: Experiment) -> list[Changed]:
    """Images of the store whose files are gone or have other content. Names that are trusted (`data.identity: name`) only
    have to be there.
    """
    store = FeatureStore.open(experiment.store_location)
    sources = stored_sources(experiment, store.plan, store.ids)
    nowhere = set[int].intersection(*(set(store.failed([name])) for name in store.arrays))
    named = [(name, row) for row, source in enumerate(sources.rows) for name in source.names if row not in nowhere]
    named.sort(key=lambda one: sources.images.place(one[0]))

    def look(one: tuple[str, int]) -> Changed | None:
        name, row = one
        try:
            data = sources.images.read(name)
        except BadImage as bad:
            return Changed(name, bad.reason)
        same = not sources.by_content or content_id(data) == sources.rows[row].sha
        return None if same else Changed(name, "changed")

    with ThreadPoolExecutor(experiment.extract.decode_threads) as pool:
        looks = ProgressBar(pool.map(look, named), "compare", len(named), unit="images")
        return [found for found in looks if found is not None]


def encode_again(experiment: Experiment, sample: int) -> dict[str, Any]:
    """Encode some images of the store again, spread over all of it, and compare every array bit for bit.

    Raises StoreMissing (exit 5) if nothing is extracted yet.
    """
    store = FeatureStore.open(experiment.store_location)
    rows = spread_out(store, sample)
    use_threads_of(store.plan)
    opened = OpenEncoder.load(experiment.with_arrays(store.arrays), devices(experiment)[0])
    sources = stored_sources(experiment, store.plan, store.ids)
    unequal: list[Unequal] = []
    changed: list[Changed] = []
    for row in ProgressBar(rows, "encode again", unit="images"):
        source = sources.rows[row]
        pixels = decode(source, sources, opened.encoder, experiment.extract.max_pixels)
        if isinstance(pixels, BadImage):
            changed.append(Changed(source.names[0], pixels.reason))
            continue
        made = opened.encode([pixels])
        unequal += [one for name in store.arrays if (one := _compare(store, name, row, made[name][0])) is not None]
    made_by = opened.fingerprints()
    numeric = {
        str(d) for name in store.arrays for d in differences(store.fingerprint(name).numeric, made_by[name].numeric)
    }
    return {
        "compared": len(rows) - len(changed),
        "unequal": [asdict(one) for one in unequal],
        "changed": [asdict(one) for one in changed],
        "other_environment": sorted(numeric),
    }


def _compare(store: FeatureStore, name: str, row: int, made: NDArray[Any]) -> Unequal | None:
    stored = store.gather(name, [row])[0]
    if stored.tobytes() == made.tobytes():
        return None
    dtype = store.arrays[name].dtype
    difference = (from_storage(stored, dtype).double() - from_storage(made, dtype).double()).abs()
    values = int(np.count_nonzero(stored != made))
    return Unequal(store.ids.names(row)[0], name, values, float(difference.max()))


def as_text(found: dict[str, Any]) -> str:
    """The findings for a reader."""
    lines = [
        f"image differs from what was encoded: {printable(one['name'])} ({one['reason']})" for one in found["changed"]
    ]
    if found["changed"]:
        lines += ["bring the files back, or let `extract --append` encode what changed as it is now"]
    lines += [
        f"{printable(one['name'])}: {one['array']} differs in {one['values']:,} values, by up to {one['largest']:.3g}"
        for one in found["unequal"]
    ]
    if found["unequal"] and found["other_environment"]:
        lines += ["the store was made in another environment, where other bits are to be expected:"]
        lines += [f"  {one}" for one in found["other_environment"]]
    if "compared" in found and not found["unequal"]:
        lines += [f"{found['compared']} images encoded again: every array is equal, bit for bit"]
    return "\n".join(lines or ["every image file is the one that was encoded"])
