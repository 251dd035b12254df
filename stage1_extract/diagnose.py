"""Names what is wrong with a store from its contents: a few images are encoded again under every suspicion.

Nothing that the store says about itself is believed; what it says and would be refused for is listed first.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from configs.experiment import Experiment
from configs.progress import ProgressBar
from stage1_extract.arrays import NAMES
from stage1_extract.encode import EveryLayer, Selection, encode_every_layer
from stage1_extract.errors import ChangedImage, UnsupportedModel
from stage1_extract.families.llava import LlavaEncoder
from stage1_extract.family import checkpoint_config
from stage1_extract.find_family import find_family
from stage1_extract.fingerprint import environment, fingerprints
from stage1_extract.images import content_id, decode_image
from stage1_extract.sample import spread_out
from stage1_extract.sources.detect import open_images
from stage1_extract.sources.image_source import ImageSource
from stage1_extract.suspects import (
    PROCESSOR_AXES,
    Axes,
    Cause,
    Choice,
    Hypothesis,
    causes_of,
    hypotheses,
    layer_axis,
    order_axis,
    ordered,
    pad_to_square,
    processor_axes,
    rounding_axis,
    row_axis,
)
from stage1_extract.worker import use_threads_of
from store.fingerprint import differences
from store.projectors import build, project_image
from store.reader import FeatureStore
from store.tensors import from_storage, pick_device, torch_dtype

SOUND, WRONG = 0, 4
"""Exit codes."""
CACHED_PROCESSORS = 6
"""Tower outputs kept at a time: one holds every layer of an image."""
CLOSE_EPS = 4
SMALLEST_CLOSE = 1e-5
"""Relative error up to which two devices' features count as the same: CLOSE_EPS of their dtype, at least this."""


@dataclass(frozen=True)
class Explanation:
    """What best explains one array."""

    causes: tuple[Cause, ...]
    bit_equal: bool
    residual: float | None
    """Relative root mean square of what stays unexplained; None where nothing tried has the array's shape."""
    known: bool
    """Whether it explains the array: bit for bit, or up to another device's rounding."""
    max_abs_diff: float
    mean_abs_diff: float
    """Of the array against the model's own features, where they overlap."""
    allclose: bool

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return vars(self) | {"causes": [vars(cause) for cause in self.causes]}


@dataclass(frozen=True)
class Trial:
    """One hypothesis, tried on the sampled images."""

    equal: bool
    """Bit for bit, on all of them."""
    causes: int
    residual: float
    """On the first."""
    hypothesis: Hypothesis

    def rank(self, close: float) -> tuple[float | int, ...]:
        """Bit-equal before close before the rest; then few causes (for the rest: the smallest residual)."""
        if self.equal:
            return (0, self.causes, 0.0)
        return (1, self.causes, self.residual) if self.residual <= close else (2, self.residual, self.causes)


class Bench:
    """A few stored images, and everything that the tower would make of them under any suspicion."""

    def __init__(self, experiment: Experiment, store: FeatureStore, sample: int) -> None:
        use_threads_of(store.plan)
        config = checkpoint_config(experiment.model)
        experiment = experiment.with_arrays(name for name in store.arrays if name in NAMES)
        device = pick_device(experiment.model.device)
        encoder = find_family(config).open(experiment, config, device)
        if not isinstance(encoder, LlavaEncoder):
            raise UnsupportedModel(
                f"expected a model whose tower and projector can be reached apart, {config.model_type} is none: its "
                "features can only be compared with its own get_image_features"
            )
        self.encoder, self.half, self.store = encoder, encoder.half, store
        self._dtype, self._device = torch_dtype(experiment.model.dtype), device
        numeric = environment(device, experiment.extract.tower_batch, batch_invariant=True)
        self.expected = fingerprints(experiment, config, encoder, numeric)
        self.rows = spread_out(store, sample)
        data = experiment.data
        images = open_images(data.images, data.format, data.image_column, data.follow_links)
        self.images = [_open_image(images, experiment, store, row) for row in self.rows]
        self._seen: OrderedDict[str, EveryLayer] = OrderedDict()
        stored = store.projector
        self.stored_projector = None if stored is None else build(stored, device)

    def stored(self, name: str) -> Float[Tensor, "image ..."]:
        """The sampled rows as they lie in the store."""
        return from_storage(self.store.gather(name, self.rows), self.store.arrays[name].dtype)

    def every_layer(self, options: Mapping[str, Any], image: int) -> EveryLayer:
        """What the tower makes of one image under other processor options."""
        key = json.dumps([image, options], sort_keys=True)
        if key not in self._seen:
            self._seen[key] = encode_every_layer(self.half, self._pixels(dict(options), self.images[image]))
            while len(self._seen) > CACHED_PROCESSORS * len(self.images):
                self._seen.popitem(last=False)
        return self._seen[key]

    def projector_differs(self) -> bool:
        """Whether the store carries other projector weights than the checkpoint."""
        if self.stored_projector is None:
            return False
        theirs, ours = self.stored_projector.state_dict(), self.half.projector.state_dict()
        return theirs.keys() != ours.keys() or not all(torch.equal(theirs[name], ours[name]) for name in ours)

    def _pixels(self, options: dict[str, Any], image: Image.Image) -> Float[Tensor, "1 3 height width"]:
        stock: Any = self.encoder.image_processor.stock
        if options.pop("pad", False):
            image = pad_to_square(image, stock.image_mean)
        given = stock(images=[image], return_tensors="pt", **options)
        return given["pixel_values"].to(self._device, self._dtype)


