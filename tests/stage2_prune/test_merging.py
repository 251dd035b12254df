"""Merged tokens are weighted sums of an image's rows, and nothing else."""

import pytest
import torch

from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.tokens import Merge, Pruned, VisualTokens
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.merging import make_merged
from tests.stage2_prune.tokens import visual_tokens

PATCHES, EMBED = 16, 5


def batch(dtype=torch.float32) -> FeatureBatch:
    tokens = visual_tokens(dtype=dtype)
    projected = torch.randn(3, PATCHES, EMBED, generator=torch.Generator().manual_seed(1)).to(dtype)
    return FeatureBatch((), torch.arange(3), tokens, projected)


def project(raw):
    return raw[..., :EMBED] * 2


def one_hot(index: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(index, rows).float()


def test_a_selection_goes_through_as_it_is():
    pruned = Pruned(torch.tensor([[0, 3]] * 3))
    assert make_merged(pruned, batch(), project) is pruned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_one_row_each_are_the_selection_of_these_rows(dtype):
    index = torch.tensor([[0, 3, 15], [1, 2, 3], [7, 8, 9]])
    found = batch(dtype)
    picked = make_merged(Pruned(merge=Merge(one_hot(index, PATCHES), "projected")), found, project).tokens
    assert torch.equal(picked, found.projected.gather(1, index[..., None].expand(-1, -1, EMBED)))
    raw = make_merged(Pruned(merge=Merge(one_hot(index, PATCHES), "raw")), found, project).tokens
    rows = found.tokens.arrays["raw"]
    assert torch.equal(raw, project(rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))))


def test_the_row_after_the_patches_is_the_cls_row():
    found = batch()
    index = torch.tensor([[PATCHES, 2]] * 3)
    tokens = make_merged(Pruned(merge=Merge(one_hot(index, PATCHES + 1), "raw")), found, project).tokens
    assert torch.equal(tokens[:, 0], project(found.tokens.arrays["cls_hidden"]))
    assert torch.equal(tokens[:, 1], project(found.tokens.arrays["raw"][:, 2]))


def test_sums_are_rounded_once():
    found = batch(torch.bfloat16)
    weights = torch.full((3, 1, PATCHES), 1 / PATCHES)
    merged = make_merged(Pruned(merge=Merge(weights, "projected")), found, project).tokens
    exact = found.projected.double().mean(1, keepdim=True)
    assert merged.dtype == torch.bfloat16
    assert ((merged.double() - exact).abs() <= exact.abs() * 2**-8).all()  # half a unit in the last place


def test_an_image_is_merged_alike_alone_and_in_a_batch():
    found = batch()
    weights = torch.rand(3, 4, PATCHES, generator=torch.Generator().manual_seed(2))
    together = make_merged(Pruned(merge=Merge(weights, "projected")), found, project).tokens
    for image in range(3):
        at = slice(image, image + 1)
        alone = FeatureBatch((), torch.arange(1), found.tokens.one(image), found.projected[at])
        assert torch.equal(
            make_merged(Pruned(merge=Merge(weights[at], "projected")), alone, project).tokens, together[at]
        )


def test_places_of_merged_tokens_are_handed_on():
    index = torch.tensor([[0, 3]] * 3)
    merge = Merge(one_hot(index, PATCHES), "projected")
    assert torch.equal(make_merged(Pruned(index, merge), batch(), project).index, index)


@pytest.mark.parametrize(("rows", "space"), [(PATCHES - 1, "raw"), (PATCHES + 2, "raw"), (PATCHES + 1, "projected")])
def test_weights_over_rows_that_are_not_there_are_refused(rows, space):
    with pytest.raises(PrunerMisused, match="weights for each of"):
        make_merged(Pruned(merge=Merge(torch.ones(3, 2, rows), space)), batch(), project)


def test_a_merge_of_rows_that_the_method_did_not_ask_for_is_refused():
    found = batch()
    tokens = VisualTokens(found.tokens.image_ids, found.tokens.grid, {})
    bare = FeatureBatch((), found.of_question, tokens, found.projected)
    with pytest.raises(PrunerMisused, match="needs raw"):
        make_merged(Pruned(merge=Merge(torch.ones(3, 2, PATCHES), "raw")), bare, project)


def test_an_index_and_a_merge_of_different_lengths_are_refused():
    with pytest.raises(PrunerMisused, match="different numbers"):
        Pruned(torch.tensor([[0, 3]] * 3), Merge(torch.ones(3, 3, PATCHES), "raw"))
    with pytest.raises(PrunerMisused, match="at least one"):
        Pruned()
