"""How the language half of one family of vision-language models is opened; one file per family in `families/`."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from configs.experiment import ModelSection
from stage2_prune.language.language import Language
from store.checkpoint.text import Text


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
