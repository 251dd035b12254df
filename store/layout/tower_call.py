"""How the vision tower was called when a store's features were made: only the shape of a call decides bits, not its company."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from store.layout.plan import Plan

T = TypeVar("T")


@dataclass(frozen=True)
class TowerCall:
    """The shape of the calls that make a store's features; it is part of the numeric fingerprint."""

    images: int = 1
    """Images per call. Where it is 1, a device whose self-test finds a batch equal to one image alone may use any batch."""
    exact: bool = True
    """Whether an image's bits do not depend on the other images of its call. Only stores of earlier versions say False."""
    projector_images: int = 1
    """Images per call of the stock projector that makes the store's `projected`; the store's own projects image by image."""

    def filled(self, called: Sequence[T], others: Sequence[T]) -> list[T]:
        """Fill a call up to the recorded number of images, with `others` and then with its own last image.

        Nothing is added where an image's bits do not hang on the number of images, or where they hang on the company anyway.
        """
        lacking = max(0, self.images - len(called)) if self.exact else 0
        return [*called, *[*others, *[called[-1]] * lacking][:lacking]]

    def as_recorded(self) -> dict[str, Any]:
        """Return the fields of a numeric fingerprint; `projector_batch` is left out where it says nothing."""
        together = {"projector_batch": self.projector_images} if self.exact and self.images > 1 else {}
        return {"tower_batch": self.images, "batch_invariant": self.exact, **together}


FIELDS = frozenset({"tower_batch", "batch_invariant", "projector_batch"})
"""The fields of a numeric fingerprint that describe the call."""


def call_in(numeric: Mapping[str, Any]) -> TowerCall:
    """Read the call from the numeric part of a fingerprint; features made without a tower have the call of one image."""
    return TowerCall(
        numeric.get("tower_batch", 1), numeric.get("batch_invariant", True), numeric.get("projector_batch", 1)
    )


def call_of(plan: Plan) -> TowerCall:
    """Read the call that made a store's features."""
    return call_in(tower_numeric(plan))


def tower_numeric(plan: Plan) -> Mapping[str, Any]:
    """Return the numeric fingerprint of the arrays that a tower made, which have one in common; derived arrays do not count."""
    made = (made_by.numeric for name, made_by in plan.fingerprints.items() if name not in plan.derived)
    return next(made, dict[str, Any]())
