"""Images -> store: decode in threads, encode, commit shard by shard; killed at any moment, it goes on where it stopped."""

import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from configs.experiment import Experiment
from configs.load import save_resolved
from stage1_extract.errors import BadImage, TooManyFailures
from stage1_extract.family import Description, Encoder, Pixels, checkpoint_config
from stage1_extract.find_family import find_family
from stage1_extract.fingerprint import environment, fingerprints
from stage1_extract.images import content_id, decode_image, read_image_bytes
from stage1_extract.price import price, require_space
from stage1_extract.sources import Source, Sources, find_sources
from store.commits import read_commits
from store.plan import PLAN, Plan
from store.schema import default_shard_images
from store.tensors import pick_device, to_storage
from store.writer import StoreWriter

One = TypeVar("One")
Other = TypeVar("Other")
Decoded = Pixels | BadImage
_log = logging.getLogger(__name__)
_SHOWN = 20


@dataclass
class Progress:
    """What a run has done so far."""

    bar: Any
    tower_images: int = 0
    """Rows that the tower has seen."""
    failures: dict[int, str] = field(default_factory=dict)
    """Rows that failed, earlier runs' included."""
    bytes_written: int = 0


def dry_run(experiment: Experiment) -> dict[str, Any]:
    """The price of an extraction; loads no weights (but for a model whose parts cannot be reached)."""
    config = checkpoint_config(experiment.model)
    description = find_family(config).describe(experiment, config)
    sources = find_sources(experiment)
    plan = plan_for(experiment, sources, description, {})
    return price(plan, sources, description, experiment.store_path)


def extract(experiment: Experiment, overwrite: bool) -> dict[str, Any]:
    """Encode what the store does not have yet; returns counts and failures.

    Raises TooManyFailures (exit 3), DataMissing and CheckpointMissing (exit 5), FingerprintMismatch (exit 4) if the store
    was made by something else, StoreLocked (exit 6), NoSpace (exit 7).
    """
    begun = time.monotonic()
    config = checkpoint_config(experiment.model)
    family = find_family(config)
    sources = find_sources(experiment)
    allowed = _allowed(experiment.extract.max_failures, len(sources.rows))
    _require_few(dict(enumerate_failures(sources)), allowed, sources)
    device = pick_device(experiment.model.device)
    encoder = family.open(experiment, config, device)
    for note in encoder.description.notes:
        _log.warning("note: %s", note)
    numeric = environment(
        device, experiment.extract.tower_batch, _batch_invariant(encoder, experiment.extract.tower_batch)
    )
    plan = plan_for(experiment, sources, encoder.description, fingerprints(experiment, config, encoder, numeric))
    path = experiment.store_path
    if overwrite and (path / PLAN).exists():
        shutil.rmtree(path)
    with StoreWriter.open(path, plan, sources.ids(), encoder.projector) as writer:
        save_resolved(experiment, path)
        missing = writer.missing_shards()
        require_space(
            sum(plan.layout(a.name).file_bytes(len(plan.rows(s))) for a in plan.arrays for s in missing), path
        )
        progress = encode_shards(experiment, writer, sources, encoder, missing, allowed)
    return {
        "store": str(path),
        "images": sources.names,
        "distinct": len(sources.rows),
        "tower_images": progress.tower_images,
        "shards": plan.n_shards,
        "shards_written": len(missing),
        "bytes_written": progress.bytes_written,
        "failures": {", ".join(sources.rows[row].names): why for row, why in sorted(progress.failures.items())},
        "notes": list(encoder.description.notes),
        "seconds": round(time.monotonic() - begun, 2),
    }


def enumerate_failures(sources: Sources) -> Iterator[tuple[int, str]]:
    """Rows that are known to fail before anything is decoded."""
    for row, source in enumerate(sources.rows):
        if source.names[0] in sources.unreadable:
            yield row, sources.unreadable[source.names[0]]


def plan_for(experiment: Experiment, sources: Sources, description: Description, prints: dict[str, Any]) -> Plan:
    """The store that an experiment asks for."""
    return Plan(
        n_images=len(sources.rows),
        shard_images=experiment.store.shard_images or default_shard_images(description.arrays, len(sources.rows)),
        arrays=description.arrays,
        fingerprints=prints,
        geometry=description.geometry,
        identity=experiment.data.identity,
        ids_digest=sources.ids().digest(),
        notes=description.notes,
    )


