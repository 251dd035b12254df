"""Whether an answer is right: exact match of generated text, and ranking of the choices where a question has choices."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.language.assemble import ModelInputs
from stage2_prune.language.language import Language
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
) -> list[Float[Tensor, " choice"] | None]:
    """Score how likely each choice of each question is, up to a constant of the question; None where a question has no choices.

    `prefill` are the logits at the prompt's last position, `choices` the token ids of each choice in context. Where all choices
    of a question are single tokens their logits decide at no cost. Otherwise the log-probabilities of each choice and of the
    end of the answer are summed, so that a choice has no advantage from being the beginning of another.
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
            scores.append(_sequence_scores(language, batch, question, options))
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
    language: Language, batch: ModelInputs, question: int, options: Sequence[tuple[int, ...]]
) -> Float[Tensor, " choice"]:
    """Sum the log-probabilities of each option followed by the end token, teacher-forced in one forward."""
    end = language.eos_token_ids[0]
    ended = [(*option, end) for option in options]
    steps = max(len(option) for option in ended)
    ids = torch.tensor([[*o, *[end] * (steps - len(o))] for o in ended], device=language.device)
    counted = torch.tensor([[1] * len(o) + [0] * (steps - len(o)) for o in ended], device=language.device)
    valid = batch.attention_mask[question].bool()
    embeds, mask, position_ids = _continued(language, batch, question, valid, ids, counted)
    model = language.answering(batch.slots[question, valid].expand(len(ended), -1), steps)
    begun = batch.begun([question] * len(ended))
    logits = model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=position_ids,
        use_cache=bool(begun),
        logits_to_keep=steps + 1,
        **begun,
    ).logits[:, :-1]
    each = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return (each * counted).sum(-1)


def _continued(
    language: Language,
    batch: ModelInputs,
    question: int,
    valid: Tensor,
    ids: Int[Tensor, "choice step"],
    counted: Int[Tensor, "choice step"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the prompt of one question, without its padding, followed by each choice: embeddings, mask and position ids.

    What a cache holds of the prompt is in the mask alone.
    """
    count, steps = ids.shape
    text = valid[batch.read :]
    prompt = batch.inputs_embeds[question, text].expand(count, -1, -1)
    before = batch.position_ids[question, batch.read :][text].expand(count, -1)
    after = before[:, -1:] + 1 + torch.arange(steps, device=ids.device)
    cached = batch.attention_mask[question, : batch.read].expand(count, -1)
    mask = torch.cat([cached, torch.ones_like(before), counted], 1)
    return torch.cat([prompt, language.embed(ids)], 1), mask, torch.cat([before, after], 1)
