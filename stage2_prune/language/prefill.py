"""Time the language model's forward over a prompt: with every kernel launched by Python, and as one CUDA graph."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.errors import NotCaptured
from stage2_prune.language.clock import seconds_after_work

Forward = Callable[[], object]
"""A call with static inputs, whose result is not looked at."""
WARM_UPS = 3
"""Calls before the first measurement: they load kernels, choose algorithms and fill the caches of allocators."""
RUNS = 7
"""Calls that are measured."""
_SAID = 200
"""Largest number of characters of another library's message that is repeated."""


def prefill_latency(language_model: Any, batch: int, tokens: int, graphs: bool, runs: int = RUNS) -> float:
    """Measure the seconds of a prefill of `batch` prompts of `tokens` tokens each: the median of `runs`, after a warm-up.

    Args:
        language_model: a stock `…ForCausalLM` in eval mode.
        batch: the number of prompts.
        tokens: the number of tokens of each prompt, visual and text.
        graphs: whether to run the forward as a CUDA graph.
        runs: the number of measured calls.

    Raises:
        NotCaptured: (exit 2) if `graphs`, and the forward cannot run as a CUDA graph.
    """
    embeddings = language_model.get_input_embeddings().weight
    device = embeddings.device
    ids = torch.arange(batch * tokens, device=device).remainder(len(embeddings)).view(batch, tokens)
    positions = torch.arange(tokens, device=device).expand(batch, tokens)
    with torch.no_grad():
        forward = static_forward(language_model, language_model.get_input_embeddings()(ids), positions)
    return median(seconds_of(captured(forward, device) if graphs else forward, device, runs))


def static_forward(
    model: Any,
    inputs_embeds: Float[Tensor, "question token embed"],
    position_ids: Int[Tensor, "question token"],
) -> Forward:
    """Make the stock forward over prompts without padding; it never looks at the device, so a graph can record it.

    A mask would be read by stock code to see whether it masks anything, and the eager path drops one that does not. The cache
    that the forward makes keeps stock code from reading gaps in `position_ids` as packed sequences, mask or no mask.
    """

    @torch.no_grad()
    def forward() -> object:
        return model(inputs_embeds=inputs_embeds, position_ids=position_ids, use_cache=True, logits_to_keep=1)

    return forward


def captured(forward: Forward, device: torch.device) -> Forward:
    """Record a forward as a CUDA graph and return its replay; raise NotCaptured (exit 2) with the reason if this fails."""
    if device.type != "cuda":
        raise NotCaptured(f"expected a CUDA device for a CUDA graph, the language model is on {device.type}")
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(aside):  # libraries set themselves up in the first calls, which a capture cannot record
            for _ in range(WARM_UPS):
                forward()
        torch.cuda.current_stream(device).wait_stream(aside)
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            forward()
    except RuntimeError as error:
        message = " ".join(str(error).split())
        raise NotCaptured(f"the forward of {device} cannot be captured as a CUDA graph: {message:.{_SAID}}") from None
    return _Replay(graph, forward)


@dataclass(frozen=True)
class _Replay:
    """The replay of a recorded forward."""

    graph: Any
    forward: Forward
    """What was recorded; it is kept because the graph reads its inputs where they lie in memory."""

    def __call__(self) -> object:
        return self.graph.replay()


def seconds_of(forward: Forward, device: torch.device, runs: int) -> list[float]:
    """Measure the seconds of each of `runs` calls, after a warm-up."""
    for _ in range(WARM_UPS):
        forward()
    seconds: list[float] = []
    for _ in range(runs):
        begun = seconds_after_work(device)
        forward()
        seconds.append(seconds_after_work(device) - begun)
    return seconds
