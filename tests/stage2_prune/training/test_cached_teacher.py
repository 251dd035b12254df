"""A training that reads the cached teacher learns what one with a second forward pass learns."""

import json

import pytest

from stage2_prune.errors import NotTaught, OtherRun
from stage2_prune.teaching import teach
from stage2_prune.training import gradients, train
from stage2_prune.training.forward import taught
from store.errors import FingerprintMismatch


@pytest.fixture
def wanted(tiny, tmp_path):
    def make(run_dir, teach=None, **section):
        fields = {
            "epochs": 1,
            "batch_size": 4,
            "min_keep": 2,
            "max_keep": 12,
            "val_keep": 4,
            "kl_weight": 0.7,
        } | section
        return tiny(
            run_dir=str(tmp_path / run_dir), prune__methods=[{"name": "learned_scorer"}], train=fields,
            teach={"path": str(tmp_path / "teacher"), "shard_rows": 7} | (teach or {}),
        )  # fmt: skip

    return make


def log_of(experiment):
    lines = (experiment.run_dir / "pruner/learned_scorer/log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == "step"]


def test_losses_are_those_of_the_live_teacher_and_no_second_forward_pass_is_made(wanted, monkeypatch):
    live, cached = wanted("live"), wanted("cached", teacher="cached")
    train.run(live)
    with pytest.raises(NotTaught, match="python -m stage2_prune teach"):
        train.run(cached)
    teach.run(cached)
    unpruned, together = [], taught.answer_logits_together

    def watched(language, visual, weights, packed):
        unpruned.append(weights is None)
        return together(language, visual, weights, packed)

    for module in (taught, gradients):
        monkeypatch.setattr(module, "answer_logits_together", watched)
    train.run(cached)
    assert unpruned and not any(unpruned)
    assert len(log_of(live)) == len(log_of(cached)) > 1
    for ours, theirs in zip(log_of(cached), log_of(live), strict=True):
        assert ours["kl"] > 0
        assert ours["kl"] == pytest.approx(theirs["kl"], rel=1e-4) and ours["loss"] == pytest.approx(
            theirs["loss"], rel=1e-4
        )


def test_images_together_and_one_by_one_read_the_same_rows(wanted):
    one, together = (wanted(f"at-{count}", teacher="cached", images_at_once=count) for count in (1, 3))
    teach.run(one)
    train.run(one)
    train.run(together)
    for ours, theirs in zip(log_of(one), log_of(together), strict=True):
        assert ours["kl"] == pytest.approx(theirs["kl"], rel=1e-4)


def test_a_teacher_of_fewer_tokens_gives_at_most_the_full_divergence(wanted):
    full, short = wanted("full", teacher="cached"), wanted("short", {"top": 3, "path": None}, teacher="cached")
    for experiment in (full, short):
        teach.run(experiment)
        train.run(experiment)
    assert 0 < log_of(short)[0]["kl"] < log_of(full)[0]["kl"]
    with pytest.raises(FingerprintMismatch, match="top"):
        train.run(wanted("other", {"top": 5}, teacher="cached"))


def test_the_teacher_is_part_of_a_training_only_where_it_is_read(wanted):
    live, cached = wanted("run"), wanted("run", teacher="cached")
    recorded = train.run(live)["identity"]
    assert "train.teacher" not in recorded
    teach.run(cached)
    with pytest.raises(OtherRun, match=r"train\.teacher"):
        train.run(cached)
    unread = wanted("unread", teacher="cached", kl_weight=0, teach={"path": "nowhere"})
    assert "train.teacher" not in train.run(unread)["identity"]
