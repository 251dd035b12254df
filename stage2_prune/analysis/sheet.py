"""Draw a contact sheet: a band per image, with the original and then what each method keeps of it."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from stage2_prune.evaluation.plot import save_figure

RgbImage = Float[np.ndarray, "height width 3"]
Patches = Bool[np.ndarray, "rows columns"]
DROPPED = (0.25, 0.0)
"""Shares of brightness and of colour that a dropped patch retains; a kept patch retains all of both."""
ABSORBED = (0.45, 0.55)
"""Shares of brightness and of colour that a patch retains if it is only part of a merged token."""
TARGET, ASKED = "#E69F00", "#E3120B"
_PANEL, _GAP, _TITLE, _HEAD, _FOOT, _MARGIN = 1.72, 0.1, 0.2, 0.28, 0.28, 0.12
"""In inches: a picture's longer side, the gap between pictures, the title above a picture, the heading above a band, the
legend below all bands, the margin around the sheet."""


@dataclass(frozen=True)
class Panel:
    """What one method keeps of one image."""

    title: str
    note: str
    """The number of tokens that are kept."""
    kept: Patches
    merged: Patches
    """Kept patches whose token is made of several patches."""
    absorbed: Patches
    """Patches that are only part of another patch's token."""


@dataclass(frozen=True)
class Heat:
    """A number for each patch of one image, drawn in colours: dark is low, bright is high."""

    title: str
    note: str
    """What the numbers are."""
    values: Float[np.ndarray, "rows columns"]


@dataclass(frozen=True)
class Band:
    """One image of the sheet, with a panel for each method."""

    title: str
    question: str
    """The question about the image; empty if nothing was asked."""
    picture: RgbImage
    asked: Patches | None
    """Patches that show what the question is about; None if they are not known."""
    panels: Sequence[Panel | Heat]


