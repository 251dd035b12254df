"""Compare a store with the image files that it was made of, and with features that are encoded again, bit for bit."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.counted import counted
from configs.experiment import Experiment
from configs.progress import ProgressBar
from stage1_extract.checking.sample import spread_out
from stage1_extract.encoding.family import Pixels
from stage1_extract.errors import BadImage
from stage1_extract.sources import Sources, file_threads, stored_sources
from stage1_extract.sources.images import content_id
from stage1_extract.work.decoding import decode
from stage1_extract.work.open_encoder import OpenEncoder
from store.layout.fingerprint import differences
from store.layout.ids import printable
from store.layout.tensors import from_storage, worker_devices
from store.reading.reader import FeatureStore


@dataclass(frozen=True)
class Changed:
    """An image whose file is not the file that was encoded."""

    name: str
    reason: str
    """`changed`, or a word of `images.REASONS` for a file that cannot be read any more."""


@dataclass(frozen=True)
class Unequal:
    """An array of an image that differs from what the tower makes of the image now."""

    name: str
    array: str
    values: int
    """How many values differ."""
    largest: float | None
    """Largest absolute difference; None where the store has rows of another shape or dtype."""
    kind: str | None = None
    """What is expected of a row and what the store has, where shape or dtype differ."""


def changed_sources(experiment: Experiment) -> list[Changed]:
    """List the images of the store whose files are gone or have other content.

    With `data.identity: name`, names are trusted: a file only has to exist.
    """
    store = FeatureStore.open(experiment.store_location)
    sources = stored_sources(experiment, store.plan, store.ids)
    in_no_array = set[int].intersection(*(set(store.failed([name])) for name in store.arrays))
    named = [(name, row) for row, source in enumerate(sources.rows) for name in source.names if row not in in_no_array]
    named.sort(key=lambda named_row: sources.images.position(named_row[0]))

    def look(named_row: tuple[str, int]) -> Changed | None:
        name, row = named_row
        try:
            data = sources.images.read(name)
        except BadImage as bad:
            return Changed(name, bad.reason)
        same = not sources.by_content or content_id(data) == sources.rows[row].sha
        return None if same else Changed(name, "changed")

    with ThreadPoolExecutor(file_threads(experiment)) as pool:
        looks = ProgressBar(pool.map(look, named), "compare", len(named), unit="images")
        return [changed for changed in looks if changed is not None]


def encode_again(experiment: Experiment, sample: int) -> dict[str, Any]:
    """Encode `sample` images of the store again, spread over all of it, and compare every array bit for bit.

    Returns:
        The number of images `compared`, the `unequal` arrays, the `changed` images, which could not be compared, and the
        differences between this environment and the store's (`other_environment`), as JSON-able values.

    Raises:
        StoreMissing: Nothing is extracted yet (exit 5).

    """
    store = FeatureStore.open(experiment.store_location)
    rows = spread_out(store, sample)
    opened = OpenEncoder.load(
        experiment.with_arrays(store.arrays), worker_devices(experiment.model.device)[0], store.plan
    )
    sources = stored_sources(experiment, store.plan, store.ids)
    changed: list[Changed] = []
    pictures = _pictures(experiment, opened, sources, rows, changed)
    unequal = list(_unequal(store, opened, pictures))
    prints = opened.fingerprints()
    numeric = {
        str(difference)
        for name in store.arrays
        for difference in differences(store.fingerprint(name).numeric, prints[name].numeric)
    }
    return {
        "compared": len(rows) - len(changed),
        "unequal": [asdict(array) for array in unequal],
        "changed": [asdict(image) for image in changed],
        "other_environment": sorted(numeric),
    }


def _pictures(
    experiment: Experiment, opened: OpenEncoder, sources: Sources, rows: Sequence[int], changed: list[Changed]
) -> Iterator[tuple[int, Pixels]]:
    """Yield the rows whose images can be read, with what the image processor makes of each; add the others to `changed`."""
    for row in ProgressBar(rows, "encode again", unit="images"):
        source = sources.rows[row]
        pixels = decode(source, sources, opened.encoder, experiment.extract.max_pixels)
        if isinstance(pixels, BadImage):
            changed.append(Changed(source.names[0], pixels.reason))
        else:
            yield row, pixels


def _unequal(store: FeatureStore, opened: OpenEncoder, pictures: Iterable[tuple[int, Pixels]]) -> Iterator[Unequal]:
    """Encode the pictures of some rows again, and yield what is not as it is stored; earlier pictures fill the last call."""
    source, company = iter(pictures), list[Pixels]()
    while called := list(islice(source, opened.batch)):
        made = opened.encode(asked := [pixels for _, pixels in called], company)
        company = asked
        for number, (row, _) in enumerate(called):
            compared = (_compare(store, name, row, made[name][number]) for name in store.arrays)
            yield from (difference for difference in compared if difference is not None)


def _compare(store: FeatureStore, name: str, row: int, made: NDArray[Any]) -> Unequal | None:
    """Compare a stored row of an array with the row that was made now; None if all bits are equal."""
    stored = store.gather(name, [row])[0]
    if stored.tobytes() == made.tobytes():
        return None
    if (stored.shape, stored.dtype) != (made.shape, made.dtype):
        return Unequal(store.ids.names(row)[0], name, stored.size, None, _other_kind(stored, made))
    dtype = store.arrays[name].dtype
    difference = (from_storage(stored, dtype).double() - from_storage(made, dtype).double()).abs()
    values = int(np.count_nonzero(stored != made))
    return Unequal(store.ids.names(row)[0], name, values, float(difference.max()))


def _other_kind(stored: NDArray[Any], made: NDArray[Any]) -> str:
    """Say that stored rows have another shape than rows that are made now, or else another dtype."""
    want, have = ("x".join(map(str, row.shape)) for row in (made, stored))
    if want == have:
        want, have = f"{want} {made.dtype}", f"{have} {stored.dtype}"
    return f"expected rows of {want}, the store has {have}"


def as_text(result: dict[str, Any], store: object = "STORE") -> str:
    """Write the result of `encode_again`, or the changed images alone, as lines of text."""
    lines = [
        f"image differs from what was encoded: {printable(image['name'])} ({image['reason']})"
        for image in result["changed"]
    ]
    if result["changed"]:
        lines += ["bring the files back, or let `extract --append` encode what changed as it is now"]
    lines += [
        f"{printable(array['name'])}: {array['array']}"
        + (
            f": {array['kind']}"
            if array["kind"]
            else f" differs in {counted(array['values'], 'value')}, by up to {array['largest']:.3g}"
        )
        for array in result["unequal"]
    ]
    if any(array["kind"] for array in result["unequal"]):
        lines += [f"something else made this store: `python -m stage1_extract diagnose {store}` looks for the cause"]
    if result["unequal"] and result["other_environment"]:
        lines += ["the store was made in another environment, where other bits are to be expected:"]
        lines += [f"  {difference}" for difference in result["other_environment"]]
    if result.get("compared") == 0:
        lines += ["no image was encoded again, so nothing was compared"]
    elif "compared" in result and not result["unequal"]:
        lines += [f"{counted(result['compared'], 'image')} encoded again: every array is equal, bit for bit"]
    return "\n".join(lines or ["every image file is the one that was encoded"])
