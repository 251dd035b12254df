"""Parity through the command lines, for a checkpoint in each of the layouts that are in circulation."""

import json
from itertools import combinations

import pytest
import yaml

from configs.cli import run_to_exit_code
from stage1_extract.cli import group as stage_1
from stage2_prune.cli import group as stage_2
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions
from tests.stage2_prune.conftest import settings

MODES = ("baseline", "emb_direct", "emb_replaced", "soft_pruning")


@pytest.mark.parametrize(("layout", "sharded"), [("v5", False), ("hub4", True), ("v4_52", False)])
def test_all_modes_are_the_same_bits_in_every_layout_of_a_checkpoint(tmp_path, layout, sharded):
    tiny_llava(tmp_path / "checkpoint", layout=layout, sharded=sharded)
    tiny_questions(tmp_path / "data")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(tmp_path)))
    for group, command in ((stage_1, "extract"), (stage_2, "parity")):
        line = [command, "--config", str(config)]
        assert run_to_exit_code(lambda group=group, line=line: group.main(line, standalone_mode=False)) == 0
    found = json.loads((tmp_path / "run" / "parity.json").read_text())
    assert found["identical"] is True and set(found["modes"]) == set(MODES)
    assert len(found["pairs"]) == len(list(combinations(MODES, 2)))