def run(experiment: Experiment, sample: int, as_json: bool) -> int:
    """Diagnose `experiment`'s store against its checkpoint; prints the findings.

    Returns 0 for a store that is what its config asks for, 4 otherwise. Raises StoreMissing, CheckpointMissing and
    DataMissing (exit 5), IntegrityError (exit 4) for damaged bytes, ChangedImage (exit 4).
    """
    store = FeatureStore.open(experiment.store_location, believe_plan=True)
    bench = Bench(experiment, store, sample)
    refusals = list(_refusals(bench))
    found: dict[str, Explanation] = {}
    likely: Hypothesis | None = None
    for name in (one for one in store.arrays if one in _MAKERS):
        found[name], choices = explain(bench, name, likely)
        likely = choices if found[name].known and likely is None else likely
    extra = _projector_cause(bench, found)
    causes = list(dict.fromkeys([cause for one in found.values() for cause in one.causes if one.known] + extra))
    unknown = [name for name, one in found.items() if not one.known]
    result = {
        "store": str(store.path),
        "checkpoint": experiment.model.checkpoint,
        "images": len(bench.rows),
        "refusals": refusals,
        "causes": [vars(cause) for cause in causes],
        "unknown": unknown,
        "not_examined": [name for name in store.arrays if name not in _MAKERS],
        "arrays": {name: one.as_json() for name, one in found.items()},
    }
    click.echo(json.dumps(result) if as_json else _as_text(result))
    return WRONG if refusals or causes or unknown else SOUND


def explain(bench: Bench, name: str, likely: Hypothesis | None = None) -> tuple[Explanation, Hypothesis | None]:
    """The smallest set of causes that makes the sampled rows of an array; bit-equal sets before close ones.

    `likely` are the choices that explain another array: after the right ones they are tried first, so that what was
    projected from wrong features is not searched for from the beginning. Returns the choices too.
    """
    stored = bench.stored(name)
    make, axes = _suspicions(bench, name)
    close = max(CLOSE_EPS * torch.finfo(stored.dtype).eps, SMALLEST_CLOSE)
    tried: list[Trial] = []
    for hypothesis in ProgressBar(_suspected(axes, likely), f"diagnose {name}", unit="suspicions"):
        made = make(hypothesis, 0)
        if made.shape != stored[:1].shape:
            continue
        equal = torch.equal(made, stored[:1]) and all(
            torch.equal(make(hypothesis, image), stored[image : image + 1]) for image in range(1, len(stored))
        )
        tried.append(Trial(equal, len(causes_of(hypothesis)), _residual(made, stored[:1]), hypothesis))
        if equal:
            break
    right = {axis: choices[0] for axis, choices in axes.items()}
    own = torch.cat([make(right, image) for image in range(len(stored))])
    best = min(tried, key=lambda trial: trial.rank(close), default=None)
    return _explanation(best, close, own, stored), None if best is None else best.hypothesis


