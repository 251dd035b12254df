"""The rules for what a trained pruner before the language model shows it in a training step."""

import torch
from torch import Tensor

from stage2_prune.contract.rule import Case, Rule, require
from stage2_prune.pruning.practice import Practice, Shown
from stage2_prune.pruning.pruner import Pruner, TrainedPruner


def _practised(pruner: Pruner, case: Case) -> None:
    """Check what is shown, and which losses are returned, in the course of a training."""
    assert isinstance(pruner, TrainedPruner), "only trained pruners are trained"
    patches = case.tokens().patches
    for keep, progress in ((1, 0.0), (-(-patches // 2), 0.5), (patches, 0.25), (patches, 0.9)):
        where, shown, projected = f"{case}, keep {keep}, progress {progress:g}", *_shown(pruner, case, keep, progress)
        names = ", ".join(shown.losses)
        require(
            tuple(shown.losses) == pruner.losses,
            f"{where}: expected the losses that the class names ({', '.join(pruner.losses)}), came {names or 'none'}",
        )
        for name, loss in shown.losses.items():
            require(loss.shape == (case.images,), f"{where}: the loss {name} has the shape {tuple(loss.shape)}")
            require(torch.isfinite(loss).all(), f"{where}: the loss {name} is not finite")
        _require_shown(shown, projected, keep == patches, where)


def _shown(pruner: TrainedPruner, case: Case, keep: int, progress: float) -> tuple[Shown, Tensor]:
    """Let a pruner practise once on generated features and signals; its draws are seeded and leave no trace."""
    tokens = case.tokens()
    attention = tokens.arrays["last_layer_attention"]
    projected = tokens.arrays["projected"]
    practice = Practice(keep, progress, projected, attention > attention.mean(), attention)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return pruner.practise(tokens.only(pruner.needs, pruner.reads), practice), projected


def _require_shown(shown: Shown, projected: Tensor, everything: bool, where: str) -> None:
    """Check weights and features, which are those of the whole image where everything is kept."""
    learnt = [part for part in (shown.weights, shown.visual, *shown.losses.values()) if part is not None]
    require(everything or any(part.requires_grad for part in learnt), f"{where}: nothing that is shown has a gradient")
    if shown.weights is not None:
        low, high = shown.weights.min().item(), shown.weights.max().item()
        require(0 <= low <= high <= 1, f"{where}: weights from {low:g} to {high:g}")
        require(
            not everything or low == 1, f"{where}: weights from {low:g} to {high:g} where everything is kept, not 1"
        )
    if shown.visual is not None:
        require(shown.visual.shape == projected.shape, f"{where}: features of the shape {tuple(shown.visual.shape)}")
        require(torch.isfinite(shown.visual).all(), f"{where}: a feature is not finite")
        same = torch.equal(shown.visual.float(), projected.float())
        require(not everything or same, f"{where}: other features than the image's own where everything is kept")


PRACTISED = Rule(
    "In training it shows the whole image where everything is kept, and returns the losses it names", _practised
)
