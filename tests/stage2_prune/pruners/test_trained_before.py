"""What makes each trained method that method: its decisions, its noise, its further losses, by hand or by a plain loop."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from stage2_prune.contract.inputs import ready
from stage2_prune.modules.pointer import path_logits, pointed
from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.pruners.covipal import Covipal
from stage2_prune.pruners.diff_prune import DiffPrune
from stage2_prune.pruners.glimpse_prune import GlimpsePrune
from stage2_prune.pruners.gumbel_scorer import GumbelScorer
from stage2_prune.pruners.question_scorer import QuestionScorer
from stage2_prune.pruners.scale_gate import ScaleGate
from stage2_prune.pruners.step_prune import StepPrune
from stage2_prune.pruners.vision_selector import VisionSelector
from stage2_prune.pruning.practice import Practice
from tests.stage2_prune.tokens import visual_tokens

GRID, PATCHES = (4, 4), 16


@pytest.fixture
def tokens():
    return visual_tokens(GRID)


def practice(tokens, keep=5, progress=0.0, **signals):
    return Practice(keep, progress, tokens.arrays["projected"], **signals)


def test_a_scale_gate_multiplies_rows_by_a_soft_top_k_that_hardens(tokens):
    pruner = ready(ScaleGate(), GRID)
    scores = pruner.policy(tokens)
    for progress, temperature in ((0.0, 2.0), (1.0, 0.1)):
        shown = pruner.practise(tokens, practice(tokens, progress=progress))
        weights = soft_top_k(scores, 5, temperature)
        torch.testing.assert_close(shown.visual, tokens.arrays["projected"] * weights[..., None])
        assert shown.weights is None


def test_the_gumbel_decision_is_hard_and_its_loss_is_that_of_the_share(tokens):
    pruner = ready(GumbelScorer(width=16), GRID)
    torch.manual_seed(0)
    shown = pruner.practise(tokens, practice(tokens))
    kept = shown.weights > 0.5
    assert shown.weights.unique().tolist() == pytest.approx([1e-4, 1.0])
    expected = 100 * (5 / PATCHES - kept.float().mean(1)).square()
    torch.testing.assert_close(shown.losses["ratio"], expected)
    shown.losses["ratio"].sum().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in pruner.module.parameters())


def test_the_gumbel_decision_falls_as_often_as_its_odds_say(tokens):
    pruner = ready(GumbelScorer(width=16), GRID)
    with torch.no_grad():
        chance, kept = pruner.policy(tokens).sigmoid(), torch.zeros(3, PATCHES)
        for seed in range(600):
            torch.manual_seed(seed)
            kept += pruner.practise(tokens, practice(tokens)).weights > 0.5
    assert (kept / 600 - chance).abs().max() < 0.1


def test_vision_selector_scores_by_the_mean_match_and_sharpens_more_and_more(tokens):
    pruner = ready(VisionSelector(width=6), GRID)
    module = pruner.module
    assert 0.5e-4 < module.query.weight.std() < 2e-4
    rows = tokens.arrays["projected"][0]
    matches = module.query(rows) @ module.key(rows).T / 6**0.5
    torch.testing.assert_close(pruner.policy(tokens)[0], matches.mean(1))
    module.query.weight.data.mul_(1e8)
    soft = soft_top_k(pruner.policy(tokens), 5, 1.0)
    hard = torch.zeros(3, PATCHES).scatter(1, soft.topk(5).indices, 1)
    apart = F.binary_cross_entropy(soft, hard, reduction="none").mean(1)
    for progress, weight in ((0.0, 0.1), (0.5, 1.55), (1.0, 3.0)):
        shown = pruner.practise(tokens, practice(tokens, progress=progress))
        torch.testing.assert_close(shown.losses["sharpness"], weight * apart)
        torch.testing.assert_close(shown.visual, tokens.arrays["projected"] * soft[..., None])


def test_fresh_scores_of_vision_selector_leave_the_choice_to_chance_and_not_to_the_index(tokens):
    flat = replace(tokens, arrays={name: torch.zeros_like(array) for name, array in tokens.arrays.items()})
    with torch.no_grad():
        kept = ready(VisionSelector(), GRID).select(flat, 4)
    assert not torch.equal(kept[0], kept[1]) and kept[0].tolist() != [0, 1, 2, 3]


def test_diff_prune_cleans_each_patch_by_itself_and_leaves_a_whole_patch_as_it_is(tokens):
    denoise = ready(DiffPrune(), GRID).module["denoiser"]
    noisy, weights = torch.randn(1, PATCHES, 12), torch.full((1, PATCHES), 0.5)
    other = noisy.clone()
    other[0, 3] = noisy[0, 3].flip(0)  # of the same spread
    with torch.no_grad():
        changed = (denoise(noisy, weights) != denoise(other, weights)).any(-1)[0]
        assert changed.nonzero().tolist() == [[3]]
        assert torch.equal(denoise(noisy, torch.ones(1, PATCHES)), noisy)
        assert not torch.equal(denoise(noisy, weights), denoise(noisy, weights / 2))  # it sees how much is left


def test_diff_prune_selects_without_its_denoiser_and_trains_with_noise(tokens, monkeypatch):
    pruner = ready(DiffPrune(), GRID)
    shown = [pruner.practise(tokens, practice(tokens)).visual for _ in range(2)]
    assert not torch.equal(*shown)
    monkeypatch.setattr(pruner.module["denoiser"], "forward", lambda *_: pytest.fail("it was called"))
    with torch.no_grad():
        assert pruner.prune(tokens, 5).index.shape == (3, 5)
    gate = ScaleGate().with_module(pruner.module["scorer"])
    assert torch.equal(gate.policy(tokens), pruner.policy(tokens))


def test_covipal_is_taught_by_attention_first_and_by_the_language_model_then(tokens):
    pruner = ready(Covipal(width=16), GRID)
    attention = torch.rand(3, PATCHES).softmax(-1)
    first = pruner.practise(tokens, practice(tokens, progress=0.49, attention=attention))
    target = torch.zeros(3, PATCHES).scatter(1, attention.topk(5).indices, 1)
    expected = F.binary_cross_entropy_with_logits(pruner.policy(tokens), target, reduction="none").mean(1)
    torch.testing.assert_close(first.losses["attention"], expected)
    assert first.weights is None and first.visual is None
    for progress, temperature in ((0.5, 2.0), (1.0, 0.1)):
        then = pruner.practise(tokens, practice(tokens, progress=progress, attention=attention))
        torch.testing.assert_close(then.weights, soft_top_k(pruner.policy(tokens), 5, temperature))
        assert (then.losses["attention"] == 0).all()


@pytest.mark.parametrize("found", [Covipal, QuestionScorer, GlimpsePrune])
def test_what_is_kept_depends_on_the_question(tokens, found):
    pruner = ready(found(width=16), GRID)
    other = replace(tokens, question=tokens.question.flip(0) * 3)
    with torch.no_grad():
        assert (pruner.policy(tokens) != pruner.policy(other))[[0, 2]].all()


def test_glimpse_prune_learns_the_regions_by_dice_and_cross_entropy_and_nothing_where_there_is_none(tokens):
    pruner = ready(GlimpsePrune(width=16), GRID)
    regions = torch.zeros(3, PATCHES, dtype=torch.bool)
    regions[0, :4] = regions[1, 7] = True
    shown = pruner.practise(tokens, practice(tokens, regions=regions))
    logits = pruner.policy(tokens)
    for image in (0, 1):
        seen, wanted = logits[image].sigmoid(), regions[image].float()
        dice = 1 - (2 * (seen * wanted).sum() + 1) / (seen.sum() + wanted.sum() + 1)
        torch.testing.assert_close(shown.losses["dice"][image], dice)
        apart = F.binary_cross_entropy(seen, wanted)
        torch.testing.assert_close(shown.losses["bce"][image], 0.1 * apart)
    assert shown.losses["dice"][2] == 0 and shown.losses["bce"][2] == 0
    torch.testing.assert_close(shown.weights, soft_top_k(logits, 5, 2.0))


def scores_of(tokens, stops=False, bias=None):
    pruner = ready(StepPrune(width=16, count="threshold" if stops else "budget"), GRID)
    if bias is not None:
        pruner.module.stop.bias.data.fill_(bias)
    made = torch.stack([pruner.module(raw) for raw in tokens.arrays["raw"]]).detach()
    return pruner, made[..., 0], made[..., 1], made[..., 2:]


def walked(own, stop, matches):
    """Choose one patch after another, by a plain loop: the order, and how far each choice lay above STOP."""
    order, above = [], []
    for _ in range(PATCHES):
        left = [patch for patch in range(PATCHES) if patch not in order]
        logits = {patch: own[patch] + (matches[patch, order].mean() if order else 0) for patch in left}
        best = max(left, key=lambda patch: logits[patch].item())
        above.append(logits[best] - stop[order or [best]].mean())
        order.append(best)
    return order, torch.stack(above)


@pytest.mark.parametrize("stops", [False, True])
def test_the_pointer_goes_the_way_of_a_plain_loop(tokens, stops):
    pruner, own, stop, matches = scores_of(tokens, stops)
    drawn = torch.arange(PATCHES).expand(3, -1)
    order = pointed(own, 5 * matches, drawn, PATCHES)
    logits = path_logits(own, stop, 5 * matches, order)
    for image in range(3):
        expected, above = walked(own[image], stop[image], 5 * matches[image])
        assert order[image].tolist() == expected
        torch.testing.assert_close(logits[image], above)
    ranked = pruner.ranking(tokens, PATCHES)
    assert torch.equal(ranked, pointed(own, matches, drawn, PATCHES))
    assert torch.equal(ranked, pruner.policy(tokens).argsort(1, descending=True))
    assert not torch.equal(order, own.argsort(1, descending=True))  # what was chosen before counts


def test_stop_ends_the_path_where_no_patch_is_above_it_any_more(tokens):
    _, own, stop, matches = scores_of(tokens, stops=True, bias=0.0)
    middle = walked(own[0], stop[0], matches[0])[1].median()
    pruner, own, stop, matches = scores_of(tokens, stops=True, bias=float(middle))
    result = pruner.prune(tokens, 5)
    assert any(1 < count < PATCHES for count in result.counts.tolist())
    for image, count in enumerate(result.counts.tolist()):
        order, above = walked(own[image], stop[image], matches[image])
        falls = (above - 1e-4 * torch.arange(PATCHES) < 0).nonzero()[:, 0].tolist()
        assert count == max(1, falls[0] if falls else PATCHES)
        assert result.index[image, :count].tolist() == sorted(order[:count])
    pruner.module.stop.bias.data.fill_(100.0)
    assert pruner.prune(tokens, 5).counts.tolist() == [1, 1, 1]  # the best patch is always kept
    pruner.module.stop.bias.data.fill_(-100.0)
    assert pruner.prune(tokens, 5).counts.tolist() == [PATCHES] * 3


def test_step_prune_learns_its_share_where_stop_decides(tokens):
    pruner, *_ = scores_of(tokens, stops=True)
    shown = pruner.practise(tokens, practice(tokens))
    weights = (pruner.policy(tokens) / 2.0).sigmoid()
    torch.testing.assert_close(shown.losses["ratio"], 100 * (5 / PATCHES - weights.mean(1)).square())
    exact, *_ = scores_of(tokens)
    assert exact.practise(tokens, practice(tokens)).losses["ratio"].max() < 1e-6
