"""Was the answer right? Exact match of generated text, and ranking of the choices where there are any."""

import string
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.assemble import Batch
from stage2_prune.language import Language

NORMALISATION = "lower case, ASCII punctuation removed, white space folded and stripped; articles stay"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Text as it is compared: see NORMALISATION.

    An answer of nothing but punctuation keeps it, so that it cannot equal an empty prediction.

    >>> normalise("  A red\\n Circle. ")
    'a red circle'
    """
    folded = " ".join(text.lower().split())
    return " ".join(folded.translate(_PUNCTUATION).split()) or folded


def is_right(prediction: str, answers: Iterable[str]) -> bool:
    """Whether the prediction equals any of the answers after normalisation."""
    return normalise(prediction) in {normalise(answer) for answer in answers}


@torch.no_grad()
def rank(
    language: Language,
    batch: Batch,
    prefill: Float[Tensor, "question vocab"],
    choices: Sequence[Sequence[tuple[int, ...]] | None],
) -> list[int | None]:
    """Position of the likeliest choice of each question, None where it has no choices.

    `prefill` are the logits at the prompt's last position, `choices` the token ids of each choice in context.
    Where all choices of a question are single tokens their logits decide at no cost; otherwise the log-
    probabilities of each choice and the end of the answer are summed, so that a choice is not favoured for
    being another's beginning. Ties go to the first choice.
    """
    best: list[int | None] = []
    for row, options in enumerate(choices):
        if options is None:
            best.append(None)
            continue
        if all(len(option) == 1 for option in options):
            scores = prefill[row, torch.tensor([option[0] for option in options], device=prefill.device)].float()
        else:
            scores = _sequence_scores(language, batch, row, options)
        best.append(int(scores.cpu().sort(descending=True, stable=True).indices[0]))
    return best


def _sequence_scores(
    language: Language, batch: Batch, row: int, options: Sequence[tuple[int, ...]]
) -> Float[Tensor, " choice"]:
    """Summed log-probability of each option followed by the end token, teacher-forced in one forward."""
    end = language.eos_token_ids[0]
    ended = [(*option, end) for option in options]
    steps = max(len(option) for option in ended)
    ids = torch.tensor([[*o, *[end] * (steps - len(o))] for o in ended], device=language.device)
    counted = torch.tensor([[1] * len(o) + [0] * (steps - len(o)) for o in ended], device=language.device)
    valid = batch.attention_mask[row].bool()
    embeds, mask, places = _continued(language, batch, row, valid, ids, counted)
    model = language.answering(batch.slots[row, valid].expand(len(ended), -1), steps)
    logits = model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=places,
        use_cache=False,
        logits_to_keep=steps + 1,
    ).logits[:, :-1]
    each = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return (each * counted).sum(-1)


def _continued(
    language: Language,
    batch: Batch,
    row: int,
    valid: Tensor,
    ids: Int[Tensor, "choice step"],
    counted: Int[Tensor, "choice step"],
) -> tuple[Tensor, Tensor, Tensor]:
    """The row's prompt, without its padding, followed by each choice."""
    count, steps = ids.shape
    prompt = batch.inputs_embeds[row, valid].expand(count, -1, -1)
    before = batch.position_ids[row, valid].expand(count, -1)
    after = before[:, -1:] + 1 + torch.arange(steps, device=ids.device)
    mask = torch.cat([torch.ones_like(before), counted], 1)
    return torch.cat([prompt, language.embed(ids)], 1), mask, torch.cat([before, after], 1)
