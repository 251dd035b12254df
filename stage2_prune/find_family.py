"""Which file of `families/` opens the language half of a checkpoint, and opening it."""

from typing import Any

from configs import plugin
from configs.experiment import ModelSection
from stage2_prune import families
from stage2_prune.errors import PrunerMisused
from stage2_prune.language.family import Family
from stage2_prune.language.language import Language
from store.checkpoint.opening import load_config
from store.checkpoint.text import Text
from store.layout.tensors import pick_device


def find_family(config: Any) -> type[Family]:
    """The family of a checkpoint, by its config's `model_type`; PrunerMisused where no file declares it."""
    known = plugin.find_all(families, Family)
    for family in known.values():
        if config.model_type in family.model_types:
            return family
    listed = sorted(kind for family in known.values() for kind in family.model_types)
    raise PrunerMisused(
        f"expected a checkpoint of type {', '.join(listed)}, this one is {config.model_type!r}: "
        f"add a file for it to {families.__name__.replace('.', '/')}"
    )


def open_text(model: ModelSection) -> Text:
    """How the configured checkpoint reads and writes text; raises as `open_language` does."""
    config = load_config(model.checkpoint, model.revision, model.trust_remote_code)
    return find_family(config).open_text(config, model)


def open_language(model: ModelSection) -> Language:
    """The language half of the configured checkpoint.

    Raises CheckpointMissing (exit 5) where there is none, PrunerMisused for a family that has no file yet.
    """
    config = load_config(model.checkpoint, model.revision, model.trust_remote_code)
    return find_family(config).open(config, model, pick_device(model.device))


def open_embeddings(model: ModelSection) -> Language:
    """The text embeddings of the configured checkpoint, for whoever reads questions and answers none; raises as
    `open_language` does.
    """
    config = load_config(model.checkpoint, model.revision, model.trust_remote_code)
    return find_family(config).open_embeddings(config, model, pick_device(model.device))
