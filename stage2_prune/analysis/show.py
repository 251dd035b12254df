"""Draw what methods keep of images: `show IMAGE…`, from the store and the image files; no model is run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from configs import plugin
from configs.budgets import ascending, file_part
from configs.experiment import Experiment
from configs.load import build_pruner, method_of
from stage2_prune import pruners
from stage2_prune.analysis import sheet
from stage2_prune.analysis.kept import KeptPatches
from stage2_prune.analysis.kept_sets import SelectingMethods, is_grid, open_selection, reads_question
from stage2_prune.analysis.sheet import Band, Panel
from stage2_prune.analysis.tower_view import TowerView, read_image, rgb
from stage2_prune.analysis.truth import find_truth
from stage2_prune.errors import CannotShow, UnknownImage
from stage2_prune.evaluation.cells import OWN, Cell, configured_pruners, require_budgets, require_own_labels
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.session.features import Features
from store.errors import TargetExists
from store.layout.ids import ImageIds, printable
from store.questions.question import Question, read_questions

NEAR = 3
"""The largest number of similar names that are suggested."""
SEARCHED = 100_000
"""The largest number of a store's names that are searched for names similar to an unknown one."""


@dataclass(frozen=True)
class PictureRequest:
    """The request of a user: which images, methods and budget to draw, and how."""

    images: tuple[str, ...]
    """Names of images, as in the questions."""
    methods: tuple[str, ...] | None = None
    """Labels of the config, or names or paths of methods; None for the config's methods that have something to show."""
    keep: int | None = None
    """Number of visual tokens per image; None for the middle budget of the config."""
    question: str | None = None
    """The question to ask about every image; None for the config's first question about each image."""
    columns: int = 7
    """Number of pictures side by side."""
    dpi: int = 200
    """Pixels per inch; a picture is about 1.7 inches wide."""


@dataclass(frozen=True)
class Shown:
    """The result of `show`: the picture, and the methods that it lacks."""

    path: Path
    left_out: tuple[str, ...]
    """The config's methods that could not be shown, each with the reason."""
    untrained: tuple[str, ...] = ()
    """What to do for each method that was asked for by name but has no trained weights; all other methods were drawn."""


def run(experiment: Experiment, wanted: PictureRequest, out: Path | None = None, overwrite: bool = False) -> Shown:
    """Write the contact sheet that a user asked for.

    Args:
        experiment: the config.
        wanted: the request.
        out: the file to write; None for a file in `<run_dir>/selection`.
        overwrite: whether to replace an existing file.

    Raises:
        UnknownImage: (exit 2) naming images of similar names.
        CannotShow: (exit 2) if there is nothing to draw or `out` is no `.png`, and what `open_selection` and `read_image` raise.
        TargetExists: if the file exists, unless `overwrite`.
    """
    keep = _keep(experiment, wanted)
    name = f"show-{Path(wanted.images[0]).stem}-{file_part(*keep) if keep else OWN}.png"
    path = out or experiment.run_dir / "selection" / name
    _require_writable(path, overwrite)
    methods = _methods(experiment, wanted.methods)
    one_budget = experiment.prune.model_copy(update={"budgets": keep, "seeds": 1})
    experiment = experiment.model_copy(update={"prune": one_budget})
    require_budgets(experiment, methods)
    selection = open_selection(experiment, methods)
    features = selection.session.features
    if not is_grid(features):
        raise CannotShow(
            f"expected patches in a grid, which {features.store.path} lacks: the CLS row is one of its tokens, which has no "
            "place, or a model's own code made them"
        )
    asked = _questions(experiment, features, wanted)
    _require_questions(selection.methods, asked)
    cells, unmet = selection.cells(asked[0])
    missing = [(lacking.pruner, lacking.reason) for lacking in (*selection.left_out, *unmet)]
    untrained = selection.untrained if wanted.methods is not None else {}
    refused = [f"{label} is not shown: {reason}" for label, reason in missing if label not in untrained]
    if refused and wanted.methods is not None:
        raise CannotShow("; ".join(refused))
    # A picture of all patches, or of none, is worth drawing only if the user asks for it.
    cells = [cell for cell in cells if wanted.methods is not None or cell.pruner.budget != "fixed"]
    if not cells:
        raise CannotShow("expected methods that drop some patches, the config has none: name some with --methods")
    sheet.draw(_bands(selection, cells, asked), wanted.columns, path, wanted.dpi)
    left_out = tuple(f"{label} is not shown: {reason}" for label, reason in missing)
    return Shown(path, left_out, tuple(untrained.values()))


def _require_writable(path: Path, overwrite: bool) -> None:
    """Refuse a name that is no `.png` (CannotShow, exit 2), and a file that exists unless `overwrite` (TargetExists)."""
    if path.suffix.lower() != ".png":
        raise CannotShow(f"expected a name that ends with .png as --out, got {path}: pictures are written as PNG")
    if path.exists() and not overwrite:
        raise TargetExists(f"{path} is there already: name another with --out, or replace it with --overwrite")


