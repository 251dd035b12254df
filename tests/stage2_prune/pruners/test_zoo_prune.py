import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stage2_prune.pruners.zoo_prune import ZooPrune
from stage2_prune.pruning.tokens import VisualTokens
from store.projectors import project_image
from tests.stage2_prune.pruners.images import NAMES, at_angles, best, clustered, cosines, given

WIDTHS = (16, 24, 20)


def mlp(seed: int) -> nn.Sequential:
    """A projector as LLaVA's: raw, hidden, embed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(*WIDTHS[:2]), nn.GELU(), nn.Linear(*WIDTHS[1:]))


def image(seed: int, grid: tuple[int, int], projector: nn.Module, dtype: torch.dtype = torch.float32) -> VisualTokens:
    tokens = clustered(seed, grid, width=WIDTHS[0])
    raw, module = tokens.arrays["raw"].to(dtype), projector.to(dtype)

    def project(rows: torch.Tensor) -> torch.Tensor:
        """As stage 2 does it."""
        return torch.cat([project_image(module, one[None].contiguous()) for one in rows])

    return replace(tokens, arrays={"raw": raw, "projected": project(raw)}, projector=project)


def directions(count: int, width: int, seed: int, image_id: str) -> np.ndarray:
    digest = hashlib.sha256(f"{seed} {image_id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:16], "big") % 2**63)
    drawn = torch.randn(count, width, generator=generator).double().numpy()
    return np.array([one / np.sqrt((one**2).sum()) for one in drawn])


def sensitivity(projector: nn.Module, raw: torch.Tensor, drawn: np.ndarray, step: float) -> list[float]:
    """Section A.24c of the reference, a patch and a direction at a time, in float64."""
    exact = projector.double()

    def moved(patch: torch.Tensor, direction: torch.Tensor) -> float:
        return float((exact(patch + step * direction) - exact(patch - step * direction)).norm() / (2 * step))

    with torch.no_grad():
        return [np.mean([moved(patch, torch.from_numpy(one)) for one in drawn]) for patch in raw.double()]


def found_in_order(similarity: np.ndarray, sensitive: list[float], keep: int, margin: float) -> list[int]:
    least, most = min(sensitive), max(sensitive)
    weight = [(value - least) / (most - least + 1e-8) for value in sensitive]
    found = [best(dict(enumerate(weight)), margin)]
    while len(found) < keep:
        left = [j for j in range(len(weight)) if j not in found]
        found.append(best({j: weight[j] * min(1 - similarity[i][j] for i in found) for j in left}, margin))
    return found


def test_the_most_sensitive_is_first_and_then_distance_times_sensitivity_decides():
    # The projector squares the first column: shaken by h u it moves by 4 x h u1, divided by 2 h: 2 |x| |u1|, as x is to x:
    # raw 1, 4, 5, 3 is scaled to 0, 0.75, 1, 0.5 whatever the directions. Angles 0, 40, 90, 200: patch 2 is first.
    # Distances to it: 1 - cos 50 = 0.357 (1), 1 - cos 110 = 1.342 (3): times weight 0.268 and 0.671: patch 3. Then patch 1:
    # 0.75 x min(0.357, 1 - cos 160) = 0.268; patch 0 has weight 0 and is last.
    tokens = given((2, 2), raw=[[1.0, 7.0], [4.0, -3.0], [5.0, 0.0], [3.0, 1.0]], projected=at_angles(0, 40, 90, 200))
    tokens = replace(tokens, projector=lambda rows: rows[..., :1].square())
    for keep, kept in ((1, [2]), (2, [2, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3])):
        assert ZooPrune(seed=keep).select(tokens, keep).tolist() == [kept]


@pytest.mark.parametrize(("count", "step"), [(8, 0.01), (5, 0.5)])
@pytest.mark.parametrize("seed", [2, 4, 5, 6])
def test_a_naive_greedy_finds_the_same_patches(seed, count, step):
    projector = mlp(seed)
    tokens = image(seed, (5, 7), projector)
    pruner = ZooPrune(seed=seed, directions=count, step=step)
    found = {keep: pruner.select(tokens, keep) for keep in (1, 2, 3, 8, 16)}
    for number in range(2):
        drawn = directions(count, WIDTHS[0], seed, NAMES[number])
        sensitive = sensitivity(projector, tokens.arrays["raw"][number], drawn, step)
        order = found_in_order(cosines(tokens.arrays["projected"][number]), sensitive, 16, margin=3e-4)
        for keep, index in found.items():
            assert index[number].tolist() == sorted(order[:keep])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_in_16_bits_no_step_is_rounded_away(seed, dtype):
    projector = mlp(seed)
    tokens = image(seed, (5, 7), projector, dtype)
    found = ZooPrune(seed=seed, directions=8).select(tokens, 12)
    assert torch.equal(found, ZooPrune(seed=seed, directions=8, step=3.0).select(tokens, 12))
    for number in range(2):
        drawn = directions(8, WIDTHS[0], seed, NAMES[number])
        sensitive = sensitivity(projector, tokens.arrays["raw"][number], drawn, 1e-4)
        order = found_in_order(cosines(tokens.arrays["projected"][number]), sensitive, 12, margin=0)
        assert len(set(found[number].tolist()) & set(order)) >= 11, "rounding decides one choice at the most"


def test_a_projector_that_is_everywhere_as_sensitive_leaves_distance_to_decide():
    tokens = given((2, 2), raw=[[1.0], [2.0], [3.0], [4.0]], projected=at_angles(0, 10, 180, 90))
    tokens = replace(tokens, projector=lambda rows: torch.zeros_like(rows))
    assert [ZooPrune().select(tokens, keep).tolist() for keep in (1, 2, 3)] == [[[0]], [[0, 2]], [[0, 2, 3]]]
