"""VScan's second stage behind a selection: the selection's patches enter, the last token's attention keeps a third."""

import pytest
import torch

from stage2_prune.language.assemble import assemble, gather_kept
from stage2_prune.language.generate import generate
from stage2_prune.language.layer_loop import pruning_inside
from stage2_prune.pruners.cls_attention import ClsAttention
from stage2_prune.pruners.combination import Combination
from tests.stage2_prune.eager_oracle import Eager, best, of_question
from tests.stage2_prune.pruners.golden import model
from tests.stage2_prune.pruners.test_pyramid_drop import by_the_last_token_of_the_next_layer
from tests.stage2_prune.small_llama import LAYERS, PATCHES, PROMPTS, WIDTH, kept_by
from tests.stage2_prune.tokens import visual_tokens


@torch.no_grad()
@pytest.mark.parametrize("keep", [6, 8, 12])
def test_a_selection_enters_and_a_third_of_it_goes_on_from_the_middle(keep):
    language, twin = model()
    pruner = Combination()
    schedule = pruner.schedule(PATCHES, LAYERS, keep)
    entering, (stage,) = schedule.entering, schedule.stages
    assert stage.layer == LAYERS // 2 and stage.keep == round(entering / 3)
    tokens = visual_tokens((4, PATCHES // 4))
    pruned = pruner.prune(tokens, entering)
    assert torch.equal(pruned.index, ClsAttention().select(tokens, entering))
    projected = torch.randn(3, PATCHES, WIDTH, generator=torch.Generator().manual_seed(5))
    batch = assemble(language, list(PROMPTS), gather_kept(projected, pruned), pruned.index, PATCHES, "compact")
    found = kept_by(language, pruner, schedule, "compact", batch)
    said = generate(pruning_inside(language, pruner, schedule, "compact"), batch, 1)
    oracle = Eager(twin.model)
    rules = {stage.layer: lambda view: best(by_the_last_token_of_the_next_layer(view), stage.keep)}
    for row in range(len(PROMPTS)):
        prompt, start = of_question(batch, row)
        logits = oracle.run(prompt, start, entering, len(prompt), rules, "compact")
        assert found[row] == oracle.kept
        torch.testing.assert_close(said.logits[row, 0], logits[-1], atol=1e-4, rtol=1e-4)
