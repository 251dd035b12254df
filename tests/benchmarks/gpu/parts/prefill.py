"""Milliseconds of a prefill, eager and as a CUDA graph, beside what FLOPs, bytes and their roofline predict."""

from collections.abc import Callable

import torch

from stage2_prune.language.assemble import ModelInputs, assemble
from stage2_prune.language.language import Language
from stage2_prune.language.price import CONVENTIONS, shape_of
from store.checkpoint.text import Prompt
from tests.benchmarks.gpu import before
from tests.benchmarks.gpu.peaks import Peaks
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows
from tests.benchmarks.gpu.scale import BEFORE, TEXT_TOKENS


@torch.no_grad()
def measure(place: Place, rows: Rows) -> None:
    """Measure every number of questions at every number of visual tokens; one question at once as a graph too."""
    language, scale = place.session().language, place.scale
    for questions in scale.questions:
        seconds = {kept: _eager(place, language, questions, kept) for kept in scale.kept}
        predicted = {kept: _predicted(language, place.peaks, questions, kept) for kept in scale.kept}
        for kept in scale.kept:
            rows.add("prefill", before.prefill(questions, kept), 1000 * seconds[kept], "ms")
            rows.add("prefill", f"{before.prefill(questions, kept)}: roofline", 1000 * predicted[kept].roofline, "ms")
        _speed_ups(place, rows, questions, seconds, "measured")
        whole, pruned = predicted[scale.kept[0]], predicted[scale.few]
        for kind in ("FLOPs", "bytes", "roofline"):
            faster = getattr(whole, kind.lower()) / getattr(pruned, kind.lower())
            name = before.speed_up(questions, scale.few, f"by {'the ' * (kind == 'roofline')}{kind}")
            rows.add("prefill", name, faster)
    if place.device.type == "cuda":
        _graphs(place, rows, language)


def _graphs(place: Place, rows: Rows, language: Language) -> None:
    """Measure one question at once as a CUDA graph."""
    seconds: dict[int, float] = {}
    for kept in place.scale.kept:
        seconds[kept] = place.clock.median(_captured(language, _inputs(place, language, 1, kept)), place.scale.rounds)
        rows.add("prefill", f"{before.prefill(1, kept)}, as a CUDA graph", 1000 * seconds[kept], "ms")
    reached = _speed_ups(place, rows, 1, seconds, "measured, as a CUDA graph")
    whole, pruned = (_predicted(language, place.peaks, 1, kept) for kept in (place.scale.kept[0], place.scale.few))
    share = reached / (whole.roofline / pruned.roofline)
    rows.add("prefill", before.speed_up(1, place.scale.few, "share of the roofline's, as a CUDA graph"), share)


def _speed_ups(place: Place, rows: Rows, questions: int, seconds: dict[int, float], kind: str) -> float:
    scale = place.scale
    faster = seconds[scale.kept[0]] / seconds[scale.few]
    rows.add("prefill", before.speed_up(questions, scale.few, kind), faster)
    return faster


class _Predicted:
    """The seconds of a prefill as peaks of the device predict them."""

    def __init__(self, flops: float, moved: float, peaks: Peaks) -> None:
        self.flops, self.bytes = flops / peaks.flops, moved / peaks.bytes
        self.roofline = max(self.flops, self.bytes)


def _predicted(language: Language, peaks: Peaks, questions: int, kept: int) -> _Predicted:
    """Count the layers on all tokens, the head on the last one, every weight once and the cache as it is written."""
    shape, head = shape_of(language), language.model.lm_head.weight
    flops = questions * (CONVENTIONS["flops_all"].count(shape, [kept] * shape.layers, TEXT_TOKENS) + 2 * head.numel())
    weights = sum(p.numel() * p.element_size() for p in language.model.model.layers.parameters())
    cache = questions * (kept + TEXT_TOKENS) * shape.layers * shape.kv_bytes
    return _Predicted(flops, weights + head.numel() * head.element_size() + cache, peaks)


def _eager(place: Place, language: Language, questions: int, kept: int) -> float:
    batch = _inputs(place, language, questions, kept)
    return place.clock.median(lambda: _forward(language, batch), place.scale.rounds)


def _inputs(place: Place, language: Language, questions: int, kept: int) -> ModelInputs:
    ids = [5 + number % 10 for number in range(TEXT_TOKENS)]
    prompts = [Prompt(tuple(ids[:BEFORE]), tuple(ids[BEFORE:]))] * questions
    visual = torch.randn(questions, kept, language.width, device=place.device).to(language.dtype)
    return assemble(language, prompts, visual, None, place.scale.patches, "compact")


def _forward(language: Language, batch: ModelInputs) -> torch.Tensor:
    return language.model(
        inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, position_ids=batch.position_ids,
        use_cache=True, logits_to_keep=1,
    ).logits  # fmt: skip


def _captured(language: Language, batch: ModelInputs) -> Callable[[], object]:
    """Capture a prefill as a CUDA graph, after runs on a stream of their own as torch demands."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            _forward(language, batch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _forward(language, batch)
    return graph.replay
