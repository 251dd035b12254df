"""The projector that lies in a store, as arrays: read and passed on without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from store.layout.plan import FEATURES
from store.layout.schema import Dtype, holds_fill
from store.reading.opening import as_integrity_error, subgroup

PROJECTOR = "projector"
"""Name of the group in `features.zarr` that holds the projector's weights."""


@dataclass(frozen=True)
class ProjectorState:
    """A projector without torch, from which `store.projectors.build` makes a module."""

    kind: str
    """Name of the projector's file in store/projectors."""
    config: Mapping[str, Any]
    """Arguments of the projector that are not weights; they can be written as JSON."""
    weights: Mapping[str, NDArray[Any]]
    """Weights by canonical name, in storage dtype."""
    dtypes: Mapping[str, Dtype]
    """Logical dtype of each weight."""
    sha256: str
    """Digest of the weights, as the fingerprint of `projected` records it."""


def read_projector(store: Path, features: zarr.Group) -> ProjectorState | None:
    """Read the projector of the store in a folder from its Zarr group.

    Returns:
        The projector, or None for a store that was made without one: the model's projector could not be reached.

    Raises:
        IntegrityError: the group is damaged, or chunks of it are missing (exit 4).
    """
    with as_integrity_error(store / FEATURES / PROJECTOR):
        if PROJECTOR not in features:
            return None
        group = subgroup(features, PROJECTOR)
        arrays = dict(group.arrays())
        attributes: dict[str, Any] = dict(group.attrs)
        dtypes: dict[str, Any] = {name: array.attrs["logical_dtype"] for name, array in arrays.items()}
        weights = {name: np.asarray(array[...]) for name, array in arrays.items()}
        absent = [name for name, values in weights.items() if holds_fill(values, dtypes[name])]
        if absent:
            raise ValueError(f"chunks of {', '.join(absent)} are missing")
    return ProjectorState(str(attributes["kind"]), attributes["config"], weights, dtypes, str(attributes["sha256"]))
