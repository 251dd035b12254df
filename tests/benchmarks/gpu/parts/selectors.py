"""Milliseconds of every method before the language model, beside one layer of the tower and what its prefill saves."""

from dataclasses import replace

import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens
from tests.benchmarks.gpu import before
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows
from tests.benchmarks.pruners.inputs import QUICK, REAL, Scale, device_tokens, tower_layer
from tests.benchmarks.pruners.selectors import _selecting, ready_on

SLOW = 0.5
"""Seconds from which on a method is timed once."""


@torch.no_grad()
def measure(place: Place, rows: Rows) -> None:
    """Measure all methods at one budget, at every number of images at once."""
    place.release()
    shapes, methods = _shapes(place), plugin.find_all(pruners, Pruner)
    found = {name: kind for name, kind in methods.items() if kind.place == "before_llm"}
    broken: dict[str, str] = {}
    for images in place.scale.questions:
        tokens = in_dtype(device_tokens(shapes, images, place.device), place.scale.torch_dtype)
        layer, entering = tower_layer(shapes, images, place.device)
        layer, entering = layer.to(place.scale.torch_dtype), entering.to(place.scale.torch_dtype)
        took = place.clock.median(lambda layer=layer, entering=entering: layer(entering, None), place.scale.rounds)
        rows.add("selectors", f"one layer of the tower, {images} at once", 1000 * took / images, "ms/image")
        for name, kind in found.items():
            if name in broken or not kind.needs <= tokens.arrays.keys():
                continue
            try:
                seconds = _seconds(place, kind, shapes, tokens)
            except Exception as error:
                broken[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            rows.add("selectors", before.selecting(name, images), 1000 * seconds / images, "ms/image")
    for name, reason in broken.items():
        rows.say("selectors", f"{name} failed: {reason}")
    for images in place.scale.questions:
        _judge(place, rows, list(found), images)
    if broken:
        raise RuntimeError(f"expected every method to run, {', '.join(broken)} did not")


def _shapes(place: Place) -> Scale:
    if place.device.type == "cpu":
        return QUICK
    shapes = replace(REAL, budgets=(place.scale.middle,))
    assert shapes.patches == place.scale.patches
    return shapes


def in_dtype(tokens: VisualTokens, dtype: torch.dtype) -> VisualTokens:
    """Return the arrays as a store gives them: features in the compute dtype, attention and areas in float32."""
    kept = ("attention", "image_area", "diagonal")
    arrays = {
        name: array if any(word in name for word in kept) else array.to(dtype) for name, array in tokens.arrays.items()
    }
    question = None if tokens.question is None else tokens.question.to(dtype)
    projector = tokens.projector.to(dtype) if isinstance(tokens.projector, torch.nn.Module) else tokens.projector
    return replace(tokens, arrays=arrays, question=question, projector=projector)


def _seconds(place: Place, kind: type[Pruner], shapes: Scale, tokens: VisualTokens) -> float:
    pruner = ready_on(kind, shapes, place.device)
    keep = pruner.fixed_keep(shapes.patches) if pruner.budget == "fixed" else shapes.budgets[-1]
    run = _selecting(pruner, tokens, shapes.patches if pruner.adaptive else keep)
    run()  # kernels are loaded at the first call
    once = place.clock.once(run)
    return once if once > SLOW else place.clock.median(run, place.scale.rounds, warm_up=1)


def _judge(place: Place, rows: Rows, names: list[str], images: int) -> None:
    """Name the methods that cost more than the prefill of so many questions at once saves by them."""
    scale = place.scale
    whole, pruned = (rows.value("prefill", before.prefill(images, kept)) for kept in (scale.kept[0], scale.middle))
    if whole is None or pruned is None:
        rows.say("selectors", "what a prefill saves is not known here: run the part `prefill` in the same run")
        return
    saved = (whole - pruned) / images
    rows.add("selectors", f"what the prefill saves with {scale.middle} tokens, {images} at once", saved, "ms/image")
    costs = {name: rows.value("selectors", before.selecting(name, images)) for name in names}
    dear = [name for name, cost in costs.items() if cost is not None and cost > saved]
    verdict = f"cost more than that: {', '.join(dear)}" if dear else "no method costs more than that"
    rows.say("selectors", f"with {images} at once {verdict}")
