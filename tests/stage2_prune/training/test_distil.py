"""Distributions in short form keep what distillation needs, and the divergence from them is right and stable."""

import pytest
import torch
import torch.nn.functional as F

from stage2_prune.training.distil import TeacherRows, kl_to_teacher, shortened

VOCABULARY, ROWS = 12, 4


def drawn(seed, dtype=torch.float32, scale=3.0):
    return scale * torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def full_kl(ours, theirs):
    return F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="sum", log_target=True)


@pytest.mark.parametrize("top", [1, 5, 11])
def test_the_short_form_holds_the_likeliest_tokens_in_order_and_all_other_mass(top):
    rows, probabilities = shortened(drawn(0), top), drawn(0).softmax(-1)
    kept = probabilities.sort(-1, descending=True)
    assert torch.equal(rows.ids, kept.indices[:, :top])
    torch.testing.assert_close(rows.log_probabilities.exp(), kept.values[:, :top])
    torch.testing.assert_close(rows.log_rest.exp(), kept.values[:, top:].sum(-1))


@pytest.mark.parametrize("top", [VOCABULARY, 64])
def test_where_the_vocabulary_fits_nothing_is_left_and_the_divergence_is_the_full_one(top):
    theirs, ours = drawn(1), drawn(2).requires_grad_()
    rows = shortened(theirs, top)
    assert rows.ids.shape == (ROWS, VOCABULARY) and (rows.log_rest == -torch.inf).all()
    short, full = kl_to_teacher(ours, rows), full_kl(ours, theirs)
    torch.testing.assert_close(short, full)
    torch.testing.assert_close(torch.autograd.grad(short, ours)[0], torch.autograd.grad(full, ours)[0])
    assert torch.isfinite(torch.autograd.grad(kl_to_teacher(ours, rows), ours)[0]).all()


@pytest.mark.parametrize("top", [1, 5, 11])
def test_the_divergence_is_that_of_the_classes_and_never_more_than_the_full_one(top):
    theirs, ours = drawn(1), drawn(2)
    rows = shortened(theirs, top)

    def classes(logits):
        probabilities = logits.softmax(-1)
        kept = probabilities.gather(-1, rows.ids)
        return torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1).log()

    expected = F.kl_div(classes(ours), classes(theirs), reduction="sum", log_target=True)
    torch.testing.assert_close(kl_to_teacher(ours, rows), expected, rtol=1e-4, atol=1e-5)
    assert 0 < kl_to_teacher(ours, rows) <= full_kl(ours, theirs)
    torch.testing.assert_close(kl_to_teacher(theirs, rows), torch.zeros(()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("top", [5, VOCABULARY])
def test_the_gradient_equals_finite_differences(top):
    rows = shortened(drawn(1, torch.float64), top)
    assert torch.autograd.gradcheck(lambda ours: kl_to_teacher(ours, rows), drawn(2, torch.float64).requires_grad_())


def test_a_sure_model_gives_finite_and_right_numbers_in_float32():
    theirs, ours = torch.zeros(1, VOCABULARY), torch.zeros(1, VOCABULARY)
    ours[0, 3] = 60.0  # 1 minus its mass is 0 in float32
    theirs[0, 3] = 25.0
    leaf = ours.clone().requires_grad_()
    rows = shortened(theirs, 2)
    short = kl_to_teacher(leaf, rows)
    exact = kl_to_teacher(ours.double(), shortened(theirs.double(), 2))
    torch.testing.assert_close(short.double(), exact, rtol=1e-3, atol=1e-8)
    (gradient,) = torch.autograd.grad(short, leaf)
    assert torch.isfinite(gradient).all()
    other = TeacherRows(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]]).log(), torch.tensor([0.25]).log())
    assert torch.isfinite(kl_to_teacher(ours, other)) and kl_to_teacher(ours, other) > 40
