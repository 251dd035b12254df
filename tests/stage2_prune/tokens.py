"""Random cached arrays on any grid, as a pruner would be given them: those of the contract."""

from dataclasses import fields

from stage2_prune.contract.inputs import CLIP_WIDTH, LAYERS, REAL, TINY, long_tailed, merges, ready, visual_tokens

__all__ = ["CLIP_WIDTH", "LAYERS", "REAL", "TINY", "long_tailed", "merges", "narrow", "ready", "visual_tokens"]


def narrow(found, **parameters):
    """A method with these parameters; of a network that has a width, one that takes no time."""
    small = {"width": 16, "heads": 2}
    return found(**{field.name: small[field.name] for field in fields(found) if field.name in small}, **parameters)
