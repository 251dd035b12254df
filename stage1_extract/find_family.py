"""Which file of `families/` opens a checkpoint."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from configs import plugin
from configs.experiment import Experiment
from stage1_extract import families
from stage1_extract.families.whole_model import WholeModel
from stage1_extract.family import Family
from store.open_text import check_text_side


def find_family(config: Any) -> type[Family]:
    """The family of a checkpoint: by model type, if its parts can be reached; else the model's own code.

    In transformers 5 LLaVA has its parts on `model.model` only: both places are looked at, on the meta device, so that
    nothing is loaded to find out.
    """
    for family in plugin.find_all(families, Family).values():
        if config.model_type in family.model_types and parts_can_be_reached(config):
            return family
    return WholeModel


def check_questions(experiment: Experiment, config: Any) -> None:
    """Refuse, before the first image, a checkpoint that the configured questions could not be asked.

    Raises what `store.open_text.check_text_side` raises. The fallback's models are not looked at: no command asks them.
    """
    if experiment.data.questions is not None and find_family(config) is not WholeModel:
        check_text_side(config, experiment.model)


def parts_can_be_reached(config: Any) -> bool:
    """Whether the model, or its `.model`, has a vision tower and a projector of their own."""
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    holders = [model, *([model.model] if hasattr(model, "model") else [])]
    return any(hasattr(one, "vision_tower") and hasattr(one, "multi_modal_projector") for one in holders)
