# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportUnknownParameterType=false
# (h5py has no types)
"""A store out of an HDF5 file that `store.copies.hdf5` wrote.

Files come from anywhere, so what is read is compared with what a store must be and with the checksums in the file, links out
of the file are not followed, and nothing is unpickled.
"""

import json
import logging
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from store.copies.contents import Contents
from store.copies.hdf5 import CHECKSUMS, IDS, SEAL, bfloat16, hdf5_type, places, seal_of, texts_of
from store.errors import StoreError, StoreMissing
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.layout.schema import ArraySpec, Dtype, storage_dtype
from store.layout.shard import crc
from store.reading.reader import PROJECTOR, ProjectorState

_TAKEN = {"rows", "sha256", "names", "failed", "failures", "ids", CHECKSUMS, PROJECTOR}
"""Names that no array may have."""
_NAME = re.compile(r"\w[\w.-]*")
_log = logging.getLogger(__name__)


@contextmanager
def opened(path: Path) -> Generator[Contents, None, None]:
    """The store in a file that `export_hdf5` wrote.

    Raises StoreMissing (exit 5) where there is no such file, StoreError where it holds no store that fits together.
    """
    if not path.is_file():
        raise StoreMissing(f"expected an HDF5 file at {path}, there is none: name one that `export --hdf5` wrote")
    with _refusing(path):
        file = h5py.File(path, "r")
    with file:
        with _refusing(path):
            contents = _read_contents(file, path)
        yield contents


def _values(data: h5py.Dataset, first: int, count: int, storage: np.dtype[Any]) -> NDArray[Any]:
    values = np.empty((count, *data.shape[1:]), storage)
    if count:
        memory, place = places(data, first, values.shape)
        data.id.read(memory, place, values, data.id.get_type())
    return values


@contextmanager
def _refusing(path: Path) -> Generator[None, None, None]:
    """Whatever a file that is no export makes h5py, numpy or this module say, said in one sentence."""
    try:
        yield
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        RuntimeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(
            f"expected a whole HDF5 export of a store, {path} is none ({said}): write it again with "
            "`python -m store export STORE --hdf5 OUT`"
        ) from None


def _require(is_so: bool, expected: str, found: object) -> None:
    if not is_so:
        raise ValueError(f"expected {expected}, found {found}")


def _dataset(group: h5py.Group, name: str, dtype: str | np.dtype[Any]) -> h5py.Dataset:
    """A dataset whose bytes lie in this file."""
    link = group.get(name, getlink=True)
    _require(isinstance(link, h5py.HardLink), f"the dataset {name}", "none" if link is None else "a link")
    data: Any = group[name]
    _require(isinstance(data, h5py.Dataset), f"the dataset {name}", "a group")
    _require(not data.is_virtual and data.external is None, f"{name} in the file itself", "values in another")
    wanted = bfloat16() if dtype == "bfloat16" else h5py.h5t.py_create(np.dtype(dtype), logical=True)
    _require(data.id.get_type().equal(wanted), f"{name} as {dtype}", data.dtype)
    return data


def _group(file: h5py.File, name: str) -> h5py.Group:
    found: Any = file.get(name)
    _require(isinstance(file.get(name, getlink=True), h5py.HardLink), f"the group {name}", "none, or a link")
    _require(isinstance(found, h5py.Group), f"the group {name}", "a dataset")
    return found


