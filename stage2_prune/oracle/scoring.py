"""Score sets of patches by the log-probability of an answer, many sets in one forward pass of the language model.

    text before the image, read once | kept patches, in raster order and at their original positions | question | answer

Only the logits of the answer's tokens are computed. The keys and values of the text before the image are shared, so scores
may differ in last bits from those of whole prompts: a search can do with that, and what it finds is answered as any method is.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from stage2_prune.language.assemble import assemble, cast
from stage2_prune.language.language import Language
from stage2_prune.language.shared_prefix import copied, read_prefix
from stage2_prune.training.packed import Lesson

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}
"""The largest number of tokens in a forward pass, by the type of device: on a CPU the fastest, on a GPU what leaves memory beside
a 7B model, with half a megabyte of keys and values for each token."""


@dataclass(frozen=True)
class AnswerScorer:
    """Scores sets of an image's patches by how likely the language model gives an answer when it sees them alone."""

    language: Language
    lesson: Lesson
    """The question, and the answer with its end token."""
    projected: Float[Tensor, "patch embed"]

    @torch.no_grad()
    def __call__(self, sets: Int[Tensor, "candidate kept"]) -> Float[Tensor, " candidate"]:
        """Return the log-probability of the answer, in nats, for each set of patches, which is in ascending order."""
        length = len(self.lesson.prompt.before) + sets.shape[1] + len(self._text)
        at_once = max(1, TOKENS_AT_ONCE.get(self.language.device.type, TOKENS_AT_ONCE["cpu"]) // length)
        return torch.cat([self._scores(part.to(self.language.device)) for part in sets.split(at_once)]).cpu()

    def _scores(self, sets: Int[Tensor, "candidate kept"]) -> Float[Tensor, " candidate"]:
        from stage2_prune.language.cache_argument import CACHE

        count, kept = sets.shape
        before, text, answer = len(self.lesson.prompt.before), self._text, self.lesson.answer
        behind = before + len(self.projected) + torch.arange(len(text), device=sets.device)
        cache = (
            {}
            if self._begun is None
            else {CACHE: copied(self._begun, torch.zeros(count, dtype=torch.long, device=sets.device))}
        )
        logits = self.language.model(
            inputs_embeds=torch.cat([self._visual[sets], self.language.embed(text).expand(count, -1, -1)], 1),
            attention_mask=torch.ones(count, before + kept + len(text), dtype=torch.long, device=sets.device),
            position_ids=torch.cat([before + sets, behind.expand(count, -1)], 1),
            use_cache=bool(cache),
            logits_to_keep=len(answer),
            **cache,
        ).logits
        given = torch.tensor(answer, device=sets.device).expand(count, -1)
        return logits.float().log_softmax(-1).gather(-1, given[..., None])[..., 0].sum(-1)

    @cached_property
    def _text(self) -> Int[Tensor, " token"]:
        """The question, and the answer without its last token, which predicts nothing."""
        ids = [*self.lesson.prompt.after, *self.lesson.answer[:-1]]
        return torch.tensor(ids, device=self.language.device)

    @cached_property
    def _visual(self) -> Float[Tensor, "patch embed"]:
        return cast(self.projected, self.language.dtype)

    @cached_property
    def _begun(self) -> DynamicCache | None:
        """The keys and values of the text before the image; None where there is no such text."""
        if not self.lesson.prompt.before:
            return None
        patches = len(self.projected)
        prompt = replace(self.lesson.prompt, after=())
        nothing = torch.zeros((1, 0), dtype=torch.long)
        visual = self.projected[None, :0]
        return read_prefix(self.language, assemble(self.language, [prompt], visual, nothing, patches, "original"))
