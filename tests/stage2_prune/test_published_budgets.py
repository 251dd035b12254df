"""Budgets that are fractions or names of published schedules, from the config to the tables."""

import csv
import json

import pytest
import yaml
from click.testing import CliRunner

from configs.cli import run_to_exit_code
from configs.experiment import PruneSection
from stage2_prune.cli import group
from tests.stage2_prune.conftest import settings

METHODS = ["cls_attention", "sparse_vlm", "fit_prune", "combination"]
BUDGETS = [5, 9.5, "published:192", "published:60%"]


def run(home, folder, command, **changes):
    """Write the config into `folder` and run a command of stage 2 on it, in this process."""
    content = settings(home, run_dir=str(folder), prune__methods=[{"name": name} for name in METHODS], **changes)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    done = CliRunner().invoke(group, [command, "--config", str(path)])
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ([64, 206.5], (64, 206.5)),
        ([64.0, "128", "145.41"], (64, 128, 145.41)),
        (["published:192", "published:60%"], ("published:192", "published:60%")),
    ],
)
def test_a_budget_is_a_number_or_a_published_name_and_whole_numbers_are_integers(given, read):
    budgets = PruneSection(budgets=given).budgets
    assert budgets == read and [type(one) for one in budgets] == [type(one) for one in read]


@pytest.mark.parametrize(
    "wrong", [0, -3, "published:", "published", "many", True, float("nan"), float("inf"), None, []]
)
def test_what_is_no_budget_is_refused_with_what_one_looks_like(wrong):
    with pytest.raises(ValueError, match="expected tokens such as 64 or 206.5, or published:192"):
        PruneSection(budgets=[wrong])


def test_an_evaluation_answers_at_fractions_and_published_schedules_and_lists_what_no_method_can_meet(home, tmp_path):
    run(home, tmp_path, "eval", prune__budgets=BUDGETS)
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    rows = {(row["pruner"], row["keep"]): row["tokens_per_layer"] for row in summary["results"]}
    # Two layers, 16 patches: 192 of 576 are 5 of 16; SparseVLM's last count, 110, is 3 and one cluster.
    assert rows == {
        ("cls_attention", 5): [5, 5],
        ("cls_attention", "published:192"): [5, 5],
        ("sparse_vlm", 9.5): [16, 3],
        ("sparse_vlm", "published:192"): [16, 4],
        ("fit_prune", 9.5): [16, 3],
        ("fit_prune", "published:60%"): [16, 4],
        ("combination", 5): [8, 3],
        ("combination", 9.5): [14, 5],
    }
    assert type(next(row["keep"] for row in summary["results"] if row["keep"] == 5)) is int
    infeasible = {(one["pruner"], one["keep"]): one["reason"] for one in summary["infeasible"]}
    assert set(infeasible) == {
        *(("cls_attention", budget) for budget in (9.5, "published:60%")),
        *(("sparse_vlm", budget) for budget in (5, "published:60%")),
        *(("fit_prune", budget) for budget in (5, "published:192")),
        *(("combination", budget) for budget in ("published:192", "published:60%")),
    }
    assert "whole number" in infeasible["cls_attention", 9.5]
    assert "only 64, 96, 128, 192" in infeasible["sparse_vlm", "published:60%"]
    names = {path.name for path in (tmp_path / "eval" / "predictions").glob("*.jsonl")}
    assert {"sparse_vlm-9.5-compact.jsonl", "sparse_vlm-published_192-compact.jsonl"} <= names
    table = (tmp_path / "eval" / "table.md").read_text()
    assert "cls_attention at 9.5 tokens, compact positions, is infeasible" in table
    run(home, tmp_path, "eval", prune__budgets=BUDGETS)  # nothing is refused as another run's


def test_a_sweep_gives_published_schedules_a_column_of_their_own_with_what_they_cost(home, tmp_path):
    sweep = {"methods": METHODS, "workers": 1, "rounds": 2}
    run(home, tmp_path, "sweep", prune__budgets=BUDGETS, sweep=sweep)
    found = list(csv.DictReader((tmp_path / "sweep" / "results.csv").read_text().splitlines()))
    answered = {(row["method"], row["budget"]) for row in found if row["status"] == "ok"}
    assert answered >= {("sparse_vlm", "9.5"), ("sparse_vlm", "published:192"), ("cls_attention", "published:192")}
    table = (tmp_path / "sweep" / "table.md").read_text()
    header = [cell.strip() for cell in next(line for line in table.splitlines() if "accuracy at" in line).split("|")]
    assert header[3:-1] == ["accuracy at published:192", "published:60%", "9.5", "5"]
    assert "settings of equal name, not of equal cost" in table and "(10)" in table


def test_what_is_kept_at_published_budgets_is_measured_and_drawn(home, tmp_path):
    run(home, tmp_path, "analyse", prune__budgets=[5, "published:192"])
    found = json.loads((tmp_path / "selection" / "selection.json").read_text())
    assert [row["keep"] for row in found["results"]] == [5, "published:192"]
    assert [matrix["keep"] for matrix in found["jaccard"]] == [5]


def test_a_wrong_budget_in_a_config_ends_with_exit_code_2(home, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(home, prune__budgets=["publish:192"])))
    code = run_to_exit_code(lambda: group.main(["eval", "--config", str(path)], standalone_mode=False))
    assert code == 2 and "published:192" in capsys.readouterr().err
