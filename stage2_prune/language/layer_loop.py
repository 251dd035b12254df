"""The layer loop of a language model that drops visual tokens on the way: the one place where sequences get shorter.

It runs the stock layers of a Llama in their order, in SDPA, and calls a hook before some of them while a prompt is read. Behind
a drop, a layer's cache holds fewer tokens than the caches before it, so every *span* of layers has its own mask and, with
compact positions, its own numbering, in decoding too. With a hook that never drops, the loop gives the bits of the stock model.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from configs.experiment import Positions
from stage2_prune.errors import PrunerMisused
from stage2_prune.language.cache_argument import CACHE, refuse_unknown
from stage2_prune.language.clock import seconds_after_work
from stage2_prune.language.flow import TEXT, Flow, Span, causal_mask, shortened, span_from
from stage2_prune.language.language import Language
from stage2_prune.pruning.in_llm import Hook, InLLMPruner, Scheduled, Site, check_positions
from stage2_prune.pruning.schedule import Schedule


@dataclass
class Stopwatch:
    """The time that selecting took, apart from the layers, in seconds."""

    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PruningLanguage(Language):
    """A language model that prunes inside. It shares weights and text with the stock model, which stays as it is."""

    hook: Hook
    positions: Positions
    """Whether tokens behind a dropped token move up, in the layers from there on."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def answering(self, slots: Bool[Tensor, "question token"], continued: int = 0) -> Any:
        """Return a stock causal language model around the layer loop, for one batch."""
        loop = LayerLoop(self.model.model, self.hook, self.positions, slots, continued, self.stopwatch)
        model = copy.copy(self.model)
        model._modules = {**self.model._modules, "model": loop}
        return model


def pruning_inside(
    language: Language, pruner: InLLMPruner, schedule: Schedule, positions: Positions
) -> PruningLanguage:
    """Return the language model with a method and its schedule inside."""
    check_positions(schedule, positions)
    return PruningLanguage(**vars(language), hook=Scheduled(pruner, schedule), positions=positions)


def require_loop(decoder: Any) -> None:
    """Raise PrunerMisused (exit 2) unless the layer loop knows the layers of a stock decoder."""
    implementation = decoder.config._attn_implementation
    if not isinstance(decoder, LlamaModel) or implementation != "sdpa":
        raise PrunerMisused(
            f"expected a Llama with SDPA attention to prune inside, this is {type(decoder).__name__} with "
            f"{implementation}: leave methods inside the language model out"
        )


