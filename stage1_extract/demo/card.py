"""Cards of the demo's data and of its checkpoint, as model hubs read them: the licence and how both were made."""

from collections.abc import Mapping

from stage1_extract.demo.recipe import Recipe

CARD = "README.md"
LICENCE = "apache-2.0"
"""The licence of this repository, which holds everything that the data and the checkpoint are made of."""
_HEAD = "---\nlicense: {licence}\n{more}---\n\n"


def data_card(seed: int, counts: Mapping[str, int]) -> str:
    """Return the card of a data set of scenes."""
    splits = ", ".join(f"{count:,} in {split}" for split, count in counts.items())
    return (
        _HEAD.format(licence=LICENCE, more="task_categories: [visual-question-answering]\n")
        + f"# Scenes of coloured shapes\n\nImages and questions that encode-once draws: a function of the seed ({seed}) and of a "
        f"scene's number. Questions: {splits}. No scene is in two splits.\n"
    )


def checkpoint_card(recipe: Recipe) -> str:
    """Return the card of a checkpoint that learned from scenes."""
    return (
        _HEAD.format(licence=LICENCE, more="pipeline_tag: image-text-to-text\n")
        + f"# A small LLaVA of coloured shapes\n\nTower, projector and language model learned from {recipe.scenes:,} scenes "
        f"of seed {recipe.seed} that encode-once draws (`python -m stage1_extract.demo train-checkpoint`), and were measured on "
        f"scenes of seed {recipe.held_out_seed:,}. The demo's data, of seed 0, share no scene with them.\n"
    )
