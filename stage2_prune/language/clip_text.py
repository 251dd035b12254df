"""Questions as CLIP's text encoder reads them: the text half of a CLIP checkpoint, without its vision tower."""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from configs.experiment import ModelSection
from stage2_prune.errors import StoreMismatch, WeightsMismatch
from stage2_prune.pruning.tokens import ClipText
from store.checkpoint.clip_head import DIGEST, clip_config, clip_head, clip_source
from store.checkpoint.digests import origin_of, remembered_digest
from store.checkpoint.files import checkpoint_file, optional_checkpoint_file
from store.checkpoint.opening import quiet_loading, stock_reading
from store.checkpoint.weights import load_tensors, require_finite, weight_files, weights_digest
from store.layout.tensors import torch_dtype
from store.reading.reader import FeatureStore

WHAT = "methods that read the question in CLIP's space"
SCALE = "logit_scale"
TEXT_HALF = ("text_model.", "text_projection.")
"""Beginnings of the names that the tensors of CLIP's text encoder have."""
TOKENIZER = ("tokenizer.json", "vocab.json")
"""Files of a tokenizer; every CLIP has at least one of them."""
REMEMBERED = 8192
"""Distinct questions whose texts are kept on the CPU, some 60 kB each at a width of 768."""


class ClipReader:
    """CLIP's text encoder and its tokenizer, in float32 on a device; it reads questions."""

    def __init__(
        self,
        encoder: nn.Module,
        encode_ids: Callable[[str], list[int]],
        context: int,
        scale: float,
        device: torch.device,
        digest: str,
    ) -> None:
        """Keep the encoder on `device`.

        `encode_ids` gives all ids of a text, begin and end included; the encoder reads `context` of them at once. `digest` is
        the sha256 of the encoder's weights.
        """
        self.digest = digest
        self.encoder, self.encode_ids, self.context, self.scale = encoder.to(device), encode_ids, context, scale
        self.device = device
        self._remembered = lru_cache(REMEMBERED)(self._read)

    def read(self, question: str) -> ClipText:
        """Read the whole text of a question; the result has an image axis of 1, and its bits depend on that text alone.

        As in CDPruner, the ids of a longer text, with begin and end at its two ends, are cut into segments of `context` ids,
        and each segment is read from position 0 on. The encoder is causal, so the padding that CDPruner adds to the last
        segment changes nothing. Methods that were published with a truncated text see all of it here (VisionTrim), or its first
        segment (TRIM): the results are the same below `context` tokens, which few questions exceed.
        """
        text = self._remembered(question)
        return ClipText(text.pooled.to(self.device), text.tokens.to(self.device), text.scale)

    def forget(self) -> None:
        """Forget all texts, so that a timing includes reading them again."""
        self._remembered.cache_clear()

    @torch.no_grad()
    def _read(self, question: str) -> ClipText:
        ids = torch.tensor([self.encode_ids(question)], device=self.device)
        segments = [self._segment(segment) for segment in ids.split(self.context, dim=1)]
        pooled = torch.stack([pooled for pooled, _ in segments], dim=1)
        tokens = torch.cat([tokens for _, tokens in segments], dim=1)
        return ClipText(pooled.cpu(), tokens.cpu(), self.scale)

    def _segment(self, ids: Int[Tensor, "1 token"]) -> tuple[Float[Tensor, "1 clip"], Float[Tensor, "1 token clip"]]:
        """Encode one segment; return its pooled vector and its tokens.

        The stock encoder decides which token stands for a segment without an end: in OpenAI's CLIP, the token of the highest
        id.
        """
        encoded = self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
        projection: Any = self.encoder.text_projection
        return encoded.text_embeds, projection(encoded.last_hidden_state)


def open_clip_text(model: ModelSection, device: torch.device) -> ClipReader:
    """Open the text half of `model.clip`.

    Raises ConfigError (exit 2) where the config names no CLIP, CheckpointMissing (exit 5), DamagedCheckpoint and
    WeightsMismatch (exit 4).
    """
    source, config = clip_source(model, WHAT), clip_config(model, WHAT)
    scale = load_tensors(source, (SCALE,), torch.float32, model.clip_revision)
    if scale.keys() != {SCALE} or scale[SCALE].numel() != 1:
        raise WeightsMismatch(
            f"expected one number as {SCALE} in {source}, by which CLIP multiplies cosines, found "
            f"{ {name: tuple(tensor.shape) for name, tensor in scale.items()} or 'none' }: name a whole CLIP"
        )
    context = config.text_config.max_position_embeddings
    origin = origin_of(source, TEXT_HALF, model.clip_revision)
    encoder, encode_ids = _open_encoder(source, config, model), _open_tokenizer(source, model)
    digest = remembered_digest(encoder.state_dict(), origin)
    return ClipReader(encoder, encode_ids, context, scale[SCALE].exp().item(), device, digest)


def check_clip(store: FeatureStore, model: ModelSection) -> None:
    """Raise StoreMismatch (exit 4) for arrays that another CLIP than `model.clip` projected into its space."""
    for name in store.arrays:
        semantic = store.fingerprint(name).semantic
        if DIGEST not in semantic:
            continue
        expected = weights_digest(clip_head(model, WHAT, torch_dtype(semantic["dtype"])))
        if semantic[DIGEST] != expected:
            raise StoreMismatch(
                f"expected {name} of {store.path} in the space of {model.clip}, it is in that of {semantic['clip']} (its "
                f"projection has the sha256 {semantic[DIGEST][:12]}…, not {expected[:12]}…): name that CLIP (--clip PATH)"
            )


def _open_encoder(source: str, config: Any, model: ModelSection) -> nn.Module:
    # Imported here, because this module of transformers defines CLIP's vision tower too, and other runs need not load it.
    from transformers import CLIPTextModelWithProjection

    text = copy.deepcopy(config.text_config)
    text.transformers_weights = weight_files(source, model.clip_revision).name  # the files that stage 1 read
    text.projection_dim = config.projection_dim  # CLIP uses this width, whatever its text half's own config says
    with quiet_loading(), stock_reading(source, "CLIP's text encoder"):
        stock: Any = CLIPTextModelWithProjection
        encoder, loading = stock.from_pretrained(
            source, config=text, revision=model.clip_revision, dtype=torch.float32, attn_implementation="sdpa",
            use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    missing = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if missing:
        raise WeightsMismatch(
            f"expected every weight of CLIP's text encoder in {source}, {len(missing)} are missing or of another shape "
            f"({', '.join(missing[:3])}…): name a whole CLIP, or download it again"
        )
    unexpected = sorted(name for name in loading["unexpected_keys"] if name.startswith(TEXT_HALF))
    if unexpected:
        raise WeightsMismatch(
            f"expected the tensors of CLIP's text encoder in {source}, {len(unexpected)} have no place in it "
            f"({', '.join(unexpected[:3])}…): is its config that of its weights?"
        )
    require_finite(source, dict(encoder.named_parameters()))
    return encoder.eval()


def _open_tokenizer(source: str, model: ModelSection) -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    if all(optional_checkpoint_file(source, name, model.clip_revision) is None for name in TOKENIZER):
        checkpoint_file(source, TOKENIZER[0], model.clip_revision)
    with stock_reading(source, "a tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source, revision=model.clip_revision, trust_remote_code=model.trust_remote_code
        )
    # verbose=False silences the warning that a text is longer than the encoder reads at once; `read` cuts such texts.
    return lambda text: tokenizer(text, truncation=False, verbose=False)["input_ids"]
