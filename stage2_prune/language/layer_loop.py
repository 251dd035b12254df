"""The layer loop of a language model that drops visual tokens on the way: the one place where sequences get shorter.

It runs the stock layers of a Llama in their order, in SDPA, and calls a hook before some of them while a prompt is
read. From there on a layer's cache holds fewer tokens than those before it, so that every *segment* of layers has its
own mask and, with compact positions, its own numbering, in decoding too. With a hook that never drops it gives the bits
of the stock model.
"""

import copy
import time
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
from stage2_prune.language.flow import TEXT, Flow, Segment, causal_mask, segment, shortened
from stage2_prune.language.language import Language
from stage2_prune.pruning.in_llm import Hook, InLLMPruner, Scheduled, Site, check_positions
from stage2_prune.pruning.schedule import Schedule


@dataclass
class Stopwatch:
    """Seconds that selecting took, apart from the layers."""

    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PruningLanguage(Language):
    """A language model that prunes inside: weights and text are those of the stock one, which stays as it is."""

    hook: Hook
    positions: Positions
    """Whether tokens behind a dropped one move up, in the layers from there on."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def answering(self, slots: Bool[Tensor, "question token"], continued: int = 0) -> Any:
        """A stock causal language model around the layer loop, for one batch."""
        loop = LayerLoop(self.model.model, self.hook, self.positions, slots, continued, self.stopwatch)
        model = copy.copy(self.model)
        model._modules = {**self.model._modules, "model": loop}
        return model


def pruning_inside(
    language: Language, pruner: InLLMPruner, schedule: Schedule, positions: Positions
) -> PruningLanguage:
    """The language model with a method and its schedule inside."""
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
    """A stock Llama's `model` for one batch of prompts and their answers."""

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
        self.segments: list[Segment] = []

    @property
    def embed_tokens(self) -> nn.Module:
        """The stock embedding, which generate() looks for."""
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
        """Read the prompt if the cache is empty, otherwise go on behind it.

        `named` is the cache, by the name that the installed transformers gives it; StockDiffers (exit 4) is raised for any
        other argument.
        """
        given: DynamicCache | None = named.pop(CACHE, None)
        refuse_unknown("the layer loop", named)
        assert position_ids is not None, "position ids are always explicit"
        hidden = self.decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = DynamicCache(config=self.decoder.config) if given is None else given
        seen = cache.get_seq_length() + hidden.shape[1]
        # generate() leaves a mask of ones away.
        valid = hidden.new_ones(len(hidden), seen) if attention_mask is None else attention_mask
        if cache.get_seq_length() == 0:
            hidden = self._read(hidden, valid.bool(), position_ids, cache)
        else:
            hidden = self._go_on(hidden, valid.bool(), position_ids, cache)
        kept: dict[str, Any] = {CACHE: cache if use_cache else None}
        return BaseModelOutputWithPast(last_hidden_state=self.decoder.norm(hidden), **kept)

    def _read(self, hidden: Tensor, valid: Tensor, places: Tensor, cache: DynamicCache) -> Tensor:
        """The prompt, and what may be continued behind it, through all layers."""
        flow = Flow(hidden, hidden, valid, places, self._patches(valid))
        self.segments = [segment(0, flow, places)]
        mask, rotary = causal_mask(valid, hidden.shape[1]), self.decoder.rotary_emb(hidden, position_ids=places)
        for number, layer in enumerate(self.decoder.layers):
            if number and number in self.hook.layers:
                flow = self._drop(number, flow, hidden, rotary, cache)
                self.segments.append(segment(number, flow, places))
                mask = causal_mask(flow.valid, flow.valid.shape[1])
                rotary = self.decoder.rotary_emb(hidden, position_ids=flow.places)
            after = layer(
                flow.hidden, attention_mask=mask, use_cache=True, position_embeddings=rotary, **{CACHE: cache}
            )
            flow = replace(flow, hidden=after, before=flow.hidden)
        return flow.hidden

    def _go_on(self, hidden: Tensor, valid: Tensor, places: Tensor, cache: DynamicCache) -> Tensor:
        """Tokens of the answer: each layer sees what is left of the prompt there, and all of the answer."""
        prompt, steps = self.segments[0].valid.shape[1], hidden.shape[1]
        first = {one.first: one for one in self.segments}
        mask = rotary = None
        for number, layer in enumerate(self.decoder.layers):
            if number in first:
                here = first[number]
                mask = causal_mask(torch.cat([here.valid, valid[:, prompt:]], 1), steps)
                rotary = self.decoder.rotary_emb(hidden, position_ids=places - here.shift)
            hidden = layer(hidden, attention_mask=mask, use_cache=True, position_embeddings=rotary, **{CACHE: cache})
        return hidden

    def _patches(self, valid: Tensor) -> Int[Tensor, "question token"]:
        counted = torch.where(self.slots, self.slots.cumsum(-1) - 1, TEXT)
        return torch.cat([counted, counted.new_full((len(valid), self.continued), TEXT)], 1)

    def _drop(self, layer: int, flow: Flow, embedded: Tensor, rotary: Any, cache: DynamicCache) -> Flow:
        """The hook's decision for every question, carried out."""
        began = self._now(flow)
        sites = [self._site(layer, row, flow, embedded, rotary, cache) for row in range(len(flow.hidden))]
        drops = [self.hook.drop(site) for site in sites]
        if not self.continued:  # candidate answers repeat what was decided for their prompt
            self.stopwatch.seconds += self._now(flow) - began
        return shortened(flow, drops, self.positions)

    def _site(self, layer: int, row: int, flow: Flow, embedded: Tensor, rotary: Any, cache: DynamicCache) -> Site:
        """One question, without its padding and without what may be continued behind it."""
        span, whole = (self._prompt(valid[row]) for valid in (flow.valid, self.segments[0].valid))
        visual = flow.visual[row, span]
        cached: Any = cache.layers[layer - 1]
        return Site(
            layer=layer,
            start=int(visual.int().argmax()),
            visual=int(visual.sum()),
            hidden=flow.hidden[row, span],
            before=flow.before[row, span],
            embedded=embedded[row, whole],
            keys=cached.keys[row, :, span],
            cos=rotary[0].expand(len(flow.hidden), -1, -1)[row, span],
            sin=rotary[1].expand(len(flow.hidden), -1, -1)[row, span],
            decoder=self.decoder,
        )

    def _prompt(self, valid: Bool[Tensor, " token"]) -> slice:
        """Where a question's prompt stands between its padding and what continues it, which may be padded too."""
        end = len(valid) - self.continued
        return slice(end - int(valid[:end].sum()), end)

    def _now(self, flow: Flow) -> float:
        """Seconds, after what the device was still doing."""
        if flow.hidden.is_cuda:
            torch.cuda.synchronize(flow.hidden.device)
        return time.perf_counter()
