"""Where every command begins: a store and the language half of a checkpoint, checked against each other."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from configs.experiment import Experiment
from stage2_prune.assemble import cast_is_exact
from stage2_prune.checks import Reprojection, check_checkpoint, check_reprojection
from stage2_prune.errors import StoreMismatch
from stage2_prune.features import Features
from stage2_prune.language import Language, find_family, open_language, pick_device
from store.checkpoint import load_config
from store.reader import FeatureStore
from store.tensors import torch_dtype


@dataclass(frozen=True)
class Session:
    """An opened store and language model that belong together."""

    experiment: Experiment
    features: Features
    language: Language
    reprojection: Reprojection | None
    """What re-projecting a few images gave; None where it was not asked for, or cannot be done."""
    exact: bool
    """Whether the model sees the stored values and this device projects to the same bits."""

    @property
    def fingerprints(self) -> dict[str, Any]:
        """What results were made from, as JSON: the fingerprints of the arrays in use, and the re-projection."""
        again = self.reprojection
        return self.features.fingerprints(self.features.needs | {self.features.source}) | {
            "reprojection": None if again is None else asdict(again)
        }


def open_features(experiment: Experiment, needs: Collection[str]) -> Features:
    """The configured store, opened for the arrays `needs`.

    Cheap, and so before the model is loaded: raises StoreMissing (exit 5) naming `make extract`, StoreError
    for arrays that the store lacks, CheckpointMissing (exit 5), StoreMismatch (exit 4) if the features are
    another model's.
    """
    store = FeatureStore.open(experiment.store_path)
    config = load_config(experiment.model.checkpoint, experiment.model.revision)
    family = find_family(config)
    features = Features(store, needs, pick_device(experiment.model.device))
    check_checkpoint(features, family, config, experiment.model)
    return features


def open_session(
    experiment: Experiment, needs: Collection[str], allow_foreign_device: bool = False, verify: bool = True
) -> Session:
    """`open_features`, then the language half; `verify` re-projects a few images (parity does it with all).

    Raises StoreMismatch (exit 4) if the store's features cannot be those of this checkpoint.
    """
    features = open_features(experiment, needs)
    language = open_language(experiment.model)
    if features.embed != language.width:
        raise StoreMismatch(
            f"expected features of width {language.width}, the language model's, the store's have "
            f"{features.embed}: extract again with this checkpoint"
        )
    exact = cast_is_exact(torch_dtype(features.store.arrays[features.source].dtype), language.dtype)
    reprojection = check_reprojection(features, allow_foreign_device) if verify else None
    exact &= reprojection is None or reprojection.equal
    return Session(experiment, features, language, reprojection, exact)
