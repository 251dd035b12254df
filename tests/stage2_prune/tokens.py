"""Random cached arrays on any grid, as a pruner would be given them: those of the contract."""

from stage2_prune.contract.inputs import CLIP_WIDTH, LAYERS, REAL, TINY, long_tailed, merges, ready, visual_tokens

__all__ = ["CLIP_WIDTH", "LAYERS", "REAL", "TINY", "long_tailed", "merges", "ready", "visual_tokens"]