def _suspected(axes: Axes, likely: Hypothesis | None) -> Iterator[Hypothesis]:
    yield {axis: choices[0] for axis, choices in axes.items()}
    if likely is not None:
        yield from hypotheses({axis: [likely[axis]] if axis in likely else choices for axis, choices in axes.items()})
    yield from hypotheses(axes)


def _explanation(best: Trial | None, close: float, own: Tensor, stored: Tensor) -> Explanation:
    overlap = tuple(slice(min(sizes)) for sizes in zip(own.shape, stored.shape, strict=True))
    ours, theirs = own[overlap].double(), stored[overlap].double()
    apart = (ours - theirs).abs()
    allclose = own.shape == stored.shape and torch.allclose(ours, theirs, atol=1e-5)
    return Explanation(
        causes=() if best is None else causes_of(best.hypothesis),
        bit_equal=best is not None and best.equal,
        residual=None if best is None else best.residual,
        known=best is not None and (best.equal or best.residual <= close),
        max_abs_diff=apart.max().item(),
        mean_abs_diff=apart.mean().item(),
        allclose=allclose,
    )


def _suspicions(bench: Bench, name: str) -> tuple[Callable[[Hypothesis, int], Tensor], Axes]:
    """How one image's row of an array is made under a hypothesis, and what there is to suspect."""
    half, dtype = bench.half, bench.store.arrays[name].dtype
    stock: Any = bench.encoder.image_processor.stock
    axes: dict[str, list[Choice]] = {
        **processor_axes(stock),
        "layer": layer_axis(half.selection, bench.every_layer({}, 0)),
    }
    if name in ("raw", "projected"):
        axes |= {"rows": row_axis(half.selection, half.facts), "order": order_axis(half.facts.grid)}
        axes["rounding"] = rounding_axis(bench.store.arrays[name].dtype, "raw")
    if name == "projected":
        axes["projector"] = _projector_axis(bench)
        axes["result"] = rounding_axis(dtype, "projected")
    if name == "cls_hidden":
        axes["rounding"] = rounding_axis(dtype, "cls_hidden")
    if name == "cls_attention":
        axes["layer"] = [choice for choice in axes["layer"] if choice.value is not None and choice.value[-1] > 0]
        axes["order"] = order_axis(half.facts.grid)

    def make(hypothesis: Hypothesis, image: int) -> Tensor:
        options = {key: value for axis in PROCESSOR_AXES for key, value in hypothesis[axis].value.items()}
        made = _MAKERS[name](bench, hypothesis, bench.every_layer(options, image))
        return made.to(torch_dtype(dtype)).cpu()

    return make, axes


def _projector_axis(bench: Bench) -> list[Choice]:
    own = Choice(bench.half.projector)
    if not bench.projector_differs():
        return [own]
    return [own, Choice(bench.stored_projector, Cause("projector", "another projector, the one in the store"))]


def _raw(bench: Bench, hypothesis: Hypothesis, seen: EveryLayer) -> Tensor:
    layers, drops_cls = hypothesis["layer"].value, hypothesis["rows"].value
    states = seen.hidden_states
    if layers is None:
        states, layers = (seen.last_hidden_state,), (0,)
    rows = Selection(layers, drops_cls).of(states)
    keeps_cls = bench.half.facts.has_cls and not drops_cls
    return _rounded(ordered(rows, hypothesis["order"].value, keeps_cls), hypothesis["rounding"].value)


def _projected(bench: Bench, hypothesis: Hypothesis, seen: EveryLayer) -> Tensor:
    raw = _raw(bench, hypothesis, seen)
    return _rounded(project_image(hypothesis["projector"].value, raw), hypothesis["result"].value)


def _cls_hidden(bench: Bench, hypothesis: Hypothesis, seen: EveryLayer) -> Tensor:
    layers, states = hypothesis["layer"].value, seen.hidden_states
    if layers is None:
        states, layers = (seen.last_hidden_state,), (0,)
    return _rounded(torch.cat([states[layer][:, 0] for layer in layers], -1), hypothesis["rounding"].value)


def _cls_attention(bench: Bench, hypothesis: Hypothesis, seen: EveryLayer) -> Tensor:
    attention = seen.cls_attention[hypothesis["layer"].value[-1] - 1]
    by_patch = attention.transpose(1, 2)
    return ordered(by_patch, hypothesis["order"].value, has_cls_row=False).transpose(1, 2).contiguous()


