"""Say of what a method returned that it is no selection, in a sentence for the author of its file.

Only types, shapes and dtypes are looked at, so that nothing waits for a device.
"""

import inspect
from types import FunctionType

import torch
from torch import Tensor

from stage2_prune.errors import PrunerMisused


def is_integer(dtype: torch.dtype) -> bool:
    """Check whether numbers of this type can be indices."""
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def came(value: object) -> str:
    """Say what came in place of a tensor that was expected: its shape and dtype, or its type."""
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return "None" if value is None else f"a {type(value).__name__}"


def source(kind: type, method: str) -> str:
    """Name a method of a class and where it is written, such as `X.select (x.py, line 3)`."""
    function = inspect.unwrap(getattr(kind, method))
    place = ""
    if isinstance(function, FunctionType):
        place = f" ({function.__code__.co_filename}, line {function.__code__.co_firstlineno})"
    return f"{kind.__name__}.{method}{place}"


def file_of(kind: type) -> str:
    """Name the file of a class in brackets; return nothing for a class that was typed into a notebook."""
    try:
        return f" ({inspect.getfile(kind)})"
    except (TypeError, OSError):
        return ""


def check_selected(index: object, kind: type, images: int, keep: int) -> None:
    """Refuse what `select` of a class returned unless it is an integer tensor with a row for each image.

    The length of the rows is left to the caller, who knows whether `keep` binds the method.
    """
    if isinstance(index, Tensor) and is_integer(index.dtype) and index.dim() == 2 and len(index) == images:
        return
    raise PrunerMisused(
        f"expected an integer tensor (image, keep) = {(images, keep)} from {source(kind, 'select')}, got {came(index)}: "
        "return a row of indices for each image"
    )
