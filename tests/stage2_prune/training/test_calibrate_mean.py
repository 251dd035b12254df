"""Thresholds that meet a budget in the mean: every budget on the validation split, saved with the weights, and evaluated."""

import json

import pytest
import torch

from stage2_prune.evaluation import evaluate
from stage2_prune.pruners.glimpse_prune import GlimpsePrune
from stage2_prune.pruners.step_prune import StepPrune
from stage2_prune.session.prune_batch import choose_batch
from stage2_prune.session.session import open_session
from stage2_prune.training import train
from stage2_prune.training.calibration.calibrate_mean import calibrate_mean, thresholds_of
from store.questions.question import read_questions

METHOD = {"name": "step_prune", "width": 16, "count": "threshold"}
SECTION = {"pruner": "step_prune", "epochs": 1, "batch_size": 2, "min_keep": 4, "max_keep": 4, "val_keep": 4}


@pytest.mark.parametrize("found", [GlimpsePrune, StepPrune])
def test_the_mean_over_the_questions_is_the_budget_at_every_budget(tiny, found):
    questions = read_questions(tiny().data)
    pruner = found(width=16, count="threshold")
    session = open_session(tiny(), pruner.needs)
    pruner = pruner.fresh(session.features.spec(pruner, session.language.width), seed=0)
    calibrate_mean(pruner, session, questions)
    numbers = set()
    for keep in range(1, session.features.patches + 1):
        counts = []
        for batch in session.features.batches([questions[:5], questions[5:]]):
            with torch.no_grad():
                asked, chosen = choose_batch(pruner, batch, keep, session.reader)
            counts += chosen.counts[asked.of_question].tolist()
        numbers |= set(counts)
        assert len(counts) == len(questions) and sum(counts) / len(counts) == pytest.approx(keep, rel=0.02)
    assert len(numbers) > session.features.patches // 2


def test_thresholds_of_scores_by_hand():
    scores = torch.tensor([[9.0, 8.0, 7.0, 1.0], [4.0, 3.0, 2.0, 0.0]])
    highest = torch.finfo(torch.float32).max
    assert thresholds_of(scores).tolist() == [highest, 7.0, 2.0, -highest]
    # 1 token each; 9, 8, 7 and 4; all but 1 and 0; everything


def test_a_training_calibrates_and_an_evaluation_meets_the_budgets_in_the_mean(tiny, tmp_path):
    experiment = tiny(train=SECTION, prune={"methods": [METHOD], "budgets": [8, 4]})
    train.run(experiment)
    summary = evaluate.run(experiment)
    assert [row["keep"] for row in summary["results"]] == [8, 4]
    for row in summary["results"]:
        lines = (experiment.run_dir / "eval" / "predictions" / f"step_prune-{row['keep']}-original.jsonl").read_text()
        counts = [json.loads(line)["visual_tokens"] for line in lines.splitlines()]
        assert row["tokens_per_layer_mean"] == pytest.approx(sum(counts) / len(counts))
        assert 1 <= row["tokens_per_layer_mean"] <= 16
    kept = [row["tokens_per_layer_mean"] for row in summary["results"]]
    assert kept[0] > kept[1]
