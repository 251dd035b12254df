"""A sweep: each cell once, the same bytes whoever answers it, and nothing dropped in silence."""

import csv
import json
import multiprocessing

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from configs import plugin
from configs.cli import run_to_exit_code
from configs.errors import ConfigError, Interrupted
from configs.experiment import Experiment
from configs.load import load
from configs.variants import variants
from stage2_prune import pruners
from stage2_prune.cli import group
from stage2_prune.errors import PrunerMisused, RunLocked
from stage2_prune.evaluation import answering, evaluate
from stage2_prune.evaluation.predictions import alone
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import Merge, Pruned
from stage2_prune.sweep import crew as sweep_crew
from stage2_prune.sweep import latency
from stage2_prune.sweep import plot as sweep_plot
from stage2_prune.sweep import run as sweep
from stage2_prune.sweep.grid import wanted
from stage2_prune.sweep.raster_order import RasterOrder, in_raster_order
from stage2_prune.sweep.rows import CLOCK, COLUMNS, EXPLAINED
from tests.stage2_prune.conftest import settings
from tests.stage2_prune.tokens import visual_tokens

CLASSES = plugin.find_all(pruners, Pruner)
METHODS = [
    "cls_attention",
    "fastv",
    "holov",
    "keep_all",
    "learned_scorer",
    "received_attention",
    "random",
    "vis_pruner",
]
SWEEP = {
    "methods": METHODS,
    "vary": {"vis_pruner.quirks": "every"},
    "order": ["default", "raster"],
    "matches": ["mean-tokens", "kept"],
    "workers": 1,
    "rounds": 2,
}


def changed(home, folder, **changes):
    return Experiment.model_validate(settings(home, **{"run_dir": str(folder), "sweep": SWEEP, **changes}))


