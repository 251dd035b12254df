"""The findings of `verify`: what is damaged in a store, and what mends it."""

from dataclasses import dataclass

from store.files.disk import STRAYS

REPAIR = "`repair` writes it again"
MOVE = f"nothing reads it; `repair` moves it to {STRAYS}/"
COPY = "restore it from a copy"
ARCHIVE = "restore it from a copy, or archive its store again"


@dataclass(frozen=True)
class Finding:
    """One file or folder that is not as it was committed."""

    path: str
    """The file or folder."""
    problem: str
    """What is wrong with the file or folder."""
    shard: int | None
    """The shard whose commit `repair` withdraws; None if the file belongs to no shard."""
    remedy: str
    """How the user mends the file or folder."""
    generation: int = 0
    """The generation whose log holds the shard's commit."""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"
