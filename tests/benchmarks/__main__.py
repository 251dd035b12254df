"""`make bench`: what the design costs and saves, as ratios of runs that take turns on the same machine.

python -m tests.benchmarks                  all of them, within ten minutes on two cores
python -m tests.benchmarks waiting          some of them by name
python -m tests.benchmarks opening --gigabytes 2
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from tests.benchmarks import canary, evaluation, opening, shared_prefix, stage1, teacher, tower_batch, waiting

BENCHMARKS: dict[str, Callable[[Path], dict[str, float]]] = {
    "stage1_tiny": stage1.tiny,
    "stage1_real": stage1.real_geometry,
    "tower_batch": tower_batch.images_per_second,
    "evaluation": evaluation.from_store_over_reencoding,
    "shared_prefix": shared_prefix.questions_per_second,
    "teacher": teacher.steps_with_distillation,
    "canary": canary.milliseconds,
    "waiting": waiting.share_of_a_training_step,
    "opening": partial(opening.seconds, gigabytes=0.2),
}


def main() -> None:
    """Run the named benchmarks and print each as it is done."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    parser.add_argument("--gigabytes", type=float, default=0.2, help="Size of the checkpoint of `opening`.")
    arguments = parser.parse_args()
    benchmarks = BENCHMARKS | {"opening": partial(opening.seconds, gigabytes=arguments.gigabytes)}
    results: dict[str, dict[str, float]] = {}
    if not arguments.json:
        print(f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}")
    for name in arguments.names or BENCHMARKS:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = benchmarks[name](Path(folder))
        if not arguments.json:
            print(
                f"\n{name}",
                *(f"  {what:<62}{value:>10.3f}" for what, value in results[name].items()),
                sep="\n",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
