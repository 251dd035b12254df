"""The search itself, on scores that can be worked out by hand, and its candidates."""

from itertools import combinations

import pytest
import torch

from stage2_prune.oracle.greedy import BLOCK, SINGLES, greedy, rounds
from stage2_prune.oracle.pool import candidates, sample
from store.questions.question import Question

WORTH = torch.tensor([0.3, 5.0, 0.1, 2.0, 2.0, 9.0, 0.7, 0.2])


def worth(sets):
    """Every patch adds what it is worth, whatever else is kept: greedy search is optimal then."""
    return WORTH[sets].sum(1)


@pytest.mark.parametrize("keep", range(1, 8))
def test_where_greedy_is_optimal_it_finds_what_trying_every_set_finds(keep):
    best = max(combinations(range(8), keep), key=lambda chosen: float(worth(torch.tensor([chosen]))[0]))
    assert set(greedy(worth, range(8), keep)) == set(best)


def test_a_set_is_scored_as_a_whole_and_not_by_its_patches():
    def pair(sets):  # 2 is worth something beside 5 alone
        together = (sets == 2).any(1) & (sets == 5).any(1)
        return worth(sets) + 100 * together

    assert greedy(pair, range(8), 2) == [5, 2]


def test_of_equal_candidates_the_first_of_the_pool_is_taken():
    assert greedy(worth, [4, 3, 0], 2) == [4, 3] and greedy(worth, [3, 4, 0], 2) == [3, 4]


def test_one_search_serves_every_budget_because_budgets_are_nested_between_rounds():
    values = torch.rand(60, generator=torch.Generator().manual_seed(0))
    whole = greedy(lambda sets: values[sets].sum(1), range(60), 40)
    for keep in (1, 7, SINGLES, SINGLES + BLOCK, 32):
        assert greedy(lambda sets: values[sets].sum(1), range(60), keep) == whole[:keep]


def test_sets_are_in_raster_order_one_patch_larger_each_round_and_blocks_come_after_the_singles():
    seen = []

    def score(sets):
        assert (sets.diff(dim=1) > 0).all()
        seen.append((sets.shape[1], sets.shape[0]))
        return -sets[:, -1].double()

    found = greedy(score, range(40, 0, -1), 26)
    assert len(set(found)) == 26 and seen == rounds(40, 26)
    assert [size for size, _ in seen] == [*range(1, 17), 17, 21, 25]


def test_a_round_that_takes_all_that_is_left_scores_nothing():
    calls = []
    assert sorted(greedy(lambda sets: calls.append(1) or worth(sets), range(3), 3)) == [0, 1, 2]
    assert len(calls) == len(rounds(3, 3)) == 2


def pool_of(region=(), methods=(), pool=96, seed=0, image="i", question="q"):
    return candidates(region, methods, 576, pool, seed, image, question)


def test_a_pool_holds_region_and_methods_and_random_patches_up_to_its_size():
    methods = [range(100, 132), range(120, 152), range(300, 308)]
    pool = pool_of(range(10, 20), methods)
    assert len(pool) == len(set(pool)) == 96
    assert set(pool[:10]) == set(range(10, 20))
    assert set(pool[10:70]) == {*range(100, 152), *range(300, 308)}
    others = set(pool[70:])
    assert others != set(pool_of(range(10, 20), methods, question="other")[70:]) and pool == pool_of(
        range(10, 20), methods
    )
    assert others != set(pool_of(range(10, 20), methods, seed=1)[70:])


def test_a_large_region_leaves_half_of_the_pool_and_an_image_is_never_asked_for_more_patches_than_it_has():
    pool = pool_of(range(200), [range(300, 340)])
    assert sum(patch < 200 for patch in pool[:48]) == 48 and set(range(300, 340)) <= set(pool)
    assert sorted(candidates((), (), 9, 96, 0, "i", "q")) == list(range(9))


def test_the_same_questions_are_searched_whatever_stands_beside_them():
    asked = [Question(question_id=f"q{number}", image="i", question="?") for number in range(50)]
    chosen = sample(asked, 10, seed=0)
    assert len(chosen) == 10 and chosen == [question for question in asked if question in chosen]
    assert sample(asked[::-1], 10, seed=0) == chosen[::-1] and sample(asked, 10, seed=1) != chosen
    assert sample(asked, 99, seed=0) == asked
    fewer = [question for question in asked if question in chosen or question.question_id < "q3"]
    assert sample(fewer, 10, seed=0) == chosen
