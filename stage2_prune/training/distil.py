"""The unpruned model's answer distributions in short form, and the divergence of a pruned model from them.

Of each answer token the `top` likeliest tokens are known with their log-probabilities, and the mass of all others as one number:
a distribution over `top` + 1 classes. Where the vocabulary has no more than `top` tokens, the form is complete.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TeacherRows:
    """What the unpruned model expects at some answer tokens, one row each."""

    ids: Int[Tensor, "scored top"]
    """The likeliest tokens, by falling probability."""
    log_probabilities: Float[Tensor, "scored top"]
    log_rest: Float[Tensor, " scored"]
    """Log of the mass of all other tokens; minus infinity where there are none."""


def shortened(logits: Float[Tensor, "scored vocab"], top: int) -> TeacherRows:
    """Bring distributions into short form."""
    log_probabilities = logits.log_softmax(-1)
    kept = log_probabilities.topk(min(top, logits.shape[1]))
    return TeacherRows(kept.indices, kept.values, _log_rest(log_probabilities, kept.indices))


def kl_to_teacher(logits: Float[Tensor, "scored vocab"], rows: TeacherRows) -> Float[Tensor, ""]:
    """Sum the KL divergences of a pruned model's distributions from the teacher's, over the classes of the short form.

    It is exact where the form is complete, and otherwise a lower bound: what happens among the other tokens does not count. The
    pruned model's own mass of these tokens is summed from their logits, because 1 minus the mass of the likeliest tokens would
    round to 0 in float32 where the model is sure.
    """
    ours = logits.log_softmax(-1)
    theirs = rows.log_probabilities.to(ours.dtype)
    distance = F.kl_div(ours.gather(-1, rows.ids), theirs, reduction="sum", log_target=True)
    if logits.shape[1] == rows.ids.shape[1]:
        return distance
    log_rest = rows.log_rest.to(ours.dtype)
    return distance + F.kl_div(_log_rest(ours, rows.ids), log_rest, reduction="sum", log_target=True)


def _log_rest(
    log_probabilities: Float[Tensor, "scored vocab"], ids: Int[Tensor, "scored top"]
) -> Float[Tensor, " scored"]:
    """Sum the mass of all tokens but `ids`, and take its logarithm."""
    return log_probabilities.scatter(-1, ids, -torch.inf).logsumexp(-1)
