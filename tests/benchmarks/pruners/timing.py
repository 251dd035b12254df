"""Runs that take turns, on a processor or an accelerator."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.benchmarks.store.timing import interleaved


def taking_turns(runs: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, after what the device was asked to do."""

    def until_done(run: Callable[[], Any]) -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return interleaved({name: (lambda run=run: until_done(run)) for name, run in runs.items()}, rounds)