def encode_shards(
    experiment: Experiment,
    writer: StoreWriter,
    sources: Sources,
    encoder: Encoder,
    missing: Sequence[int],
    allowed: int,
) -> Progress:
    """All missing shards; decoding runs ahead in threads, committing runs behind in one."""
    plan = writer.plan
    rows = [row for shard in missing for row in plan.rows(shard)]
    batch = experiment.extract.tower_batch
    committed = read_commits(writer.path)
    earlier = {row: why for record in committed.values() for row, why in record.failures.items()}

    def decode(row: int) -> Decoded:
        return _decode(sources.rows[row], sources, encoder, experiment.extract.max_pixels)

    with (
        ThreadPoolExecutor(experiment.extract.decode_threads) as decoders,
        ThreadPoolExecutor(1) as committer,
        tqdm(total=plan.n_images, initial=plan.n_images - len(rows), desc="encode", unit="image", disable=None) as bar,
    ):
        progress = Progress(bar, failures=earlier)
        decoded = lookahead(decoders, decode, rows, 2 * batch + experiment.extract.decode_threads)
        pending: Future[Any] | None = None
        try:
            for shard in missing:
                begun = time.time()
                arrays, failures = _encode_shard(plan, shard, decoded, encoder, batch, progress)
                progress.failures |= failures
                _require_few(progress.failures, allowed, sources)
                telemetry = {
                    "began": begun,
                    "ended": time.time(),
                    "tower_images": len(plan.rows(shard)) - len(failures),
                }
                if pending is not None:
                    pending.result()
                pending = committer.submit(writer.commit_shard, shard, arrays, failures, telemetry)
                progress.bytes_written += sum(array.nbytes for array in arrays.values())
                bar.set_postfix_str(f"{progress.bytes_written / 1e9:.2f} GB")
            if pending is not None:
                pending.result()
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)
    return progress


def _encode_shard(
    plan: Plan, shard: int, decoded: Iterator[Decoded], encoder: Encoder, batch: int, progress: Progress
) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
    """Arrays and failures of one shard. Batches are cut inside the shard, in row order: where a run began changes nothing."""
    rows = plan.rows(shard)
    arrays = {spec.name: np.full((len(rows), *spec.shape), spec.fill, spec.storage) for spec in plan.arrays}
    failures: dict[int, str] = {}
    waiting: list[tuple[int, Pixels]] = []

    def flush() -> None:
        places = [place for place, _ in waiting]
        for name, values in encoder.encode([pixels for _, pixels in waiting]).items():
            arrays[name][places] = to_storage(values)
        progress.tower_images += len(waiting)
        waiting.clear()

    for place, one in enumerate(islice(decoded, len(rows))):
        if isinstance(one, BadImage):
            failures[rows[place]] = one.reason
        else:
            waiting.append((place, one))
        if len(waiting) == batch:
            flush()
        progress.bar.update()
    if waiting:
        flush()
    return arrays, failures


def _decode(source: Source, sources: Sources, encoder: Encoder, max_pixels: int) -> Decoded:
    name = source.names[0]
    try:
        data = read_image_bytes(sources.root, name)
        if sources.by_content and content_id(data) != source.sha:
            raise BadImage("changed_while_running", name)
        return encoder.preprocess(decode_image(data, name, max_pixels))
    except BadImage as bad:
        return bad


def lookahead(
    pool: ThreadPoolExecutor, work: Callable[[One], Other], items: Iterable[One], depth: int
) -> Iterator[Other]:
    """`work(item)` for each item, in order, with up to `depth` of them under way in the pool."""
    source = iter(items)
    under_way = deque(pool.submit(work, item) for item in islice(source, depth))
    while under_way:
        done = under_way.popleft().result()
        for item in islice(source, 1):
            under_way.append(pool.submit(work, item))
        yield done


@torch.no_grad()
def _batch_invariant(encoder: Encoder, tower_batch: int) -> bool:
    """Whether an image's features are the same bits alone and in a full batch, tried on noise.

    If they are not, the full model (which sees images in other batches) cannot be equal bit for bit, only close.
    """
    if tower_batch == 1:
        return True
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (tower_batch, 64, 64, 3), dtype=np.uint8)
    pixels = [encoder.preprocess(Image.fromarray(one)) for one in noise]
    together, alone = encoder.encode(pixels), encoder.encode(pixels[:1])
    same = all(np.array_equal(to_storage(together[name][:1]), to_storage(alone[name])) for name in alone)
    if not same:
        _log.warning(
            "note: on this device the tower's features depend on its batch; with --tower-batch %d parity may be only close, "
            "--tower-batch 1 makes it exact", tower_batch,
        )  # fmt: skip
    return same


def _allowed(max_failures: str, images: int) -> int:
    """How many images may fail: `5`, or `1%` of all."""
    if max_failures.endswith("%"):
        return int(Fraction(max_failures[:-1]) * images / 100)  # not floats: 29 % of 100 is 29
    return int(max_failures)


def _require_few(failures: dict[int, str], allowed: int, sources: Sources) -> None:
    if len(failures) <= allowed:
        return
    listed = "".join(f"\n  {', '.join(sources.rows[row].names)}: {why}" for row, why in list(failures.items())[:_SHOWN])
    more = f"\n  … and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
    raise TooManyFailures(
        f"{len(failures)} images cannot be encoded, {allowed} are tolerated; correct them, or raise --max-failures; shards "
        f"that are committed stay:{listed}{more}"
    )
