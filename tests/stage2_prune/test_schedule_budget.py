"""Counts per layer against the published figures, and what cannot be had."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import plugin
from configs.published_layers import language_layer, language_layers
from stage2_prune import pruners
from stage2_prune.errors import Infeasible, PrunerMisused
from stage2_prune.pruners.combination import Combination
from stage2_prune.pruners.dart import Dart
from stage2_prune.pruners.fastv import FastV
from stage2_prune.pruners.fit_prune import FitPrune
from stage2_prune.pruners.pyramid_drop import PyramidDrop
from stage2_prune.pruners.sparse_vlm import SparseVlm
from stage2_prune.pruners.sparse_vlm_plus import SparseVlmPlus
from stage2_prune.pruners.v2_drop import V2Drop
from stage2_prune.pruners.vtw import Vtw
from stage2_prune.pruning.in_llm import InLLMPruner
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.schedule import Schedule, Stage, between, fit, published, staged, whole

INSIDE = {name: found for name, found in plugin.find_all(pruners, Pruner).items() if issubclass(found, InLLMPruner)}


def keeps(schedule):
    return [stage.keep for stage in schedule.stages]


@pytest.mark.parametrize(
    ("layer", "budget", "keep"),
    [(2, 192, 166), (2, 128, 98), (2, 64, 30), (3, 192, 152), (3, 128, 82), (3, 64, 11), (2, 171, 144), (2, 306, 288)],
)
def test_fastv_meets_mean_budgets_at_the_counts_of_the_matched_tables(layer, budget, keep):
    schedule = FastV(layer=layer).schedule(576, 32, budget)
    assert (schedule.layers, keeps(schedule)) == ((layer,), [keep])
    assert schedule.tokens_per_layer == (576,) * layer + (keep,) * (32 - layer)
    assert schedule.mean == pytest.approx(budget, abs=0.5)


def test_pyramid_drop_at_270_tokens_is_the_published_pyramid():
    schedule = PyramidDrop().schedule(576, 32, 270)
    assert (schedule.layers, keeps(schedule), schedule.mean) == ((8, 16, 24), [288, 144, 72], 270)


@pytest.mark.parametrize(
    ("recycle", "mean", "counts"),
    [
        (False, 202.75, [300, 200, 110]),
        (False, 140.8, [303, 110, 36]),
        (False, 79.2, [66, 30, 17]),
        (True, 206.5, [300, 200, 110]),
        (True, 145.4, [303, 110, 36]),
        (True, 82.3, [66, 30, 17]),
    ],
)
def test_sparse_vlm_has_its_published_counts_at_their_true_means(recycle, mean, counts):
    made = (lambda dropped: (int(0.3 * dropped) + 1) // 10 + 1) if recycle else (lambda dropped: 0)
    published = staged(576, 32, language_layers([3, 7, 16], 32), counts, made)
    assert keeps(published) == counts and published.mean == pytest.approx(mean, abs=0.05)
    near = SparseVlm(recycle=recycle).schedule(576, 32, round(mean))
    assert near.mean == pytest.approx(mean, abs=1)
    assert all(abs(a - b) <= 4 for a, b in zip(keeps(near), counts, strict=True))


@pytest.mark.parametrize(("mean", "counts"), [(188.2, (300, 200, 110)), (123.9, (303, 110, 36)), (61.7, (66, 30, 17))])
def test_sparse_vlm_comes_near_its_nominal_budgets_only_where_a_layer_counts_what_leaves_it(mean, counts):
    """The authors' way: tokens go after layers 2, 6 and 15, and are counted as gone in these layers already."""
    assert staged(576, 32, (2, 6, 15), counts).mean == pytest.approx(mean, abs=0.05)


@pytest.mark.parametrize(("mean", "counts"), [(206.8, [300, 200, 118]), (144.1, [238, 108, 60]), (81.8, [66, 34, 20])])
def test_sparse_vlm_plus_has_its_published_counts_at_their_true_means(mean, counts):
    assert staged(576, 32, (3, 7, 16), counts).mean == pytest.approx(mean, abs=0.06)
    near = SparseVlmPlus().schedule(576, 32, round(mean))
    assert all(abs(a - b) <= 4 for a, b in zip(keeps(near), counts, strict=True))


