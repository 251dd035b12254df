"""Explain the latency of a cell: its prefill as a CUDA graph, what the device could do at best, and which of its limits binds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from stage2_prune.errors import NotCaptured
from stage2_prune.language.language import Language
from stage2_prune.language.prefill import prefill_latency
from stage2_prune.language.roofline import Bound, Peaks, Roofline, device_peaks, prefill_roofline

INSIDE = "the method prunes inside the language model, by what it reads there"
"""Why a graph cannot be recorded of such a method: the shapes of its later layers are not known before they run."""


@dataclass(frozen=True)
class Explanation:
    """What one prompt's prefill could take, in seconds."""

    roofline: Roofline
    graph: float | None
    """Seconds of the forward as a CUDA graph; None where there is no graph."""
    no_graph: str | None
    """Why there is no graph."""


@dataclass(frozen=True)
class Explained:
    """Why a cell's prefill takes as long as it does: medians over questions; ratios are to the unpruned prompt."""

    prefill_graph_ms: float | None
    """Milliseconds of the forward as a CUDA graph; None where `no_graph` says why."""
    graph_ratio: float | None
    """`prefill_graph_ms` divided by the unpruned prompt's."""
    flops_ratio: float
    """The prediction of `prefill_ratio` by arithmetic alone."""
    memory_ratio: float
    """The prediction by the bytes of weights, keys and values alone."""
    roofline_ratio: float
    """The prediction by the slower of both, with the peaks that were measured on this device."""
    roofline_ms: float
    """The milliseconds that this prediction is the ratio of."""
    bound_by: Bound
    """What the eager prefill is bound by."""
    no_graph: str | None
    """Why no graph was measured."""


@dataclass
class Explainer:
    """Explains prompts of one language model on one device; a length is measured as a graph once."""

    language: Language
    peaks: Peaks
    _graphs: dict[int, float | str] = field(default_factory=dict)
    """By number of tokens: the seconds of a graph, or why there is none."""

    @classmethod
    def of(cls, language: Language) -> "Explainer":
        """Measure the peaks of the device that the language model is on."""
        return cls(language, device_peaks(language.device, language.dtype))

    def explain(self, tokens_per_layer: Sequence[int], inside: bool) -> Explanation:
        """Explain a prompt by the tokens, visual and text, that enter each layer; `inside`: a method drops them there."""
        roofline = prefill_roofline(self.language.model, self.peaks, tokens_per_layer)
        graph = INSIDE if inside else self._graph(tokens_per_layer[0])
        return Explanation(roofline, None, graph) if isinstance(graph, str) else Explanation(roofline, graph, None)

    def _graph(self, tokens: int) -> float | str:
        if tokens not in self._graphs:
            try:
                self._graphs[tokens] = prefill_latency(self.language.model, 1, tokens, graphs=True)
            except NotCaptured as failed:
                self._graphs[tokens] = str(failed)
        return self._graphs[tokens]


def explained(eager: float, pairs: Sequence[tuple[Explanation, Explanation]]) -> Explained:
    """Take medians over questions, each given by the explanations of its prompt and of the unpruned prompt.

    `eager` is the median of the measured seconds.
    """
    roofline = Roofline(
        median(cell.roofline.compute for cell, _ in pairs), median(cell.roofline.memory for cell, _ in pairs)
    )
    graphs = [(cell.graph, whole.graph) for cell, whole in pairs if cell.graph is not None and whole.graph is not None]
    graph = median(cell for cell, _ in graphs) if graphs else None
    return Explained(
        None if graph is None else 1000 * graph,
        median(cell / whole for cell, whole in graphs) if graphs else None,
        median(cell.roofline.compute / whole.roofline.compute for cell, whole in pairs),
        median(cell.roofline.memory / whole.roofline.memory for cell, whole in pairs),
        median(cell.roofline.seconds / whole.roofline.seconds for cell, whole in pairs),
        1000 * roofline.seconds,
        roofline.bound_by(eager, graph),
        None if graphs else next(each.no_graph for pair in pairs for each in pair if each.no_graph),
    )
