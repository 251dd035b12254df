"""The claims of the README's first screen, proved through the real command lines."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.helpers import stores
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions

ROOT = Path(__file__).parents[1]


def run(*arguments: object, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """`python -m …` in `cwd`, with an expected exit code."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, env=None
    )
    assert done.returncode == expect, f"{arguments}: exit {done.returncode}\n{done.stderr}\n{done.stdout}"
    return done


def experiment(folder: Path, checkpoint: Path, name: str = "proof") -> Path:
    """A small experiment on 16 patches with every kind of pruner."""
    config = {
        "run_dir": str(folder / "runs" / name),
        "model": {"checkpoint": str(checkpoint), "dtype": "float32", "device": "cpu"},
        "data": {"images": str(folder / "data" / "images"), "questions": str(folder / "data" / "questions.jsonl")},
        "prune": {
            "methods": [{"name": n} for n in ("keep_all", "keep_none", "random", "cls_attention", "learned_scorer")],
            "budgets": [8, 4],
            "seeds": 2,
        },
        "train": {"epochs": 1, "batch_size": 4, "min_keep": 2, "max_keep": 12, "val_keep": 4},
        "eval": {"batch_size": 4, "max_new_tokens": 3, "bootstrap": 50},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory):
    """An experiment with everything done: extract, train, eval."""
    folder = tmp_path_factory.mktemp("clip")
    checkpoint = tiny_llava(folder / "checkpoint")
    tiny_questions(folder / "data")
    config = experiment(folder, checkpoint)
    extracted = run("stage1_extract", "extract", "--config", config, "--json", cwd=folder)
    run("stage2_prune", "train", "--config", config, cwd=folder)
    run("stage2_prune", "eval", "--config", config, cwd=folder)
    return folder, config, json.loads(extracted.stdout)


def predictions(run_dir: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((run_dir / "eval" / "predictions").glob("*.jsonl"))}


def test_proof_stage_2_gives_the_same_predictions_without_images_and_without_any_tower_weight(clip_run, tmp_path):
    folder, config, _ = clip_run
    towerless = tmp_path / "checkpoint"
    shutil.copytree(folder / "checkpoint", towerless)
    weights = load_file(towerless / "model.safetensors")
    language = {name: tensor for name, tensor in weights.items() if "vision_tower" not in name}
    assert len(language) < len(weights)
    save_file(language, towerless / "model.safetensors", {"format": "pt"})
    hidden = folder / "data" / "images"
    hidden.rename(tmp_path / "images")
    try:
        flags = (
            "--run-dir",
            tmp_path / "run",
            "--store.path",
            folder / "runs/proof/store",
            "--model.checkpoint",
            towerless,
        )
        run("stage2_prune", "train", "--config", config, *flags, cwd=folder)
        run("stage2_prune", "eval", "--config", config, *flags, cwd=folder)
    finally:
        (tmp_path / "images").rename(hidden)
    assert predictions(tmp_path / "run") == predictions(folder / "runs" / "proof")


def test_proof_the_tower_sees_each_distinct_image_once_however_many_names_and_questions_it_has(clip_run, tmp_path):
    folder, config, first = clip_run
    rows = [json.loads(line) for line in (folder / "data" / "questions.jsonl").read_text().splitlines()]
    images = sorted({row["image"] for row in rows})
    assert first["tower_images"] == len(images)
    copies = tmp_path / "data"
    shutil.copytree(folder / "data", copies)
    for name in images:
        shutil.copy(copies / "images" / name, copies / "images" / f"twin_{name}")
    twins = [row | {"question_id": f"twin/{row['question_id']}", "image": f"twin_{row['image']}"} for row in rows]
    (copies / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *twins]))
    flags = (
        "--data.images",
        copies / "images",
        "--data.questions",
        copies / "questions.jsonl",
        "--run-dir",
        tmp_path / "run",
    )
    second = json.loads(run("stage1_extract", "extract", "--config", config, *flags, "--json", cwd=folder).stdout)
    assert second["tower_images"] == len(images)
    again = json.loads(run("stage1_extract", "extract", "--config", config, *flags, "--json", cwd=folder).stdout)
    assert again["tower_images"] == 0


def test_the_summary_has_one_row_per_pruner_budget_and_positions(clip_run):
    folder, _, _ = clip_run
    summary = json.loads((folder / "runs" / "proof" / "eval" / "summary.json").read_text())
    assert summary["schema"] == 1 and summary["primary"] == "generate" and summary["excluded"] == []
    keys = [(row["pruner"], row["keep"], row["positions"]) for row in summary["results"]]
    assert len(set(keys)) == len(keys) == 2 + 3 * 2
    for row in summary["results"]:
        assert row["n"] == summary["n_questions"]
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("stage2_prune", "train"), "extract"),
        (("stage2_prune", "eval"), "extract"),
        (("stage2_prune", "parity"), "extract"),
        (("store", "inspect"), "extract"),
    ],
)
def test_with_the_predecessor_missing_the_command_to_run_first_is_named(clip_run, tmp_path, arguments, command):
    folder, config, _ = clip_run
    done = run(*arguments, "--config", config, "--run-dir", tmp_path / "empty", cwd=folder, expect=5)
    assert f"make {command}" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluating_a_pruner_that_was_not_trained_names_make_train(clip_run, tmp_path):
    folder, config, _ = clip_run
    flags = ("--run-dir", tmp_path / "run", "--store.path", folder / "runs/proof/store")
    done = run("stage2_prune", "eval", "--config", config, *flags, cwd=folder, expect=5)
    assert "make train" in done.stderr