@pytest.mark.parametrize(("keep", "mean"), [(188, 212), (124, 152), (60, 92)])
def test_dart_has_the_layer_averages_of_its_published_counts(keep, mean):
    assert staged(576, 32, (2,), [keep]).mean == pytest.approx(mean, abs=0.5)
    assert keeps(Dart().schedule(576, 32, mean))[0] == pytest.approx(keep, abs=1)


def test_v2_drop_at_203_tokens_is_the_public_setting():
    schedule = V2Drop().schedule(576, 32, 203)
    assert schedule.layers == (3, 17, 22) and keeps(schedule)[-1] == 1
    assert keeps(schedule)[:2] == [pytest.approx(288, abs=1), pytest.approx(144, abs=1)]
    assert staged(576, 32, (3, 17, 22), [288, 144, 1]).mean == pytest.approx(202.8, abs=0.05)


@pytest.mark.parametrize(("budget", "mean", "last"), [(245, 244.97, 127), (131, 130.59, 62), (73, 72.84, 37)])
def test_fit_prune_near_a_published_mean_has_the_counts_of_that_scheme(budget, mean, last):
    schedule = FitPrune().schedule(576, 32, budget)
    assert schedule.mean == pytest.approx(mean, abs=0.6) and keeps(schedule)[-1] == pytest.approx(last, abs=1)


def test_fit_prune_at_60_percent_deletes_what_its_scheme_says():
    deleted = (14, 33, 89, 36, 36, 20, 55, 21, 18)
    counts = FitPrune().schedule(576, 32, 245).tokens_per_layer
    found = [counts[layer] - counts[layer + 1] for layer in range(9)]
    assert all(abs(a - b) <= 1 for a, b in zip(found, deleted, strict=True))


def test_vtw_sees_everything_in_half_of_the_layers_and_nothing_in_the_rest():
    schedule = Vtw().schedule(576, 32, 0)
    assert schedule.tokens_per_layer == (576,) * 16 + (0,) * 16 and schedule.mean == 288
    assert Vtw(layer=8).schedule(576, 4, 0).tokens_per_layer == (576, 0, 0, 0)


