"""Milliseconds of a prefill, beside what FLOPs, bytes and their roofline predict."""

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
    """Measure every number of questions at every number of visual tokens, and set beside it what is predicted."""
    language, scale = place.session().language, place.scale
    for questions in scale.questions:
        seconds: dict[int, float] = {}
        bounds: dict[int, Predicted] = {}
        for kept in scale.kept:
            batch = inputs(place, language, questions, kept)
            seconds[kept] = place.clock.median(lambda batch=batch: forward(language, batch), scale.rounds)
            bounds[kept] = predict(language, place.peaks, questions, kept)
            rows.add("prefill", before.prefill(questions, kept), 1000 * seconds[kept], "ms")
            rows.add("prefill", before.bound(questions, kept), 1000 * bounds[kept].roofline, "ms")
            if bounds[kept].bytes > bounds[kept].flops:
                rows.say(
                    "prefill", f"memory binds the roofline at {before.prefill(questions, kept)}, elsewhere arithmetic"
                )
        whole, few = scale.kept[0], scale.few
        for kind, faster in {
            "measured": seconds[whole] / seconds[few],
            "by FLOPs": bounds[whole].flops / bounds[few].flops,
            "by bytes": bounds[whole].bytes / bounds[few].bytes,
            "by the roofline": bounds[whole].roofline / bounds[few].roofline,
        }.items():
            rows.add("prefill", before.speed_up(questions, few, kind), faster)


class Predicted:
    """The seconds of a prefill as peaks of the device predict them."""

    def __init__(self, flops: float, moved: float, peaks: Peaks) -> None:
        self.flops, self.bytes = flops / peaks.flops, moved / peaks.bytes
        self.roofline = max(self.flops, self.bytes)


def predict(language: Language, peaks: Peaks, questions: int, kept: int) -> Predicted:
    """Count the layers on all tokens, the head on the last one, every weight once and the cache as it is written."""
    shape, head = shape_of(language), language.model.lm_head.weight
    flops = questions * (CONVENTIONS["flops_all"].count(shape, [kept] * shape.layers, TEXT_TOKENS) + 2 * head.numel())
    weights = sum(p.numel() * p.element_size() for p in language.model.model.layers.parameters())
    cache = questions * (kept + TEXT_TOKENS) * shape.layers * shape.kv_bytes
    return Predicted(flops, weights + head.numel() * head.element_size() + cache, peaks)


def inputs(place: Place, language: Language, questions: int, kept: int) -> ModelInputs:
    ids = [5 + number % 10 for number in range(TEXT_TOKENS)]
    prompts = [Prompt(tuple(ids[:BEFORE]), tuple(ids[BEFORE:]))] * questions
    visual = torch.randn(questions, kept, language.width, device=place.device).to(language.dtype)
    return assemble(language, prompts, visual, None, place.scale.patches, "compact")


def forward(language: Language, batch: ModelInputs) -> torch.Tensor:
    return language.model(
        inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, position_ids=batch.position_ids,
        use_cache=True, logits_to_keep=1,
    ).logits  # fmt: skip
