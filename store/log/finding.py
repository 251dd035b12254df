"""What `verify` finds, and what makes it whole again."""

from dataclasses import dataclass

from store.files.disk import STRAYS

REPAIR = "`repair` writes it again"
MOVE = f"nothing reads it; `repair` moves it to {STRAYS}/"
COPY = "restore it from a copy"
ARCHIVE = "restore it from a copy, or archive its store again"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was committed."""

    path: str
    problem: str
    shard: int | None
    """The shard whose commit `repair` withdraws; None where the file is no shard's."""
    remedy: str
    """What makes it whole again."""
    generation: int = 0
    """In whose log that commit is."""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"
