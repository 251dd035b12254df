"""What both lessons share: the optimiser with its schedule, mixed precision on a GPU, and the log."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 0.08


class Pace:
    """AdamW with linear warm-up, cosine decay and clipped gradients."""

    def __init__(self, parameters: list[nn.Parameter], peak: float, steps: int) -> None:
        self.parameters = parameters
        self.optimiser = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: _share_of_peak((step + 1) / steps)
        )

    def step(self, loss: Tensor) -> None:
        """One step down `loss`."""
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
    """bfloat16 on a GPU, plain float32 on a CPU."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")


class Report:
    """One JSON line per measurement, in a file and on stdout."""

    def __init__(self, path: Path) -> None:
        self.path, self.begun = path, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")

    def __call__(self, **measured: Any) -> None:
        """Append a line; `seconds` counts from the start."""
        line = json.dumps(measured | {"seconds": round(time.monotonic() - self.begun)})
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
