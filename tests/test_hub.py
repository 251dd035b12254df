"""The shipped configs of real models, unchanged, against a hub cache that holds a small model in the hub's own layout."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from configs.experiment import DataSection
from store.questions.question import read_questions
from store.questions.splits import select
from store.reading.reader import FeatureStore
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions
from tests.helpers.interleave import small_interleave
from tests.helpers.stock import stock_answers

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "llava-1.5-7b.yaml"
INTERLEAVE = ROOT / "configs" / "llava-interleave-qwen-0.5b.yaml"
COMMANDS = (
    ("stage1_extract", "extract"),
    ("stage2_prune", "train"),
    ("stage2_prune", "eval"),
    ("stage2_prune", "parity"),
)


def run(
    package: str, *arguments: str, home: Path, cwd: Path, config: Path = CONFIG
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-m", package, *arguments, "--config", str(config)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def hub_cache(home: Path, checkpoint: Path, name: str) -> None:
    """Lay a checkpoint out as `hf download` does."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = home / "hub" / f"models--llava-hf--{name}"
    shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


def test_the_7b_config_runs_unchanged_against_a_hub_cache_in_the_hubs_own_key_layout(tmp_path):
    home, work = tmp_path / "home", tmp_path / "work"
    hub_cache(home, tiny_llava(tmp_path / "checkpoint", layout="hub4", sharded=True, image_size=336), "llava-1.5-7b-hf")
    tiny_questions(work / "data" / "llava")
    for package, command in COMMANDS:
        done = run(package, command, home=home, cwd=work)
        assert done.returncode == 0, f"{command}: {done.stderr}\n{done.stdout}"
    parity = json.loads((work / "runs" / "llava-1.5-7b" / "parity.json").read_text())
    assert parity["identical"] is True and parity["shapes"]["vision_features_raw"][0] == 576


def test_the_small_real_model_runs_unchanged_against_a_hub_cache_in_its_own_layout(tmp_path):
    home, work = tmp_path / "home", tmp_path / "work"
    checkpoint = small_interleave(tmp_path / "checkpoint")
    hub_cache(home, checkpoint, "llava-interleave-qwen-0.5b-hf")
    tiny_questions(work / "data" / "llava", images=3)
    for package, command in (("stage1_extract", "extract"), ("stage2_prune", "eval"), ("stage2_prune", "parity")):
        done = run(package, command, home=home, cwd=work, config=INTERLEAVE)
        assert done.returncode == 0, f"{command}: {done.stderr}\n{done.stdout}"
    folder = work / "runs" / "llava-interleave-qwen-0.5b"
    parity = json.loads((folder / "parity.json").read_text())
    assert parity["identical"] is True and parity["shapes"]["vision_features_raw"] == [729, 32]
    summary = json.loads((folder / "eval" / "summary.json").read_text())
    assert summary["infeasible"] == summary["unavailable"] == []
    assert {row["pruner"] for row in summary["results"]} == {
        method["name"] for method in summary["config"]["prune"]["methods"]
    }
    assert FeatureStore.open(folder / "store").arrays.keys() == {"raw", "projected"}
    images, data = work / "data" / "llava" / "images", DataSection.model_validate(summary["config"]["data"])
    asked = select(
        read_questions(data.model_copy(update={"questions": folder / "eval" / data.questions})), data, "test"
    )
    asked = [one.model_copy(update={"question": one.question + data.post_prompt}) for one in asked]
    lines = (folder / "eval" / "predictions" / "keep_all-729-original.jsonl").read_text().splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == stock_answers(
        checkpoint, images, asked, 1, 16, torch.bfloat16
    )


@pytest.mark.parametrize("command", [("stage1_extract", "extract"), ("stage1_extract", "extract", "--dry-run")])
def test_with_an_empty_cache_it_stops_within_seconds_and_says_what_to_download(tmp_path, command):
    tiny_questions(tmp_path / "data" / "llava")
    begun = time.monotonic()
    done = run(*command, home=tmp_path / "empty", cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    assert "hf download llava-hf/llava-1.5-7b-hf" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begun < 60