def _keep(experiment: Experiment, wanted: PictureRequest) -> tuple[int | float | str, ...]:
    """Return the budget to show: the requested budget, or else the config's middle budget; nothing if there is neither."""
    if wanted.keep is not None:
        return (wanted.keep,)
    budgets = sorted(experiment.prune.budgets, key=ascending)
    return tuple(budgets[len(budgets) // 2 :][:1])


def _methods(experiment: Experiment, names: Sequence[str] | None) -> dict[str, Pruner]:
    """Find the methods by name, with the parameters that the config gives them, or take all of the config's.

    A name belongs to a method or to a row in the config's tables. However the path of a file is written, it names one method.
    """
    configured = configured_pruners(experiment)
    if names is None:
        return configured
    known = plugin.find_all(pruners, Pruner)
    asked = [method_of(name, {}) for name in dict.fromkeys(names)]
    require_own_labels(asked)
    owners = [_resolved(method.name) for method in experiment.prune.methods]
    chosen: dict[str, Pruner] = {}
    for method in asked:
        if method.name in configured:
            chosen[method.name] = configured[method.name]
            continue
        rows = zip(configured.items(), owners, strict=True)
        named_rows = {label: pruner for (label, pruner), owner in rows if owner == _resolved(method.name)}
        chosen |= named_rows or {method.known_as: build_pruner(method, known)}
    return chosen


def _resolved(name: str) -> str:
    """Return the full path of a method's file, or the name of another method."""
    return str(Path(name).resolve()) if plugin.is_path(name) else name


def _questions(experiment: Experiment, features: Features, wanted: PictureRequest) -> list[Question]:
    """Choose a question for each image; refuse images that the store does not know or has no features of."""
    ids = features.store.ids
    for name in wanted.images:
        if ids.row_of_name(name) is None:
            raise UnknownImage(
                f"expected an image of {features.store.path}, it has no {printable(name)}{_near(ids, name)}"
            )
    of_image: dict[str, Question] = {}
    if wanted.question is None:
        for question in read_questions(experiment.data):
            of_image.setdefault(question.image, question)
    text = wanted.question or ""
    asked = [of_image.get(name) or Question(question_id=name, image=name, question=text) for name in wanted.images]
    for excluded in features.answerable(asked)[1]:
        raise UnknownImage(f"expected an encoded image, {printable(excluded.question_id)} is none: {excluded.reason}")
    return asked


def _near(ids: ImageIds, name: str) -> str:
    """List the store's names that are most similar to an unknown one."""
    stored = list(islice((known for row in range(len(ids)) for known in ids.names(row)), SEARCHED))
    near = get_close_matches(name, stored, NEAR, cutoff=0.4) or stored[:NEAR]
    return f": it has {', '.join(map(printable, near))}, …"


def _require_questions(methods: Mapping[str, Pruner], asked: Sequence[Question]) -> None:
    """Refuse methods that read the question if an image has no question (CannotShow, exit 2)."""
    readers = [label for label, pruner in methods.items() if reads_question(pruner)]
    silent = [question.image for question in asked if not question.question]
    if readers and silent:
        raise CannotShow(
            f"expected a question for {', '.join(readers)} to read, there is none about {silent[0]}: give one with --question"
        )


@torch.no_grad()
def _bands(selection: SelectingMethods, cells: Sequence[Cell], asked: Sequence[Question]) -> list[Band]:
    """Make the band of each question's image."""
    session = selection.session
    experiment, features = session.experiment, session.features
    view = TowerView(experiment.model, features.grid)
    truth, _ = find_truth(experiment, asked, features.grid)
    bands: list[Band] = []
    for batch in features.batches([[question] for question in asked]):
        question = batch.questions[0]
        by_content = features.store.plan.identity == "content"
        with read_image(experiment.data, question.image, batch.tokens.image_ids[0] if by_content else None) as image:
            picture = view.picture(rgb(image))
        panels = [_panel(cell.label, selection.kept(cell, batch)[0], features.grid) for cell in cells]
        shown = truth.get(question.question_id)
        in_grid = None if shown is None else _grid(shown, features.grid)
        bands.append(Band(printable(question.image), question.question, picture, in_grid, panels))
    return bands


def _panel(label: str, kept: KeptPatches, grid: tuple[int, int]) -> Panel:
    patches = (_grid(of_image[0], grid) for of_image in (kept.patches, kept.merged, kept.absorbed))
    return Panel(label, str(int(kept.tokens[0])), *patches)


def _grid(patches: Bool[Tensor, " patch"], grid: tuple[int, int]) -> Bool[np.ndarray, "rows columns"]:
    return patches.reshape(grid).numpy()
