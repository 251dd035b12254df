"""`make bench-gpu`: what the pipeline reaches on one GPU, at the shapes of LLaVA-1.5-7B, in eight minutes.

python3 -m tests.benchmarks.gpu                                     all of it, on a machine with one GPU
python3 -m tests.benchmarks.gpu --parts prefill,selectors           some parts, each of which stands alone
python3 -m tests.benchmarks.gpu --out docs/gpu-benchmarks.md        kept as a page, with JSON beside it
python3 -m tests.benchmarks.gpu --quick                             whether all of it runs: small shapes on the CPU

Any interpreter that has the runtime dependencies will do. A part that fails is named, the others go on; exit status 1 in the end.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

if __name__ == "__main__":  # a process that this one starts imports this module, and should import nothing more
    from tests.benchmarks.gpu.run import main

    assert __doc__ is not None
    main(__doc__)
