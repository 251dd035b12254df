"""Milliseconds of the prefill of one question as a CUDA graph, which launches all kernels at once.

This is a part of its own, behind the others that use the language model: a capture that fails may leave the device unusable.
"""

from stage2_prune.language.prefill import prefill_latency
from tests.benchmarks.gpu import before
from tests.benchmarks.gpu.parts.prefill import predict
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows
from tests.benchmarks.gpu.scale import TEXT_TOKENS


def measure(place: Place, rows: Rows) -> None:
    """Measure it at every number of visual tokens, and the share that pruning reaches of what the roofline promises."""
    if place.device.type != "cuda":
        rows.say("graphs", "not measured: there are CUDA graphs on a GPU only")
        return
    model, scale = place.session().language.model, place.scale
    seconds: dict[int, float] = {}
    for kept in scale.kept:
        seconds[kept] = prefill_latency(model, 1, kept + TEXT_TOKENS, graphs=True, runs=scale.rounds)
        rows.add("graphs", before.prefill(1, kept), 1000 * seconds[kept], "ms")
    whole, few = (predict(place, model, 1, kept).seconds for kept in (scale.kept[0], scale.few))
    faster = seconds[scale.kept[0]] / seconds[scale.few]
    rows.add("graphs", before.speed_up(1, scale.few, "measured"), faster)
    rows.add("graphs", before.speed_up(1, scale.few, "by the roofline"), whole / few)
    rows.add("graphs", "share of the roofline's speed-up that is reached", faster / (whole / few))
