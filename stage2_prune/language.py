"""The language half of a checkpoint: what turns token ids and visual tokens into an answer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from configs import plugin
from configs.experiment import ModelSection
from stage2_prune.errors import PrunerMisused
from store.checkpoint import load_config
from store.tensors import pick_device
from store.text import Text


@dataclass(frozen=True, kw_only=True)
class Language(Text):
    """A language model in eval mode with its text.

    Called under no_grad; whoever trains through it freezes its weights first (and not before: see
    families/llava.py).
    """

    model: Any
    """A stock transformers `…ForCausalLM`, whose calls are not typed."""
    device: torch.device

    def embed(self, ids: Int[Tensor, "*batch token"]) -> Float[Tensor, "*batch token embed"]:
        """Text embeddings."""
        return self.model.get_input_embeddings()(ids)

    def answering(self, slots: Bool[Tensor, "question token"], continued: int = 0) -> Any:
        """The model to call for a batch of prompts whose visual tokens stand at `slots`.

        `continued` tokens of an answer follow each prompt in the same call, as in ranking. The stock model, whatever
        the batch; a language model that prunes inside (stage2_prune/layer_loop.py) makes one for it.
        """
        return self.model

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the text embeddings, which visual tokens are cast to."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.model.get_input_embeddings().weight.shape[1]


class Family(ABC):
    """How one family of vision-language models is opened without its eyes; one file per family."""

    model_types: ClassVar[frozenset[str]]
    """`model_type`s of the configs that this file can open."""

    @classmethod
    @abstractmethod
    def vision_choices(cls, config: Any) -> dict[str, Any]:
        """Which features of its tower the model was trained on, by their names in a store's fingerprint."""

    @classmethod
    @abstractmethod
    def open_text(cls, config: Any, model: ModelSection) -> Text:
        """Tokenizer, template and special tokens, without the model."""

    @classmethod
    @abstractmethod
    def open_embeddings(cls, config: Any, model: ModelSection, device: torch.device) -> Language:
        """A language that embeds text and answers nothing; its weights are loaded when they are first asked for."""

    @classmethod
    @abstractmethod
    def open(cls, config: Any, model: ModelSection, device: torch.device) -> Language:
        """The language half of a checkpoint whose transformers config is `config`."""


def find_family(config: Any) -> type[Family]:
    """The family of a checkpoint, by its config's `model_type`; PrunerMisused where no file declares it."""
    from stage2_prune import families

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
