"""Networks that score the patches of one image for a question."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stage2_prune.modules.blocks import encoder, heads_of, normed
from stage2_prune.modules.positions import sine_positions
from stage2_prune.pruning.pruner import ModuleSpec


class Entry(nn.Module):
    """Brings raw features, with their places, and the question's embeddings to one width."""

    places: Tensor

    def __init__(self, spec: ModuleSpec, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(spec.shapes["raw"][-1], width)
        self.word = nn.Linear(spec.embed, width)
        self.register_buffer("places", sine_positions(spec.grid, width), persistent=False)

    def forward(
        self, raw: Float[Tensor, "patch hidden"], question: Float[Tensor, "token embed"]
    ) -> tuple[Float[Tensor, "1 patch width"], Float[Tensor, "1 token width"]]:
        """Return patches and words, as a batch of one image."""
        return (self.patch(normed(raw)) + self.places)[None], self.word(normed(question))[None]


class CrossBlocks(nn.Module):
    """Blocks in which patches attend to each other and then to the words, and a linear score of each patch."""

    def __init__(self, spec: ModuleSpec, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.enter, heads = Entry(spec, width), heads_of(width, heads)
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)  # a top-k sees no bias

    def forward(
        self, raw: Float[Tensor, "patch hidden"], question: Float[Tensor, "token embed"]
    ) -> Float[Tensor, " patch"]:
        """Compute the scores of one image for one question."""
        patches, words = self.enter(raw, question)
        for block in self.blocks:
            patches = block(patches, words)
        return self.score(self.norm(patches[0]))[:, 0]


class JointBlocks(nn.Module):
    """Blocks over patches and words in one sequence, and the logit of each patch that it is needed."""

    def __init__(self, spec: ModuleSpec, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.enter = Entry(spec, width)
        self.blocks = encoder(width, heads, layers)
        self.classify = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(
        self, raw: Float[Tensor, "patch hidden"], question: Float[Tensor, "token embed"]
    ) -> Float[Tensor, " patch"]:
        """Compute the logits of one image for one question."""
        patches, words = self.enter(raw, question)
        return self.classify(self.blocks(torch.cat([patches, words], dim=1))[0, : len(raw)])[:, 0]


class Glimpse(nn.Module):
    """A learnt token that reads the question and looks at the patches once; each patch is judged by that glance and by itself."""

    def __init__(self, spec: ModuleSpec, width: int, heads: int) -> None:
        super().__init__()
        self.enter, self.heads = Entry(spec, width), heads_of(width, heads)
        self.token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.read = nn.MultiheadAttention(width, self.heads, batch_first=True)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.own, self.glance = nn.Linear(width, width), nn.Linear(self.heads, width, bias=False)
        self.judge = nn.Linear(width, 1)

    def forward(
        self, raw: Float[Tensor, "patch hidden"], question: Float[Tensor, "token embed"]
    ) -> Float[Tensor, " patch"]:
        """Compute the logits of one image for one question."""
        patches, words = self.enter(raw, question)
        token = self.token + self.read(self.token, words, words, need_weights=False)[0]
        query: Float[Tensor, "head 1 part"] = self.query(token).view(1, self.heads, -1).transpose(0, 1)
        keys: Float[Tensor, "head patch part"] = self.key(patches).view(len(raw), self.heads, -1).transpose(0, 1)
        glance = (keys * query).sum(-1) / query.shape[-1] ** 0.5
        return self.judge(F.gelu(self.own(patches[0]) + self.glance(glance.T)))[:, 0]
