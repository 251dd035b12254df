"""FitPrune against loops over a stock model's attention matrices, and its calibration on a case made by hand."""

import pytest
import torch

from stage2_prune.errors import Infeasible
from stage2_prune.pruners.fit_prune import FitPrune
from stage2_prune.training.calibration.calibrate import calibrate, spared
from tests.stage2_prune.eager_oracle import Eager, of_question
from tests.stage2_prune.pruners.golden import check, layers_of, model
from tests.stage2_prune.small_llama import LAYERS, PATCHES, PROMPTS, questions


def received(view, rows):
    largest = view.attention.max(0).values
    return {j: sum(largest[i, j].item() for i in rows) for j in view.image}


def products(view):
    text, image = received(view, view.text), received(view, view.image)
    return {j: text[j] * image[j] / len(view.image) for j in view.image}


@pytest.mark.parametrize("keep", [4, 8, 16])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_the_lowest_products_of_both_kinds_of_attention_are_deleted_after_each_layer(keep, positions):
    check(FitPrune(), keep, positions, products)


def test_calibrated_counts_replace_the_published_ones():
    pruner = FitPrune(deletes=(0, 10, 0, 0, 4, 0, 0, 0))
    schedule = pruner.schedule(PATCHES, LAYERS, 16)
    check(pruner, 16, "original", products)
    assert list(layers_of(pruner, 16)) == list(schedule.layers)


def test_tokens_are_spared_as_long_as_enough_attention_is_left():
    mass = torch.tensor([4.0, 1.0, 2.0, 3.0])
    assert spared(mass, 10.0, 0.3).tolist() == [False, True, True, False]
    assert spared(mass, 10.0, 0.29).tolist() == [False, True, False, False]
    assert not spared(mass, 10.0, 0.05).any() and not spared(mass, 10.0, 0.0).any()
    assert not spared(mass, 20.0, 0.4).any(), "less than the tolerated is left already"


def naive_deletes(oracle, batch, alpha):
    """Tokens that each question can spare after each layer, floor of the mean over questions."""
    totals, counts = [{} for _ in PROMPTS], [{} for _ in PROMPTS]
    for row in range(len(PROMPTS)):
        prompt, start = of_question(batch, row)

        def note(view, row=row):
            text, image = received(view, view.text), received(view, view.image)
            totals[row][view.layer] = sum(text.values()) / len(view.text), sum(image.values()) / len(view.image)
            return view.image

        def cut(view, row=row):
            gone = []
            for kind, rows in enumerate((view.text, view.image)):
                mass = {j: value / max(len(rows), 1) for j, value in received(view, rows).items()}
                left, some = sum(mass.values()), set()
                for j in sorted(mass, key=mass.__getitem__):
                    left -= mass[j]
                    if left < (1 - alpha) * totals[row][view.layer][kind]:
                        break
                    some.add(j)
                gone.append(some)
            counts[row][view.layer] = len(gone[0] & gone[1])
            return [j for j in view.image if j not in gone[0] & gone[1]]

        for rule in (note, cut):
            oracle.run(prompt, start, PATCHES, len(prompt), dict.fromkeys(range(1, LAYERS), rule), "original")
    return [sum(one[layer] for one in counts) // len(PROMPTS) for layer in range(1, LAYERS)] + [0]


@torch.no_grad()
def test_calibration_bisects_the_tolerance_until_the_mean_is_met():
    language, oracle = model()
    singles = [questions(language, prompts=(prompt,)) for prompt in PROMPTS]
    found = calibrate(language, singles, 14)
    low, high, expected = 0.0, 1.0, None
    while high - low > 0.01:
        alpha = (low + high) / 2
        deletes = naive_deletes(Eager(oracle.model), questions(language), alpha)
        entering = [PATCHES - sum(deletes[:layer]) for layer in range(LAYERS)]
        if sum(entering) <= 14 * LAYERS:
            high, expected = alpha, deletes
        else:
            low = alpha
    assert found == expected and any(found)
    assert FitPrune(deletes=tuple(found)).schedule(PATCHES, LAYERS, 14).mean == pytest.approx(14, abs=0.5)


def test_a_budget_below_what_the_first_layer_sees_cannot_be_calibrated():
    language, _ = model()
    with pytest.raises(Infeasible, match="mean of 2 "):
        calibrate(language, [questions(language, prompts=PROMPTS[:1])], 2)
