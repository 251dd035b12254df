"""Density-peak clustering with nearest neighbours, as SparseVLM recycles what it drops."""

import torch
from jaxtyping import Float
from torch import Tensor


def clusters(states: Float[Tensor, "token embed"], count: int) -> Float[Tensor, "{count} embed"]:
    """The mean of each of `count` clusters, in the order of their centres' scores.

    A token's density is exp(-mean squared distance) to its `count` nearest, itself included; its score is the density
    times the distance to the nearest denser token. The highest scores are centres, the others join the nearest. Of equal
    densities the first counts as denser: with two clusters the two tokens nearest to each other always are equal, and
    would both be centres.
    """
    distance = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist") / states.shape[-1] ** 0.5
    density = (-distance.sort(-1).values[:, :count].square().mean(-1)).exp()
    rank = density.sort(descending=True, stable=True).indices.argsort()
    denser = rank[None, :] < rank[:, None]
    reach = torch.where(denser, distance, distance.max()).amin(-1)
    centres = (reach * density).sort(descending=True, stable=True).indices[:count]
    member = distance[:, centres].argmin(-1)
    member[centres] = torch.arange(count, device=states.device)
    return torch.stack([states[member == cluster].mean(0) for cluster in range(count)])
