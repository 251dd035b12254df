"""Milliseconds of a prefill with every kernel launched by Python, beside what FLOPs, bytes and their roofline predict."""

from typing import Any

from stage2_prune.language.prefill import prefill_latency
from stage2_prune.language.roofline import Roofline, prefill_roofline
from tests.benchmarks.gpu import before
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows
from tests.benchmarks.gpu.scale import TEXT_TOKENS


def measure(place: Place, rows: Rows) -> None:
    """Measure every number of questions at every number of visual tokens, and set beside it what is predicted."""
    model, scale = place.session().language.model, place.scale
    for questions in scale.questions:
        seconds: dict[int, float] = {}
        bounds: dict[int, Roofline] = {}
        for kept in scale.kept:
            seconds[kept] = prefill_latency(model, questions, kept + TEXT_TOKENS, graphs=False, runs=scale.rounds)
            bounds[kept] = predict(place, model, questions, kept)
            rows.add("prefill", before.prefill(questions, kept), 1000 * seconds[kept], "ms")
            rows.add("prefill", before.bound(questions, kept), 1000 * bounds[kept].seconds, "ms")
            if bounds[kept].memory > bounds[kept].compute:
                rows.say("prefill", f"memory binds the roofline of {before.prefill(questions, kept)}")
        whole, few = scale.kept[0], scale.few
        for kind, faster in {
            "measured": seconds[whole] / seconds[few],
            "by FLOPs": bounds[whole].compute / bounds[few].compute,
            "by bytes": bounds[whole].memory / bounds[few].memory,
            "by the roofline": bounds[whole].seconds / bounds[few].seconds,
        }.items():
            rows.add("prefill", before.speed_up(questions, few, kind), faster)


def predict(place: Place, model: Any, questions: int, kept: int) -> Roofline:
    """Predict the prefill of some questions with so many visual tokens."""
    tokens = [kept + TEXT_TOKENS] * model.config.num_hidden_layers
    return prefill_roofline(model, place.peaks, tokens, questions)
