"""How many operations a call dispatches: a figure that is the same on every machine, unlike seconds."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

WITHOUT_KERNEL = ("aten::_unsafe_view", "aten::detach", "aten::lift_fresh")
"""Operations that only relabel memory, though their schema does not say that they return a view."""


class Operations(TorchDispatchMode):
    """Counts what is dispatched eagerly while it is entered; views are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count it unless it is a view."""
        if not _is_view(func):
            self.names[func.name()] += 1
        return func(*args, **kwargs or {})


def operations(call: Callable[[], Tensor | object]) -> Counter[str]:
    """Count the operations of a call, by their names."""
    with Operations() as seen:
        call()
    return seen.names


def _is_view(func: OpOverload) -> bool:
    """Tell whether what an operation returns shares memory that it does not write to."""
    aliases = [result.alias_info for result in func._schema.returns]
    shares = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
    return shares or func.name().split(".")[0] in WITHOUT_KERNEL