def predictions(experiment):
    folder = experiment.run_dir / "sweep" / "eval" / "predictions"
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def table(experiment):
    return list(csv.DictReader((experiment.run_dir / "sweep" / "results.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def finished(home, tmp_path_factory):
    """One whole sweep."""
    experiment = changed(home, tmp_path_factory.mktemp("sweep"))
    return experiment, sweep.run(experiment)


def test_all_methods_are_all_files_of_the_folder_with_the_parameters_that_the_config_gives(tiny):
    experiment = tiny(prune__methods=[{"name": "first_last", "end": "last"}], sweep={"methods": "all"})
    found, problems = variants(experiment, CLASSES)
    assert not problems and [one.name for one in found] == list(CLASSES)
    assert [one.parameters for one in found if one.parameters] == [{"end": "last"}]
    fewer, _ = variants(tiny(sweep={"methods": "all", "without": ["fastv", "dart"]}), CLASSES)
    assert {one.name for one in fewer} == set(CLASSES) - {"fastv", "dart"}


def test_every_value_that_a_method_has_is_crossed_and_each_combination_stands_once(tiny):
    vary = {"quirks": "every", "scope.alpha": [0.5, 1, 0.5], "combine": "every"}
    experiment = tiny(sweep={"methods": ["holov", "scope", "cls_attention"], "vary": vary})
    found = [(one.name, one.parameters) for one in variants(experiment, CLASSES)[0]]
    assert found == [
        *(("holov", {"quirks": quirks}) for quirks in ("official", "paper", "fixed")),
        *(("scope", {"combine": way, "alpha": alpha}) for way in ("multi", "add") for alpha in (0.5, 1)),
        ("cls_attention", {}),
    ]


def test_a_label_says_what_differs_from_the_defaults_so_that_a_cell_keeps_its_name_as_the_config_grows(tiny):
    section = {
        "methods": ["holov", "vis_pruner", "fastv"],
        "order": ["default", "raster"],
        "matches": ["mean-tokens", "kept"],
    }
    plain = [one.label for one in wanted(tiny(sweep=section))]
    assert plain == ["holov", "holov@order=raster", "vis_pruner", "fastv", "fastv@match=kept"]
    more = [one.label for one in wanted(tiny(sweep=section | {"vary": {"quirks": "every"}}))]
    assert set(plain) < set(more) and len(set(more)) == len(more)
    assert "holov@quirks=paper,order=raster" in more and "fastv@quirks=paper,match=kept" in more


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"methods": ["fastvv"]}, "sweep.methods: no such pruner (got 'fastvv')"),
        ({"without": ["none"]}, "sweep.without: no such pruner (got 'none')"),
        ({"vary": {"quirk": "every"}}, "sweep.vary.quirk: no method has a parameter 'quirk'"),
        ({"vary": {"fastvv.quirks": "every"}}, "sweep.vary.fastvv.quirks: no such pruner (got 'fastvv')"),
        ({"vary": {"random.quirks": "every"}}, "sweep.vary.random.quirks: random has no parameter 'quirks'"),
        ({"vary": {"scope.alpha": "every"}}, "sweep.vary.scope.alpha: scope takes any of endless values"),
        ({"vary": {"holov.quirks": ["official", "mine"]}}, "sweep.vary.holov.quirks: a value that holov cannot take"),
        ({"methods": ["fastv"], "without": ["fastv"]}, "sweep.without: expected to leave a method"),
        ({"order": ["backwards"]}, "sweep.order.0"),
        ({"workers": 0}, "sweep.workers"),
    ],
)
def test_a_grid_that_cannot_be_is_a_config_error_that_says_where(home, tmp_path, section, said):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings(home, sweep=section)))
    with pytest.raises(ConfigError) as caught:
        load(path, {}, CLASSES)
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_the_csv_has_a_row_for_each_cell_with_typed_values_and_the_reason_of_what_is_not_there(finished):
    experiment, summary = finished
    rows = table(experiment)
    assert list(rows[0]) == list(COLUMNS)
    cells = [(row["label"], row["positions"], row["budget"]) for row in rows]
    assert len(set(cells)) == len(cells) == len(summary["results"]) + len(summary["infeasible"]) + 2
    for row in rows:
        assert row["method"] in METHODS and isinstance(json.loads(row["parameters"]), dict)
        assert (row["status"] == "ok") == (row["reason"] == "")
        if row["status"] == "ok":
            low, middle, high = (float(row[name]) for name in ("ci95_low", "accuracy", "ci95_high"))
            assert 0 <= low <= middle <= high <= 1 and int(row["n"]) == 6 and int(row["n_images"]) == 3
            assert all(float(row[name]) >= 0 for name in ("macs_vision", "flops_all", "kept", *CLOCK))
            assert int(row["seeds"]) == (2 if row["method"] == "random" else 1)
    unavailable = {row["label"]: row["reason"] for row in rows if row["status"] == "unavailable"}
    assert unavailable.keys() == {"learned_scorer", "received_attention"}
    assert "needs received_attention" in unavailable["received_attention"] and "train" in unavailable["learned_scorer"]


def test_what_a_row_says_of_its_budget_is_what_entered(finished):
    rows = {(row["label"], row["budget"]): row for row in table(finished[0]) if row["status"] == "ok"}
    assert rows["keep_all", ""]["kept"] == "16.0" and float(rows["keep_all", ""]["prefill_ratio"]) > 0
    assert float(rows["holov", "3"]["tokens_per_layer_mean"]) == float(rows["holov", "3"]["kept"]) == 3
    inside = rows["fastv@match=kept", "3"]
    assert (inside["match"], inside["kept"]) == ("kept", "3.0") and float(inside["tokens_per_layer_mean"]) == 9.5
    infeasible = [(row["label"], row["budget"]) for row in table(finished[0]) if row["status"] == "infeasible"]
    assert ("fastv", "3") in infeasible  # two layers, of which the first sees all 16


def test_a_budget_that_a_method_refuses_only_at_work_is_infeasible_and_stops_nothing(finished):
    # VisPruner's official code fails at both budgets of 16 patches: an odd number is left over.
    refused = [row for row in table(finished[0]) if row["label"] == "vis_pruner@quirks=official"]
    assert [(row["budget"], row["status"]) for row in refused] == [("8", "infeasible"), ("3", "infeasible")]
    assert all("set quirks to fixed" in row["reason"] for row in refused)
    assert {row["status"] for row in table(finished[0]) if row["label"] == "vis_pruner"} == {"ok"}
    assert not [name for name in predictions(finished[0]) if name.startswith("vis_pruner@")]