def test_the_second_stage_of_vscan_turns_96_tokens_into_32_for_64():
    schedule = Combination().schedule(576, 32, 64)
    assert (schedule.entering, schedule.stages, schedule.mean) == (96, (Stage(16, 32),), 64)
    assert Combination(ratio=0.5).schedule(576, 32, 64).entering == 85


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize(("patches", "depth"), [(576, 32), (576, 40), (576, 4), (576, 2), (24, 8), (1, 3), (100, 1)])
def test_every_budget_is_met_within_half_a_token_or_named_infeasible(name, patches, depth):
    pruner = INSIDE[name]()
    met = 0
    for keep in sorted({1, patches // 9 + 1, patches // 3 + 1, patches // 2 + 1, patches}):
        try:
            schedule = pruner.schedule(patches, depth, keep)
        except Infeasible as reason:
            assert f"not {keep}:" in str(reason) and reason.exit_code == 2
            continue
        counts = schedule.tokens_per_layer
        assert len(counts) == depth and schedule.mean == sum(counts) / depth
        assert list(counts) == sorted(counts, reverse=True) and counts[0] <= patches
        assert list(schedule.layers) == sorted(set(schedule.layers)) and 0 not in schedule.layers
        assert pruner.budget == "fixed" or abs(schedule.mean - keep) <= 0.5
        met += 1
    assert met


@pytest.mark.parametrize("name", [name for name, found in INSIDE.items() if found.budget == "schedule"])
def test_keeping_every_patch_drops_nothing(name):
    assert INSIDE[name]().schedule(576, 32, 576) == Schedule(32, 576)


def test_a_low_mean_behind_layers_that_see_everything_is_infeasible_and_never_another_number():
    with pytest.raises(Infeasible, match=r"from layer 2 of 4 on, a mean of 288.5 to 576 .* not 16"):
        FastV(layer=16).schedule(576, 4, 16)
    with pytest.raises(Infeasible, match="from layer 8 of 32 on"):
        PyramidDrop().schedule(576, 32, 64)
    assert PyramidDrop(layers=(2, 8, 16)).schedule(576, 32, 64).mean == pytest.approx(64, abs=0.5)


def test_published_layers_are_rescaled_and_never_the_first():
    assert [language_layer(layer, 32) for layer in (1, 2, 16, 31)] == [1, 2, 16, 31]
    assert [language_layer(layer, 4) for layer in (2, 8, 16, 24, 31)] == [1, 1, 2, 3, 3]
    assert [language_layer(layer, 40) for layer in (2, 16, 24)] == [3, 20, 30]
    assert language_layer(2, 1) == 0  # a single layer: nowhere to drop


def test_of_stages_that_coincide_on_a_shallow_model_the_last_counts():
    assert staged(100, 4, language_layers([3, 7, 16], 4), [50, 40, 30]).stages == (Stage(1, 40), Stage(2, 30))


def test_counts_between_tables_lie_on_straight_lines():
    tables = [(0, 0), (4, 2), (10, 10)]
    assert between(tables, 0.0) == [0, 0] and between(tables, 1.0) == [10, 10]
    assert between(tables, 0.5) == [4, 2] and between(tables, 0.25) == [2, 1] and between(tables, 0.75) == [7, 6]


def test_a_family_without_a_member_near_a_budget_is_infeasible():
    with pytest.raises(Infeasible, match="a mean of 2 to 8 "):
        fit(5, 9, 4, lambda share: Schedule(4, 2 if share < 0.5 else 8))


def test_deletes_of_another_model_are_refused():
    with pytest.raises(PrunerMisused, match="8 counts"):
        FitPrune(deletes=(1, 2)).schedule(24, 8, 6)
    with pytest.raises(PrunerMisused, match="at most 24"):
        FitPrune(deletes=(9,) * 8).schedule(24, 8, 6)
    found = FitPrune(deletes=(8, 4, 4, 2, 1, 1, 0, 0)).schedule(24, 8, 10).tokens_per_layer
    assert all(abs(a - b) <= 1 for a, b in zip(found, (24, 16, 12, 8, 6, 5, 4, 4), strict=True))


def test_methods_inside_the_model_refuse_to_stand_before_it():
    from stage2_prune.pruners.learned_scorer import LearnedScorer

    for wrong in ("fastv", "keep_all", "learned_scorer"):
        with pytest.raises(PrunerMisused, match=wrong):
            Combination(before=wrong)
    assert Combination().needs == {"cls_attention"} and Combination(before="random").needs == frozenset()
    assert LearnedScorer.place == "before_llm"


def twig_vlm(share):
    """Everything in two layers, one count in the next 22, nothing from layer 24 on."""
    return Schedule(32, 576, (Stage(2, int(share * 576 + 0.5)), Stage(24, 0)))


def fastv(depth, layer):
    return lambda share: staged(576, depth, [layer], [share * 576])


@pytest.mark.parametrize("match", ["mean-tokens", "kv"])
@pytest.mark.parametrize(
    ("member", "kept"), [(fastv(32, 2), (166, 98, 30)), (fastv(32, 3), (152, 82, 11)), (twig_vlm, (227, 134, 41))]
)
def test_means_and_caches_of_192_128_and_64_tokens_are_matched_as_published(match, member, kept):
    assert tuple(fit(keep, 576, 32, member, match).stages[0].keep for keep in (192, 128, 64)) == kept


def test_matching_what_is_kept_takes_the_budget_as_the_count_of_the_first_drop():
    found = fit(16, 576, 4, fastv(4, 2), "kept")
    assert found.tokens_per_layer == (576, 576, 16, 16)
    halved = fit(200, 576, 32, lambda share: staged(576, 32, [8, 16], [share * 576, share * 288]), "kept")
    assert keeps(halved) == [200, 100]
    with pytest.raises(Infeasible, match="a mean cache of 288.5 to 576 visual tokens can be had, not 16"):
        fit(16, 576, 4, fastv(4, 2), "kv")


@pytest.mark.parametrize("name", [name for name, found in INSIDE.items() if found.budget == "schedule"])
def test_every_method_takes_its_budget_as_the_number_kept_where_that_is_to_match(name):
    pruner = INSIDE[name]()
    kept = pruner.schedule(576, 32, 200, "kept")
    assert kept.kept(576) == 200
    means = [pruner.schedule(576, 32, keep, "kept").mean for keep in (64, 128, 192, 300)]
    assert means == sorted(means)
    assert pruner.schedule(576, 32, 300, "kv") == pruner.schedule(576, 32, 300, "mean-tokens")


def test_keeping_nothing_is_never_the_answer_and_a_method_that_ends_early_cannot_average_much():
    with pytest.raises(Infeasible, match="not 54"):
        fit(54, 576, 32, fastv(32, 3))  # three full layers of 32 are 54 already
    with pytest.raises(Infeasible, match="36 to 432 .* not 500"):
        fit(500, 576, 32, twig_vlm)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(2, 40), st.integers(2, 9), st.integers(1, 8), st.integers(1, 39))
def test_a_fit_is_the_nearest_that_any_count_gives(patches, depth, layer, keep):
    layer, keep = min(layer, depth - 1), min(keep, patches - 1)
    members = [staged(patches, depth, [layer], [count]) for count in range(1, patches + 1)]
    nearest = min(abs(one.mean - keep) for one in members)
    try:
        found = fit(keep, patches, depth, lambda share: staged(patches, depth, [layer], [share * patches]))
    except Infeasible:
        assert nearest > 0.5
    else:
        assert abs(found.mean - keep) == pytest.approx(nearest)


PUBLISHED = [
    (SparseVlm(), {"64": 82.25, "96": 114.09375, "128": 145.40625, "192": 206.5}),
    (SparseVlm(recycle=False), {"64": 79.1875, "96": 110.25, "128": 140.8125, "192": 202.75}),
    (SparseVlmPlus(), {"64": 81.8125, "96": 113.9375, "128": 144.125, "192": 206.75}),
    (V2Drop(), {"192": 202.8125}),
    (PyramidDrop(), {"270": 270}),
    (FastV(), {"75%": 171, "50%": 306}),
    (Dart(), {"64": 92.25, "128": 152.25, "192": 212.25}),
    (FitPrune(), {"90%": 72.84375, "80%": 130.59375, "70%": 187.875, "60%": 244.96875, "55%": 274.375, "50%": 301.8125})
    ]  # fmt: skip


@pytest.mark.parametrize(("pruner", "means"), PUBLISHED, ids=str)
def test_published_schedules_have_their_true_means_and_are_what_such_a_mean_asks_for(pruner, means):
    published = pruner.published(576, 32)
    assert {name: published[name].mean for name in means} == means
    for name, mean in means.items():
        assert pruner.schedule(576, 32, mean) == published[name]
        assert pruner.schedule(576, 32, round(mean, 2)) == published[name]  # as papers print it


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize(("patches", "depth"), [(576, 40), (576, 4), (729, 24), (24, 8), (1, 3), (100, 1)])
def test_published_schedules_are_rescaled_to_any_model(name, patches, depth):
    for schedule in INSIDE[name]().published(patches, depth).values():
        counts = schedule.tokens_per_layer
        assert len(counts) == depth and patches == counts[0] and list(counts) == sorted(counts, reverse=True)


def test_published_counts_are_those_of_the_code():
    assert keeps(SparseVlm().published(576, 32)["192"]) == [300, 200, 110]
    assert keeps(SparseVlmPlus().published(576, 32)["128"]) == [238, 108, 60]
    assert keeps(V2Drop().published(576, 32)["192"]) == [288, 144, 1]
    assert keeps(FastV(layer=3).published(576, 32)["75%"]) == [144] and FastV(layer=3).published(576, 32)[
        "75%"
    ].layers == (3,)
    assert [576 - FitPrune().published(576, 32)["60%"].tokens_per_layer[1]] == [14]
    assert FitPrune(deletes=(8, 4, 4, 2, 1, 1, 0, 0)).published(24, 8) == {}


def test_a_name_that_a_method_does_not_publish_is_infeasible_and_the_known_ones_are_said():
    with pytest.raises(Infeasible, match="no published schedule called 100, only 64, 96, 128, 192"):
        published("published:100", SparseVlm().published(576, 32))
    with pytest.raises(Infeasible, match="called 192, nor any other"):
        published("published:192", Combination().published(576, 32))


def test_a_method_with_an_exact_budget_keeps_whole_numbers_and_published_ones_by_its_patches():
    assert whole(64, 576) == 64 and whole("published:192", 576) == 192
    assert whole("published:192", 144) == 48 and whole("published:64", 16) == 2
    for budget, said in ((206.5, "got 206.5 tokens"), ("published:577", "published:577"), ("published:60%", "as 60%")):
        with pytest.raises(Infeasible, match=said):
            whole(budget, 576)


def test_a_fraction_is_no_number_of_kept_tokens_inside_the_model_either():
    for pruner in (SparseVlm(), Combination()):
        with pytest.raises(Infeasible, match=r"206\.5"):
            pruner.schedule(576, 32, 206.5, "kept")
