# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportUnknownParameterType=false
# (h5py has no types)
"""Exporting a store to an HDF5 file, for tools that read nothing else; `store.copies.hdf5_import` makes a store of it again.

HDF5 is never the working format: a writer that is killed leaves an unreadable file.

out.h5               attribute `plan`: the store's plan, as one generation
  <array>            (image, …) float32, float16, or bfloat16 as a 16-bit float that h5py reads as float32
  rows               (image,)   the row in the store
  sha256             (image,)   hex
  names              (image,)   names, joined by newlines
  failed             (failure,) "row<TAB>reason" of images that could not be encoded
and, so that `import` makes the same store again:
  failures           what `failed` holds, as JSON
  ids/               sha256, names_utf8, name_offsets, name_rows of every row, as in `features.zarr/ids`
  projector/         the projector's weights; attributes kind, config (JSON) and sha256
  checksums/<array>  (image,) crc32c of each row's bytes
and the attribute `sha256`: a digest of everything that is read back apart from the rows, see `seal_of`
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from configs.progress import ProgressBar
from store.copies.contents import Contents
from store.layout.schema import ArraySpec, StoredDtype, storage_dtype
from store.layout.shard import crc
from store.reading.projector_state import PROJECTOR, ProjectorState
from store.reading.reader import FeatureStore
from store.writing.aside import written_aside

CHECKSUMS, SEAL = "checksums", "sha256"
"""The group of the rows' checksums, and the attribute that seals everything else."""
IDS = {"sha256": "|u1", "names_utf8": "|u1", "name_offsets": "<i8", "name_rows": "<i8"}
"""The columns of the ids that a file holds, with their dtypes."""


def export_hdf5(store: FeatureStore, out: Path, overwrite: bool) -> None:
    """Write what a store has committed to one file, whole or not at all.

    Raises TargetExists (exit 2) if `out` exists; `overwrite` replaces a file.
    """
    contents = Contents.of(store)
    with written_aside(out, overwrite) as aside, h5py.File(aside, "w") as file:
        file.attrs["plan"] = contents.plan.to_json()
        _write_names(file, contents)
        for name, values in store.ids.columns(IDS).items():
            file[f"ids/{name}"] = values
        if contents.projector is not None:
            _write_projector(file.create_group(PROJECTOR), contents.projector)
        checksums = {spec.name: _write_array(file, contents, spec) for spec in contents.plan.arrays}
        for name, values in checksums.items():
            file[f"{CHECKSUMS}/{name}"] = values
        file.attrs[SEAL] = seal_of(contents, checksums)


def _write_names(file: h5py.File, contents: Contents) -> None:
    file["rows"] = np.array(contents.all_rows, np.int64)
    for name, lines in texts_of(contents).items():
        file.create_dataset(name, (len(lines),), h5py.string_dtype(), lines)
    file["failures"] = json.dumps(dict(contents.failures))


def texts_of(contents: Contents) -> dict[str, list[bytes]]:
    """Return ids, names and failures as lines of text for other tools, by the name of their dataset."""
    rows, ids = contents.all_rows, contents.ids
    return {
        "sha256": [ids.sha_of_row(row).encode() for row in rows],
        "names": [_text("\n".join(ids.names(row))) for row in rows],
        "failed": [_text(f"{row}\t{reason}") for row, reason in contents.failures.items()],
    }


def seal_of(contents: Contents, checksums: Mapping[str, NDArray[Any]]) -> str:
    """Return the sha256 of everything that an import reads apart from the rows, which have checksums of their own."""
    digest = hashlib.sha256()
    failures = {str(row): why for row, why in contents.failures.items()}
    parts: list[Any] = [contents.plan.to_json(), contents.all_rows, failures]
    if (projector := contents.projector) is not None:
        parts += [projector.kind, dict(projector.config), projector.sha256]
        for name, weight in sorted(projector.weights.items()):
            parts += [
                name,
                projector.dtypes[name],
                weight.shape,
                hashlib.sha256(weight.tobytes()).hexdigest(),
            ]
    for name, values in sorted(checksums.items()):
        parts += [name, values.tolist()]
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _text(name: str) -> bytes:
    """Encode a name as the bytes that it was read from; zero bytes are escaped, because HDF5's text ends at one."""
    try:
        encoded = name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        encoded = name.encode(errors="surrogatepass")
    return encoded.replace(b"\0", b"\\0")


def _write_projector(group: h5py.Group, projector: ProjectorState) -> None:
    group.attrs.update({
        "kind": projector.kind, "config": json.dumps(dict(projector.config)), "sha256": projector.sha256
    })  # fmt: skip
    for name, values in projector.weights.items():
        data = group.create_dataset(name, values.shape, hdf5_type(projector.dtypes[name]))
        # Values are written with the file's own type, here and below, so that HDF5 converts no bits.
        data.id.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(values), data.id.get_type())


def _write_array(file: h5py.File, contents: Contents, spec: ArraySpec) -> NDArray[Any]:
    """Write the rows of an array, and return their checksums."""
    checksums: list[int] = []
    data = file.create_dataset(spec.name, (len(contents.all_rows), *spec.shape), hdf5_type(spec.dtype))
    data.attrs["axes"] = ["image", *spec.axes]
    first = 0
    for shard in ProgressBar(contents.shards, f"export {spec.name}", unit="shards"):
        if not (rows := contents.rows(shard)):  # all images of the shard failed
            continue
        values = contents.read(spec.name, rows)
        in_memory, in_file = selections(data, first, values.shape)
        data.id.write(in_memory, in_file, values, data.id.get_type())
        checksums += map(crc, values)
        first += len(values)
    return np.array(checksums, "<u4")


def selections(data: h5py.Dataset, first: int, shape: tuple[int, ...]) -> tuple[h5py.h5s.SpaceID, h5py.h5s.SpaceID]:
    """Select rows in memory and in the file, from row `first` on, for HDF5's low-level reads and writes."""
    space = data.id.get_space()
    space.select_hyperslab((first, *[0] * (len(shape) - 1)), shape)
    return h5py.h5s.create_simple(shape), space


def hdf5_type(dtype: StoredDtype) -> h5py.Datatype:
    """Return the HDF5 type in which a file holds values of a dtype."""
    return h5py.Datatype(bfloat16() if dtype == "bfloat16" else h5py.h5t.py_create(storage_dtype(dtype)))


def bfloat16() -> h5py.h5t.TypeFloatID:
    """Return HDF5's description of bfloat16: sign, 8 bits of exponent, 7 of mantissa."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind
