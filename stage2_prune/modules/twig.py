"""A twig: a few layers that grow out of an early layer of the language model, and a head that says where the answer looks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from configs.published_layers import LANGUAGE_LAYERS, half_up
from stage2_prune.modules.inside import normed
from stage2_prune.pruning.in_llm import Site, rotate
from stage2_prune.pruning.trained_inside import Course


class Twig(nn.Module):
    """Adapters beside layers of the language model, which stay as they are, and the pruning head.

    An adapter adds nothing before it is trained, so that the twig begins as a copy of the layers.
    """

    def __init__(self, embed: int, layers: int, rank: int) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(_Adapter(embed, rank) for _ in range(layers))
        self.query, self.key = (nn.Linear(embed, embed, bias=False) for _ in range(2))

    def forward(self, site: Site) -> Float[Tensor, " visual"]:
        """Compute the log of the attention that the prompt's last token pays to each visual token, by the head."""
        layers = self._beside(site.decoder, site.layer)
        hidden = self._grow(layers[:-1], site.hidden[None], None, (site.cos[None], site.sin[None]))[-1]
        return self._log_attention(layers[-1], hidden[0], site)

    def predict(self, course: Course) -> tuple[list[Float[Tensor, "_ vocab"]], Float[Tensor, "image patch"]]:
        """Predict the answers by what the twig's last layer leaves, and compute the attention of `forward` for each image."""
        layers = self._beside(course.decoder, course.layer)
        *_, entering, leaving = self._grow(layers, course.hidden, course.mask, course.rotary)
        pairs = zip(entering, course.sites(), strict=True)
        looked = [self._log_attention(layers[-1], hidden[: len(site.hidden)], site) for hidden, site in pairs]
        return course.read(leaving), torch.stack(looked)

    def _beside(self, decoder: Any, first: int) -> list[Any]:
        """Return the layers beside which the twig's own stand: as many in proportion as a twig has on the published depth."""
        count = max(half_up(len(self.adapters) * len(decoder.layers) / LANGUAGE_LAYERS), 1)
        return list(decoder.layers[first : first + min(count, len(self.adapters))])

    def _grow(
        self,
        layers: Sequence[Any],
        hidden: Float[Tensor, "image token embed"],
        mask: Float[Tensor, "image 1 token token"] | None,
        rotary: tuple[Tensor, Tensor],
    ) -> list[Float[Tensor, "image token embed"]]:
        """Return what enters each of the twig's layers, and what leaves the last."""
        states = [hidden]
        for adapter, layer in zip(self.adapters, layers, strict=False):  # a shallow model has fewer layers
            after = layer(states[-1], attention_mask=mask, use_cache=False, position_embeddings=rotary)
            states.append(after + adapter(states[-1]).to(after.dtype))
        return states

    def _log_attention(
        self, layer: Any, hidden: Float[Tensor, "token embed"], site: Site
    ) -> Float[Tensor, " visual"]:  # fmt: skip
        """Attend as `layer` does on what enters it, with queries and keys that are each multiplied by a gate."""
        entering, attention = layer.input_layernorm(hidden), layer.self_attn
        last, visual = entering[site.last], entering[site.image]
        queries, keys = (
            _heads(rows, attention.head_dim) for rows in (attention.q_proj(last), attention.k_proj(visual))
        )
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
        queries = queries * _heads(_gate(self.query(last.float())), attention.head_dim)
        keys = keys * _heads(_gate(self.key(visual.float())), attention.head_dim)
        queries = rotate(queries, site.cos[site.last].float(), site.sin[site.last].float())
        keys = rotate(keys, site.cos[site.image].float(), site.sin[site.image].float())
        weights = ((queries @ keys.mT)[0, :, 0] * attention.scaling).softmax(-1).mean(0)
        return weights.clamp_min(torch.finfo(weights.dtype).tiny).log()


class _Adapter(nn.Module):
    """A correction of a layer's output, from the hidden state that entered the layer."""

    def __init__(self, embed: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(embed, rank), nn.Linear(rank, embed)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Float[Tensor, "image token embed"]) -> Float[Tensor, "image token embed"]:
        """Compute the correction in float32."""
        return self.up(F.gelu(self.down(normed(hidden))))


def _heads(rows: Float[Tensor, "token width"], head_dim: int) -> Float[Tensor, "1 head token {head_dim}"]:
    """Divide rows into heads, in float32."""
    return rows.float().view(1, len(rows), -1, head_dim).transpose(1, 2)


def _gate(mapped: Float[Tensor, "token embed"]) -> Float[Tensor, "token embed"]:
    """Compute the activation of the pruning head."""
    return F.relu(mapped) * torch.sigmoid(mapped)


def predict(twig: nn.Module, course: Course) -> tuple[list[Float[Tensor, "_ vocab"]], Float[Tensor, "image patch"]]:
    """Let a twig predict, out of the layer that runs next."""
    assert isinstance(twig, Twig), "a method builds its own twig"
    return twig.predict(course)


def attended(course: Course) -> Float[Tensor, "image patch"]:
    """Return the share of each patch in what the prompt's last token pays to the image, in the layer that runs next."""
    looks = [site.attention(site.last, ahead=True).mean(0)[0, site.image] for site in course.sites()]
    return torch.stack([weights / weights.sum() for weights in looks])


def answer_losses(
    own: Sequence[Float[Tensor, "_ vocab"]], course: Course, theirs: Sequence[Float[Tensor, "_ vocab"]]
) -> tuple[Float[Tensor, " image"], Float[Tensor, " image"]]:
    """Compute for each image the cross-entropy of its own logits, and their divergence from `theirs`: means over tokens."""
    entropy = [F.cross_entropy(logits, answer) for logits, answer in zip(own, course.answers, strict=True)]
    divergence = [
        F.kl_div(ours.log_softmax(-1), other.log_softmax(-1), reduction="batchmean", log_target=True)
        for ours, other in zip(own, theirs, strict=True)
    ]
    return torch.stack(entropy), torch.stack(divergence)
