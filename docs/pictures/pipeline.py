"""Draw the picture at the top of the README, for a light and for a dark page: `python docs/pictures/pipeline.py`.

The image and the patches that are kept of it are the demo's own; the numbers are those of the README's table.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import FancyBboxPatch

from configs import load_experiment
from stage1_extract import run_extraction
from stage1_extract.demo.write import write_dataset
from stage2_prune import CachedModel, load_pruner

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
IMAGE, KEEP = "test_00000.png", 32
SHOWN = (
    ("keep_all", 576),
    ("random", 32),
    ("uniform_grid", 32),
    ("cls_attention", 32),
    ("learned_scorer", 32),
    ("keep_none", 0),
)
"""The rows of the README's table that the picture shows: method and tokens."""
ROWS = "Rows"
"""The key of those rows in the metadata of the files, so that a test sees when the README's table has others."""
WIDTH, HEIGHT = 1660, 424
"""Of the picture, in pixels; a page shows it at half that size."""


@dataclass(frozen=True)
class Palette:
    """The colours of one picture."""

    text: str
    quiet: str
    line: str
    box: str
    once: str
    """Of stage 1."""
    often: str
    """Of stage 2."""


PALETTES = {
    "pipeline_light.png": Palette("#1f2328", "#59636e", "#818b98", "#f6f8fa", "#0550ae", "#953800"),
    "pipeline_dark.png": Palette("#f0f6fc", "#9198a1", "#6e7681", "#161b22", "#79c0ff", "#ffa657"),
}


def main() -> None:
    """Write both pictures."""
    picture, kept = demo_image()
    rows = table_rows(README.read_text(encoding="utf-8"))
    for name, palette in PALETTES.items():
        with rc_context({"font.family": "DejaVu Sans", "text.color": palette.text}):
            figure = draw(picture, kept, rows, palette)
        figure.savefig(HERE / name, dpi=100, transparent=True, metadata={"Software": None, ROWS: str(rows)})


def demo_image() -> tuple[Float[np.ndarray, "height width 3"], Bool[np.ndarray, "rows columns"]]:
    """Return one image of the demo, and which of its patches `cls_attention` keeps."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_dataset(data, {"train": 5, "val": 5, "test": 5}, seed=0)
        place = {"data__images": str(data / "images"), "data__questions": str(data / "questions.jsonl")}
        experiment = load_experiment("demo", run_dir=str(Path(folder) / "run"), **place)
        run_extraction(experiment)
        index = CachedModel.open(experiment).select(load_pruner("cls_attention"), [IMAGE], KEEP)[0]
        picture = imread(data / "images" / IMAGE)[..., :3]
    kept = np.zeros(576, bool)
    kept[index.numpy()] = True
    return picture, kept.reshape(24, 24)


def table_rows(readme: str) -> list[tuple[str, str, str, str]]:
    """Return pruner, tokens, accuracy and interval of the rows to show, as the README's table has them."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.splitlines() if line.startswith("| ")]
    found = {
        (cell[0].split(" (")[0], cell[1]): cell for cell in cells if len(cell) > 4 and re.fullmatch(r"\d+", cell[1])
    }
    rows = [found[name, str(tokens)] for name, tokens in SHOWN]
    return [(name, row[1], row[3], row[4].replace(" - ", "–")) for (name, _), row in zip(SHOWN, rows, strict=True)]


