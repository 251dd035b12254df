"""Which patches a pruner's tokens stand for, worked out by hand on four patches."""

import torch

from stage2_prune.analysis.kept import kept_of
from stage2_prune.pruning.tokens import Merge, Pruned


def places(marked):
    return [row.nonzero().flatten().tolist() for row in marked]


def test_a_selection_keeps_its_index_and_merges_nothing():
    kept = kept_of(Pruned(torch.tensor([[3, 0], [1, 2]])), 4)
    assert places(kept.patches) == [[0, 3], [1, 2]] and kept.tokens.tolist() == [2, 2]
    assert not kept.merged.any() and not kept.absorbed.any()


def test_what_is_behind_the_count_of_an_image_is_padding_and_not_patch_0():
    kept = kept_of(Pruned(torch.tensor([[2, 0, 0], [1, 2, 3]]), counts=torch.tensor([1, 3])), 4)
    assert places(kept.patches) == [[2], [1, 2, 3]] and kept.tokens.tolist() == [1, 3]


def test_nothing_is_kept_of_an_empty_index():
    kept = kept_of(Pruned(torch.empty(2, 0, dtype=torch.long)), 4)
    assert places(kept.patches) == [[], []] and kept.tokens.tolist() == [0, 0]


def test_a_merged_token_stands_for_its_largest_weight_and_of_equals_for_the_first():
    weights = torch.tensor([[[0.2, 0.7, 0.1, 0.0], [0.0, 0.0, 0.5, 0.5]]])
    kept = kept_of(Pruned(merge=Merge(weights, "projected")), 4)
    assert places(kept.patches) == [[1, 2]] == places(kept.merged)
    assert places(kept.absorbed) == [[0, 3]]


def test_where_a_method_says_where_its_tokens_stand_that_is_what_they_stand_for():
    weights = torch.tensor([[[0.2, 0.7, 0.1, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    kept = kept_of(Pruned(torch.tensor([[0, 3]]), Merge(weights, "projected")), 4)
    assert places(kept.patches) == [[0, 3]] and places(kept.merged) == [[0]] and places(kept.absorbed) == [[1, 2]]


def test_the_cls_row_is_a_token_but_no_patch_and_two_tokens_may_share_one():
    weights = torch.tensor([[[0, 0, 0, 0, 1.0], [0, 1.0, 0.5, 0, 0], [0.1, 1.0, 0, 0, 0]]])
    kept = kept_of(Pruned(merge=Merge(weights, "raw")), 4)
    assert kept.tokens.tolist() == [3] and places(kept.patches) == [[1]] and places(kept.absorbed) == [[0, 2]]


def test_a_token_that_is_made_of_nothing_stands_for_nothing():
    kept = kept_of(Pruned(merge=Merge(torch.tensor([[[0.0, 0, 0, 0], [0, 0, 1, 0]]]), "raw")), 4)
    assert places(kept.patches) == [[2]] and not kept.merged.any()
