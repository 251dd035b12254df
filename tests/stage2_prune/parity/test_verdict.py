"""Parity sends to the store only where the store can be the cause."""

from pathlib import Path

import pytest
import torch

from stage2_prune.parity.differences import Pair
from stage2_prune.parity.findings import Findings, ParityScorer
from stage2_prune.parity.modes import BASELINE, EMB_DIRECT, Outcome
from stage2_prune.parity.report import as_text


def verdict(part):
    """The last line about two modes of one question that differ in one part of their outcome."""
    ours = {"features": torch.ones(1, 4, 3), "logits": torch.ones(1, 2, 5), "tokens": torch.tensor([[3, 2]])}
    theirs = ours | ({} if part is None else {part: ours[part] + 1})
    pair = Pair(BASELINE, EMB_DIRECT)
    pair.add({BASELINE: Outcome(**ours), EMB_DIRECT: Outcome(**theirs)})
    right = {BASELINE: 0, EMB_DIRECT: 0}
    found = Findings(Path("runs/x/store"), [], [], {}, right, [pair], ParityScorer("keep_all", {}))
    return as_text(found).splitlines()[-1]


@pytest.mark.parametrize("part", ["logits", "tokens"])
def test_where_features_are_equal_and_only_answers_differ_the_store_is_not_pointed_at(part):
    said = verdict(part)
    assert said.startswith("DIFFERENT") and "the store is not the cause" in said and "diagnose" not in said


def test_where_features_differ_the_store_is_diagnosed():
    assert "stage1_extract diagnose runs/x/store` names the cause" in verdict("features")


def test_where_nothing_differs_no_cause_is_looked_for():
    assert verdict(None).startswith("IDENTICAL") and "cause" not in verdict(None)