class LayerLoop(nn.Module):
    """The layer loop in place of a stock Llama's `model`, for one batch of prompts and their answers."""

    def __init__(
        self,
        decoder: Any,
        hook: Hook,
        positions: Positions,
        slots: Bool[Tensor, "question token"],
        continued: int,
        stopwatch: Stopwatch,
    ) -> None:
        super().__init__()
        require_loop(decoder)
        self.decoder = decoder
        self.hook = hook
        self.positions: Positions = positions
        self.slots = slots
        self.continued = continued
        self.stopwatch = stopwatch
        self.spans: list[Span] = []

    @property
    def embed_tokens(self) -> nn.Module:
        """Return the stock embedding, which generate() looks for."""
        return self.decoder.embed_tokens

    def forward(
        self,
        input_ids: Int[Tensor, "question token"] | None = None,
        attention_mask: Int[Tensor, "question seen"] | None = None,
        position_ids: Int[Tensor, "question token"] | None = None,
        inputs_embeds: Float[Tensor, "question token embed"] | None = None,
        use_cache: bool | None = None,
        **named: Any,
    ) -> BaseModelOutputWithPast:
        """Read the prompt if the cache is empty, otherwise continue behind it.

        `named` holds the cache, under the name that the installed transformers gives it; any other argument raises StockDiffers
        (exit 4).
        """
        given: DynamicCache | None = named.pop(CACHE, None)
        refuse_unknown("the layer loop", named)
        assert position_ids is not None, "position ids are always explicit"
        hidden = self.decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = DynamicCache(config=self.decoder.config) if given is None else given
        seen = cache.get_seq_length() + hidden.shape[1]
        # generate() passes no mask where it would be all ones.
        valid = hidden.new_ones(len(hidden), seen) if attention_mask is None else attention_mask
        if cache.get_seq_length() == 0:
            hidden = self._read(hidden, valid.bool(), position_ids, cache)
        else:
            hidden = self._continue(hidden, valid.bool(), position_ids, cache)
        kept: dict[str, Any] = {CACHE: cache if use_cache else None}
        return BaseModelOutputWithPast(last_hidden_state=self.decoder.norm(hidden), **kept)

    def _read(self, hidden: Tensor, valid: Tensor, position_ids: Tensor, cache: DynamicCache) -> Tensor:
        """Run the prompt, and the continuation if one follows, through all layers."""
        flow = Flow(hidden, hidden, valid, position_ids, self._patches(valid))
        self.spans = [span_from(0, flow, position_ids)]
        mask, rotary = causal_mask(valid, hidden.shape[1]), self.decoder.rotary_emb(hidden, position_ids=position_ids)
        for number, layer in enumerate(self.decoder.layers):
            if number and number in self.hook.layers:
                flow = self._drop(number, flow, hidden, rotary, cache)
                self.spans.append(span_from(number, flow, position_ids))
                mask = causal_mask(flow.valid, flow.valid.shape[1])
                rotary = self.decoder.rotary_emb(hidden, position_ids=flow.position_ids)
            after = layer(
                flow.hidden, attention_mask=mask, use_cache=True, position_embeddings=rotary, **{CACHE: cache}
            )
            flow = replace(flow, hidden=after, before=flow.hidden)
        return flow.hidden

    def _continue(self, hidden: Tensor, valid: Tensor, position_ids: Tensor, cache: DynamicCache) -> Tensor:
        """Run tokens of the answer: each layer sees what is left of the prompt there, and all of the answer."""
        prompt, steps = self.spans[0].valid.shape[1], hidden.shape[1]
        beginning = {span.first: span for span in self.spans}
        mask = rotary = None
        for number, layer in enumerate(self.decoder.layers):
            if number in beginning:
                span = beginning[number]
                mask = causal_mask(torch.cat([span.valid, valid[:, prompt:]], 1), steps)
                rotary = self.decoder.rotary_emb(hidden, position_ids=position_ids - span.shift)
            hidden = layer(hidden, attention_mask=mask, use_cache=True, position_embeddings=rotary, **{CACHE: cache})
        return hidden

    def _patches(self, valid: Tensor) -> Int[Tensor, "question token"]:
        counted = torch.where(self.slots, self.slots.cumsum(-1) - 1, TEXT)
        return torch.cat([counted, counted.new_full((len(valid), self.continued), TEXT)], 1)

    def _drop(self, layer: int, flow: Flow, embedded: Tensor, rotary: Any, cache: DynamicCache) -> Flow:
        """Ask the hook for its decision about every question, and carry the decisions out."""
        began = seconds_after_work(flow.hidden.device)
        sites = [self._site(layer, question, flow, embedded, rotary, cache) for question in range(len(flow.hidden))]
        drops = [self.hook.drop(site) for site in sites]
        if not self.continued:  # candidate answers repeat the decisions that were timed for their prompt
            self.stopwatch.seconds += seconds_after_work(flow.hidden.device) - began
        return shortened(flow, drops, self.positions)

    def _site(self, layer: int, question: int, flow: Flow, embedded: Tensor, rotary: Any, cache: DynamicCache) -> Site:
        """Return one question of the batch, without its padding and its continuation."""
        prompt, unpruned = (self._prompt(valid[question]) for valid in (flow.valid, self.spans[0].valid))
        visual = flow.visual[question, prompt]
        cached: Any = cache.layers[layer - 1]
        return Site(
            layer=layer,
            start=int(visual.int().argmax()),
            visual=int(visual.sum()),
            hidden=flow.hidden[question, prompt],
            before=flow.before[question, prompt],
            embedded=embedded[question, unpruned],
            keys=cached.keys[question, :, prompt],
            cos=rotary[0].expand(len(flow.hidden), -1, -1)[question, prompt],
            sin=rotary[1].expand(len(flow.hidden), -1, -1)[question, prompt],
            decoder=self.decoder,
        )

    def _prompt(self, valid: Bool[Tensor, " token"]) -> slice:
        """Return where a question's prompt stands between its padding and its continuation, which may be padded too."""
        end = len(valid) - self.continued
        return slice(end - int(valid[:end].sum()), end)
