# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false, reportUnknownParameterType=false
# (h5py has no types)
"""HDF5 out of a store: for tools that read nothing else. Never a working format, a killed writer leaves it unreadable."""

from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from store.errors import TargetExists
from store.reader import FeatureStore
from store.schema import ArraySpec

SUFFIX = ".partial"


def export_hdf5(store: FeatureStore, out: Path, overwrite: bool) -> None:
    """Write all committed rows of all arrays, with ids and names.

    out.h5
      <array>        (image, …) float32, float16, or bfloat16 as a 16-bit float that h5py reads as float32
      rows           (image,)   the row in the store
      sha256         (image,)   hex
      names          (image,)   names, joined by newlines
      failed         (failure,) "row<TAB>reason" of images that could not be encoded
    """
    if out.exists() and not overwrite:
        raise TargetExists(f"{out} exists: name another file, or add --overwrite")
    rows = [row for row in store.committed_rows if row not in store.failures]
    partial = out.with_name(out.name + SUFFIX)
    with h5py.File(partial, "w") as file:
        file.attrs["plan"] = store.plan.to_json()
        file["rows"] = np.array(rows, np.int64)
        file["sha256"] = [store.ids.sha_of_row(row) for row in rows]
        file["names"] = ["\n".join(store.ids.names(row)).encode(errors="surrogateescape") for row in rows]
        failed = [f"{row}\t{reason}" for row, reason in store.failures.items()]
        file.create_dataset("failed", (len(failed),), h5py.string_dtype(), failed)
        for spec in store.arrays.values():
            _export_array(file, store, spec, rows)
    partial.replace(out)


def _export_array(file: h5py.File, store: FeatureStore, spec: ArraySpec, rows: list[int]) -> None:
    kind = h5py.Datatype(_bfloat16()) if spec.dtype == "bfloat16" else spec.storage
    data = file.create_dataset(spec.name, (len(rows), *spec.shape), kind)
    data.attrs["axes"] = ["image", *spec.axes]
    for first in tqdm(range(0, len(rows), store.plan.shard_images), desc=spec.name, unit="shard", disable=None):
        part = rows[first : first + store.plan.shard_images]
        values = store.gather(spec.name, part)
        space = data.id.get_space()
        space.select_hyperslab((first, *[0] * len(spec.shape)), values.shape)
        memory = h5py.h5s.create_simple(values.shape)
        # Written with the file's own type, so that the bits go through unconverted.
        data.id.write(memory, space, values, data.id.get_type())


def _bfloat16() -> h5py.h5t.TypeFloatID:
    """HDF5's description of bfloat16: sign, 8 bits of exponent, 7 of mantissa."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind
