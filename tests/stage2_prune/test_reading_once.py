"""A command of stage 2 reads the plan of the store and the config of the checkpoint once in its process."""

from collections import Counter

import pytest

from stage2_prune import api
from stage2_prune.analysis import analyse
from store.checkpoint import json_files
from store.layout import plan


@pytest.fixture
def reads(monkeypatch):
    """How often the store's plan and the checkpoint's config.json are read."""
    counts: Counter[str] = Counter()
    read_plan_file, parse = plan.read_plan_file, json_files._content.__wrapped__

    def read(*arguments):
        counts["plan"] += 1
        return read_plan_file(*arguments)

    def parsed(path, state):
        counts[path.name] += 1
        return parse(path, state)

    monkeypatch.setattr(plan, "read_plan_file", read)
    monkeypatch.setattr(json_files, "_content", json_files.lru_cache(maxsize=16)(parsed))
    return counts


@pytest.mark.parametrize("command", [api.run_evaluation, api.run_sweep, api.run_parity, analyse.run])
def test_a_command_reads_the_plan_and_the_config_once(tiny, reads, command):
    methods = [{"name": "keep_all"}, {"name": "uniform_grid"}]
    command(
        tiny(
            prune__methods=methods, prune__budgets=[4], prune__seeds=1, sweep={"methods": ["uniform_grid"], "rounds": 1}
        )
    )
    assert (reads["plan"], reads["config.json"]) == (1, 1)
