"""Open what every command begins with: a store and the language half of a checkpoint, checked against each other."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
import transformers

from configs.experiment import Experiment
from stage2_prune.errors import StoreMismatch
from stage2_prune.find_family import find_family, open_language
from stage2_prune.language.assemble import cast_is_exact
from stage2_prune.language.language import Language
from stage2_prune.language.price import shape_of
from stage2_prune.session.batch_size import batch_size
from stage2_prune.session.checks import (
    Reprojection,
    check_checkpoint,
    check_projector,
    check_reprojection,
    check_shapes,
)
from stage2_prune.session.features import Features
from stage2_prune.session.prune_batch import QuestionReader
from store.checkpoint.opening import load_config
from store.layout.tensors import pick_device, torch_dtype
from store.reading.reader import FeatureStore


@dataclass(frozen=True)
class Session:
    """An opened store and an opened language model that belong together: what a command works on."""

    experiment: Experiment
    features: Features
    language: Language
    reprojection: Reprojection | None
    """The result of projecting a few images again; None if this was not asked for or is impossible with this store."""
    exact: bool
    """Whether the model sees exactly the stored values, and this device projects to the same bits."""

    @cached_property
    def reader(self) -> QuestionReader:
        """The reader of what pruners read beside arrays."""
        return QuestionReader(self.experiment, self.features, self.language)

    @cached_property
    def language_digest(self) -> str | None:
        """sha256 of the language model's weights; None if only its embeddings were opened."""
        return self.language.digest

    @property
    def conditions(self) -> dict[str, Any]:
        """The settings that an answer depends on beside question, features and pruner, as JSON."""
        experiment, language = self.experiment, self.language
        return {
            "language_model": self.language_digest,
            "template": language.template,
            "data.post_prompt": experiment.data.post_prompt,
            "eval.batch_size": batch_size(experiment),
            "eval.max_new_tokens": experiment.eval.max_new_tokens,
            "model.dtype": experiment.model.dtype,
            "device": language.device.type,
            "cpu_threads": torch.get_num_threads() if language.device.type == "cpu" else None,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        } | ({"generation": dict(language.generation)} if language.generation else {})

    @property
    def fingerprints(self) -> dict[str, Any]:
        """The fingerprints of the arrays in use and the result of the re-projection, as JSON."""
        reprojection = self.reprojection
        return self.features.fingerprints(self.features.needs | {self.features.source}) | {
            "reprojection": None if reprojection is None else asdict(reprojection)
        }


def open_features(
    experiment: Experiment, needs: Collection[str], exact: bool = False, optional: Collection[str] = ()
) -> Features:
    """Open the configured store and check that its features are this checkpoint's.

    This is cheap, and so comes before the model is loaded.

    Args:
        experiment: the config.
        needs: names of the arrays that pruners will read.
        exact: whether to demand features in the model's dtype.
        optional: names of the arrays to read only if the store has them.

    Raises:
        StoreMissing: (exit 5) naming `make extract`.
        StoreError: for arrays that the store lacks.
        CheckpointMissing: (exit 5) if there is no such checkpoint.
        StoreMismatch: (exit 4) if another model made the features.
    """
    store = FeatureStore.open(experiment.store_location)
    check_shapes(store)
    model = experiment.model
    config = load_config(model.checkpoint, model.revision, model.trust_remote_code)
    family = find_family(config, model.language_family)
    features = Features(store, {*needs} | ({*optional} & store.arrays.keys()), pick_device(model.device))
    check_checkpoint(features, family, config, model, exact)
    return features


def open_session(experiment: Experiment, needs: Collection[str], allow_foreign_device: bool = False) -> Session:
    """Open the store as `open_features` does, then the language half as `add_language` does."""
    return add_language(experiment, open_features(experiment, needs), allow_foreign_device)


def add_language(experiment: Experiment, features: Features, allow_foreign_device: bool = False) -> Session:
    """Open the language half beside an opened store, and project a few images again to verify the store.

    Args:
        experiment: the config.
        features: the store, as `open_features` opened it.
        allow_foreign_device: whether to accept re-projected features that differ as little as another device explains.

    Raises:
        StoreMismatch: (exit 4) if the store's features cannot be those of this checkpoint.
    """
    check_projector(features, experiment.model)
    language = open_language(experiment.model)
    check_width(features, language)
    shape_of(language)  # before a question is asked, refuse a language model whose operations cannot be counted
    exact = cast_is_exact(torch_dtype(features.store.arrays[features.source].dtype), language.dtype)
    reprojection = check_reprojection(features, allow_foreign_device)
    exact &= reprojection is None or reprojection.equal
    return Session(experiment, features, language, reprojection, exact)


def check_width(features: Features, language: Language) -> None:
    """Refuse features of another width than the language model's embeddings (StoreMismatch, exit 4)."""
    if features.embed != language.width:
        raise StoreMismatch(
            f"expected features of width {language.width}, the language model's, the store's have "
            f"{features.embed}: extract again with this checkpoint"
        )
