"""SparseVLM against loops over a stock model's embeddings and attention, recycled tokens included."""

import math
from types import SimpleNamespace

import pytest
import torch

from stage2_prune.pruners._clusters import clusters
from stage2_prune.pruners.sparse_vlm import SparseVlm
from tests.stage2_prune.eager_oracle import best, of_question
from tests.stage2_prune.pruners.golden import check, model
from tests.stage2_prune.small_llama import LAYERS, PATCHES, PROMPTS, answers, kept_by, questions


def raters(view):
    """Words that patches are drawn to more than to the average word, from the embedded prompt."""
    drawn = dict.fromkeys(view.text, 0.0)
    patches = range(view.start, view.text[0])
    for patch in patches:
        logits = {t: sum((view.embedded[patch] * view.embedded[t]).tolist()) for t in view.text}
        top = max(logits.values())
        total = sum(math.exp(value - top) for value in logits.values())
        for t in view.text:
            drawn[t] += math.exp(logits[t] - top) / total / len(patches)
    mean = sum(drawn.values()) / len(drawn)
    return [t for t in view.text if drawn[t] > mean]


def by_the_raters(view):
    rows, heads = raters(view), len(view.attention)
    assert 0 < len(rows) < len(view.text)
    return {
        j: sum(view.attention[h, t, j].item() for h in range(heads) for t in rows) / heads / len(rows)
        for j in view.image
    }


@pytest.mark.parametrize("keep", [4, 8, 13])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_without_recycling_the_tokens_that_the_raters_attend_to_are_kept(keep, positions):
    check(SparseVlm(recycle=False), keep, positions, by_the_raters)


def naive_clusters(states, count):
    """Density peaks, with loops."""
    tokens = range(len(states))
    distance = [[math.dist(states[i], states[j]) / math.sqrt(len(states[0])) for j in tokens] for i in tokens]
    density = [math.exp(-sum(d * d for d in sorted(distance[i])[:count]) / count) for i in tokens]
    farthest = max(max(row) for row in distance)
    order = sorted(tokens, key=lambda i: -density[i])  # of equal densities the first is denser
    denser = {i: order[: order.index(i)] for i in tokens}
    reach = [min([distance[i][j] for j in denser[i]], default=farthest) for i in tokens]
    centres = sorted(tokens, key=lambda i: -density[i] * reach[i])[:count]
    groups = [[] for _ in centres]
    for i in tokens:
        nearest = centres.index(i) if i in centres else min(range(count), key=lambda c: distance[i][centres[c]])
        groups[nearest].append(i)
    return [[sum(states[i][d] for i in group) / len(group) for d in range(len(states[0]))] for group in groups]


@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (9, 1), (12, 2), (30, 4), (7, 7)])
def test_clusters_are_the_means_of_density_peaks_and_what_is_nearest_to_them(tokens, count):
    states = torch.randn(tokens, 6, generator=torch.Generator().manual_seed(tokens))
    torch.testing.assert_close(clusters(states, count), torch.tensor(naive_clusters(states.tolist(), count)))


def test_of_two_clusters_the_two_tokens_nearest_to_each_other_are_not_both_centres():
    # Each token's two nearest are itself and one other: at 0 and 0.1 both have density exp(-0.1^2 / 2) = 0.995, at 1
    # exp(-0.9^2 / 2) = 0.667, at 3 exp(-2^2 / 2) = 0.135. The first counts as the densest: 0.995 x 3 (the farthest). Then
    # 0.995 x 0.1, 0.667 x 0.9 and 0.135 x 2: the other centre is the token at 1, which the one at 3 joins.
    made = clusters(torch.tensor([[0.0], [0.1], [1.0], [3.0]]), 2)
    torch.testing.assert_close(made, torch.tensor([[0.05], [2.0]]))


@torch.no_grad()
@pytest.mark.parametrize("keep", [7, 12])
def test_recycled_tokens_stand_behind_those_that_stay_and_go_through_the_later_layers(keep):
    """The whole method by hand: stock eager layers on ever shorter sequences, without a cache."""
    language, oracle = model()
    pruner, batch = SparseVlm(), questions(language, "compact")
    schedule = pruner.schedule(PATCHES, LAYERS, keep)
    assert sum(stage.merged for stage in schedule.stages) >= 2
    said = answers(language, pruner, schedule, "compact", batch, 8)
    kept = kept_by(language, pruner, schedule, "compact", batch)
    for row in range(len(PROMPTS)):
        answer = language.embed(said.tokens[row, :-1])
        logits, stages = by_hand(oracle.model, *of_question(batch, row), answer, schedule)
        assert kept[row] == stages
        torch.testing.assert_close(said.logits[row], logits[-len(answer) - 1 :], atol=1e-4, rtol=1e-4)


def by_hand(model, embedded, start, answer, schedule):
    """Logits of a prompt and its answer, and where each visual token of each stage comes from: -1 for a cluster."""
    stock, sources, found, view = model.model, list(range(PATCHES)), {}, None
    hidden = torch.cat([embedded, answer])[None]
    length = hidden.shape[1]
    words = length - start - PATCHES
    for number, layer in enumerate(stock.layers):
        stage = schedule.at(number)
        if stage:
            rows = [row - (length - hidden.shape[1]) for row in raters_of(embedded, start)]
            weights = view.mean(0)[rows].mean(0)
            scores = {j: weights[start + j].item() for j in range(len(sources))}
            stay = best(scores, stage.keep)
            rest = sorted((j for j in scores if j not in stay), key=lambda j: -scores[j])
            top = rest[: int(len(rest) * 0.3) + 1]
            made = naive_clusters([hidden[0, start + j].tolist() for j in top], len(top) // 10 + 1)
            parts = [hidden[0, :start], hidden[0, [start + j for j in stay]], torch.tensor(made), hidden[0, -words:]]
            hidden = torch.cat(parts)[None]
            sources = [sources[j] for j in stay] + [-1] * len(made)
            found[number] = sources
        size = hidden.shape[1]
        mask = torch.full((1, 1, size, size), torch.finfo(torch.float32).min).triu(1)
        rotary = stock.rotary_emb(hidden, torch.arange(size)[None])
        seen = []
        handle = layer.self_attn.register_forward_hook(lambda module, given, result, seen=seen: seen.append(result[1]))
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        handle.remove()
        view = seen[0][0]
    return model.lm_head(stock.norm(hidden))[0], found


def raters_of(embedded, start):
    text = list(range(start + PATCHES, len(embedded)))
    return raters(SimpleNamespace(embedded=embedded, start=start, text=text))
