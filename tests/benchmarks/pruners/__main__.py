"""`make bench-pruners`: what choosing tokens costs and what having fewer saves; exit status 1 if a demand is missed.

python -m tests.benchmarks.pruners                                       all of it
python -m tests.benchmarks.pruners selectors                             some parts by name
python -m tests.benchmarks.pruners --out docs/pruner-benchmarks.md       all of it, kept as a page
python -m tests.benchmarks.pruners --device cuda                         on an accelerator
python -m tests.benchmarks.pruners --quick                               whether all of it runs, in seconds; judges nothing
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from tests.benchmarks.pruners.inputs import QUICK, REAL
from tests.benchmarks.pruners.inside import inside
from tests.benchmarks.pruners.page import Results, page
from tests.benchmarks.pruners.prefill import prefills
from tests.benchmarks.pruners.selectors import selectors
from tests.benchmarks.pruners.timing import Bench

PARTS = {"selectors": selectors, "inside": inside, "prefill": prefills}


def main() -> None:
    """Run the named parts, print the tables, say by the exit status whether every demand is met."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.pruners",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, help="Write the whole page to this file.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    parser.add_argument("--quick", action="store_true", help="Small images and one round, to see that it runs.")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="Where everything runs.")
    parser.add_argument("--busy", action="store_true", help="Count processor seconds: others use this machine too.")
    arguments = parser.parse_args()
    if arguments.busy and arguments.device.type != "cpu":
        parser.error("--busy counts seconds of the processor: leave it out on an accelerator")
    if unknown := set(arguments.names) - PARTS.keys():
        parser.error(f"expected parts of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    if arguments.out and (arguments.names or arguments.quick):
        parser.error("--out keeps the whole page: name no parts with it, and no --quick")
    scale = QUICK if arguments.quick else REAL
    bench = Bench(arguments.device, arguments.busy)
    begun, found = time.perf_counter(), {}
    for name in arguments.names or PARTS:
        print(f"measuring {name} …", file=sys.stderr)
        found[name] = PARTS[name](scale, bench)
    results = Results(scale, **found)
    written = page(results, bench, time.perf_counter() - begun)
    print(_as_json(results) if arguments.json else written)
    if arguments.out:
        arguments.out.write_text(written)
    if arguments.quick:
        return
    for demand in results.missed:
        print(f"missed: {demand}", file=sys.stderr)
    sys.exit(1 if results.missed else 0)


def _as_json(results: Results) -> str:
    def plain(value: object) -> object:
        return sorted(value) if isinstance(value, frozenset) else vars(value)

    content = asdict(results) | {"missed": results.missed, "torch": torch.__version__}
    return json.dumps(content, default=plain, indent=1)


if __name__ == "__main__":
    main()
