"""The shipped config of LLaVA-1.5-7B, unchanged, against a hub cache that holds a small model in the hub's own layout."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "llava-1.5-7b.yaml"
COMMANDS = (
    ("stage1_extract", "extract"),
    ("stage2_prune", "train"),
    ("stage2_prune", "eval"),
    ("stage2_prune", "parity"),
)
REPOSITORY = "models--llava-hf--llava-1.5-7b-hf"


def run(package: str, *arguments: str, home: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-m", package, *arguments, "--config", str(CONFIG)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def hub_cache(home: Path, checkpoint: Path) -> None:
    """Lay a checkpoint out as `hf download` does."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = home / "hub" / REPOSITORY
    shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


def test_the_7b_config_runs_unchanged_against_a_hub_cache_in_the_hubs_own_key_layout(tmp_path):
    home, work = tmp_path / "home", tmp_path / "work"
    hub_cache(home, tiny_llava(tmp_path / "checkpoint", layout="hub4", sharded=True, image_size=336))
    tiny_questions(work / "data" / "llava")
    for package, command in COMMANDS:
        done = run(package, command, home=home, cwd=work)
        assert done.returncode == 0, f"{command}: {done.stderr}\n{done.stdout}"
    parity = json.loads((work / "runs" / "llava-1.5-7b" / "parity.json").read_text())
    assert parity["identical"] is True and parity["shapes"]["vision_features_raw"][0] == 576


@pytest.mark.parametrize("command", [("stage1_extract", "extract"), ("stage1_extract", "extract", "--dry-run")])
def test_with_an_empty_cache_it_stops_within_seconds_and_says_what_to_download(tmp_path, command):
    tiny_questions(tmp_path / "data" / "llava")
    begun = time.monotonic()
    done = run(*command, home=tmp_path / "empty", cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    assert "hf download llava-hf/llava-1.5-7b-hf" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begun < 60
