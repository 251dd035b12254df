"""The number of questions per batch; for `eval.batch_size: auto` the number that was found for this run.

<run_dir>/batch_size.json    what an evaluation on a GPU found; deleting it lets the number be found again
"""

from pathlib import Path

from configs.experiment import Experiment
from stage2_prune.errors import DamagedRun
from stage2_prune.session.sealed import read_object, write_object

AUTO = 20
"""Questions per batch on a CPU, in training's validation, and where no evaluation on a GPU has found a number yet."""
_REMEDY = "delete it and run eval (or sweep) again, which finds the number again"


def batch_size(experiment: Experiment) -> int:
    """Return the number of questions per batch; AUTO in place of `auto`, unless `settled` put a number there."""
    size = experiment.eval.batch_size
    return AUTO if size == "auto" else size


def settled(experiment: Experiment) -> Experiment:
    """Return the experiment with a number in place of `eval.batch_size: auto`: the number that was found for this run."""
    if experiment.eval.batch_size != "auto":
        return experiment
    size = found_size(experiment.run_dir) or AUTO
    return experiment.model_copy(update={"eval": experiment.eval.model_copy(update={"batch_size": size})})


def found_size(run_dir: Path) -> int | None:
    """Read the number that was found for a run; None if there is none. Raises DamagedRun (exit 4) for a damaged file."""
    path = _file(run_dir)
    size = (read_object(path, _REMEDY) or {}).get("batch_size")
    if size is None or (isinstance(size, int) and size > 0):
        return size
    raise DamagedRun(f"{path} is damaged (expected a number of questions, it holds {size!r}): {_REMEDY}")


def write_size(run_dir: Path, size: int) -> None:
    """Keep the number that was found for a run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_object(_file(run_dir), {"batch_size": size})


def _file(run_dir: Path) -> Path:
    return run_dir / "batch_size.json"
