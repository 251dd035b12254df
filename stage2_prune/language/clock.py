"""Measure the time of work on a device that computes while Python runs on."""

import time

import torch


def seconds_after_work(device: torch.device) -> float:
    """Read the clock, in seconds, after the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
