"""One evaluation from the store, and the same one that encodes every question's image again: two processes each turn."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
ROUNDS = 2


def from_store_over_reencoding(folder: Path) -> dict[str, float]:
    """On the demo, its test split at 64 tokens per image."""
    config = folder / "bench.yaml"
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    content["data"] |= {"images": str(folder / "data/images"), "questions": str(folder / "data/questions.jsonl")}
    content |= {"prune": {"methods": [{"name": "uniform_grid"}], "budgets": [64]}, "run_dir": str(folder / "run")}
    config.write_text(yaml.safe_dump(content))
    _run("stage1_extract.demo", "data", "--config", str(config))
    extracted = _run("stage1_extract", "extract", "--config", str(config))
    stored, again, encoded = [], [], []
    for _ in range(ROUNDS):
        stored.append(_run("stage2_prune", "eval", "--config", str(config), "--overwrite"))
        begun = time.perf_counter()
        said = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.reencode", str(config)], cwd=ROOT, check=True, capture_output=True
        )
        again.append(time.perf_counter() - begun)
        encoded.append(json.loads(said.stdout))
    summary = json.loads((folder / "run/eval/summary.json").read_text())
    if summary["results"][0]["accuracy"] != encoded[0]["accuracy"]:
        raise AssertionError("the two evaluations disagree")
    return {
        "questions": encoded[0]["questions"],
        "evaluation from the store, s": statistics.median(stored),
        "evaluation that encodes each question's image, s": statistics.median(again),
        "speed-up (median of interleaved rounds)": statistics.median(b / a for a, b in zip(stored, again, strict=True)),
        "extraction, paid once for all evaluations, s": extracted,
    }


def _run(*arguments: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - begun
