"""Train projector and language model on cached features, with many questions about a scene packed into one sequence.

Each question attends to the image and to itself only, and its positions begin right after the image. So packing equals
asking one question at a time, at a fraction of the cost.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from stage1_extract.demo.pace import Pace, Report, autocast
from stage1_extract.demo.recipe import Recipe
from stage1_extract.demo.teaching import Teaching, TokenisedQuestion
from stage1_extract.demo.words import ASSISTANT, BOS, EOS, PAD, SPECIAL, USER, vocabulary

UNSCORED = -100
"""Label of a position that no loss is taken at."""
KINDS = 5
"""Number of kinds of questions; the first KINDS questions of a scene, one of each kind, are used to measure."""
_CHUNK = 50
"""Scenes that are measured at a time."""


class DemoLanguageHalf(nn.Module):
    """Projector and language model of the demo's LLaVA."""

    def __init__(self, tower_width: int, config: LlamaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.linear_1, self.linear_2 = nn.Linear(tower_width, width), nn.Linear(width, width)
        self.language = LlamaForCausalLM(self.config)

    def project(self, raw: Float[Tensor, "scene kept hidden"]) -> Float[Tensor, "scene kept embed"]:
        """Project features as LLaVA does, by two linear layers."""
        return self.linear_2(F.gelu(self.linear_1(raw)))


def language_config(words: int, width: int, layers: int, heads: int) -> LlamaConfig:
    """Return the config of a small Llama over a vocabulary of `words` words."""
    return LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=8 * round(width / 3),
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=2048, pad_token_id=SPECIAL[PAD], bos_token_id=SPECIAL[BOS], eos_token_id=SPECIAL[EOS],
        tie_word_embeddings=False,
    )  # fmt: skip


@dataclass(frozen=True)
class PackedScenes:
    """Questions about a batch of scenes, one row per scene, padded on the right."""

    ids: Int[Tensor, "scene token"]
    segment: Int[Tensor, "scene token"]
    """Number of the question that a token belongs to, from 1; -1 for padding."""
    position: Int[Tensor, "scene token"]
    """Position of each token in its own question's sequence, which begins with the image."""
    label: Int[Tensor, "scene token"]
    """The token to predict next at each position, or UNSCORED."""


def pack(batch: list[list[TokenisedQuestion]], first_position: int, device: str) -> PackedScenes:
    """Concatenate the questions of each scene; `first_position` is the position after the image."""
    rows: list[tuple[list[int], ...]] = []
    for asked in batch:
        ids, segment, position, label = [], [], [], []
        for number, item in enumerate(asked, start=1):
            tokens = [*item.question, SPECIAL[ASSISTANT], item.answer]
            ids += tokens
            segment += [number] * len(tokens)
            position += range(first_position, first_position + len(tokens))
            label += [UNSCORED] * (len(tokens) - 2) + [item.answer, SPECIAL[EOS]]
        rows.append((ids, segment, position, label))
    length = max(len(row[0]) for row in rows)
    fills = (SPECIAL[PAD], -1, first_position, UNSCORED)
    parts = [[row[k] + [fill] * (length - len(row[k])) for row in rows] for k, fill in enumerate(fills)]
    return PackedScenes(*(torch.tensor(part, device=device) for part in parts))


def answer_logits(
    reader: DemoLanguageHalf,
    raw: Float[Tensor, "scene patch hidden"],
    kept: Int[Tensor, "scene kept"],
    packed: PackedScenes,
) -> tuple[Float[Tensor, "answer word"], Int[Tensor, " answer"]]:
    """Return the logits at every scored position, and the right tokens."""
    scenes, count = len(raw), kept.shape[1]
    opening = torch.tensor([SPECIAL[BOS], SPECIAL[USER]], device=raw.device).expand(scenes, -1)
    lead = opening.shape[1] + count
    with autocast(raw.device):
        embed = reader.language.model.embed_tokens
        visual = reader.project(raw.gather(1, kept[..., None].expand(-1, -1, raw.shape[-1])))
        sequence = torch.cat([embed(opening), visual.to(embed.weight.dtype), embed(packed.ids)], 1)
        order = torch.arange(opening.shape[1], device=raw.device).expand(scenes, -1)
        positions = torch.cat([order, kept + opening.shape[1], packed.position], 1)
        segments = F.pad(packed.segment, (lead, 0))
        hidden = reader.language.model(
            inputs_embeds=sequence,
            attention_mask=block_mask(segments)[:, None],
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state[:, lead:]
        scored = packed.label != UNSCORED
        return reader.language.lm_head(hidden[scored]).float(), packed.label[scored]


def block_mask(segments: Int[Tensor, "scene token"]) -> Bool[Tensor, "scene token token"]:
    """Return a causal mask in which a question sees the image (segment 0) and itself.

    A padding token sees itself, so that no row of the mask is empty.
    """
    size = segments.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=segments.device).tril()
    visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    return causal & visible | torch.eye(size, dtype=torch.bool, device=segments.device)


