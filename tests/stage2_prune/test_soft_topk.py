"""The soft top-k keeps its budget, and its gradient is the true one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage2_prune.errors import PrunerMisused
from stage2_prune.primitives.soft_topk import soft_share, soft_top_k
from stage2_prune.primitives.top_k import top_k

SCORES = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40)
TEMPERATURE = st.floats(0.01, 10)


def drawn(images=2, patches=12, dtype=torch.float64):
    return torch.randn(images, patches, dtype=dtype, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=150, derandomize=True)
@given(SCORES, TEMPERATURE, st.data())
def test_weights_lie_between_0_and_1_follow_the_scores_and_sum_to_the_budget(values, temperature, data):
    scores = torch.tensor([values])
    keep = data.draw(st.integers(1, len(values)))
    weights = soft_top_k(scores, keep, temperature)
    assert weights.dtype == scores.dtype and ((weights >= 0) & (weights <= 1)).all()
    assert weights.sum().item() == pytest.approx(keep, rel=1e-5)
    order = scores[0].argsort()
    assert (weights[0, order].diff() >= -1e-6).all()


@pytest.mark.parametrize("keep", [1, 5, 11])
def test_the_gradient_equals_finite_differences_with_the_threshold_moving_along(keep):
    scores = drawn().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_top_k(s, keep, 0.7), (scores,))


def test_keeping_every_patch_gives_exact_ones_with_a_gradient_of_0():
    scores = drawn(dtype=torch.float32).requires_grad_()
    weights = soft_top_k(scores, 12, 0.1)
    assert torch.equal(weights, torch.ones_like(weights))
    weights.square().sum().backward()
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_an_images_weights_do_not_depend_on_its_batch():
    scores = drawn(images=4, patches=100, dtype=torch.float32) * torch.tensor([[1.0], [10], [0.1], [3]])
    together = soft_top_k(scores, 30, 0.1)
    for image in range(4):
        assert torch.equal(soft_top_k(scores[image : image + 1], 30, 0.1)[0], together[image])


def test_towards_temperature_0_it_becomes_the_hard_selection():
    scores = drawn(patches=50)
    hard = torch.zeros_like(scores).scatter(1, top_k(scores, 20), 1)
    torch.testing.assert_close(soft_top_k(scores, 20, 1e-5), hard)


def test_saturated_weights_have_a_finite_gradient():
    scores = torch.tensor([[1e4, 0.0, -1e4, -2e4]], requires_grad=True)
    weights = soft_top_k(scores, 2, 1e-3)
    (weights * torch.arange(4)).sum().backward()
    torch.testing.assert_close(weights.detach(), torch.tensor([[1.0, 1, 0, 0]]), rtol=0, atol=1e-12)
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("keep", [0, 13])
def test_a_budget_that_does_not_exist_is_refused(keep):
    with pytest.raises(PrunerMisused, match=r"1\.\.12"):
        soft_top_k(drawn(), keep, 0.1)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(PrunerMisused, match="finite"):
        soft_top_k(torch.tensor([[1.0, float("inf"), 0.0]]), 1, 0.1)


def some_left():
    present = torch.rand(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    present[:, ::4] = 0
    return present


def test_a_later_top_k_shares_out_what_an_earlier_one_left_and_brings_nothing_back():
    scores, present = 3 * drawn(), some_left()
    assert torch.equal(soft_share(scores, torch.ones_like(scores), 5, 0.3), soft_top_k(scores, 5, 0.3))
    for temperature in (1.0, 0.1, 1e-6):
        left = present * soft_share(scores, present, 2, temperature)
        torch.testing.assert_close(left.sum(-1), torch.full((2,), 2.0, dtype=torch.float64))
        assert (left[:, ::4] == 0).all() and (left <= present).all()
    hard = torch.ones_like(present)
    hard[:, ::2] = 0
    chosen = hard * soft_share(scores, hard, 2, 1e-6)
    assert torch.equal(chosen.round().nonzero()[:, 1].view(2, 2), top_k(scores.masked_fill(hard == 0, -99), 2))


def test_the_gradient_of_a_share_equals_finite_differences_in_scores_and_in_what_is_left():
    scores, present = drawn().requires_grad_(), (some_left() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, p: soft_share(s, p, 2, 0.7), (scores, present))


def test_a_hard_share_has_a_gradient_without_nan():
    scores, present = drawn().requires_grad_(), torch.ones(2, 12, dtype=torch.float64, requires_grad=True)
    soft_share(scores, present, 3, 1e-9).sum().backward()
    assert scores.grad.isfinite().all() and present.grad.isfinite().all()
