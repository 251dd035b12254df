"""The typed config of one experiment: eleven sections, every field with its unit, an unknown key is an error.

The sections `model`, `data`, `store` and `extract` are in configs/sections/stage1.py; `prune`, `teach`, `train`, `eval`, `sweep`,
`oracle` and `claims` are in configs/sections/stage2.py. Code imports all of them from this module.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from configs.errors import ConfigError
from configs.sections.section import Section, path_component
from configs.sections.stage1 import (
    DataSection,
    Dtype,
    ExtractSection,
    Failures,
    ImageFormat,
    ModelSection,
    StoreLocation,
    StoreSection,
    store_location,
)
from configs.sections.stage2 import (
    ClaimsSection,
    EvalSection,
    Flops,
    Match,
    Method,
    OracleSection,
    Positions,
    PruneSection,
    SweepSection,
    TeachSection,
    TrainSection,
)

__all__ = [
    "ClaimsSection",
    "DataSection",
    "Dtype",
    "EvalSection",
    "Experiment",
    "ExtractSection",
    "Failures",
    "Flops",
    "ImageFormat",
    "Match",
    "Method",
    "ModelSection",
    "OracleSection",
    "Positions",
    "PruneSection",
    "StoreLocation",
    "StoreSection",
    "SweepSection",
    "TeachSection",
    "TrainSection",
    "local_folder",
    "store_location",
]


class Experiment(Section):
    """One experiment: its name, the folder that it writes to, and the eleven sections of its config."""

    name: Annotated[str, AfterValidator(path_component)]
    """Name of the experiment; default: the name of the config file, without its ending."""
    run_dir: Path
    """Folder of everything this experiment writes; default: `runs/<name>`."""
    model: ModelSection
    data: DataSection
    store: StoreSection = StoreSection()
    extract: ExtractSection = ExtractSection()
    prune: PruneSection = PruneSection()
    teach: TeachSection = TeachSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    sweep: SweepSection = SweepSection()
    oracle: OracleSection = OracleSection()
    claims: ClaimsSection = ClaimsSection()

    @property
    def store_location(self) -> StoreLocation:
        """The folder or the URL that the feature store is read from."""
        return self.store.path or self.run_dir / "store"

    @property
    def store_path(self) -> Path:
        """The folder that the feature store is written to; ConfigError (exit 2) where `store.path` is a URL."""
        return local_folder(self.store_location)

    @property
    def sweep_dir(self) -> Path:
        """The folder that a sweep writes to: `sweep` for the test split, `sweep-val` and `sweep-train` for the others."""
        return self._of_split("sweep")

    @property
    def oracle_dir(self) -> Path:
        """The folder that a search for the best patches writes to: `oracle` for the test split, else `oracle-val` or the like."""
        return self._of_split("oracle")

    def _of_split(self, name: str) -> Path:
        return self.run_dir / (name if self.eval.split == "test" else f"{name}-{self.eval.split}")

    @property
    def teacher_path(self) -> Path:
        """The folder of what the command `teach` computes."""
        return self.teach.path or self.run_dir / "teacher"

    def with_arrays(self, names: Iterable[str]) -> "Experiment":
        """Return a copy of this experiment that stores the arrays `names`."""
        store = self.store.model_copy(update={"arrays": tuple(dict.fromkeys(names))})
        return self.model_copy(update={"store": store})

    def on_device(self, device: str) -> "Experiment":
        """Return a copy of this experiment that computes on `device`."""
        return self.model_copy(update={"model": self.model.model_copy(update={"device": device})})


def local_folder(location: StoreLocation) -> Path:
    """Return the folder of a store that is about to be written; ConfigError (exit 2) for a URL, which is only read."""
    if isinstance(location, Path):
        return location
    raise ConfigError(
        f"expected a folder to write to, got {location}, which is only read: write to a folder and copy it"
    )