def test_a_llava_whose_tower_is_dinov2_with_tied_embeddings_and_shards_goes_through_all_stages(tmp_path):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision="dinov2", tie=True, sharded=True)
    tiny_questions(tmp_path / "data")
    config = experiment(tmp_path, checkpoint)
    for command in (
        ("stage1_extract", "extract"),
        ("stage2_prune", "train"),
        ("stage2_prune", "eval"),
        ("stage2_prune", "parity"),
    ):
        run(*command, "--config", config, cwd=tmp_path)
    parity = json.loads((tmp_path / "runs" / "proof" / "parity.json").read_text())
    summary = json.loads((tmp_path / "runs" / "proof" / "eval" / "summary.json").read_text())
    keep_all = next(row for row in summary["results"] if row["pruner"] == "keep_all")
    assert parity["identical"] is True
    assert parity["modes"]["baseline"]["accuracy"] == keep_all["accuracy"]


def parity_of(folder: Path, config: Path, store: Path, run_dir: Path, expect: int) -> dict[frozenset[str], dict]:
    """The pairs of a parity run on `store`, by the two modes' names."""
    flags = ("--run-dir", run_dir, "--store.path", store)
    done = run("stage2_prune", "parity", "--config", config, *flags, "--json", cwd=folder, expect=expect)
    result = json.loads(done.stdout)
    assert json.loads((run_dir / "parity.json").read_text()) == result
    assert set(result["modes"]) == {"baseline", "emb_direct", "emb_replaced", "soft_pruning"}
    return {frozenset((pair["a"], pair["b"])): pair for pair in result["pairs"]}


def equal(pair: dict) -> bool:
    features, logits = pair["features"], pair["logits"]
    nothing = features["max_abs_diff"] == features["mean_abs_diff"] == logits["max_abs_diff"] == 0
    assert nothing == (features["bit_equal"] and logits["bit_equal"] and pair["tokens_equal"])
    return nothing


def test_proof_parity_is_bit_for_bit_in_all_six_pairs_and_the_baseline_is_as_right_as_keep_all(clip_run, tmp_path):
    folder, config, _ = clip_run
    pairs = parity_of(folder, config, folder / "runs/proof/store", tmp_path / "run", expect=0)
    assert len(pairs) == 6 and all(equal(pair) for pair in pairs.values())
    parity = json.loads((tmp_path / "run" / "parity.json").read_text())
    summary = json.loads((folder / "runs/proof/eval/summary.json").read_text())
    keep_all = next(row for row in summary["results"] if row["pruner"] == "keep_all")
    assert parity["identical"] is True and parity["modes"]["baseline"]["accuracy"] == keep_all["accuracy"]


@pytest.mark.parametrize(
    ("damage", "differ"),
    [
        (lambda store: stores.flip_bit(store, "raw", row=2, element=7), {"emb_replaced", "soft_pruning"}),
        (lambda store: stores.flip_bit(store, "projected", row=2, element=7), {"emb_direct"}),
        (stores.flip_projector_bit, {"emb_replaced", "soft_pruning"}),
    ],
    ids=["raw", "projected", "projector"],
)
def test_proof_one_changed_bit_makes_parity_fail_in_the_modes_that_read_it_and_in_no_other(
    clip_run, tmp_path, damage, differ
):
    folder, config, _ = clip_run
    store = stores.copy(folder / "runs/proof/store", tmp_path / "store")
    damage(store)
    pairs = parity_of(folder, config, store, tmp_path / "run", expect=4)
    for modes, pair in pairs.items():
        assert equal(pair) == (len(modes & differ) != 1), modes


def test_a_store_of_projected_features_alone_makes_parity_incomplete_and_says_why(clip_run, tmp_path):
    folder, config, _ = clip_run
    flags = ("--run-dir", tmp_path / "run", "--store.arrays", "[projected]")
    run("stage1_extract", "extract", "--config", config, *flags, cwd=folder)
    done = run("stage2_prune", "parity", "--config", config, *flags[:2], "--json", cwd=folder, expect=3)
    result = json.loads(done.stdout)
    assert result["identical"] is None and [(one["a"], one["b"]) for one in result["pairs"]] == [
        ("baseline", "emb_direct")
    ]
    for mode in ("emb_replaced", "soft_pruning"):
        assert result["modes"][mode] == {"accuracy": None, "reason": result["modes"][mode]["reason"]}
        assert "raw" in result["modes"][mode]["reason"]


def test_parity_without_its_images_ends_with_what_is_missing_and_leaves_no_files_behind(clip_run, tmp_path):
    folder, config, _ = clip_run
    flags = ("--run-dir", tmp_path / "run", "--store.path", folder / "runs/proof/store", "--data.images", tmp_path)
    done = run("stage2_prune", "parity", "--config", config, *flags, cwd=folder, expect=5)
    assert (
        f"below {tmp_path} to encode it again, but there is no such file (missing_file): bring it back" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "run").iterdir()) == []
