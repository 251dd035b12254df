"""What trained pruners are made of: rankings without index ties, temperatures, straight-through decisions, noise, overlap."""

import math

import pytest
import torch

from stage2_prune.modules.blocks import heads_of
from stage2_prune.modules.positions import sine_positions
from stage2_prune.primitives.dice import dice_loss
from stage2_prune.primitives.ranked import ranking_of
from stage2_prune.primitives.straight_through import FLOOR, straight_through
from stage2_prune.primitives.temperature import cooled
from stage2_prune.primitives.vp_noise import vp_noise

IDS = ("a" * 64, "b" * 64)


def test_scores_are_ranked_falling_and_equal_scores_in_an_order_of_the_seed_and_the_image():
    scores = torch.tensor([[1.0, 3.0, 1.0, 3.0, 2.0, 1.0, 1.0, 1.0]]).expand(2, -1)
    ranked = ranking_of(scores, IDS, 0)
    assert (scores.gather(1, ranked).diff() <= 0).all()
    assert all(sorted(row) == list(range(8)) for row in ranked.tolist())
    flat = torch.zeros(2, 64)
    first = ranking_of(flat, IDS, 0)
    assert not torch.equal(first[0], torch.arange(64)) and not torch.equal(first[0], first[1])
    assert torch.equal(first[1:], ranking_of(flat[1:], IDS[1:], 0))  # alone as in a batch
    assert not torch.equal(first, ranking_of(flat, IDS, 1))


def test_equal_scores_keep_every_place_of_the_image_equally_often():
    flat, times = torch.zeros(1, 8), torch.zeros(8)
    for image in range(400):
        times[ranking_of(flat, (f"{image:064x}",), 0)[0, :4]] += 1
    assert times.min() > 150 and times.max() < 250


def test_a_temperature_falls_by_the_same_factor_in_every_step():
    assert (cooled(2.0, 0.1, 0.0), cooled(2.0, 0.1, 1.0)) == pytest.approx((2.0, 0.1))
    assert cooled(2.0, 0.1, 0.5) == pytest.approx(math.sqrt(2.0 * 0.1))


def test_a_straight_through_decision_is_hard_and_learns_as_the_soft_one():
    soft = torch.tensor([[0.9, 0.2]], requires_grad=True)
    made = straight_through(soft > 0.5, soft)
    assert made.tolist() == [[1.0, pytest.approx(FLOOR)]]
    made.mul(torch.tensor([[2.0, 3.0]])).sum().backward()
    assert soft.grad.tolist() == [[2.0, 3.0]]


def test_noise_is_gone_at_a_weight_of_1_and_all_there_is_at_0():
    torch.manual_seed(0)
    features = 5 * torch.randn(1, 3, 4000) + 1
    weights = torch.tensor([[1.0, 0.25, 0.0]], requires_grad=True)
    noisy = vp_noise(features, weights)
    assert torch.equal(noisy[0, 0], features[0, 0])
    alike = [torch.corrcoef(torch.stack([noisy[0, patch], features[0, patch]]))[0, 1] for patch in (1, 2)]
    assert alike[0].item() == pytest.approx(0.5, abs=0.05) and abs(alike[1]) < 0.05
    assert noisy[0].std(1).tolist() == pytest.approx([5.0, 5.0, 5.0], rel=0.05)  # as large as the features
    noisy.square().sum().backward()
    assert torch.isfinite(weights.grad).all()


def test_noise_is_drawn_from_torchs_generator_so_that_a_step_can_be_repeated():
    features, weights = torch.randn(1, 2, 8), torch.full((1, 2), 0.5)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(vp_noise(features, weights))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_dice_of_a_map_by_hand():
    target = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert dice_loss(target, target).tolist() == [0.0]
    assert dice_loss(1 - target, target).item() == pytest.approx(1 - 1 / 5)
    assert dice_loss(torch.tensor([[0.5, 0.5, 0.5, 0.0]]), target).item() == pytest.approx(1 - 3 / 4.5)


@pytest.mark.parametrize("width", [16, 10, 3])
def test_positions_tell_every_patch_from_every_other_at_any_width(width):
    places = sine_positions((3, 5), width)
    assert places.shape == (15, width) and places.abs().max() <= 1
    if width >= 4:
        assert (torch.cdist(places, places) + torch.eye(15)).min() > 0.05


def test_heads_divide_the_width():
    assert [heads_of(width, 16) for width in (1024, 48, 7)] == [16, 16, 1]
