"""What can be seen in a store without a forward of the tower: empty rows, equal rows, projections, conspicuous rows."""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from configs.progress import ProgressBar
from stage1_extract.diagnose.bench import Bench
from stage1_extract.diagnose.fit import compare, same_bits
from stage1_extract.diagnose.suspects import ONE_VALUE, ZEROS, Cause
from stage1_extract.encoding.arrays import IMAGE_AREA
from stage1_extract.errors import BadImage
from store.layout.tensors import from_storage
from store.projectors import Projector, project_image

CONSPICUOUS = 8.0
"""Distance of a row's size from the median, in median distances, beyond which it is encoded again too."""
ENOUGH = 16
"""Rows from which on sizes are compared at all."""
_FEATURES = ("raw", "projected")


@dataclass
class Checked:
    """What was found without the tower."""

    rows: tuple[int, ...]
    blank: dict[str, dict[int, Cause]] = field(default_factory=dict[str, dict[int, Cause]])
    """By array and row, what is wrong with rows that are empty, wholly or in some of their tokens."""
    twins: dict[str, list[tuple[int, ...]]] = field(default_factory=dict[str, list[tuple[int, ...]]])
    """By array, rows that are equal although their pictures are not."""
    not_projected: list[int] = field(default_factory=list[int])
    """Rows whose `projected` is not the projection of their `raw`."""
    conspicuous: list[int] = field(default_factory=list[int])
    """Rows to encode again besides, the most conspicuous first."""
    places: dict[str, dict[bytes, list[int]]] = field(default_factory=dict[str, dict[bytes, list[int]]])
    """By array, the rows that hold just these bytes."""

    def where(self, name: str, row: NDArray[Any]) -> list[int]:
        """List the rows of an array that hold the same bytes."""
        return self.places.get(name, {}).get(_digest(row), [])


def price(bench: Bench, rows: Sequence[int]) -> str:
    """Say what the checks read, and how long projecting takes, measured on one row."""
    read = sum(spec.row_bytes for spec in bench.store.arrays.values()) * len(rows) / 1e9
    said = f"checks without the tower: {len(rows)} of {bench.store.plan.n_rows} rows, {read:.2f} GB to read"
    projected = _projection(bench)
    if projected is None:
        return said
    began = time.perf_counter()
    projected(rows[0])
    return f"{said}, about {(time.perf_counter() - began) * len(rows) / 60:.1f} minutes to project"


def check(bench: Bench, rows: Sequence[int], sampled: int) -> Checked:
    """Look at rows of all arrays; at most `sampled` of them are called conspicuous."""
    found = Checked(tuple(rows))
    sizes: dict[str, list[float]] = defaultdict(list)
    projects = _projection(bench)
    found.places = {name: defaultdict(list) for name in bench.store.arrays}
    for row in ProgressBar(rows, "check rows", unit="rows"):
        for name, spec in bench.store.arrays.items():
            values = bench.store.gather(name, [row])[0]
            found.places[name][_digest(values)].append(row)
            tensor = from_storage(values, spec.dtype).float()
            sizes[name].append(tensor.square().mean().sqrt().item())
            cause = None if name == IMAGE_AREA else _blank(tensor, by_token=name in _FEATURES)
            if cause is not None:
                found.blank.setdefault(name, {})[row] = cause
        if projects is not None and not projects(row):
            found.not_projected.append(row)
    for name in bench.store.arrays:
        if name != IMAGE_AREA:
            blank = found.blank.get(name, {})
            groups = (group for group in found.places[name].values() if len(group) > 1 and group[0] not in blank)
            found.twins[name] = [group for group in map(tuple, groups) if _pictures_differ(bench, group)]
    found.conspicuous = _conspicuous(found, sizes)[:sampled]
    return found


def _blank(tensor: Tensor, by_token: bool) -> Cause | None:
    tokens = tensor.reshape(-1, tensor.shape[-1]) if by_token else tensor.reshape(1, -1)
    constant = (tokens == tokens[:, :1]).all(1)
    if not constant.any() or tokens.shape[1] == 1:
        return None
    return ZEROS if (tokens[constant] == 0).all() else ONE_VALUE


def _projection(bench: Bench) -> Callable[[int], bool] | None:
    """Return a check of one row, or None where the store cannot be checked.

    Bits must agree where `projected` was made in this environment; elsewhere rounding is allowed.
    """
    arrays, projector = bench.store.arrays, bench.stored_projector()
    if projector is None or not {*_FEATURES} <= {*arrays}:
        return None
    elsewhere = bool(bench.made_elsewhere("projected"))

    def agrees(row: int) -> bool:
        raw, projected = (bench.stored(name, row) for name in _FEATURES)
        made = project(bench, projector, raw)
        if made is None or made.dtype != projected.dtype or made.shape != projected.shape:
            return False
        trial = compare({}, made, projected)
        return trial.equal or (elsewhere and trial.residual <= bench.rounding("projected"))

    return agrees


def project(bench: Bench, projector: Projector, raw: Tensor) -> Tensor | None:
    """Project one stored row on the bench's device; None where its width or dtype is not the projector's."""
    first = next(iter(projector.parameters()))
    if raw.dtype != first.dtype or raw.shape[-1] != first.shape[-1]:
        return None
    return project_image(projector, raw[None].to(bench.device))[0].cpu()


def follows(bench: Bench, projector: Projector, row: int) -> bool:
    """Return whether a stored row of `projected` is the projection of the stored `raw`, bit for bit."""
    made = project(bench, projector, bench.stored("raw", row))
    stored = bench.stored("projected", row)
    return made is not None and made.dtype == stored.dtype and same_bits(made, stored)


def _pictures_differ(bench: Bench, group: Iterable[int]) -> bool:
    """Return whether images of a group look different to the tower; those that cannot be read are left out."""
    seen: set[bytes] = set()
    for row in group:
        try:
            seen.add(_digest(bench.pixels(row, {})["pixel_values"].numpy()))
        except BadImage:
            continue
    return len(seen) > 1


def _conspicuous(found: Checked, sizes: Mapping[str, Sequence[float]]) -> list[int]:
    """List rows that a check found, then those whose size is far from all others'."""
    named = [*found.not_projected, *(row for rows in found.twins.values() for group in rows for row in group)]
    named += [row for rows in found.blank.values() for row in rows]
    for measured in sizes.values() if len(found.rows) >= ENOUGH else ():
        values = np.array(measured)
        apart = np.abs(values - np.median(values))
        usual = max(float(np.median(apart)), float(np.finfo(np.float32).eps * np.abs(values).max()))
        far = np.flatnonzero(apart > CONSPICUOUS * usual)
        named += [found.rows[place] for place in far[np.argsort(-apart[far], kind="stable")]]
    return list(dict.fromkeys(named))


def _digest(row: NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()
