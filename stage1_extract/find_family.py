"""Which family opens the vision half of a checkpoint, and which checkpoints stage 1 refuses."""

import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from configs import plugin
from configs.experiment import Experiment
from configs.files.source_code import own_code_digest
from stage1_extract import families, towers
from stage1_extract.encoding.family import Family
from stage1_extract.encoding.tower import Tower
from stage1_extract.errors import UnsupportedModel
from stage1_extract.families.whole_model import WholeModel
from store.checkpoint.open_text import check_text_side
from store.checkpoint.weights import require_all_files


def find_family(config: Any, named: str | None = None) -> type[Family]:
    """Find the family of a checkpoint: by model type, if the model's parts can be reached; otherwise `WholeModel`, which
    calls the model's own code.

    A family from outside this project decides by itself what it reaches. `named` is the family that `model.vision_family`
    chooses.
    """
    family = plugin.find_by_model_type(families, config.model_type, Family, named)
    if family is None:
        return WholeModel
    ours = family.__module__.startswith(f"{families.__name__}.")
    return WholeModel if ours and named is None and not parts_can_be_reached(config) else family


def own_code(experiment: Experiment, config: Any) -> dict[str, str]:
    """Return the digests of the code, from outside this project, that opens the vision half; empty where this project does.

    Features made by other code are other features, so that the fingerprint holds these digests.
    """
    model, vision = experiment.model, getattr(config, "vision_config", None)
    kinds: dict[str, type | None] = {"vision_family_code": find_family(config, model.vision_family)}
    if vision is not None:
        kinds["tower_code"] = plugin.find_by_model_type(towers, vision.model_type, Tower, model.tower)
    digests = {part: own_code_digest(Path(inspect.getfile(kind))) for part, kind in kinds.items() if kind is not None}
    return {part: digest for part, digest in digests.items() if digest is not None}


def check_questions(experiment: Experiment, config: Any) -> None:
    """Refuse, before the first image, a checkpoint that the configured questions could not be asked.

    Raises what `check_text_side` raises, and CheckpointMissing (exit 5) naming a file of weights that a folder lacks.
    Models of the fallback are not checked, because no command asks them a question.
    """
    if experiment.data.questions is not None and find_family(config, experiment.model.vision_family) is not WholeModel:
        check_text_side(config, experiment.model)
        require_all_files(experiment.model.checkpoint, experiment.model.revision)


def require_stage2(experiment: Experiment, config: Any) -> None:
    """Refuse a model whose language half stage 2 cannot open (UnsupportedModel, exit 2), unless `without_stage2` is set.

    The stages do not import each other, so this function reads names: stage 2 has one file or entry point per family, which is
    named after its model type. Stage 2 itself judges the family that `model.language_family` chooses.
    """
    if experiment.extract.without_stage2 or experiment.model.language_family is not None:
        return
    opened = sorted(stage2_families())
    if config.model_type not in opened:
        raise UnsupportedModel(
            f"expected a model that stage 2 can open ({', '.join(opened)}), {experiment.model.checkpoint} is "
            f"{config.model_type!r}, so nothing could be evaluated from its store: choose another checkpoint, or store its "
            "features for use elsewhere with --without-stage2 true"
        )


def stage2_families() -> set[str]:
    """Return the model types that stage 2 opens, by the names of its files and of entry points."""
    package = find_spec("stage2_prune")
    assert package is not None and package.submodule_search_locations, "stage 2 is installed beside stage 1"
    folder = Path(package.submodule_search_locations[0]) / "families"
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    return files | plugin.published(plugin.GROUPS["stage2_prune.families"]).keys()


def parts_can_be_reached(config: Any) -> bool:
    """Check whether the model has a vision tower and a projector of its own.

    In transformers 5 LLaVA has its parts on `model.model` only, so both the model and its `.model` are searched; the model is
    built on the meta device, so that nothing is loaded for the check.
    """
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    holders = [model, *([model.model] if hasattr(model, "model") else [])]
    return any(hasattr(holder, "vision_tower") and hasattr(holder, "multi_modal_projector") for holder in holders)
