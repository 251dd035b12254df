"""`make bench-pruners` runs, and measures every method of the folder; how fast they are, is not asked here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import plugin
from stage2_prune import pruners
from stage2_prune.pruning.pruner import Pruner
from tests.benchmarks.pruners.inputs import QUICK, REAL, tower_layer_flops
from tests.benchmarks.pruners.page import Results, saved_layers
from tests.benchmarks.pruners.prefill import Prefill
from tests.benchmarks.pruners.selectors import Cell, Selectors

EVERY = plugin.find_all(pruners, Pruner)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def measured():
    command = [sys.executable, "-m", "tests.benchmarks.pruners", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_method_before_the_language_model_is_measured_at_every_batch(measured):
    found = measured["selectors"]
    assert found["left_out"] == {} and found["once"] == []
    expected = {name for name, kind in EVERY.items() if kind.place == "before_llm"}
    for batch in QUICK.batches:
        cells = [cell for cell in found["cells"] if cell["batch"] == batch]
        assert {cell["method"] for cell in cells} == expected
        assert set(found["operations"]) == expected
        assert all(cell["milliseconds"] > 0 and cell["layers"] > 0 for cell in cells)


def test_every_method_inside_it_is_measured_or_infeasible(measured):
    found, left_out = measured["inside"]
    expected = {name for name, kind in EVERY.items() if kind.place == "in_llm"}
    assert {one["method"] for one in found} == expected
    assert all(reason.startswith("dropping tokens from layer") for reason in left_out.values())


def test_prefills_are_compared_with_what_flops_predict(measured):
    by_tokens = {(one["questions"], one["visual_tokens"]): one["predicted"] for one in measured["prefill"]}
    assert set(by_tokens) == {(q, k) for q in QUICK.questions for k in (QUICK.patches, *QUICK.prefill_budgets)}
    assert by_tokens[1, QUICK.patches] == 1 < by_tokens[1, 12] < by_tokens[1, 8] < by_tokens[1, 4]


def test_the_yardstick_is_a_layer_of_clip_and_a_7b_model_saves_hundreds_of_them():
    assert tower_layer_flops(REAL) == pytest.approx(2 * 304e6 * 577 / 24, rel=0.1)  # 304 M parameters in 24 layers
    assert saved_layers(REAL, 64) > saved_layers(REAL, 192) > 300


def test_what_is_slower_than_not_pruning_is_a_missed_demand():
    fine, slow = Cell("fine", 64, 1, 1.0, 0.1), Cell("slow", 64, 1, 9e4, 9e3)
    found = Results(
        REAL, Selectors((fine, slow), {1: 10.0}, frozenset(), {}, {}), prefill=[Prefill(4, 64, 9.0, 4.0, 5.0, 0.9)]
    )
    assert [demand.split()[0] for demand in found.missed] == ["slow", "a"]