def test_predictions_are_those_of_an_evaluation_of_one_thread(finished, tiny):
    experiment = tiny(prune__methods=[{"name": name} for name in ("holov", "random", "fastv")])
    with sweep_crew.cpu_threads(1):
        evaluate.run(experiment)
    found = predictions(finished[0])
    for path in (experiment.run_dir / "eval" / "predictions").iterdir():
        assert found[path.name] == path.read_text()


def test_a_combinations_kept_tokens_are_what_its_selection_leaves_however_many_its_drop_keeps(home, tmp_path):
    section = SWEEP | {"methods": ["combination"], "matches": ["kept"], "vary": {}, "rounds": 1}
    experiment = changed(home, tmp_path, sweep=section, prune__budgets=[8, 3])
    summary = sweep.run(experiment)
    found = {row["budget"]: (row["kept"], row["tokens_per_layer"][-1]) for row in summary["results"]}
    assert {budget: kept for budget, (kept, _) in found.items()} == {8: 8, 3: 3}
    assert all(last < kept for kept, last in found.values())


def test_raster_order_is_the_same_patches_ascending():
    tokens, pruner = visual_tokens((8, 8)), CLASSES["holov"](chunks=2)
    kept, ordered = pruner.prune(tokens, 20).index, RasterOrder(pruner).prune(tokens, 20).index
    assert not torch.equal(kept, ordered) and torch.equal(kept.sort(dim=-1).values, ordered)


def test_sorting_takes_merges_along_and_leaves_padding_behind():
    index = torch.tensor([[5, 2, 9, 0]])
    weights = torch.arange(4.0)[None, :, None].expand(-1, -1, 12)
    pruned = in_raster_order(Pruned(index, Merge(weights, "projected"), counts=torch.tensor([3])))
    assert pruned.index.tolist() == [[2, 5, 9, 0]] and pruned.merge.weights[0, :, 0].tolist() == [1, 0, 2, 3]
    with pytest.raises(PrunerMisused, match="no places"):
        in_raster_order(Pruned(merge=Merge(weights, "projected")))


