"""How many visual tokens an image has, and where in the image they lie."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Geometry(BaseModel):
    """The patches of one image, alike for all images of a store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: tuple[int, int] | None
    """Rows and columns of patches; None where the tokens are no patches in a grid."""
    has_cls: bool
    """Whether the tower puts a CLS row before the patches."""
    tokens: int
    """Visual tokens per image that the language model gets: the patches, and the CLS row under `full`."""

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """The rows and columns of the tokens, if every token is a patch.

        None if the CLS row is among the tokens, or if a model's own code made them. Earlier versions of this project wrote
        the grid (1, tokens) for a model's own code; such a grid counts as None.
        """
        if self.grid is None or self.grid[0] * self.grid[1] != self.tokens:
            return None
        return None if self.grid[0] == 1 < self.tokens and not self.has_cls else self.grid

    def as_recorded(self) -> dict[str, Any]:
        """Return the geometry as fingerprints record it: where there is no grid, with the grid (1, tokens)."""
        return self.model_dump(mode="json") | {"grid": list(self.grid or (1, self.tokens))}

    def __eq__(self, other: object) -> bool:
        """Compare the recorded forms, so that a store of an earlier version can be extended by this one."""
        return isinstance(other, Geometry) and self.as_recorded() == other.as_recorded()

    def __hash__(self) -> int:
        """Hash what `__eq__` compares."""
        return hash((self.grid or (1, self.tokens), self.has_cls, self.tokens))
