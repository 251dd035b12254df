"""Every test: offline, two threads, shapes in signatures checked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

install_import_hook(["configs", "store", "stage1_extract", "stage2_prune"], "beartype.beartype")