def draw(
    picture: Float[np.ndarray, "height width 3"],
    kept: Bool[np.ndarray, "rows columns"],
    rows: list[tuple[str, str, str, str]],
    palette: Palette,
) -> Figure:
    """Draw the way from an image to the table, from left to right."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.set_axis_off()
    _stage(axes, 10, 646, "STAGE 1", "once per image", palette.once)
    _stage(axes, 700, WIDTH - 10, "STAGE 2", "as often as you like, with no vision tower in memory", palette.often)
    grey = np.repeat(picture.mean(-1, keepdims=True), 3, -1) * 0.25
    pixels = kept.repeat(14, 0).repeat(14, 1)[..., None]
    _image(axes, 10, picture, "images", palette)
    _box(axes, 252, 130, "vision\ntower", palette.once, palette)
    _store(axes, 430, palette)
    _image(axes, 700, np.where(pixels, picture, grey), f"pruner: keeps {KEEP} of 576", palette)
    _box(axes, 942, 130, "language\nmodel", palette.often, palette)
    _table(axes, 1126, rows, palette)
    for left, right in ((206, 248), (386, 426), (652, 696), (896, 938), (1076, 1118)):
        axes.annotate(
            "",
            (right, 236),
            (left, 236),
            arrowprops={"arrowstyle": "-|>", "color": palette.line, "lw": 3, "mutation_scale": 26},
        )
    return figure


def _stage(axes: Axes, left: float, right: float, name: str, how_often: str, colour: str) -> None:
    """Write a stage's name over a line that spans it."""
    axes.text(left, 34, name, size=19, weight="bold", color=colour, va="center")
    axes.text(left + 132, 34, how_often, size=18, color=colour, va="center")
    axes.plot([left, right], [62, 62], color=colour, lw=3, solid_capstyle="round")


def _image(axes: Axes, left: float, picture: Float[np.ndarray, "height width 3"], label: str, palette: Palette) -> None:
    axes.imshow(picture, extent=(left, left + 192, 332, 140), aspect="auto", interpolation="antialiased")
    axes.text(left, 356, label, size=16.5, color=palette.text, va="center")
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))


def _box(axes: Axes, left: float, width: float, label: str, colour: str, palette: Palette) -> None:
    frame = FancyBboxPatch(
        (left, 168), width, 136, boxstyle="round,pad=0,rounding_size=14", fc=palette.box, ec=colour, lw=3
    )
    axes.add_patch(frame)
    axes.text(left + width / 2, 236, label, size=17, ha="center", va="center", linespacing=1.4)


def _store(axes: Axes, left: float, palette: Palette) -> None:
    """Draw the store with the arrays that LLaVA-1.5-7B puts there."""
    frame = FancyBboxPatch(
        (left, 104), 216, 264, boxstyle="round,pad=0,rounding_size=14", fc=palette.box, ec=palette.line, lw=3
    )
    axes.add_patch(frame)
    axes.text(left + 18, 136, "store (Zarr)", size=18, weight="bold", va="center")
    lines = (("raw", "576 × 1024"), ("projected", "576 × 4096"), ("CLS attention", "576"), ("projector", "weights"))
    for number, (name, shape) in enumerate(lines):
        axes.text(left + 18, 176 + 50 * number, name, size=16.5, va="center")
        axes.text(
            left + 18, 198 + 50 * number, shape, size=14, va="center", color=palette.quiet, family="DejaVu Sans Mono"
        )
    axes.text(left, 396, "(sizes of LLaVA-1.5-7B)", size=15, color=palette.quiet, va="center")


def _table(axes: Axes, left: float, rows: list[tuple[str, str, str, str]], palette: Palette) -> None:
    """Write the table, its head and a line between both."""
    ends = (left, left + 252, left + 360, left + 524)
    head = ("pruner", "tokens", "accuracy", "95 % interval")
    for number, cells in enumerate((head, *rows)):
        for end, cell, align in zip(ends, cells, ("left", "right", "right", "right"), strict=True):
            colour = palette.quiet if number == 0 or end == ends[-1] else palette.text
            axes.text(end, 116 + 39 * number, cell, size=15.5, ha=align, va="center", color=colour)
    axes.plot([left, ends[-1]], [136, 136], color=palette.line, lw=1.5)
    axes.text(left, 396, "(the demo's table, 2,000 questions)", size=15, color=palette.quiet, va="center")


if __name__ == "__main__":
    main()
