"""Networks that score the visual tokens of one question between two layers of the language model."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from configs.published_layers import language_layer
from stage2_prune.pruning.in_llm import Site


class TokenScorer(nn.Module):
    """A network of two layers on each visual token: it reads its own hidden state and, `asking`, the last text token's."""

    def __init__(self, embed: int, hidden: int, asking: bool = False) -> None:
        super().__init__()
        self.own = nn.Linear(embed, hidden)
        self.last = nn.Linear(embed, hidden, bias=False) if asking else None
        self.score = nn.Linear(hidden, 1, bias=False)  # a top-k does not see a bias

    def of(self, visual: Float[Tensor, "visual embed"]) -> Float[Tensor, " visual"]:
        """Score tokens of which no question is known."""
        return self.score(F.gelu(self.own(normed(visual))))[:, 0]

    def forward(self, site: Site) -> Float[Tensor, " visual"]:
        """Score the visual tokens of a site in float32."""
        if self.last is None:
            return self.of(site.hidden[site.image])
        hidden = self.own(normed(site.hidden[site.image])) + self.last(normed(site.hidden[site.last]))
        return self.score(F.gelu(hidden))[:, 0]


class LocalGlobal(nn.Module):
    """Transformer blocks on the visual tokens, then two logits of each, from half of its channels and the mean of the others."""

    def __init__(self, embed: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(embed), nn.Linear(embed, width), nn.GELU())
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.leave = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU(), nn.Linear(width // 4, 2)
        )  # fmt: skip

    def forward(self, site: Site) -> Float[Tensor, " visual"]:
        """Compute the logit of keeping each visual token of a site, minus that of dropping it."""
        hidden = self.enter(site.hidden[site.image].float())[None]
        for block in self.blocks:
            hidden = block(hidden)
        local, everywhere = hidden[0].chunk(2, dim=-1)
        logits = self.leave(torch.cat([local, everywhere.mean(0, keepdim=True).expand_as(everywhere)], dim=-1))
        return logits[:, 0] - logits[:, 1]


class TokenToText(nn.Module):
    """Cross-attention from visual tokens to the text behind them, then two logits of each."""

    def __init__(self, embed: int, width: int, heads: int) -> None:
        super().__init__()
        self.visual, self.text = nn.Linear(embed, width), nn.Linear(embed, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2))

    def forward(self, site: Site) -> Float[Tensor, " visual"]:
        """Compute the logit of keeping each visual token of a site, minus that of dropping it."""
        visual = self.visual(normed(site.hidden[site.image]))[None]
        text = self.text(normed(site.hidden[site.text]))[None]
        logits = self.leave(visual + self.attention(visual, text, text, need_weights=False)[0])[0]
        return logits[:, 0] - logits[:, 1]


class ByLayer(nn.Module):
    """A network for each of some published layers; where two coincide on a shallow model, the later layer's is called."""

    def __init__(self, layers: Sequence[int], networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers, self.networks = layers, nn.ModuleList(networks)

    def forward(self, site: Site) -> Float[Tensor, " visual"]:
        """Score the visual tokens of a site by the network of its layer."""
        depth = len(site.decoder.layers)
        own = [number for number, layer in enumerate(self.layers) if language_layer(layer, depth) == site.layer]
        return self.networks[own[-1]](site)


def before_layer_0(scorers: nn.Module, projected: Float[Tensor, "image patch embed"]) -> Float[Tensor, "image patch"]:
    """Score projected features by the network of layer 0, image by image, as the last bits of a GEMM may depend on its shape."""
    assert isinstance(scorers, ByLayer), "a method builds its own scorers"
    first = scorers.networks[0]
    assert isinstance(first, TokenScorer) and scorers.layers[0] == 0, "layer 0 is the first, if it is named"
    return torch.stack([first.of(patches) for patches in projected])


def normed(hidden: Float[Tensor, "*token embed"]) -> Float[Tensor, "*token embed"]:
    """Bring each hidden state to mean 0 and variance 1, in float32."""
    return F.layer_norm(hidden.float(), hidden.shape[-1:])
