"""Images as pruners see them, with structure: patches of a few kinds, and attention that has favourites."""

import numpy as np
import torch

from stage2_prune.pruning.tokens import VisualTokens

NAMES = tuple(f"{number:064x}" for number in range(8))


def clustered(seed: int, grid: tuple[int, int], images: int = 2, width: int = 16, heads: int = 4) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    patches = grid[0] * grid[1]

    def features() -> torch.Tensor:
        kinds = torch.randn(images, 5, width, generator=generator)
        kind = torch.randint(5, (images, patches, 1), generator=generator).expand(-1, -1, width)
        return kinds.gather(1, kind) + 0.7 * torch.randn(images, patches, width, generator=generator)

    attention = (1.5 * torch.randn(images, heads, patches, generator=generator)).softmax(-1)
    arrays = {"raw": features(), "projected": features(), "cls_attention": attention}
    return VisualTokens(NAMES[:images], grid, arrays)


def given(grid: tuple[int, int], **arrays: object) -> VisualTokens:
    """One image with these arrays, given without the image axis."""
    return VisualTokens(NAMES[:1], grid, {name: torch.tensor([array]).float() for name, array in arrays.items()})


def at_angles(*degrees: float, lengths: tuple[float, ...] = ()) -> list[list[float]]:
    """Features in the plane: their cosines are those of the differences of the angles."""
    radius = lengths or (1.0,) * len(degrees)
    radians = np.radians(degrees)
    return [[r * float(np.cos(a)), r * float(np.sin(a))] for r, a in zip(radius, radians, strict=True)]


def cosines(features: torch.Tensor) -> np.ndarray:
    """Cosine of every two patches of one image, in float64."""
    exact = features.double().numpy()
    length = np.sqrt((exact**2).sum(axis=1))
    return (exact @ exact.T) / np.outer(length, length)


def best(scores: dict[int, float], margin: float = 1e-6) -> int:
    """The highest score's key; the test is void if another comes close."""
    first, *others = sorted(scores, key=lambda key: -scores[key])
    assert not others or scores[first] - scores[others[0]] > margin * abs(scores[first]), "a tie: take other inputs"
    return first


def descending(scores: dict[int, float]) -> list[int]:
    """Keys by falling score; the test is void if two are equal."""
    assert len(set(scores.values())) == len(scores), "a tie: take other inputs"
    return sorted(scores, key=lambda key: -scores[key])
