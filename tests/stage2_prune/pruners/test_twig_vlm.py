"""The twig begins as a copy of the model's layers; its head looks where the formula says, and learns where the model looks."""

import pytest
import torch

from stage2_prune.errors import Infeasible
from stage2_prune.pruners.twig_vlm import TwigVlm
from stage2_prune.pruning.in_llm import Site
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.schedule import Stage
from stage2_prune.training.forward.layered import Layered
from stage2_prune.training.step import frozen
from tests.stage2_prune.small_llama import PATCHES, WIDTH, eager_twin, small_language
from tests.stage2_prune.training.test_layered import LESSONS, looked_at, packs, patches, practice

SPEC = ModuleSpec((4, 6), {}, WIDTH)
DEEP = 24
"""Layers of a model on which a twig has two layers, 2 and 3."""
ONE_EACH = [group[:1] for group in LESSONS]


@pytest.fixture(scope="module")
def language():
    return small_language(layers=DEEP)


def taught(language, pruner, keep=12):
    course = Layered(language, patches(), packs(ONE_EACH), asks=True)
    schedule = pruner.schedule(PATCHES, language.depth, keep)
    return pruner.teach(course, looked_at(), practice(keep), schedule)


def stock(language, image):
    """One question and its answer through the stock eager model, with all hidden states and attention matrices."""
    (lesson,) = ONE_EACH[image]
    before, after = torch.tensor(lesson.prompt.before), torch.tensor([*lesson.prompt.after, *lesson.answer[:-1]])
    embeds = torch.cat([language.embed(before), patches()[image], language.embed(after)])[None]
    said = eager_twin(language)(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    return said, len(before), len(before) + PATCHES + len(lesson.prompt.after) - 1


@torch.no_grad()
def test_a_fresh_twig_answers_as_the_model_would_if_it_ended_there_and_the_losses_are_those_of_the_formulas(language):
    pruner = TwigVlm(rank=4, pred_kl=0.5, attn_kl=2.0).fresh(SPEC, seed=0)
    found = taught(language, pruner)
    model = language.model
    for image, (lesson,) in enumerate(ONE_EACH):
        said, start, last = stock(language, image)
        places = last + torch.arange(len(lesson.answer))
        torch.testing.assert_close(found.logits[image], said.logits[0, places], rtol=1e-3, atol=1e-3)
        early = model.lm_head(model.model.norm(said.hidden_states[2 + 2][0, places])).log_softmax(-1)  # layers 2 and 3
        theirs = said.logits[0, places].log_softmax(-1)
        answer = torch.tensor(lesson.answer)
        torch.testing.assert_close(found.losses["ntp"][image], -early[range(len(answer)), answer].mean())
        divergence = (theirs.exp() * (theirs - early)).sum(-1).mean()
        torch.testing.assert_close(found.losses["pred_kl"][image], 0.5 * divergence, rtol=1e-3, atol=1e-4)
        target = said.attentions[14][0, :, last, start : start + PATCHES].mean(0)  # layer 19 of 32
        target = target / target.sum()
        looked = naive(pruner.module, model.model.layers[3], said.hidden_states[3][0, : last + 1], start)
        torch.testing.assert_close(
            found.losses["attn_kl"][image], 2 * (target * (target / looked).log()).sum(), rtol=1e-3, atol=1e-4
        )


def naive(twig, layer, hidden, start):
    """The head's attention, head by head and patch by patch."""
    attention, entering = layer.self_attn, layer.input_layernorm(hidden)
    width, last = attention.head_dim, len(hidden) - 1

    def gated(learned, projected, token):
        x = learned.weight @ entering[token]
        return projected * x.clamp(min=0) * torch.sigmoid(x)

    def turned(vector, place):
        rates = 10000.0 ** (-torch.arange(0, width, 2) / width)
        angles = place * rates
        first, second = vector[: width // 2], vector[width // 2 :]
        return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()])

    query = gated(twig.query, attention.q_proj(entering[last]), last)
    total = torch.zeros(PATCHES)
    for head in range(4):
        part = slice(head * width, (head + 1) * width)
        scores = []
        for patch in range(PATCHES):
            own = attention.k_proj(entering[start + patch])  # 2 heads of keys serve 4 of queries
            key = gated(twig.key, own.view(2, width).repeat_interleave(2, 0).flatten(), start + patch)
            scores.append(turned(query[part], last) @ turned(key[part], start + patch) / width**0.5)
        total += torch.stack(scores).softmax(-1)
    return total / 4


@torch.no_grad()
def test_an_evaluation_scores_as_the_training_did(language):
    pruner = TwigVlm(rank=4).fresh(SPEC, seed=0)
    course = Layered(language, patches(), packs(ONE_EACH), asks=True)
    course.reach(2)
    _, looked = pruner.module.predict(course)
    alone = torch.stack([pruner.score(site) for site in course.sites()])
    torch.testing.assert_close(alone, looked, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.exp().sum(-1), torch.ones(len(ONE_EACH)))
    torch.testing.assert_close(pruner.policy_inside(course), alone)


def test_a_training_brings_the_head_to_where_the_model_looks(language):
    pruner = TwigVlm(rank=4).fresh(SPEC, seed=0)
    optimiser = torch.optim.Adam(pruner.module.parameters(), lr=0.01)
    seen = []
    with frozen(language.model):
        for _ in range(12):
            found = taught(language, pruner)
            optimiser.zero_grad()
            sum(loss.sum() for loss in found.losses.values()).backward()
            optimiser.step()
            seen.append({name: loss.sum().item() for name, loss in found.losses.items()})
    assert all(seen[-1][name] < seen[0][name] for name in ("ntp", "attn_kl"))
    used = {name for name, one in pruner.module.named_parameters() if one.grad is not None}
    assert {"query.weight", "key.weight", "adapters.1.up.weight"} <= used and "adapters.2.up.weight" not in used


def test_64_tokens_are_the_published_41_behind_layer_2_and_none_from_layer_24_on():
    schedule = TwigVlm().schedule(576, 32, 64)
    assert schedule.stages == (Stage(2, 41), Stage(24, 0)) and schedule.mean == pytest.approx(64, abs=0.5)
    assert TwigVlm().schedule(576, 32, 41, "kept").stages == schedule.stages
    with pytest.raises(Infeasible, match="from layer 2 of 32 on, a mean of 36.6875 to 431.3"):
        TwigVlm().schedule(576, 32, 16)
    assert TwigVlm().schedule(16, 2, 10).stages == (Stage(1, 4),)  # no layer is left to be wiped


def test_no_token_is_left_where_it_is_wiped():
    language, pruner = small_language(), TwigVlm(rank=4).fresh(SPEC, seed=0)
    hidden = torch.zeros(30, WIDTH)
    site = Site.entering(6, 2, 9, hidden, hidden, (torch.ones(30, 8), torch.zeros(30, 8)), language.model.model)
    assert pruner.drop(site, 0).index.tolist() == []
