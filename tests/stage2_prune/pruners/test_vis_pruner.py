import pytest
import torch

from stage2_prune.errors import PrunerMisused
from stage2_prune.pruners.vis_pruner import VisPruner
from tests.stage2_prune.pruners.images import at_angles, clustered, cosines, descending, given


def kept(similarity, attention, keep, ratio=0.5):
    """Section A.7 of the reference, where the official code runs."""
    order = descending(dict(enumerate(attention)))
    important = int(keep * ratio)
    rest = order[important:]
    while len(rest) > keep - important:
        drop = min(8, len(rest) - (keep - important))
        first, second = rest[0::2], rest[1::2]
        nearest = descending({patch: max(similarity[patch][other] for other in second) for patch in first})
        stay = [] if len(rest) // 2 == drop else nearest[drop:]  # of an odd number, torch broadcasts one to none
        rest = stay + second
    return sorted(order[:important] + rest)


def official_runs(patches, keep, ratio=0.5):
    """Whether the official code keeps as many as asked for: half, rounded down, less the dropped ones is the number of
    rows that it tells torch to index what stays with; -1 means any number to torch, and 1 is broadcast."""
    rest, distinct = patches - int(keep * ratio), keep - int(keep * ratio)
    while rest > distinct:
        drop = min(8, rest - distinct)
        stays = max((rest + 1) // 2 - drop, 0)
        rows = rest // 2 - drop
        if rows < -1:
            return False
        try:
            index = torch.empty(1, 1).expand(-1, rows) + torch.empty(1, stays)
        except RuntimeError:
            return False
        rest = index.shape[1] + rest // 2
    return rest == distinct


def test_of_the_less_attended_patches_the_one_that_repeats_another_is_dropped():
    # Attention ranks 4, 1, then 0, 5, 2, 3. Budget 5: int(2.5) = 2 are important, 4 and 1; of the four others 3 stay.
    # First half 0 and 2, second half 5 and 3. Angles: 0 is 20 from 5 and 40 from 3, cosine 0.94; 2 is 10 from 3: 0.985.
    # Patch 2 goes. With the angles of 0 and 2 exchanged it is patch 0 that goes.
    attention = [[0.20, 0.22, 0.12, 0.08, 0.24, 0.14]]
    image = given((2, 3), cls_attention=attention, raw=at_angles(0, 90, 50, 40, 180, 340))
    assert VisPruner(quirks="official").select(image, 5).tolist() == [[0, 1, 3, 4, 5]]
    image = given((2, 3), cls_attention=attention, raw=at_angles(50, 90, 0, 40, 180, 340))
    assert VisPruner(quirks="official").select(image, 5).tolist() == [[1, 2, 3, 4, 5]]


def test_an_odd_number_of_patches_stops_the_official_code_and_not_the_fixed_one():
    # Budget 6 of 9: 3 important ones (0, 1, 2), then 6 others of which 3 stay: even. Budget 7: 3 important ones, 6 others
    # of which 4 stay: even. Budget 4: 2 important ones (0, 1), 7 others of which 2 stay: odd. First half 2, 4, 6, 8: all
    # of it is dropped, as 5 are surplus; of 3, 5, 7 one more goes, from the first half 3 and 7: 5 stays, at angle 170, and
    # 3 at 120 is nearer to it than 7 at 260. The official code counts 7 // 2 - 5 = -2 patches that stay.
    # Budget 8 with 0.25: 2 important ones, 7 others of which 6 stay. First half 2, 4, 6, 8 at 90, 100, 200, 300, second
    # 3, 5, 7 at 120, 170, 260: nearest 30, 20, 30.5, 40 apart: 4 goes. Officially 7 // 2 - 1 = 2 stay, not 3.
    attention = [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]]
    image = given((3, 3), cls_attention=attention, raw=at_angles(0, 30, 90, 120, 100, 170, 200.5, 260, 300))
    for keep, ratio, expected, said in (
        (4, 0.5, [0, 1, 5, 7], "drop 5 of 7"),
        (8, 0.25, [0, 1, 2, 3, 5, 6, 7, 8], "drop 1 of 7"),
    ):
        assert VisPruner(important_ratio=ratio).select(image, keep).tolist() == [expected]
        with pytest.raises(PrunerMisused, match=said):
            VisPruner(important_ratio=ratio, quirks="official").select(image, keep)


@pytest.mark.parametrize("grid", [(6, 8), (4, 5)])
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_naive_loop_keeps_the_same_patches_wherever_the_official_code_runs(seed, ratio, grid):
    tokens = clustered(seed, grid)
    patches = tokens.patches
    runs = [keep for keep in range(1, patches + 1) if official_runs(patches, keep, ratio)]
    assert len(runs) > patches / 5
    for image in range(2):
        attention = tokens.arrays["cls_attention"][image].double().numpy().mean(axis=0)
        similarity = cosines(tokens.arrays["raw"][image])
        for keep in runs:
            expected = kept(similarity, attention, keep, ratio)
            assert VisPruner(important_ratio=ratio).select(tokens, keep)[image].tolist() == expected
            official = VisPruner(important_ratio=ratio, quirks="official")
            assert official.select(tokens, keep)[image].tolist() == expected


def test_where_all_of_the_budget_is_important_the_most_attended_patches_are_kept():
    tokens = clustered(0, (6, 8))
    for image, attention in enumerate(tokens.arrays["cls_attention"].double().mean(dim=1).tolist()):
        order = descending(dict(enumerate(attention)))
        for keep in (1, 13, 47, 48):
            assert VisPruner(important_ratio=1.0).select(tokens, keep)[image].tolist() == sorted(order[:keep])


def test_the_official_code_raises_at_291_of_the_576_budgets():
    assert sum(not official_runs(576, keep) for keep in range(1, 577)) == 291


@pytest.mark.parametrize("keep", [64, 128, 192])
def test_on_24x24_patches_a_naive_loop_keeps_the_same(keep):
    tokens = clustered(11, (24, 24), images=1, width=64)
    attention = tokens.arrays["cls_attention"][0].double().numpy().mean(axis=0)
    assert VisPruner().select(tokens, keep)[0].tolist() == kept(cosines(tokens.arrays["raw"][0]), attention, keep)
