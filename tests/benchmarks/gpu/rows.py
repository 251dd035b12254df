"""The rows that a run prints: each as soon as it is measured, and all of them kept as JSON and as a page."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.benchmarks.gpu.before import before
from tests.benchmarks.gpu.page import Shown, page


@dataclass
class Rows:
    """What was measured so far, on one device."""

    card: str
    out: Path | None
    """The page to keep; JSON lies beside it. None keeps nothing."""
    compare: bool = True
    """Whether the figures before are printed beside: not at small shapes."""
    rows: list[Shown] = field(default_factory=list)

    def recall(self, parts: Collection[str]) -> None:
        """Take over what an earlier run kept of other parts than `parts`."""
        if self.out is not None and (kept := self.out.with_suffix(".json")).is_file():
            earlier = [Shown(**row) for row in json.loads(kept.read_text())]
            self.rows += [row for row in earlier if row.part not in parts]

    def add(self, part: str, what: str, value: float | str, unit: str = "") -> None:
        """Print a row and keep it."""
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        self.rows.append(Shown(part, what, shown, unit, self.card))
        beside = f"   (before: {known})" if self.compare and (known := before(part, what)) else ""
        print(f"{part:<11} {what:<88} {shown:>10} {unit}{beside}", flush=True)

    def say(self, part: str, sentence: str) -> None:
        """Print a sentence about a part and keep it."""
        self.rows.append(Shown(part, sentence, "", "", self.card))
        print(f"{part:<11} {sentence}", flush=True)

    def value(self, part: str, what: str) -> float | None:
        """Look up a figure that was measured."""
        for row in reversed(self.rows):
            if (row.part, row.what) == (part, what) and row.value:
                return float(row.value)
        return None

    def keep(self) -> None:
        """Write what there is so far, so that a run that is killed leaves it."""
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.with_suffix(".json").write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n")
            self.out.write_text(page(self.rows))