_MAKERS = {"raw": _raw, "projected": _projected, "cls_hidden": _cls_hidden, "cls_attention": _cls_attention}
"""The arrays that are examined: others are made by the same forward, and compared by `verify --live`."""


def _rounded(tensor: Tensor, through: Any) -> Tensor:
    return tensor if through is None else tensor.to(torch_dtype(through)).to(tensor.dtype)


def _residual(made: Tensor, stored: Tensor) -> float:
    """Relative root mean square difference."""
    made, stored = made.double(), stored.double()
    return ((made - stored).norm() / stored.norm().clamp_min(torch.finfo(torch.float64).tiny)).item()


def _refusals(bench: Bench) -> Iterable[str]:
    """Field by field, what a command that needs this store would refuse it for."""
    plan = bench.store.plan
    if any(log.plan_digests - {plan.digest_of(one)} for one, log in enumerate(bench.store.logs)):
        yield "plan: it was changed after shards were committed"
    for name, spec in bench.store.arrays.items():
        if name not in bench.expected:
            yield f"{name}: this checkpoint makes no such array"
            continue
        expected, found = bench.expected[name].semantic, bench.store.fingerprint(name).semantic
        moved = [
            key for key in ("checkpoint", "clip") if all(Path(str(one.get(key))).is_dir() for one in (expected, found))
        ]
        expected, found = (
            {key: value for key, value in one.items() if key not in moved}
            for one in (json.loads(json.dumps(expected)), found)
        )
        yield from (f"{name}: {difference}" for difference in differences(expected, found))
        wanted = next(one for one in bench.encoder.description.arrays if one.name == name).shape
        if spec.shape != wanted:
            yield f"{name}: shape: expected {wanted} per image, found {spec.shape}"


def _projector_cause(bench: Bench, found: Mapping[str, Explanation]) -> list[Cause]:
    """Other weights in the store that no array shows."""
    shown = any(cause.kind == "projector" for one in found.values() for cause in one.causes)
    if shown or not bench.projector_differs():
        return []
    return [Cause("projector", "the projector in the store is not the checkpoint's (`projected` was not made by it)")]


def _open_image(images: ImageSource, experiment: Experiment, store: FeatureStore, row: int) -> Image.Image:
    name = store.ids.names(row)[0]
    data = images.read(name)
    if store.plan.identity == "content" and content_id(data) != store.ids.sha_of_row(row):
        raise ChangedImage(
            f"expected {name} as it was encoded, its file has changed: restore it to diagnose this store"
        )
    return decode_image(data, name, experiment.extract.max_pixels)


def _as_text(result: Mapping[str, Any]) -> str:
    lines = [f"{result['store']}: {result['images']} images encoded again by {result['checkpoint']}", ""]
    lines += [f"refused  {refusal}" for refusal in result["refusals"]] or ["refused  nothing: its fingerprints agree"]
    lines.append("")
    for name, one in result["arrays"].items():
        words = "; ".join(cause["detail"] for cause in one["causes"])
        if not one["known"]:
            left = "nothing tried has its shape" if one["residual"] is None else f"residual {one['residual']:.6f}"
            said = f"UNKNOWN: closest to {words or 'the right features'}, {left}"
        else:
            exactly = "bit for bit" if one["bit_equal"] else f"up to rounding (residual {one['residual']:.1e})"
            said = f"{words or 'as it should be'}, {exactly}"
        lines.append(f"{name:<14}{said}")
        if one["causes"] or not one["known"]:
            lines.append(
                f"{'':<14}against the model's own: max |diff| {one['max_abs_diff']:.6f}, mean |diff| "
                f"{one['mean_abs_diff']:.6f}, allclose(atol=1e-5) {one['allclose']}"
            )
    if result["not_examined"]:
        lines.append(f"not examined: {', '.join(result['not_examined'])}; `verify --live` compares them bit for bit")
    causes = [cause["detail"] for cause in result["causes"]]
    verdict = "CAUSES   " + "; ".join(causes) if causes else "SOUND    the store holds what its config asks for"
    if result["unknown"]:
        verdict = f"UNKNOWN  {', '.join(result['unknown'])}" + (
            f"; causes found: {'; '.join(causes)}" if causes else ""
        )
    elif result["refusals"] and not causes:
        verdict = "REFUSED  the contents are right, the fingerprint is not"
    return "\n".join([*lines, "", verdict])
