"""Stage 1 from Python: what `python -m stage1_extract extract` does."""

from pathlib import Path
from typing import Any

from configs.experiment import Experiment
from configs.find_config import DEFAULT, load_experiment
from configs.processes.workers import require_guard
from stage1_extract.extract import extract
from store.reading.reader import FeatureStore


def run_extraction(
    config: Experiment | Path | str = DEFAULT,
    *,
    overwrite: bool = False,
    append: bool = False,
    retry_failed: bool = False,
    **settings: Any,
) -> FeatureStore:
    """Encode the images that the store does not have yet, and open the store.

    Args:
        config: An experiment, a config file, or the name of a packaged config.
        overwrite: Whether to replace a store that is there.
        append: Whether to add images and arrays that the store was not planned for.
        retry_failed: Whether to try images again that could not be encoded.
        **settings: Values of the config's fields, such as `model__dtype="bfloat16"`.

    Raises:
        EncodeOnceError: As the command, with the command's exit code in `exit_code`.

    """
    require_guard()
    experiment = load_experiment(config, **settings)
    extract(experiment, overwrite, append, retry_failed)
    return FeatureStore.open(experiment.store_location)
