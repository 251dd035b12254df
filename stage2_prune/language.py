"""The language half of a checkpoint: what turns token ids and visual tokens into an answer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from configs import plugin
from configs.experiment import ModelSection
from stage2_prune.errors import PruneError, PrunerMisused
from store.checkpoint import load_config
from store.tensors import pick_device


@dataclass(frozen=True)
class Prompt:
    """Token ids on both sides of the image; the visual tokens go between them."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Text:
    """The text around an image and a question, and how it becomes token ids; holds no model."""

    tokenizer: Any
    template: str
    """The checkpoint's chat template, verbatim."""
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    generation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The checkpoint's own generation settings that answers follow; see store/generation.py."""

    def text(self, question: str) -> str:
        """The prompt as text: the template around image and question, up to where the answer begins."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=True,
        )

    def prompt(self, question: str) -> Prompt:
        """The tokenised prompt; PrunerMisused unless it holds exactly one image."""
        ids = self._ids(self.text(question))
        if ids.count(self.image_token_id) != 1:
            raise PrunerMisused(
                f"expected one image placeholder in the prompt of {question!r}, found "
                f"{ids.count(self.image_token_id)}: remove it from the question, or check the chat template"
            )
        at = ids.index(self.image_token_id)
        return Prompt(tuple(ids[:at]), tuple(ids[at + 1 :]))

    def answer_ids(self, question: str, answer: str) -> tuple[int, ...]:
        """Ids of `answer` after the prompt: a word has other ids there than at the start of a text."""
        text = self.text(question)
        ids = self._ids(text)
        joined = self._ids(text + ("" if text[-1:].isspace() else " ") + answer)
        if joined[: len(ids)] != ids or len(joined) == len(ids):
            raise PruneError(f"expected {answer!r} to be tokens of its own after {text[-20:]!r}, they merge: reword it")
        return tuple(joined[len(ids) :])

    def decode(self, tokens: Int[Tensor, "question step"]) -> list[str]:
        """Answers as text: up to the end token, without special tokens."""
        rows = [list(takewhile(lambda i: i not in self.eos_token_ids, row)) for row in tokens.tolist()]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def _ids(self, text: str) -> list[int]:
        bos = self.tokenizer.bos_token
        twice = bos is not None and text.startswith(bos)
        return self.tokenizer(text, add_special_tokens=not twice)["input_ids"]


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
