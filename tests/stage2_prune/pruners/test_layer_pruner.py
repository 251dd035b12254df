"""Learned scores at several layers: an oracle that masks, a naive network, and ties that no index decides."""

from itertools import pairwise

import pytest
import torch

from stage2_prune.pruners.layer_pruner import LayerPruner
from stage2_prune.pruning.in_llm import Site
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.schedule import Stage
from stage2_prune.pruning.trained_inside import fingerprint
from tests.stage2_prune.small_llama import PATCHES, PROMPTS, WIDTH, kept_by, questions, small_language
from tests.stage2_prune.tokens import visual_tokens

SPEC = ModuleSpec((4, 6), {"projected": (PATCHES, WIDTH)}, WIDTH)
DECODER = small_language().model.model


def constant(pruner):
    """The same pruner, to which all tokens look alike."""
    bound = pruner.fresh(SPEC, seed=0)
    for network in bound.module.networks:
        torch.nn.init.zeros_(network.score.weight)
    return bound


def naive(network, visual, last=None):
    """The score of each token, one by one."""

    def flat(token):
        return (token - token.mean()) / (token.var(unbiased=False) + 1e-5).sqrt()

    scores = []
    for token in visual.float():
        hidden = network.own.weight @ flat(token) + network.own.bias
        if last is not None:
            hidden = hidden + network.last.weight @ flat(last.float())
        gelu = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        scores.append((network.score.weight @ gelu).item())
    return scores


@torch.no_grad()
@pytest.mark.parametrize("asking", [False, True])
def test_each_layer_keeps_the_highest_scores_of_what_the_layer_before_left(asking):
    language = small_language()
    pruner = LayerPruner(layers=(8, 16, 24), hidden=8, asking=asking).fresh(SPEC, seed=1)
    schedule, batch = pruner.schedule(PATCHES, 8, 14), questions(language)
    kept = kept_by(language, pruner, schedule, "original", batch)
    for row, prompt in enumerate(PROMPTS):
        alone = questions(language, prompts=(prompt,))
        hidden, left = alone.inputs_embeds, list(range(PATCHES))
        places = torch.arange(hidden.shape[1])[None]
        start = len(prompt.before)
        for layer, module in enumerate(language.model.model.layers):
            if stage := schedule.at(layer):
                network = pruner.module.networks[schedule.layers.index(layer)]
                image = hidden[0, start : start + len(left)]
                scores = naive(network, image, hidden[0, -1] if asking else None)
                best = sorted(sorted(range(len(left)), key=lambda n: -scores[n])[: stage.keep])
                left = [left[number] for number in best]
                assert kept[row][layer] == left
                stay = [*range(start), *(start + n for n in best), *range(start + len(image), hidden.shape[1])]
                hidden, places = hidden[:, stay], places[:, stay]
            rotary = language.model.model.rotary_emb(hidden, position_ids=places)
            hidden = module(hidden, position_embeddings=rotary)


@torch.no_grad()
def test_before_layer_0_the_highest_scores_of_the_projected_features_enter():
    pruner = LayerPruner(hidden=8).fresh(SPEC, seed=0)
    tokens = visual_tokens((4, 6), widths=(8, 2, WIDTH))
    index = pruner.select(tokens, 7)
    for image, projected in enumerate(tokens.arrays["projected"]):
        scores = naive(pruner.module.networks[0], projected)
        assert index[image].tolist() == sorted(sorted(range(PATCHES), key=lambda n: -scores[n])[:7])


@torch.no_grad()
def test_equal_scores_are_kept_by_a_draw_from_seed_and_image_and_not_by_index():
    tokens = visual_tokens((4, 6), widths=(8, 2, WIDTH))
    before = constant(LayerPruner(hidden=8)).select(tokens, 6)
    assert before[0].tolist() != before[1].tolist() and before.tolist() != [list(range(6))] * 3
    assert torch.equal(before[1], constant(LayerPruner(hidden=8)).select(tokens.one(1), 6)[0])
    assert not torch.equal(before, constant(LayerPruner(hidden=8, seed=1)).select(tokens, 6))
    rotary = (torch.ones(30, 8), torch.zeros(30, 8))
    drops = []
    for seed in (0, 0, 1):
        for image in (0, 1):
            embedded = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(image))
            asked = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(len(drops)))  # of another question
            site = Site.entering(2, 2, PATCHES, asked, embedded, rotary, DECODER)
            drops.append(constant(LayerPruner(hidden=8, seed=seed)).drop(site, 6).index.tolist())
    assert drops[0] == drops[2] and drops[1] == drops[3] and len({*map(tuple, drops)}) == 4
    assert drops[0] != list(range(6))


def test_an_image_is_named_by_what_entered_the_model_whatever_was_dropped_since_and_whatever_is_asked():
    embedded = torch.randn(2 + 9 + 4, WIDTH)
    rotary = (torch.ones(2 + 5 + 4, 8), torch.zeros(2 + 5 + 4, 8))
    shorter = Site.entering(2, 2, 5, torch.zeros(2 + 5 + 4, WIDTH), embedded, rotary, DECODER)
    other = embedded.clone()
    other[[0, -1]] += 1
    assert fingerprint(shorter) == fingerprint(Site.entering(3, 2, 5, shorter.hidden, other, rotary, DECODER))
    other[2 + 8] += 1  # the last patch that entered
    assert fingerprint(shorter) != fingerprint(Site.entering(3, 2, 5, shorter.hidden, other, rotary, DECODER))


def test_each_layer_keeps_one_share_of_what_is_left_and_layers_that_coincide_are_one():
    schedule = LayerPruner().schedule(576, 32, 64)
    assert schedule.layers == (8, 16, 24) and schedule.mean == pytest.approx(64, abs=0.5)
    counts = [576, schedule.entering, *(stage.keep for stage in schedule.stages)]
    assert [later / earlier for earlier, later in pairwise(counts)] == pytest.approx([0.31] * 4, abs=0.03)
    assert LayerPruner().schedule(16, 2, 5).stages[0].layer == 1 and len(LayerPruner().schedule(16, 2, 5).stages) == 1
    assert LayerPruner(layers=(16,)).schedule(16, 4, 9).stages == (Stage(2, 2),)
    assert LayerPruner(layers=(16,)).needs == frozenset() and LayerPruner().needs == {"projected"}
