"""VTW: everything, then nothing."""

import pytest
import torch

from stage2_prune.pruners.vtw import Vtw
from tests.stage2_prune.eager_oracle import of_question
from tests.stage2_prune.pruners.golden import check, layers_of, model
from tests.stage2_prune.small_llama import LAYERS, PATCHES, answers, questions


@pytest.mark.parametrize(("layer", "first"), [(4, 1), (16, 4), (31, 7)])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_no_visual_token_enters_the_layers_from_its_own_on(layer, first, positions):
    assert layers_of(Vtw(layer=layer), 0) == {first: []}
    check(Vtw(layer=layer), 0, positions, rule=lambda view, count: [])


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_the_text_goes_on_alone_where_the_stock_layers_would_take_it(positions):
    """By hand: four stock layers on all tokens, then the other four on the text alone, at its positions."""
    language, oracle = model()
    batch = questions(language)
    schedule = Vtw().schedule(PATCHES, LAYERS, 0)
    said = answers(language, Vtw(), schedule, positions, batch, 1)
    stock = oracle.model.model
    for row in range(len(batch.slots)):
        hidden, start = of_question(batch, row)
        places = torch.arange(len(hidden))
        hidden = hidden[None]
        for number, layer in enumerate(stock.layers):
            if number == LAYERS // 2:
                text = [*range(start), *range(start + PATCHES, len(places))]
                hidden = hidden[:, text]
                places = places[text] if positions == "original" else torch.arange(len(text))
            size = hidden.shape[1]
            mask = torch.full((1, 1, size, size), torch.finfo(torch.float32).min).triu(1)
            hidden = layer(hidden, attention_mask=mask, position_embeddings=stock.rotary_emb(hidden, places[None]))
        logits = oracle.model.lm_head(stock.norm(hidden))[0, -1]
        torch.testing.assert_close(said.logits[row, 0], logits, atol=1e-4, rtol=1e-4)