def _read_contents(file: h5py.File, path: Path) -> Contents:
    plan = _read_plan(file)
    failures, rows = _read_failures(file, plan), _dataset(file, "rows", "<i8")[...]
    arrays = {spec.name: _dataset(file, spec.name, spec.dtype) for spec in plan.arrays}
    for spec in plan.arrays:
        wanted, found = (len(rows), *spec.shape), arrays[spec.name].shape
        _require(found == wanted, f"{spec.name} as {wanted}", found)

    checksums = _read_checksums(file, plan, len(rows))

    def read(name: str, wanted: Sequence[int]) -> NDArray[Any]:
        with _refusing(path):
            first = int(np.searchsorted(rows, wanted[0])) if wanted else 0
            values = _values(arrays[name], first, len(wanted), plan.array(name).storage)
            for row, value, checksum in zip(wanted, values, checksums.get(name, ())[first:], strict=False):
                _require(crc(value) == int(checksum), f"row {row} of {name} as it was written", "another")
            return values

    shards = tuple(sorted({row // plan.shard_images for row in [*rows.tolist(), *failures]}))
    contents = Contents(plan, _read_ids(file, plan), _read_projector(file), shards, failures, read)
    _require(contents.all_rows == rows.tolist(), "all rows of the shards that `rows` names", f"{len(rows)} others")
    if checksums:
        _require(file.attrs.get(SEAL) == seal_of(contents, checksums), "all but the rows as it was written", "others")
        for name, lines in texts_of(contents).items():
            found = _dataset(file, name, h5py.string_dtype())[...].tolist()
            _require(found == lines, f"{name} as they were written", "others")
    return contents


def _read_checksums(file: h5py.File, plan: Plan, rows: int) -> dict[str, NDArray[Any]]:
    """The checksums of the rows by array; none in a file of an earlier version, which is said."""
    if SEAL not in file.attrs and CHECKSUMS not in file:
        _log.warning(
            "note: the file has no checksums, as earlier versions wrote none: its values are taken as they are"
        )
        return {}
    group = _group(file, CHECKSUMS)
    found = {spec.name: _dataset(group, spec.name, "<u4")[...] for spec in plan.arrays}
    _require(all(len(values) == rows for values in found.values()), f"{rows} checksums of each array", "others")
    return found


def _read_plan(file: h5py.File) -> Plan:
    """The plan, if it is one of a first generation whose parts fit together."""
    try:
        plan = Plan.model_validate_json(str(file.attrs["plan"]))
    except ValidationError as error:
        first: Any = error.errors()[0]
        raise ValueError(f"plan.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    _require(plan == plan.flattened(), "the plan of a first generation", f"generation {plan.generation}")
    names = [spec.name for spec in plan.arrays]
    odd = [name for name in names if name in _TAKEN or names.count(name) > 1 or not _NAME.fullmatch(name)]
    _require(bool(names) and not odd, "arrays under names of their own", odd)
    for spec in plan.arrays:
        sizes = spec.shape if len(spec.shape) == len(spec.axes) else ()
        _require(bool(sizes) and min(sizes) > 0, f"axes of {spec.name} with their sizes", spec.shape)
    _require(plan.shard_images > 0 and plan.n_images >= 0, "numbers of images", (plan.shard_images, plan.n_images))
    apart = all(b.first_row >= a.first_row + a.n_images for a, b in pairwise(plan.parts))
    begin = all(one.first_row % plan.shard_images == 0 <= min(one.first_row, one.n_images) for one in plan.parts)
    total = sum(one.n_images for one in plan.parts)
    _require(apart and begin and total == plan.n_images, "segments at shard boundaries", plan.segments)
    return plan


def _read_ids(file: h5py.File, plan: Plan) -> ImageIds:
    """Made again of ids and names, so that what lookups go by cannot say something else."""
    group = _group(file, "ids")
    stored = {name: _dataset(group, name, dtype) for name, dtype in IDS.items()}
    _require(stored["sha256"].shape == (plan.n_rows, 32), f"{plan.n_rows} ids", stored["sha256"].shape)
    ids = ImageIds.of_columns(*(stored[name][...] for name in IDS))
    _require(ids.digest() == plan.ids_digest, "the ids of the plan", "others")
    return ids


def _read_failures(file: h5py.File, plan: Plan) -> dict[int, str]:
    text = _dataset(file, "failures", h5py.string_dtype()).asstr()[()]
    failures = {int(row): why for row, why in json.loads(str(text)).items()}
    _require(all(isinstance(why, str) for why in failures.values()), "failures with a reason", "others")
    for row in failures:
        _require(row in plan.rows(row // plan.shard_images), "rows of images that failed", row)
    return dict(sorted(failures.items()))


def _read_projector(file: h5py.File) -> ProjectorState | None:
    if PROJECTOR not in file:
        return None
    group = _group(file, PROJECTOR)
    kind, config, sha256 = (str(group.attrs[name]) for name in ("kind", "config", "sha256"))
    weights: dict[str, NDArray[Any]] = {}
    dtypes: dict[str, Dtype] = {}
    for name in map(str, group):
        _require(bool(_NAME.fullmatch(name)), "weights under names", name)
        dtypes[name] = _dtype_of(group, name)
        data = _dataset(group, name, dtypes[name])
        weights[name] = np.empty(data.shape, storage_dtype(dtypes[name]))
        data.id.read(h5py.h5s.ALL, h5py.h5s.ALL, weights[name], data.id.get_type())
        spec = ArraySpec(name=name, axes=(), shape=(), dtype=dtypes[name])
        _require(bool(spec.finite(weights[name].reshape(1, -1)).all()), f"finite weights {name}", "NaN or infinity")
    parsed = json.loads(config)
    _require(isinstance(parsed, dict), "the projector's config", config)
    return ProjectorState(kind, parsed, weights, dtypes, sha256)


def _dtype_of(group: h5py.Group, name: str) -> Dtype:
    found = h5py.h5d.open(group.id, name.encode()).get_type()
    for dtype in get_args(Dtype):
        if found.equal(hdf5_type(dtype).id):
            return dtype
    raise ValueError(f"expected {name} as one of {', '.join(get_args(Dtype))}, found {found.dtype}")
