"""Whether an answer is right: exact match of generated text, and ranking of the choices where a question has choices."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.language.assemble import ModelInputs
from stage2_prune.language.cache_argument import CACHE
from stage2_prune.language.language import Language
from stage2_prune.language.shared_prefix import Prefixes
from store.questions.answers import normalise


def is_right(prediction: str, answers: Iterable[str]) -> bool:
    """Return whether the prediction equals any of the answers after normalisation."""
    return normalise(prediction) in {normalise(answer) for answer in answers}


@torch.no_grad()
def choice_scores(
    language: Language,
    batch: ModelInputs,
    prefill: Float[Tensor, "question vocab"],
    choices: Sequence[Sequence[tuple[int, ...]] | None],
    prefixes: Prefixes | None = None,
) -> list[Float[Tensor, " choice"] | None]:
    """Score how likely each choice of each question is, up to a constant of the question; None where a question has no choices.

    `prefill` are the logits at the prompt's last position, `choices` the token ids of each choice in context. Where all choices
    of a question are single tokens their logits decide at no cost. Otherwise the log-probabilities of each choice and of the
    end of the answer are summed, so that a choice has no advantage from being the beginning of another. With `prefixes`, whose
    prompts `batch` continues, that forward goes on from their cache.
    """
    scores: list[Tensor | None] = []
    for question, options in enumerate(choices):
        if options is None:
            scores.append(None)
        elif all(len(option) == 1 for option in options):
            scores.append(
                prefill[question, torch.tensor([option[0] for option in options], device=prefill.device)].float()
            )
        else:
            scores.append(_sequence_scores(language, batch, question, options, prefixes))
    return scores


def likeliest(scores: Float[Tensor, " choice"]) -> int:
    """Return the position of the likeliest choice; of equal choices the first."""
    return int(scores.cpu().sort(descending=True, stable=True).indices[0])


def log_probabilities(choices: Sequence[str], scores: Float[Tensor, " choice"]) -> dict[str, float]:
    """Return the log-probability of each distinct choice, given that the answer is one of them.

    Values are rounded to what float32 can tell.
    """
    distinct = dict(zip(choices, scores.tolist(), strict=True))
    logs = torch.tensor(list(distinct.values()), dtype=torch.float64).log_softmax(0)
    return {choice: round(log, 6) for choice, log in zip(distinct, logs.tolist(), strict=True)}


def _sequence_scores(
    language: Language,
    batch: ModelInputs,
    question: int,
    options: Sequence[tuple[int, ...]],
    prefixes: Prefixes | None,
) -> Float[Tensor, " choice"]:
    """Sum the log-probabilities of each option followed by the end token, teacher-forced in one forward."""
    end = language.eos_token_ids[0]
    ended = [(*option, end) for option in options]
    steps = max(len(option) for option in ended)
    ids = torch.tensor([[*o, *[end] * (steps - len(o))] for o in ended], device=language.device)
    counted = torch.tensor([[1] * len(o) + [0] * (steps - len(o)) for o in ended], device=language.device)
    valid = batch.attention_mask[question].bool()
    before = batch.position_ids[question, valid].expand(len(ended), -1)
    positions = torch.cat([before, before[:, -1:] + 1 + torch.arange(steps, device=ids.device)], 1)
    mask = torch.cat([torch.ones_like(before), counted], 1)
    if prefixes is None:
        prompt = batch.inputs_embeds[question, valid].expand(len(ended), -1, -1)
        begun = {"inputs_embeds": torch.cat([prompt, language.embed(ids)], 1), "use_cache": False}
    else:
        begun, mask, positions = _from_cache(batch, prefixes, question, ids, mask, positions)
    model = language.answering(batch.slots[question, valid].expand(len(ended), -1), steps)
    logits = model(attention_mask=mask, position_ids=positions, logits_to_keep=steps + 1, **begun).logits[:, :-1]
    each = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return (each * counted).sum(-1)


def _from_cache(
    batch: ModelInputs,
    prefixes: Prefixes,
    question: int,
    ids: Int[Tensor, "choice step"],
    mask: Int[Tensor, "choice token"],
    positions: Int[Tensor, "choice token"],
) -> tuple[dict[str, Any], Int[Tensor, "choice padded"], Int[Tensor, "choice rest"]]:
    """Return the arguments of a forward that goes on from a prefix's cache: ids and cache, the mask, and the rest's positions.

    The cache holds the padding before the prefix too, which the mask hides.
    """
    row, width = prefixes.of_question[question], prefixes.inputs.input_ids.shape[1]
    text = batch.input_ids[question, width:][batch.attention_mask[question, width:].bool()]
    rest = torch.cat([text.expand(len(ids), -1), ids], 1)
    cached = prefixes.inputs.attention_mask[row]
    hidden = cached.new_zeros(len(ids), width - int(cached.sum()))
    cache = prefixes.cache_of(row.expand(len(ids)))
    arguments = {"input_ids": rest, CACHE: cache, "use_cache": True}
    return arguments, torch.cat([hidden, mask], 1), positions[:, -rest.shape[1] :]
