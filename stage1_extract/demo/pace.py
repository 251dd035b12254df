"""Shared by the training of tower and language model: optimiser and schedule, mixed precision on a GPU, and the log."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 0.08
"""Share of the steps over which the learning rate rises."""


class Pace:
    """AdamW with linear warm-up, cosine decay and clipped gradients."""

    def __init__(self, parameters: list[nn.Parameter], peak: float, steps: int) -> None:
        self.parameters = parameters
        self.optimiser = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: _share_of_peak((step + 1) / steps)
        )

    def step(self, loss: Tensor) -> None:
        """Take one optimiser step that lowers `loss`."""
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.schedule.step()


def _share_of_peak(progress: float) -> float:
    if progress < WARM_UP:
        return progress / WARM_UP
    return max(0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))), 1e-3)


def autocast(device: torch.device | str) -> torch.autocast:
    """Return a context that computes in bfloat16 on a GPU, and in plain float32 on a CPU."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")


class Report:
    """A log with one JSON line per measurement, in a file and on stdout.

    Args:
        path: The log's file.
        kept: Bytes of the file that are kept; a run that is continued keeps what it had logged when its state was saved.
        seconds: What the clock begins at.

    """

    def __init__(self, path: Path, kept: int = 0, seconds: float = 0.0) -> None:
        self.path, self.begun = path, time.monotonic() - seconds
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(kept)

    def __call__(self, **measured: Any) -> None:
        """Append a line with the measurements and the `seconds` since the log was opened."""
        line = json.dumps(measured | {"seconds": round(time.monotonic() - self.begun)})
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
