"""Run the parts one after the other: print, keep, and go on after a part that fails."""

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

import torch
import transformers

from tests.benchmarks.gpu.clock import at_most
from tests.benchmarks.gpu.page import TITLES
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows
from tests.benchmarks.gpu.scale import Scale, quick, real

PARTS = tuple(part for part in TITLES if part != "made")
SPACE = 25e9
"""Bytes that a run takes in its folder: 13 GB of weights, 6 GB of features, photographs, and what parity writes."""
PART_SECONDS = 180.0
"""A part that takes longer is stopped, so that the others have their turn."""


def main(description: str) -> None:
    """Measure the parts one after the other; say by the exit status whether all of them ran."""
    begun, arguments = time.perf_counter(), _arguments(description)
    dtype = {} if arguments.dtype is None else {"dtype": arguments.dtype}
    scale = quick(**dtype) if arguments.quick else real(**dtype)
    card = _card(scale.device)
    rows = Rows(card, arguments.out, compare=not arguments.quick)
    rows.recall(("made", *arguments.parts))
    print(
        f"{card}; Python {sys.version.split()[0]}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="bench-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    _require_space(folder, scale)
    os.environ["ENCODE_ONCE_CACHE"] = str(folder.resolve() / "cache")  # not the user's
    failed: list[str] = []
    try:
        place = Place(folder.resolve(), scale)
        if _measured("made", place, rows, PART_SECONDS):
            for part in arguments.parts:
                left = arguments.budget_s - (time.perf_counter() - begun)
                if left <= 0:
                    rows.say(part, f"left out, as the {arguments.budget_s:.0f} s are over")
                elif not _measured(part, place, rows, min(PART_SECONDS, left + 60)):
                    failed.append(part)
        else:
            failed.append("made")
    finally:
        rows.keep()
        if not (arguments.keep or arguments.folder):
            shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{time.perf_counter() - begun:.0f} s in all" + (f"; failed: {', '.join(failed)}" if failed else ""), flush=True
    )
    sys.exit(1 if failed else 0)


def _arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", type=_parts, default=PARTS, help=f"Some of {', '.join(PARTS)}.")
    parser.add_argument("--out", type=Path, help="Keep the page in this file, and JSON beside it.")
    parser.add_argument("--folder", type=Path, help="Where to work, 25 GB; what lies there is used again, and kept.")
    parser.add_argument("--keep", action="store_true", help="Keep the folder that is made where --folder names none.")
    parser.add_argument("--budget-s", type=float, default=420.0, help="Seconds after which no further part begins.")
    parser.add_argument("--quick", action="store_true", help="Small shapes on the CPU, to see that all of it runs.")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="Compute dtype.")
    return parser.parse_args()


def _parts(given: str) -> tuple[str, ...]:
    names = tuple(given.split(","))
    if unknown := set(names) - {*PARTS}:
        raise argparse.ArgumentTypeError(f"expected parts of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    return names


def _card(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        sys.exit("expected a GPU, torch finds none: use --quick to see on the CPU whether everything runs")
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"


def _require_space(folder: Path, scale: Scale) -> None:
    free = shutil.disk_usage(folder).free
    if scale.device.type != "cpu" and free < SPACE and not (folder / "checkpoint").is_dir():
        sys.exit(
            f"expected {SPACE / 1e9:.0f} GB of free space in {folder}, it has {free / 1e9:.0f}: name another --folder"
        )


def _measured(part: str, place: Place, rows: Rows, seconds: float) -> bool:
    """Run one part; return whether it came to its end. What it raises is printed in one line."""
    begun = time.perf_counter()
    try:
        with at_most(seconds):
            import_module(f"tests.benchmarks.gpu.parts.{part}").measure(place, rows)
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "tests/benchmarks/gpu" not in f.filename]
        last = (frames or traceback.extract_tb(error.__traceback__))[-1]
        words = " ".join(f"{type(error).__name__}: {error}".split())
        rows.say(part, f"failed: {words[:300]} ({Path(last.filename).name}:{last.lineno})")
        traceback.print_exception(error, file=sys.stderr)
    else:
        print(f"{part:<11} took {time.perf_counter() - begun:.1f} s", flush=True)
        rows.keep()
        return True
    place.release()  # only here, as the error held on to whatever its frames held
    rows.keep()
    return False
