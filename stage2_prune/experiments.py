"""Load the experiment of a command of stage 2 from its config and its flags; nothing slow is imported before that."""

from pathlib import Path
from typing import Any

from configs.experiment import Experiment
from configs.flags import experiment_from
from store.checkpoint.presence import require_checkpoint


def pruning_experiment(config_path: Path, flags: dict[str, Any]) -> Experiment:
    """Load an experiment, and validate the parameters of its methods."""
    from configs import plugin
    from stage2_prune import pruners
    from stage2_prune.pruning.pruner import Pruner

    return experiment_from(config_path, flags, plugin.find_all(pruners, Pruner))


def answering_experiment(config_path: Path, flags: dict[str, Any]) -> Experiment:
    """Load the experiment of a command that answers questions; raise CheckpointMissing (exit 5) before anything slow begins."""
    experiment = pruning_experiment(config_path, flags)
    require_checkpoint(experiment.model.checkpoint, experiment.model.revision)
    return experiment
