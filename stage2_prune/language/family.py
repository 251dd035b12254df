"""The interface of a family of vision-language models in stage 2; there is one file per family in `families/`."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from configs.experiment import ModelSection
from stage2_prune.language.language import Language
from store.checkpoint.text import TextSide


class Family(ABC):
    """How the language half of one family of vision-language models is opened, without the vision half."""

    model_types: ClassVar[frozenset[str]]
    """`model_type`s of the configs that this family's file can open."""

    @classmethod
    @abstractmethod
    def vision_choices(cls, config: Any) -> dict[str, Any]:
        """Return which features of its tower the model was trained on, by their names in a store's fingerprint."""

    @classmethod
    @abstractmethod
    def open_text(cls, config: Any, model: ModelSection) -> TextSide:
        """Open tokenizer, template and special tokens, without the model."""

    @classmethod
    @abstractmethod
    def open_embeddings(cls, config: Any, model: ModelSection, device: torch.device) -> Language:
        """Open a language that embeds text and answers nothing; its weights are loaded when they are first needed."""

    @classmethod
    @abstractmethod
    def open(cls, config: Any, model: ModelSection, device: torch.device) -> Language:
        """Open the language half of a checkpoint whose transformers config is `config`."""
