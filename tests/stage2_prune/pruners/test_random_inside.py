from dataclasses import replace

import torch

from stage2_prune.pruners.random import Random
from stage2_prune.pruners.random_inside import RandomInside
from tests.stage2_prune.pruners.images import given
from tests.stage2_prune.tokens import visual_tokens

LETTERBOX = [0.0] * 8 + [0.25] * 8 + [1.0] * 16 + [0.0] * 8
"""5 rows of 8: the second is a quarter image, 24 patches show some of it."""


def test_the_padding_is_kept_only_when_everything_else_is():
    image = given((5, 8), image_area=LETTERBOX)
    for seed in range(5):
        for keep in range(1, 41):
            kept = set(RandomInside(seed=seed).select(image, keep)[0].tolist())
            inside = kept & set(range(8, 32))
            assert len(kept) == keep and len(inside) == min(keep, 24)


def test_it_is_the_draw_of_random_with_the_padding_passed_over():
    # Random's draw, patch by patch, from how its budgets grow.
    image = given((5, 8), image_area=LETTERBOX)
    for seed in range(3):
        budgets = [set(Random(seed=seed).select(image, keep)[0].tolist()) for keep in range(1, 41)]
        drawn = [(budgets[n] - (budgets[n - 1] if n else set())).pop() for n in range(40)]
        order = [patch for patch in drawn if 8 <= patch < 32] + [patch for patch in drawn if not 8 <= patch < 32]
        for keep in (1, 7, 24, 30, 40):
            assert RandomInside(seed=seed).select(image, keep)[0].tolist() == sorted(order[:keep])


def test_without_padding_it_is_random():
    tokens = visual_tokens((6, 6))
    whole = replace(tokens, arrays={"image_area": torch.ones(3, 36)})
    for keep in range(1, 37):
        assert torch.equal(RandomInside(seed=4).select(whole, keep), Random(seed=4).select(tokens, keep))


def test_every_patch_inside_is_kept_about_as_often():
    image = given((5, 8), image_area=LETTERBOX)
    times = torch.zeros(40)
    for seed in range(600):
        times[RandomInside(seed=seed).select(image, 6)[0]] += 1
    assert times[:8].sum() == times[32:].sum() == 0
    assert (times[8:32] - 150).abs().max() < 50  # a quarter of 600; the standard deviation is 10.6