def kept_patches(
    on_object: Bool[Tensor, "scene patch"], keep: int, bias: float, generator: torch.Generator
) -> Int[Tensor, "scene {keep}"]:
    """Draw a random subset of `keep` patches for each scene, in ascending order.

    In half of the scenes, patches that show an object are preferred, by a random strength up to `bias` (Gumbel top-k).
    Pruners differ in this preference, and a model that only knows uniform subsets would read counts off the density of
    tokens.
    """
    scenes = len(on_object)
    uniform = torch.rand(on_object.shape, generator=generator, device=on_object.device).clamp_min(1e-9)
    strength = (2 * torch.rand(scenes, 1, generator=generator, device=on_object.device) - 1).clamp_min(0) * bias
    score = -torch.log(-torch.log(uniform)) + strength * on_object
    return score.topk(keep, dim=1).indices.sort(dim=1).values


def train_language(
    recipe: Recipe, features: Float[Tensor, "scene patch hidden"], lessons: Teaching,
    held_out_features: Float[Tensor, "held_out patch hidden"], held_out: Teaching, report: Report,
) -> DemoLanguageHalf:  # fmt: skip
    """Train a language model that answers from the image, also when most of the image's tokens are gone."""
    config = language_config(len(vocabulary()), recipe.language_width, recipe.layers, recipe.heads)
    reader = DemoLanguageHalf(recipe.tower_width, config).to(recipe.device)
    pace = Pace(list(reader.parameters()), recipe.learning_rate, recipe.language_steps)
    rng = np.random.default_rng(recipe.seed)
    generator = torch.Generator(recipe.device).manual_seed(recipe.seed)
    patches = features.shape[1]
    for step in range(1, recipe.language_steps + 1):
        chosen = rng.integers(0, recipe.scenes, recipe.language_batch)
        share = recipe.pruned_share if step < 0.85 * recipe.language_steps else recipe.pruned_share_at_end
        keep = int(rng.choice(recipe.budgets)) if rng.random() < share else patches
        batch = [_sample(lessons.asked[scene], recipe.questions_per_scene, rng) for scene in chosen]
        index = torch.from_numpy(chosen).to(recipe.device)
        kept = kept_patches(lessons.color[index] > 0, keep, recipe.object_bias, generator)
        packed = pack(batch, patches + 2, recipe.device)
        logits, right = answer_logits(reader, features[index].float(), kept, packed)
        loss = F.cross_entropy(logits, right)
        pace.step(loss)
        if step % recipe.report_every == 0 or step == recipe.language_steps:
            budgets = (patches, 32)
            scores = {str(k): accuracy(recipe.seed, reader, held_out_features, held_out.asked, k) for k in budgets}
            report(phase="language", step=step, loss=round(loss.item(), 4), **scores)
    return reader.eval()


@torch.no_grad()
def accuracy(
    seed: int, reader: DemoLanguageHalf, features: Float[Tensor, "scene patch hidden"], asked: list[list[TokenisedQuestion]],
    keep: int, preferred: Bool[Tensor, "scene patch"] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Return the share of questions whose answer and end of text are right, by kind, with `keep` random patches.

    Patches that are `preferred` are kept first; with the ground truth as preference, the result is that of an oracle pruner.
    """
    generator = torch.Generator(features.device).manual_seed(seed)
    right: dict[str, list[bool]] = {}
    for first in range(0, len(features), _CHUNK):
        part = slice(first, first + _CHUNK)
        chosen = [scene[:KINDS] for scene in asked[part]]
        score = torch.rand(features[part].shape[:2], generator=generator, device=features.device)
        if preferred is not None:
            score = score + preferred[part]
        kept = score.topk(keep, dim=1).indices.sort(dim=1).values
        packed = pack(chosen, features.shape[1] + 2, str(features.device))
        logits, label = answer_logits(reader, features[part].float(), kept, packed)
        hits = (logits.argmax(-1) == label).view(-1, 2).all(1).tolist()
        for item, hit in zip((item for scene in chosen for item in scene), hits, strict=True):
            right.setdefault(item.kind, []).append(hit)
    scores = {kind: round(float(np.mean(hits)), 3) for kind, hits in right.items()}
    return scores | {"all": round(float(np.mean([hit for hits in right.values() for hit in hits])), 3)}


def _sample(asked: list[TokenisedQuestion], count: int, rng: np.random.Generator) -> list[TokenisedQuestion]:
    """Draw `count` questions without repetition, in random order."""
    return [asked[number] for number in rng.permutation(len(asked))[:count]]
