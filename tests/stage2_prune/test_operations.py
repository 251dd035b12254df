"""How many operations a selection dispatches: eager, views not counted, the same on every machine."""

import pytest
import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.pruning.pruner import Pruner
from tests.benchmarks.pruners.operations import BEFORE, count
from tests.helpers.operations import operations

KINDS = {name: kind for name, kind in plugin.find_all(pruners, Pruner).items() if kind.place == "before_llm"}
A_STEP, BESIDES = 10, 200
NOT_HALF = {
    "cd_pruner": "10 of 16: each product, sum, root and quotient is rounded as before, since a fused one would round otherwise "
    "and choose other patches"
}


@pytest.mark.parametrize("name", KINDS)
def test_dispatched_operations_stay_within_their_bounds(name):
    found = count(KINDS[name])
    assert found.step <= A_STEP and found.one <= BESIDES
    if name in BEFORE and name not in NOT_HALF:
        assert found.step <= BEFORE[name].step / 2


def test_views_are_no_operations_and_all_else_is_one():
    table = torch.zeros(4, 6)

    def look() -> torch.Tensor:
        return table.T.reshape(6, 4)[1:].unsqueeze(0).expand(3, 5, 4).unbind()[0].detach()

    assert operations(look).total() == 0
    assert operations(lambda: table.T.reshape(24) + 1) == {"aten::clone": 1, "aten::add.Tensor": 1}
    assert operations(lambda: torch.argmax(table, dim=1, out=torch.empty(4, dtype=torch.long)))["aten::argmax.out"] == 1
