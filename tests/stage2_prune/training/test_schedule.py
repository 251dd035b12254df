"""What a step does hangs on (seed, epoch, step) alone."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from stage2_prune.training.schedule import epoch_batches, learning_rate, step_budget

IMAGES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(IMAGES, st.integers(1, 12), st.integers(0, 9), st.integers(1, 9))
def test_an_epoch_asks_every_question_once_in_full_batches(images, batch_size, seed, epoch):
    batches = epoch_batches(images, batch_size, seed, epoch)
    assert sorted(question for batch in batches for question in batch) == list(range(len(images)))
    assert all(len(batch) == batch_size for batch in batches[:-1]) and 1 <= len(batches[-1]) <= batch_size
    assert batches == epoch_batches(images, batch_size, seed, epoch)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(IMAGES, st.integers(0, 9))
def test_questions_about_one_image_stay_together(images, seed):
    order = [images[question] for batch in epoch_batches(images, 1, seed, 1) for question in batch]
    changes = [image for image, before in zip(order, [None, *order], strict=False) if image != before]
    assert len(changes) == len(set(images))


def test_another_epoch_and_another_seed_have_another_order():
    images = [str(question // 3) for question in range(60)]
    orders = [epoch_batches(images, 10, seed, epoch) for seed, epoch in ((0, 1), (0, 2), (1, 1))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_budgets_stay_in_their_range_and_small_ones_are_as_frequent_as_large_ones():
    drawn = [step_budget(0, 1, step, 16, 192) for step in range(2000)]
    assert min(drawn) == 16 and max(drawn) == 192
    halves = Counter(budget < 55 for budget in drawn)  # 55 lies in the middle of the logarithms
    assert 0.45 < halves[True] / 2000 < 0.55
    assert {step_budget(3, 1, step, 7, 7) for step in range(20)} == {7}


def test_the_learning_rate_rises_to_its_peak_and_falls_to_almost_nothing():
    rates = [learning_rate(step, 120, 1e-3) for step in range(120)]
    assert max(rates) == 1e-3 == rates[11] == rates[12]
    assert rates[:12] == sorted(rates[:12]) and rates[12:] == sorted(rates[12:], reverse=True)
    assert 0 < rates[-1] < 1e-6 and rates[0] > 0
    assert learning_rate(0, 1, 1e-3) == 1e-3
