"""One line of the table: what was measured, in which verify mode, what is demanded, and whether it is met."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A measured value; `least` and `most` are the demand, neither is for information."""

    check: str
    verify: str
    """The mode that the store was opened with, and what that means here."""
    measured: float
    unit: str = "x"
    least: float | None = None
    most: float | None = None

    @property
    def demand(self) -> str:
        """In words."""
        if self.least is not None:
            return f">= {self._text(self.least)}"
        return f"<= {self._text(self.most)}" if self.most is not None else ""

    @property
    def missed(self) -> bool:
        """Whether there is a demand that does not hold."""
        below = self.least is not None and not self.measured >= self.least
        return below or (self.most is not None and not self.measured <= self.most)

    @property
    def cells(self) -> list[str]:
        """check, verify, measured, demand, met."""
        met = ("no" if self.missed else "yes") if self.demand else ""
        return [self.check, self.verify, self._text(self.measured), self.demand, met]

    def _text(self, value: float) -> str:
        digits = 4 if self.unit == "of the data" else 2 if self.unit == "x" else 1
        return f"{value:.{digits}f} {self.unit}"


HEAD = ["check", "verify", "measured", "demand", "met"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, aligned so that it reads well as text."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    lines = ["| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
