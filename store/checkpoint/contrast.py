"""Measure how an image processor shows black and white, so that its pixels can be traced back to the image.

An image processor may rescale, normalise, crop and pad. A pixel that shows the image differs between a black and a white
image, and a pixel of padding does not. The position of a pixel between black and white is its brightness before normalising.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from PIL import Image
from torch import Tensor

PROBE_SIZE = (64, 64)
"""Width and height of the black and the white image, in pixels."""


@dataclass(frozen=True)
class Contrast:
    """What an image processor makes of black and of white, by channel, where it shows them furthest apart."""

    black: Float[Tensor, "3 1 1"]
    """Pixel value of black."""
    span: Float[Tensor, "3 1 1"]
    """Pixel value of white minus that of black; negative where a processor inverts a channel."""


def measure_contrast(pixels: Callable[[Image.Image], Float[Tensor, "3 height width"]]) -> Contrast | None:
    """Run a processor on a black and a white image; None where the two results are equal in a channel.

    Args:
        pixels: Calls the image processor and returns the pixel values of one image.

    """
    black, white = (pixels(Image.new("RGB", PROBE_SIZE, name)).float().flatten(1) for name in ("black", "white"))
    furthest = (white - black).abs().argmax(1, keepdim=True)
    span = (white - black).gather(1, furthest)[..., None]
    return Contrast(black.gather(1, furthest)[..., None], span) if bool((span.abs() > 0).all()) else None
