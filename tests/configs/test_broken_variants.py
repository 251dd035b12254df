"""A variant that cannot be used stops those who name it, and nobody else."""

import logging

import pytest

from configs import plugin
from configs.errors import ConfigError, Interrupted
from configs.load import load
from configs.parsing.parameters import adapter_of
from configs.variants import variants
from stage1_extract import towers
from stage1_extract.encoding.tower import Tower
from stage2_prune import pruners
from stage2_prune.contract.check import check, verdict
from stage2_prune.contract.rule import Case, Rule
from stage2_prune.evaluation.report import describe_pruners
from stage2_prune.pruners.first_last import FirstLast
from stage2_prune.pruning.pruner import Pruner
from tests.helpers.distributions import install
from tests.helpers.variants import SHORT, config, write


def test_a_signal_while_a_file_is_imported_is_no_fault_of_the_file(tmp_path):
    path = write(
        tmp_path / "slow.py", "import signal\nfrom configs.processes.signals import stop\nstop(signal.SIGTERM, None)\n"
    )
    for _ in range(2):  # the half-imported module is not kept
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            plugin.find(pruners, str(path), Pruner)


def test_a_signal_while_a_rule_is_checked_breaks_no_rule():
    def interrupted(pruner, case):
        raise Interrupted("stopped by SIGTERM")

    with pytest.raises(Interrupted):
        verdict(FirstLast(), Rule("", interrupted), [Case((2, 2))])


def test_a_broken_entry_point_stops_only_those_who_name_it(site, tmp_path, caplog):
    modules = {
        "torn_by_me": "import torchh\n",
        "untyped_by_me": "import torch\n" + SHORT.replace("int", "torch.nn.Module"),
    }
    install(site, "torn-methods", modules, pruners={"torn": "torn_by_me", "untyped": "untyped_by_me"})
    classes = plugin.find_all(pruners, Pruner)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert "random" in plugin.usable(classes, adapter_of)
    assert [("torn is left out" in text, "untyped is left out" in text) for text in caplog.messages] == [
        (True, False), (False, True),
    ]  # fmt: skip
    assert "random" in {row["name"] for row in describe_pruners()}
    path = config(tmp_path, sweep={"methods": "all"})
    assert "torn" not in {method.name for method in variants(load(path, {}, classes), classes)[0]}
    with pytest.raises(ConfigError, match="uninstall torn-methods"):
        load(config(tmp_path, prune={"methods": ["torn"]}), {}, classes)


def test_two_variants_of_one_type_name_the_key_that_chooses_one(site):
    text = "from stage1_extract.towers.clip import Clip\n\nclass Mine(Clip):\n    pass\n"
    install(
        site,
        "my-towers",
        {"tower_by_me": text, "torn_tower": "1 / 0\n"},
        towers={"mine": "tower_by_me", "torn": "torn_tower"},
    )
    with pytest.raises(ConfigError, match=r"there are clip, mine: name one as model\.tower in the config"):
        plugin.find_by_model_type(towers, "clip_vision_model", Tower)


def test_a_field_of_a_type_that_no_config_can_write_is_named_with_its_class(tmp_path):
    path = write(tmp_path / "mine.py", "import torch\n" + SHORT + "    scorer: torch.nn.Module | None = None\n")
    for use in (
        lambda: load(config(tmp_path, prune={"methods": ["mine.py"]}), {}, plugin.find_all(pruners, Pruner)),
        lambda: check(str(path), {}),
    ):
        with pytest.raises(
            ConfigError, match=r"a config can write, such as int, Mine\.scorer has another one \(Unable"
        ):
            use()
