"""Find the family of a checkpoint, and open the checkpoint's language half with it."""

from typing import Any

from configs import plugin
from configs.experiment import ModelSection
from stage2_prune import families
from stage2_prune.errors import PrunerMisused
from stage2_prune.language.family import Family
from stage2_prune.language.language import Language
from store.checkpoint.opening import load_config
from store.checkpoint.text import TextSide
from store.layout.tensors import pick_device


def find_family(config: Any, named: str | None = None) -> type[Family]:
    """Find the family that opens a checkpoint, by its config's `model_type`; PrunerMisused (exit 2) names the file to add.

    `named` is the family that `model.language_family` chooses.
    """
    family = plugin.find_by_model_type(families, config.model_type, Family, named)
    if family is None:
        raise PrunerMisused(plugin.no_file_for(families, config.model_type, Family, "a checkpoint"))
    return family


def open_text(model: ModelSection) -> TextSide:
    """Open the text side of the configured checkpoint: its tokenizer and chat template; raises as `open_language` does."""
    config = _config(model)
    return find_family(config, model.language_family).open_text(config, model)


def open_language(model: ModelSection) -> Language:
    """Open the language half of the configured checkpoint.

    Raises CheckpointMissing (exit 5) where there is no checkpoint, PrunerMisused (exit 2) for a family that has no file.
    """
    config = _config(model)
    return find_family(config, model.language_family).open(config, model, pick_device(model.device))


def open_embeddings(model: ModelSection) -> Language:
    """Open the text embeddings of the configured checkpoint alone, to read questions without answering them.

    Raises as `open_language` does.
    """
    config = _config(model)
    return find_family(config, model.language_family).open_embeddings(config, model, pick_device(model.device))


def _config(model: ModelSection) -> Any:
    return load_config(model.checkpoint, model.revision, model.trust_remote_code)
