"""Where a run works: its folder, its scale, and what several parts use: the store, and the opened language half."""

import gc
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from configs.experiment import Experiment, ExtractSection
from stage1_extract.extract import extract
from stage2_prune.language.roofline import Peaks, device_peaks
from stage2_prune.session.session import Session, open_session
from tests.benchmarks.gpu.clock import Clock
from tests.benchmarks.gpu.making import make_checkpoint, make_photos, make_questions
from tests.benchmarks.gpu.scale import Scale

NEEDS = frozenset({"raw", "cls_attention"})
"""Arrays that the pruners of a session read."""
METHODS = ("keep_all", "cls_attention", "learned_scorer")


@dataclass
class Place:
    """The folder of a run, and what is open in memory; whatever is missing is made when it is first asked for."""

    folder: Path
    scale: Scale
    _session: list[Session] = field(default_factory=list)
    """The opened store and language half: at most one, as two do not fit into a GPU's memory."""
    _stored: bool = False
    """Whether the store of all photographs is known to be whole."""

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return self.scale.device

    @property
    def clock(self) -> Clock:
        """Tells the time on the device."""
        return Clock(self.scale.device)

    @cached_property
    def checkpoint(self) -> Path:
        """The folder of the random weights."""
        path = self.folder / "checkpoint"
        if not path.is_dir():
            make_checkpoint(path, self.scale)
            self.release()
        return path

    @cached_property
    def photos(self) -> Path:
        """The folder of the photographs."""
        path = self.folder / "photos"
        if not path.is_dir():
            make_photos(path, self.scale.photos)
        return path

    @cached_property
    def questions(self) -> Path:
        """The file of all questions."""
        path = self.folder / "questions.jsonl"
        make_questions(path, self.scale)
        return path

    @cached_property
    def peaks(self) -> Peaks:
        """What the device reaches at best, measured."""
        return device_peaks(self.device, self.scale.torch_dtype)

    def experiment(self, run: str = "run", **sections: dict[str, Any]) -> Experiment:
        """Return the config of a run folder, with the fields of some sections in place of the usual values."""
        scale = self.scale
        usual: dict[str, dict[str, Any]] = {
            "model": {"checkpoint": str(self.checkpoint), "dtype": scale.dtype, "device": str(scale.device)},
            "data": {"images": self.photos},
            "store": {"shard_images": scale.shard_images},
            "extract": {"tower_batch": scale.tower_batch, **_decode_threads()},
            "prune": {"methods": METHODS, "budgets": [scale.few]},
            "train": {"min_keep": 1, "max_keep": scale.middle, "val_keep": scale.few},
            "eval": {"max_new_tokens": scale.new_tokens, "batch_size": 1, "bootstrap": 10},
        }
        given = {name: fields | sections.get(name, {}) for name, fields in usual.items()}
        return Experiment.model_validate({"name": run, "run_dir": self.folder / run, **given})

    def asking(self, **sections: dict[str, Any]) -> Experiment:
        """Return the config of the store of all photographs, with questions about them."""
        return self.experiment(**sections | {"data": {"questions": self.questions}})

    def extract(self, overwrite: bool) -> dict[str, Any]:
        """Make the store of all photographs, or what it lacks."""
        self.release()
        done = extract(self.experiment(), overwrite)
        self._stored = True
        self.release()
        return done

    def require_store(self) -> None:
        """Make the store of all photographs unless it is whole."""
        if not self._stored:
            self.extract(overwrite=False)

    def session(self) -> Session:
        """Return the opened store and language half, opened if need be."""
        if not self._session:
            self.require_store()
            self._session.append(open_session(self.asking(), NEEDS))
        return self._session[0]

    def release(self) -> None:
        """Free everything that is open."""
        self._session.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _decode_threads() -> dict[str, int]:
    """Decode on all cores, unless that is the default anyway."""
    default = ExtractSection.model_fields["decode_threads"].default
    return {} if default == "auto" else {"decode_threads": os.cpu_count() or 1}
