"""LLaVA-1.5 and models like it: a causal language model with visual tokens in place of one placeholder.

Stock `from_pretrained` loads it with renamed keys, so that only the language half is built. `dtype=` is given there and never
applied later: `.to(dtype)` would round RoPE's `inv_freq` too. Weights keep `requires_grad`, as in the stock model: torch folds
a matrix product by that flag (also under no_grad), so freezing the weights here would change the last bits of the logits.
"""

import copy
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from configs.experiment import ModelSection
from stage2_prune.errors import WeightsMismatch
from stage2_prune.language.family import Family
from stage2_prune.language.language import Language
from store.checkpoint.digests import origin_of, remembered_digest
from store.checkpoint.open_text import check_text_side
from store.checkpoint.opening import quiet_loading, stock_reading
from store.checkpoint.text import TextSide
from store.checkpoint.weights import WeightFiles, canonical, load_tensors, require_finite, weight_files
from store.layout.tensors import torch_dtype

EMBEDDINGS = "language_model.embed_tokens.weight"
"""The canonical name of the text embeddings, whatever the key layout of the checkpoint."""
LANGUAGE = ("language_model.", "lm_head.")
KEY_MAPPING = {
    r"^(model\.)?language_model\.model\.": "model.",
    r"^(model\.)?language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.(?!model\.|lm_head\.)": "model.",
}


class Llava(Family):
    """Opens `language_model` and `lm_head` of a LLaVA checkpoint in any of its three key layouts."""

    model_types: ClassVar[frozenset[str]] = frozenset({"llava"})

    @classmethod
    def vision_choices(cls, config: Any) -> dict[str, Any]:
        """Return the feature layer and the select strategy."""
        return {
            "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
        }

    @classmethod
    def open(cls, config: Any, model: ModelSection, device: torch.device) -> Language:
        """Open the language half in eval mode, with SDPA attention."""
        source, revision = model.checkpoint, model.revision
        text_side = cls.open_text(config, model)
        weights, origin = weight_files(source, revision), origin_of(source, LANGUAGE, revision)
        text = copy.deepcopy(config.text_config)
        text.tie_word_embeddings = config.tie_word_embeddings
        text.transformers_weights = weights.name  # stock code then reads the files that stage 1 read
        with quiet_loading(), stock_reading(source, "a language model"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=text,
                revision=revision,
                key_mapping=KEY_MAPPING,
                dtype=torch_dtype(model.dtype),
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=model.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the loading info names them, and `_check` refuses them
            )
        causal, loading = loaded
        _check(weights, causal, loading)
        digest = remembered_digest(causal.state_dict(), origin)  # before 13 GB of a 7B model leave the host's memory
        causal.eval().to(device)
        require_finite(source, dict(causal.named_parameters()))
        return Language(model=causal, device=device, weights=digest, **vars(text_side))

    @classmethod
    def open_embeddings(cls, config: Any, model: ModelSection, device: torch.device) -> Language:
        """Open the one tensor of the language half that embeds text."""
        return Language(model=_Embeddings(model, device), device=device, **vars(cls.open_text(config, model)))

    @classmethod
    def open_text(cls, config: Any, model: ModelSection) -> TextSide:
        """Read the small files as stock code does."""
        return check_text_side(config, model)


@dataclass(frozen=True)
class _Embeddings:
    """A stand-in for a model that has only its text embeddings; they are loaded at the first use."""

    section: ModelSection
    device: torch.device

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embeddings, as a stock model does."""
        return self._loaded

    @cached_property
    def _loaded(self) -> nn.Embedding:
        source, revision = self.section.checkpoint, self.section.revision
        tensors = load_tensors(source, [EMBEDDINGS], torch_dtype(self.section.dtype), revision)
        if EMBEDDINGS not in tensors:
            raise WeightsMismatch(f"expected {EMBEDDINGS} in {source}, it is missing: the checkpoint is incomplete")
        return nn.Embedding.from_pretrained(tensors[EMBEDDINGS].to(self.device))


def _check(weights: WeightFiles, causal: Any, loading: Any) -> None:
    """Demand that every weight was read, that every tensor was used, and that RoPE kept its precision."""
    source = weights.source
    missing = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if missing:
        raise WeightsMismatch(
            f"expected every weight of the language model in {source}, {len(missing)} are missing or of "
            f"another shape ({', '.join(missing[:3])}…): the checkpoint is incomplete or has another config"
        )
    unexpected = sorted(_language_names(weights) & loading["unexpected_keys"])
    if unexpected:
        raise WeightsMismatch(
            f"expected the tensors of a {causal.config.model_type} in {source}, {len(unexpected)} have no place in it "
            f"({', '.join(unexpected[:3])}…): is its config that of its weights, and are they as they were trained?"
        )
    for name, buffer in causal.named_buffers():
        if name.endswith("inv_freq") and buffer.dtype != torch.float32:
            raise WeightsMismatch(
                f"expected {name} in float32, it is {buffer.dtype}: load with dtype=, never .to(dtype)"
            )


def _language_names(weights: WeightFiles) -> set[str]:
    """Return the names that the tensors of the language half have inside the stock model."""
    names = (canonical(name) for name in weights.file_of)
    return {re.sub(r"^language_model\.", "model.", name) for name in names if name.startswith(LANGUAGE)}
