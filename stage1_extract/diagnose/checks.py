"""Check a store without a forward of the tower: empty rows, equal rows, wrong projections, conspicuous rows."""

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
"""How many median distances a row's root mean square may lie from the median before the row is encoded again too."""
ENOUGH = 16
"""Fewest rows whose root mean squares are compared."""
_FEATURES = ("raw", "projected")


@dataclass
class Checked:
    """The findings of the checks without the tower."""

    rows: tuple[int, ...]
    """Rows that were checked."""
    blank: dict[str, dict[int, Cause]] = field(default_factory=dict[str, dict[int, Cause]])
    """Causes of rows that are empty, wholly or in some of their tokens, by array and row."""
    twins: dict[str, list[tuple[int, ...]]] = field(default_factory=dict[str, list[tuple[int, ...]]])
    """Groups of rows that are equal although their pictures differ, by array."""
    not_projected: list[int] = field(default_factory=list[int])
    """Rows whose `projected` is not the projection of their `raw`."""
    conspicuous: list[int] = field(default_factory=list[int])
    """Rows that are worth encoding again, the most conspicuous first."""
    by_digest: dict[str, dict[bytes, list[int]]] = field(default_factory=dict[str, dict[bytes, list[int]]])
    """Rows by array and by the digest of their bytes."""

    def where(self, name: str, values: NDArray[Any]) -> list[int]:
        """List the checked rows of an array that hold exactly these values."""
        return self.by_digest.get(name, {}).get(_digest(values), [])


def price(bench: Bench, rows: Sequence[int]) -> str:
    """Say how many bytes the checks read, and how long projecting takes, measured on one row."""
    gigabytes = sum(spec.row_bytes for spec in bench.store.arrays.values()) * len(rows) / 1e9
    reading = f"checks without the tower: {len(rows)} of {bench.store.plan.n_rows} rows, {gigabytes:.2f} GB to read"
    is_projected = _projection_check(bench)
    if is_projected is None:
        return reading
    began = time.perf_counter()
    is_projected(rows[0])
    return f"{reading}, about {(time.perf_counter() - began) * len(rows) / 60:.1f} minutes to project"


def check(bench: Bench, rows: Sequence[int], sampled: int) -> Checked:
    """Check rows of all arrays; at most `sampled` of them are called conspicuous."""
    checked = Checked(tuple(rows))
    sizes: dict[str, list[float]] = defaultdict(list)
    is_projected = _projection_check(bench)
    checked.by_digest = {name: defaultdict(list) for name in bench.store.arrays}
    for row in ProgressBar(rows, "check rows", unit="rows"):
        for name, spec in bench.store.arrays.items():
            values = bench.store.gather(name, [row])[0]
            checked.by_digest[name][_digest(values)].append(row)
            tensor = from_storage(values, spec.dtype).float()
            sizes[name].append(tensor.square().mean().sqrt().item())
            cause = None if name == IMAGE_AREA else _blank(tensor, by_token=name in _FEATURES)
            if cause is not None:
                checked.blank.setdefault(name, {})[row] = cause
        if is_projected is not None and not is_projected(row):
            checked.not_projected.append(row)
    for name in bench.store.arrays:
        if name != IMAGE_AREA:
            blank = checked.blank.get(name, {})
            groups = (group for group in checked.by_digest[name].values() if len(group) > 1 and group[0] not in blank)
            checked.twins[name] = [group for group in map(tuple, groups) if _pictures_differ(bench, group)]
    checked.conspicuous = _conspicuous(checked, sizes)[:sampled]
    return checked


def _blank(tensor: Tensor, by_token: bool) -> Cause | None:
    """Return the cause of a row in which all values, or all values of a token, are equal; None for any other row."""
    tokens = tensor.reshape(-1, tensor.shape[-1]) if by_token else tensor.reshape(1, -1)
    constant = (tokens == tokens[:, :1]).all(1)
    if not constant.any() or tokens.shape[1] == 1:
        return None
    return ZEROS if (tokens[constant] == 0).all() else ONE_VALUE


def _projection_check(bench: Bench) -> Callable[[int], bool] | None:
    """Return a function that tells whether a row's `projected` is the projection of its `raw`.

    Bits must agree where `projected` was made in this environment; elsewhere rounding is allowed. None for a store that lacks
    the projector or one of the arrays.
    """
    arrays, projector = bench.store.arrays, bench.stored_projector()
    if projector is None or not {*_FEATURES} <= {*arrays}:
        return None
    made_elsewhere = bool(bench.made_elsewhere("projected"))

    def agrees(row: int) -> bool:
        raw, projected = (bench.stored(name, row) for name in _FEATURES)
        made = project(bench, projector, raw)
        if made is None or made.dtype != projected.dtype or made.shape != projected.shape:
            return False
        trial = compare({}, made, projected)
        return trial.equal or (made_elsewhere and trial.residual <= bench.rounding("projected"))

    return agrees


def project(bench: Bench, projector: Projector, raw: Tensor) -> Tensor | None:
    """Project one stored row on the bench's device; None where the projector takes another width or dtype."""
    first = next(iter(projector.parameters()))
    if raw.dtype != first.dtype or raw.shape[-1] != first.shape[-1]:
        return None
    return project_image(projector, raw[None].to(bench.device))[0].cpu()


def follows(bench: Bench, projector: Projector, row: int) -> bool:
    """Return whether a stored row of `projected` is the projection of the stored row of `raw`, bit for bit."""
    made = project(bench, projector, bench.stored("raw", row))
    stored = bench.stored("projected", row)
    return made is not None and made.dtype == stored.dtype and same_bits(made, stored)


def _pictures_differ(bench: Bench, group: Iterable[int]) -> bool:
    """Return whether images of a group look different to the tower; images that cannot be read are left out."""
    pictures: set[bytes] = set()
    for row in group:
        try:
            pictures.add(_digest(bench.pixels(row, {})["pixel_values"].numpy()))
        except BadImage:
            continue
    return len(pictures) > 1


def _conspicuous(checked: Checked, sizes: Mapping[str, Sequence[float]]) -> list[int]:
    """List the rows that a check objected to, then the rows whose root mean square is far from all others'."""
    rows = [*checked.not_projected, *(row for groups in checked.twins.values() for group in groups for row in group)]
    rows += [row for blank in checked.blank.values() for row in blank]
    for measured in sizes.values() if len(checked.rows) >= ENOUGH else ():
        values = np.array(measured)
        apart = np.abs(values - np.median(values))
        usual = max(float(np.median(apart)), float(np.finfo(np.float32).eps * np.abs(values).max()))
        far = np.flatnonzero(apart > CONSPICUOUS * usual)
        rows += [checked.rows[index] for index in far[np.argsort(-apart[far], kind="stable")]]
    return list(dict.fromkeys(rows))


def _digest(values: NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()
