"""The command line of stage 2."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from click.testing import CliRunner

from stage2_prune.cli import group
from stage2_prune.errors import PrunerMisused
from stage2_prune.training.calibration import calibrate


def test_pruners_lists_parameters_needs_place_and_budget():
    listed = {row["name"]: row for row in json.loads(CliRunner().invoke(group, ["pruners", "--json"]).output)}
    assert listed["random"]["parameters"] == {"seed": 0}
    assert listed["cls_attention"]["needs"] == ["cls_attention"]
    assert listed["keep_all"]["budget"] == "fixed"
    assert (listed["random"]["place"], listed["fastv"]["place"]) == ("before_llm", "in_llm")
    assert (listed["fastv"]["budget"], listed["fastv"]["positions"]) == ("schedule", "original")
    assert "| cls_attention" in CliRunner().invoke(group, ["pruners"]).output


def test_eval_holds_no_vision_tower_and_no_stage_1(home, tmp_path, tiny):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny().model_dump(mode="json")))
    script = (
        "import sys, runpy\n"
        f"sys.argv = ['_', 'eval', '--config', {str(config)!r}, '--prune.budgets', '[4]', '--json']\n"
        "try:\n"
        "    runpy.run_module('stage2_prune', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "eyes = [m for m in sys.modules if m.startswith('transformers.models.') and\n"
        "        any(f'modeling_{tower}' in m for tower in ('clip', 'siglip', 'dinov2', 'llava'))]\n"
        "assert not eyes, eyes\n"
        "assert not any(m.startswith('stage1_extract') for m in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == 1
    assert "Traceback" not in done.stderr and "UNEXPECTED" not in done.stderr


@pytest.mark.parametrize("device", ["cuda", "nothing"])
def test_a_device_that_is_not_here_is_a_config_error(tiny, device):
    from configs.errors import ConfigError
    from stage2_prune.session.session import open_features

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is here")
    with pytest.raises(ConfigError, match=f"model.device: .*{device}"):
        open_features(tiny(model__device=device), ())


def test_calibrate_prints_the_line_that_a_config_takes(tiny, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny().model_dump(mode="json")))
    done = CliRunner().invoke(group, ["calibrate", "--config", str(config), "--keep", "12", "--limit", "3"])
    deletes = yaml.safe_load(done.stdout.splitlines()[-1])["deletes"]
    assert done.exit_code == 0 and len(deletes) == 2 and 0 <= sum(deletes) <= 16


def test_calibrate_refuses_a_budget_of_more_tokens_than_an_image_has(tiny):
    with pytest.raises(PrunerMisused, match=r"--keep: expected at most 16 visual tokens, .* got 9999") as caught:
        calibrate.run(tiny(), 9999, 3)
    assert caught.value.exit_code == 2