def draw(bands: Sequence[Band], columns: int, path: Path, dpi: int) -> None:
    """Write the PNG of a sheet; a band of more than `columns` pictures continues in another line."""
    height, width = bands[0].picture.shape[:2]
    wide, high = (_PANEL * side / max(width, height) for side in (width, height))
    lines = [-(-(1 + len(band.panels)) // columns) for band in bands]
    across = min(columns, 1 + max(len(band.panels) for band in bands))
    size = (
        2 * _MARGIN + across * wide + (across - 1) * _GAP,
        _MARGIN + _FOOT + len(bands) * _HEAD + sum(lines) * (high + _TITLE + _GAP),
    )
    figure = Figure(figsize=size, dpi=dpi)
    top = size[1] - _MARGIN
    for band, count in zip(bands, lines, strict=True):
        _head(figure, band, _MARGIN, top - _HEAD / 2, size)
        top -= _HEAD
        for number in range(1 + len(band.panels)):
            line, column = divmod(number, columns)
            left = _MARGIN + column * (wide + _GAP)
            bottom = top - (line + 1) * (high + _TITLE) - line * _GAP
            axes = figure.add_axes((left / size[0], bottom / size[1], wide / size[0], high / size[1]))
            if number == 0:
                _original(axes, band)
            else:
                _draw(axes, band, band.panels[number - 1])
        top -= count * (high + _TITLE + _GAP)
    _legend(figure, bands, size)
    save_figure(figure, path)


def _head(figure: Figure, band: Band, left: float, top: float, size: tuple[float, float]) -> None:
    room = int(13 * (size[0] - 2 * _MARGIN))
    text = figure.text(left / size[0], top / size[1], band.title, size=8.5, weight="bold", va="center")
    if band.question:
        question = textwrap.shorten(band.question, max(20, room - len(band.title)), placeholder="…")
        text.set_text(band.title + "   ")
        figure.draw_without_rendering()
        end = text.get_window_extent().x1 / figure.dpi
        figure.text(end / size[0] + 0.006, top / size[1], question, size=8.5, va="center", color="#444444")


def _original(axes: Axes, band: Band) -> None:
    _show(axes, band.picture, "original", "")
    if band.asked is not None:
        _outline(axes, band.asked, band.picture, ASKED, whole=True)


def _draw(axes: Axes, band: Band, panel: Panel | Heat) -> None:
    if isinstance(panel, Panel):
        _panel(axes, band.picture, panel)
        return
    down, across = band.picture.shape[0] // len(panel.values), band.picture.shape[1] // len(panel.values[0])
    axes.imshow(panel.values.repeat(down, 0).repeat(across, 1), cmap="magma", interpolation="nearest")
    _title(axes, panel.title, panel.note)
    if band.asked is not None:
        _outline(axes, band.asked, band.picture, ASKED, whole=True)


def _panel(axes: Axes, picture: RgbImage, panel: Panel) -> None:
    grey = picture @ np.array([0.299, 0.587, 0.114])
    shown = _faded(picture, grey, DROPPED)
    for patches, fade in ((panel.absorbed, ABSORBED), (panel.kept, (1.0, 1.0))):
        where = _on_pixels(patches, picture)[..., None]
        shown = np.where(where, _faded(picture, grey, fade), shown)
    _show(axes, shown, panel.title, panel.note)
    _outline(axes, panel.merged, picture, TARGET)


def _faded(picture: RgbImage, grey: Float[np.ndarray, "height width"], fade: tuple[float, float]) -> RgbImage:
    brightness, colour = fade
    return brightness * (colour * picture + (1 - colour) * grey[..., None])


def _show(axes: Axes, picture: RgbImage, title: str, note: str) -> None:
    axes.imshow(picture, interpolation="antialiased")
    _title(axes, title, note)


def _title(axes: Axes, title: str, note: str) -> None:
    axes.set_axis_off()
    axes.set_title(title, loc="left", size=7.5, pad=2.5)
    if note:
        axes.set_title(note, loc="right", size=7, pad=2.5, color="#777777")


def _on_pixels(patches: Patches, picture: RgbImage) -> Bool[np.ndarray, "height width"]:
    down, across = picture.shape[0] // patches.shape[0], picture.shape[1] // patches.shape[1]
    return patches.repeat(down, 0).repeat(across, 1)


def _outline(axes: Axes, patches: Patches, picture: RgbImage, colour: str, whole: bool = False) -> None:
    """Draw a frame around each patch, or, if `whole`, around each group of adjacent patches."""
    down, across = picture.shape[0] / patches.shape[0], picture.shape[1] / patches.shape[1]
    inside = np.pad(patches, 1)
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for row, column in np.argwhere(inside):
        top, left = row - 1, column - 1
        sides = {
            (row - 1, column): ((left, top), (left + 1, top)),
            (row + 1, column): ((left, top + 1), (left + 1, top + 1)),
            (row, column - 1): ((left, top), (left, top + 1)),
            (row, column + 1): ((left + 1, top), (left + 1, top + 1)),
        }
        lines += [line for beside, line in sides.items() if not (whole and inside[beside])]
    scaled = [tuple((x * across - 0.5, y * down - 0.5) for x, y in line) for line in lines]
    axes.add_collection(LineCollection(scaled, colors=colour, linewidths=1.3 if whole else 0.8, capstyle="projecting"))


def _legend(figure: Figure, bands: Sequence[Band], size: tuple[float, float]) -> None:
    drawn = [panel for band in bands for panel in band.panels]
    panels = [panel for panel in drawn if isinstance(panel, Panel)]
    entries = ["in full: kept", "dark and grey: dropped"]
    if any(panel.merged.any() for panel in panels):
        entries += ["orange frame: a token merged of several patches", "dark: merged into such a token"]
    if len(panels) < len(drawn):
        entries.append("bright: scored highly")
    if any(band.asked is not None for band in bands):
        entries.append("red outline: what is asked about")
    figure.text(_MARGIN / size[0], 0.18 / size[1], " · ".join(entries), size=7, va="center", color="#444444")
