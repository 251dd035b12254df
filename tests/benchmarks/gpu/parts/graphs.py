"""Milliseconds of the prefill of one question as a CUDA graph, which launches all kernels at once.

This is a part of its own, behind the others that use the language model: a capture that fails may leave the device unusable.
"""

from collections.abc import Callable

import torch

from stage2_prune.language.assemble import ModelInputs
from stage2_prune.language.language import Language
from tests.benchmarks.gpu import before
from tests.benchmarks.gpu.parts.prefill import forward, inputs, predict
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows


@torch.no_grad()
def measure(place: Place, rows: Rows) -> None:
    """Measure it at every number of visual tokens, and the share that pruning reaches of what the roofline promises."""
    if place.device.type != "cuda":
        rows.say("graphs", "not measured: there are CUDA graphs on a GPU only")
        return
    language, scale = place.session().language, place.scale
    seconds: dict[int, float] = {}
    for kept in scale.kept:
        seconds[kept] = place.clock.median(_captured(language, inputs(place, language, 1, kept)), scale.rounds)
        rows.add("graphs", before.prefill(1, kept), 1000 * seconds[kept], "ms")
    whole, few = (predict(language, place.peaks, 1, kept).roofline for kept in (scale.kept[0], scale.few))
    faster = seconds[scale.kept[0]] / seconds[scale.few]
    rows.add("graphs", before.speed_up(1, scale.few, "measured"), faster)
    rows.add("graphs", before.speed_up(1, scale.few, "by the roofline"), whole / few)
    rows.add("graphs", "share of the roofline's speed-up that is reached", faster / (whole / few))


def _captured(language: Language, batch: ModelInputs) -> Callable[[], object]:
    """Capture a prefill, after runs on a stream of their own as torch demands."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward(language, batch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward(language, batch)
    return graph.replay
