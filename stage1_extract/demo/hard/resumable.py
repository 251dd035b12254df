"""Lessons that go on where they were stopped: the state lies in one file per phase, which is replaced as a whole."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from configs.errors import ConfigError
from configs.files.atomic import replacing
from stage1_extract.demo.hard.recipe import HardRecipe
from stage1_extract.demo.pace import Pace, Report
from stage1_extract.errors import NonFiniteLoss

_Lesson = TypeVar("_Lesson")


class Run:
    """A training's folder, log and recipe, shared by its phases.

    folder/
      state/<phase>.pt     weights, optimiser, step, and how far the log had come; replaced every few minutes
      state/features-*.npy features that the language models learn from
      checkpoint/          the finished LLaVA of 4 layers
      deep/checkpoint/     the finished LLaVA of 10 layers
    """

    def __init__(self, recipe: HardRecipe, folder: Path, log: Path) -> None:
        self.recipe, self.folder, self.state = recipe, folder, folder / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        saved = [torch.load(path, weights_only=True) for path in self.state.glob("*.pt")]
        settings = asdict(recipe)
        for content in saved:
            if content["recipe"] != settings:
                raise ConfigError(
                    f"expected the state of this recipe in {self.state}, it is another's: name another folder"
                )
        latest = max(saved, key=lambda content: content["log_bytes"], default={"log_bytes": 0, "seconds": 0.0})
        self.report = Report(log, latest["log_bytes"], latest["seconds"])
        if not saved:
            self.report(phase="recipe", **settings, torch=torch.__version__)

    def path(self, phase: str) -> Path:
        """Return the file of a phase's state."""
        return self.state / f"{phase}.pt"

    def load(self, phase: str) -> dict[str, Any] | None:
        """Read the state of a phase, or return None if it has none yet."""
        path = self.path(phase)
        return torch.load(path, map_location=self.recipe.device, weights_only=True) if path.is_file() else None

    def save(self, phase: str, step: int, **content: Any) -> None:
        """Replace the state of a phase."""
        log = {"log_bytes": self.report.path.stat().st_size, "seconds": time.monotonic() - self.report.begun}
        with replacing(self.path(phase)) as file:
            torch.save({"step": step, "recipe": asdict(self.recipe), **log, **content}, file)


def learn(
    run: Run, phase: str, module: nn.Module, peak: float, steps: int, lessons: Callable[[int], Iterable[Any]],
    loss_of: Callable[[Any], Tensor], measure: Callable[[int], dict[str, Any]],
) -> None:  # fmt: skip
    """Train a module for `steps` steps; go on from the state of the phase, if there is one.

    Args:
        run: The training that the phase belongs to.
        phase: Name of the phase in the log and of its state.
        module: What learns; its frozen parameters stay as they are.
        peak: Peak learning rate.
        steps: Number of steps.
        lessons: Yields the lesson of every step from a given step on; a lesson is a function of the step alone.
        loss_of: Computes the loss of a lesson.
        measure: Measures on held-out scenes, given the step.

    """
    pace = Pace([weight for weight in module.parameters() if weight.requires_grad], peak, steps)
    first, saved = 1, run.load(phase)
    if saved:
        module.load_state_dict(saved["module"])
        pace.optimiser.load_state_dict(saved["optimiser"])
        pace.schedule.load_state_dict(saved["schedule"])
        first = saved["step"] + 1
    due = time.monotonic() + run.recipe.save_every
    for step, lesson in enumerate(lessons(first) if first <= steps else (), start=first):
        loss = loss_of(lesson)
        if not math.isfinite(loss.item()):
            raise NonFiniteLoss(
                f"expected a finite loss, {phase} has {loss.item()} in step {step}: lower its learning rate"
            )
        pace.step(loss)
        if step % run.recipe.report_every == 0 or step == steps:
            run.report(phase=phase, step=step, loss=round(loss.item(), 4), **measure(step))
        if time.monotonic() >= due or step == steps:
            parts = {"module": module, "optimiser": pace.optimiser, "schedule": pace.schedule}
            run.save(phase, step, **{name: part.state_dict() for name, part in parts.items()})
            due = time.monotonic() + run.recipe.save_every


class _Lessons(Dataset[_Lesson]):
    """Lessons by the number of their step."""

    def __init__(self, prepare: Callable[[int], _Lesson]) -> None:
        self.prepare = prepare

    def __getitem__(self, step: int) -> _Lesson:
        return self.prepare(step)


def prepared(prepare: Callable[[int], _Lesson], first: int, last: int, workers: int) -> Iterable[_Lesson]:
    """Prepare the lessons of steps `first` to `last`, ahead of time where there are worker processes."""
    return DataLoader(
        _Lessons(prepare), sampler=range(first, last + 1), batch_size=None, collate_fn=_unchanged, num_workers=workers
    )


def _unchanged(lesson: _Lesson) -> _Lesson:
    return lesson
