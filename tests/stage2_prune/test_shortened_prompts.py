"""A prompt without the patches that a method drops answers as the whole prompt with them masked, for every selection."""

import pytest
import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.language.assemble import assemble
from stage2_prune.language.generate import generate
from stage2_prune.pruning.pruner import Pruner
from tests.stage2_prune.eager_oracle import Eager, of_question
from tests.stage2_prune.small_llama import PATCHES, PROMPTS, WIDTH, eager_twin, small_language
from tests.stage2_prune.tokens import merges, ready, visual_tokens

GRID = (4, PATCHES // 4)
STEPS = 4
EVERY = plugin.find_all(pruners, Pruner)
SELECTIONS = [name for name, found in EVERY.items() if found.place == "before_llm" and not merges(found())]


@pytest.fixture(scope="module")
def language():
    return small_language()


@pytest.fixture(scope="module")
def oracle(language):
    return Eager(eager_twin(language))


def kept_of_each(pruner, tokens, keep):
    """Patches of each image, in the order in which they go on."""
    pruned = pruner.prune(tokens.only(pruner.needs, pruner.reads), keep)
    counts = [pruned.kept] * len(PROMPTS) if pruned.counts is None else pruned.counts.tolist()
    return [row[:count].tolist() for row, count in zip(pruned.index, counts, strict=True)]


def budgets(pruner):
    if pruner.budget == "fixed":
        return [pruner.fixed_keep(PATCHES)]
    return [PATCHES] if pruner.adaptive else [1, 9, 17]


def masked(oracle, language, features, kept, row, positions, answer):
    """Logits of the whole prompt behind its last token, in which nobody looks at a patch that is not kept.

    Patches that go on in another order than the raster stand in that order here, before those that are masked.
    """
    order = range(PATCHES) if kept == sorted(kept) else [*kept, *(set(range(PATCHES)) - set(kept))]
    order = torch.tensor(list(order))
    whole = assemble(language, [PROMPTS[row]], features[row][order][None], order[None], PATCHES, "original")
    prompt, start = of_question(whole, 0)
    stay = [start + order.tolist().index(patch) for patch in kept]
    numbered = [*range(start), *(start + order).tolist(), *range(start + PATCHES, len(prompt) + len(answer))]
    sequence = torch.cat([prompt, language.embed(answer)])
    logits = oracle.run(sequence, start, PATCHES, len(prompt), {0: lambda view: stay}, positions, numbered)
    return logits[len(prompt) - 1 :]


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_shortened_prompt_answers_as_the_masked_whole_one_in_a_stock_eager_model(name, positions, language, oracle):
    pruner, tokens = ready(EVERY[name](), GRID), visual_tokens(GRID)
    features = torch.randn(len(PROMPTS), PATCHES, WIDTH, generator=torch.Generator().manual_seed(7))
    for keep in budgets(pruner):
        kept = kept_of_each(pruner, tokens, keep)
        alike = len({len(one) for one in kept}) == 1
        for rows in [range(len(PROMPTS))] if alike else [[row] for row in range(len(PROMPTS))]:
            index = torch.tensor([kept[row] for row in rows], dtype=torch.long)
            visual = torch.stack([features[row][kept[row]] for row in rows])
            batch = assemble(language, [PROMPTS[row] for row in rows], visual, index, PATCHES, positions)
            said = generate(language, batch, STEPS)
            for place, row in enumerate(rows):
                answer = said.tokens[place, :-1]
                expected = masked(oracle, language, features, kept[row], row, positions, answer)
                torch.testing.assert_close(said.logits[place], expected, atol=1e-4, rtol=1e-4)


def test_a_masked_patch_changes_no_answer_and_a_kept_one_does(language, oracle):
    """The reference itself: what is masked may hold anything."""
    features = torch.randn(1, PATCHES, WIDTH, generator=torch.Generator().manual_seed(7))
    other, answer = features.clone(), torch.tensor([5])
    other[0, 3] += 10
    for kept, same in (([1, 8, 20], True), ([1, 3, 20], False)):
        one, two = (masked(oracle, language, given, kept, 0, "original", answer) for given in (features, other))
        assert torch.equal(one, two) == same
