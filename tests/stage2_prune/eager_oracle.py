"""An independent way to prune inside a language model: nothing is removed, the dropped tokens are masked.

One question at a time, without padding and without a cache, through the stock layers in eager mode, whose attention
matrices are taken from them as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stage2_prune.language.assemble import ModelInputs


@dataclass
class View:
    """What a naive rule may look at; tokens are numbered as in the whole sequence."""

    layer: int
    start: int
    image: list[int]
    """Visual tokens that are alive."""
    text: list[int]
    """Tokens of the prompt behind the image."""
    attention: Tensor
    """(head, query, key) of the layer before."""
    ahead: Callable[[], Tensor]
    """(head, query, key) that the next layer would have if nothing were dropped."""
    hidden: Tensor
    before: Tensor
    embedded: Tensor
    places: list[int]
    model: object

    @property
    def last(self) -> int:
        return self.text[-1]


Rule = Callable[[View], list[int]]


@dataclass
class Eager:
    """A stock model in eager mode."""

    model: object
    kept: dict[int, list[int]] = field(default_factory=dict)
    """Patches that enter the layers from each drop on, of the latest run."""

    @torch.no_grad()
    def run(
        self,
        embeds: Tensor,
        start: int,
        patches: int,
        prompt: int,
        rules: dict[int, Rule],
        positions: str,
        numbered: list[int] | None = None,
    ) -> Tensor:
        """Logits at every token of one sequence, of which `prompt` are the prompt and the rest its answer.

        `numbered` are the position ids of tokens that do not stand in the order of their positions.
        """
        hidden, before, self.kept = embeds[None], embeds[None], {}
        alive, places = list(range(len(embeds))), numbered or list(range(len(embeds)))
        attention = torch.empty(0)
        for number in range(len(self.model.model.layers)):
            if number in rules:
                image = [token for token in alive if start <= token < start + patches]
                view = View(
                    number, start, image, list(range(start + patches, prompt)), attention,
                    lambda given=(number, hidden, alive, places): self._layer(*given)[1],
                    hidden[0], before[0], embeds, places, self.model,
                )  # fmt: skip
                stay = set(rules[number](view))
                self.kept[number] = sorted(token - start for token in stay)
                alive = [token for token in alive if token not in image or token in stay]
                if positions == "compact":
                    places = list(places)
                    for rank, token in enumerate(alive):
                        places[token] = rank
            after, attention = self._layer(number, hidden, alive, places)
            hidden, before = after, hidden
        return self.model.lm_head(self.model.model.norm(hidden))[0]

    def _layer(self, number: int, hidden: Tensor, alive: list[int], places: list[int]) -> tuple[Tensor, Tensor]:
        """One stock layer, in which nobody looks at the dead but they themselves."""
        length = hidden.shape[1]
        visible = torch.eye(length, dtype=torch.bool)
        for query in range(length):
            for key in alive:
                visible[query, key] |= key <= query
        mask = torch.zeros(length, length).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
        rotary = self.model.model.rotary_emb(hidden, position_ids=torch.tensor([places]))
        seen = []
        layer = self.model.model.layers[number]
        handle = layer.self_attn.register_forward_hook(lambda module, given, result: seen.append(result[1]))
        after = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        handle.remove()
        return after, seen[0][0]


def of_question(batch: ModelInputs, row: int) -> tuple[Tensor, int]:
    """One row of a batch without its padding, and where its image starts."""
    valid = batch.attention_mask[row].bool()
    return batch.inputs_embeds[row, valid], int(batch.slots[row, valid].int().argmax())


def best(scores: dict[int, float], keep: int) -> list[int]:
    """The `keep` tokens of the highest scores, which must not hang on the last bits."""
    order = sorted(scores, key=lambda token: -scores[token])
    if keep < len(order):
        gap = scores[order[keep - 1]] - scores[order[keep]]
        assert gap > 1e-5 * abs(scores[order[0]]), "a tie at the cut: change the seed"
    return sorted(order[:keep])
