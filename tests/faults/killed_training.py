"""A process that trains one pruner several times, each time killed at another moment.

`python -m tests.faults.killed_training CONFIG FOLDER` leaves `FOLDER/<moment>`, the run folder of each killed training.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.load import load
from stage2_prune.training import train, trainer

MOMENTS = {
    "in a step": ("step", 2),
    "before a state": ("state.safetensors", 3),
    "before the record": ("pruner.json", 1),
    "before the card": ("README.md", 1),
}
"""What the process is about to do for the how many-th time when it is killed: a step, or to give a file its name."""


def main(config: Path, folder: Path) -> None:
    """Each training is a child of its own, which SIGKILL ends."""
    for moment, (what, time) in MOMENTS.items():
        child = os.fork()
        if child == 0:
            die_before(what, time)
            train.run(load(config, {"run_dir": folder / moment}))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the training was not killed {moment}")


def die_before(what: str, time: int) -> None:
    """Let this process be killed before something that it does for the `time`-th time; it saves a state after every step."""
    left = time

    def killing(call: Callable[..., Any], is_it: Callable[..., bool]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal left
            left -= is_it(*arguments)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return run

    trainer.SAVE_SECONDS = -1.0
    trainer.Trainer._step = killing(trainer.Trainer._step, lambda *_: what == "step")
    os.replace = killing(os.replace, lambda _, target: Path(target).name == what)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
