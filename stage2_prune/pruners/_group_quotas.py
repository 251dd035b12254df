"""How many tokens each group of an image's patches gives, and which."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from stage2_prune.primitives.chunks import apportion

MOST_PER_GROUP = 5
"""Tokens that a group gives at most, for every `TOKENS_PER_LIMIT` tokens of the budget."""
TOKENS_PER_LIMIT = 64


def group_quotas(
    keep: int, budget: int, members: Int[Tensor, " group"], surviving: Int[Tensor, " group"]
) -> Int[Tensor, " group"]:
    """Divide `keep` in proportion to the survivors of groups, as PruneSID does.

    Each group gives at least one token, and at most its limit. The limit follows from `budget`, and is raised by one token a
    group until the groups can meet the budget.
    """
    most = torch.minimum(surviving, members).clamp(max=MOST_PER_GROUP * math.ceil(budget / TOKENS_PER_LIMIT))
    while most.sum() < budget:
        most = torch.minimum(most + 1, members)
    return apportion(keep, surviving, members.clamp(max=1), most)


def best_of_groups(
    ranked: Int[Tensor, " patch"],
    group: Int[Tensor, " patch"],
    members: Int[Tensor, " group"],
    quotas: Int[Tensor, " group"],
) -> Int[Tensor, " kept"]:
    """Return the first of `ranked` patches in each group, as many as its quota, group by group; `group` is in the same order."""
    by_group = group.argsort(stable=True)
    place = torch.arange(len(ranked)) - (members.cumsum(0) - members).repeat_interleave(members)
    return ranked[by_group[place < quotas.repeat_interleave(members)]]