def test_a_finished_sweep_computes_and_measures_nothing_again(finished, monkeypatch):
    experiment, first = finished
    monkeypatch.setattr(answering, "ask", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr(latency, "_measure", lambda *_: pytest.fail("measured again"))
    before = table(experiment)
    assert sweep.run(experiment) == first and table(experiment) == before


def test_overwriting_measures_latencies_again_and_a_sweep_of_references_alone_is_drawn(home, tmp_path, monkeypatch):
    experiment = changed(home, tmp_path, sweep={"methods": ["keep_all", "keep_none"], "workers": 1, "rounds": 1})
    sweep.run(experiment)
    measured, measure = [], latency._measure
    monkeypatch.setattr(latency, "_measure", lambda *some: measured.append(len(some[1])) or measure(*some))
    sweep.run(experiment)
    assert not measured
    sweep.run(experiment, overwrite=True)
    assert measured == [2]


def test_a_sweep_waits_for_no_other_in_its_folder(home, tmp_path):
    with alone(tmp_path / "sweep"), pytest.raises(RunLocked):
        sweep.run(changed(home, tmp_path))


def test_a_batch_that_nobody_waits_for_is_not_written(home, tmp_path, monkeypatch):
    def gone(answers):
        raise Interrupted("gone")

    experiment = changed(home, tmp_path, prune__methods=[{"name": "uniform_grid"}], prune__budgets=[3])
    answer = evaluate.answer
    monkeypatch.setattr(evaluate, "answer", lambda *arguments, **options: answer(*arguments, gone, **options))
    with pytest.raises(Interrupted):
        evaluate.run(experiment)
    assert not list((experiment.run_dir / "eval").glob("predictions/*"))


def test_two_workers_that_are_interrupted_leave_none_behind_and_go_on_to_the_files_of_one(
    finished, home, tmp_path, monkeypatch
):
    calls, ask = [], answering.ask

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return ask(*arguments)

    experiment = changed(home, tmp_path, sweep=SWEEP | {"workers": 2})
    with monkeypatch.context() as patch:
        patch.setattr(answering, "ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(experiment)
    assert not multiprocessing.active_children()
    begun = predictions(experiment)
    assert any(name.endswith(".jsonl") for name in begun) and any(name.endswith(".partial") for name in begun)
    sweep.run(experiment)
    assert predictions(experiment) == predictions(finished[0])
    assert [but_for_the_clock(row) for row in table(experiment)] == [
        but_for_the_clock(row) for row in table(finished[0])
    ]


def but_for_the_clock(row):
    return {name: value for name, value in row.items() if name not in (*CLOCK, *EXPLAINED)}


def test_other_threads_are_other_predictions(finished):
    experiment, _ = finished
    section = experiment.sweep.model_copy(update={"threads": 2})
    with pytest.raises(ConfigError, match=r"cpu_threads 1, now 2"):
        sweep.run(experiment.model_copy(update={"sweep": section}))


def test_an_evaluation_of_other_threads_is_another_too(tiny):
    experiment = tiny(prune__methods=[{"name": "keep_none"}])
    with sweep_crew.cpu_threads(1):
        evaluate.run(experiment)
    with sweep_crew.cpu_threads(2), pytest.raises(ConfigError, match="cpu_threads 1, now 2"):
        evaluate.run(experiment)


def test_a_worker_that_fails_ends_the_sweep_with_its_exit_code():
    failed = sweep_crew.WorkerFailed(4)
    assert failed.exit_code == 4 and "no answer twice" in str(failed)
    assert sweep_crew.WorkerFailed(-9).exit_code == 75 and "signal 9" in str(sweep_crew.WorkerFailed(-9))


def test_the_pictures_and_the_table_are_written(finished):
    folder = finished[0].run_dir / "sweep"
    for axis in ("tokens", "flops", "latency"):
        with Image.open(folder / f"accuracy_vs_{axis}.png") as picture:
            assert picture.format == "PNG" and picture.width > 1000
    said = (folder / "table.md").read_text()
    assert "| holov@order=raster" in said and "received_attention is unavailable: needs received_attention" in said
    assert "infeasible" in said and "above 1, pruning is slower than not pruning" in said
    assert (folder / "config.yaml").is_file() and json.loads((folder / "summary.json").read_text())["schema"] == 1


def test_a_panel_may_have_more_curves_than_colours_and_a_picture_no_panel(finished, tmp_path):
    _, summary = finished
    rows = [row for row in summary["results"] if row["label"] == "holov"]
    many = [row | {"label": f"holov@n={number}"} for number in range(9) for row in rows]
    references = [row for row in summary["results"] if row["method"] == "keep_all"]
    for name, results in (("many", many), ("none", references)):
        for axis in sweep_plot.AXES:
            sweep_plot.plot({**summary, "results": results}, axis, tmp_path / f"{name}_{axis}.png")
    assert len(list(tmp_path.iterdir())) == 6


def test_saved_results_of_a_sweep_can_be_compared(finished):
    folder = str(finished[0].run_dir / "sweep")
    done = CliRunner().invoke(group, ["compare", folder, "--only", "*-3-compact", "--json"], catch_exceptions=False)
    assert {row["result"] for row in json.loads(done.stdout)["results"]} >= {
        "holov-3-compact",
        "cls_attention-3-compact",
    }


def test_the_command_sweeps_with_flags_and_names_what_is_wrong(home, tmp_path, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings(home, run_dir=str(tmp_path / "run"))))
    command = ["sweep", "--config", str(path), "--workers", "1", "--rounds", "1", "--json", "--methods"]

    def exit_code(methods):
        return run_to_exit_code(lambda: group.main([*command, methods], standalone_mode=False))

    assert exit_code("keep_none,uniform_grid") == 0
    assert {row["method"] for row in json.loads(capsys.readouterr().out)["results"]} == {"keep_none", "uniform_grid"}
    assert exit_code("nothing") == 2
    assert "sweep.methods: no such pruner (got 'nothing')" in capsys.readouterr().err
