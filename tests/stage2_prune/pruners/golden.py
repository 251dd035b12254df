"""Kept indices of a method inside the model against a naive rule on a stock eager model, question by question."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from stage2_prune.errors import Infeasible
from stage2_prune.language.language import Language
from tests.stage2_prune.eager_oracle import Eager, View, best, of_question
from tests.stage2_prune.small_llama import (
    LAYERS,
    PATCHES,
    PROMPTS,
    answers,
    eager_twin,
    kept_by,
    questions,
    small_language,
)  # fmt: skip

STEPS = 12
Scores = Callable[[View], dict[int, float]]


@cache
def model(heads: int = 4) -> tuple[Language, Eager]:
    language = small_language(heads=heads)
    return language, Eager(eager_twin(language))


def check(
    pruner, keep: int, positions: str, scores: Scores | None = None, rule=None, heads: int = 4, schedule=None
) -> None:
    """The method keeps, of every question of a padded batch, what `rule` keeps of it alone: the best of `scores`.

    And it answers as the stock eager model does that masks what `rule` drops: 12 tokens, without a cache.
    """
    language, oracle = model(heads)
    try:
        schedule = schedule or pruner.schedule(PATCHES, LAYERS, keep)
    except Infeasible:
        pytest.fail(f"{pruner} at {keep} of {PATCHES} is infeasible: choose another budget")
    batch = questions(language, positions)
    found = kept_by(language, pruner, schedule, positions, batch)
    naive = rule or (lambda view, count: best(scores(view), count))
    rules = {stage.layer: lambda view, count=stage.keep: naive(view, count) for stage in schedule.stages}
    assert rules, "nothing is dropped"
    said = answers(language, pruner, schedule, positions, batch, STEPS)
    for row in range(len(PROMPTS)):
        prompt, start = of_question(batch, row)
        whole = torch.cat([prompt, language.embed(said.tokens[row, :-1])])
        logits = oracle.run(whole, start, PATCHES, len(prompt), rules, positions)
        assert found[row] == oracle.kept
        torch.testing.assert_close(said.logits[row], logits[len(prompt) - 1 :], atol=1e-4, rtol=1e-4)


def layers_of(pruner, keep: int) -> dict[int, list[int]]:
    """What stays of the first question, by the layer from which on."""
    language, _ = model()
    return kept_by(language, pruner, pruner.schedule(PATCHES, LAYERS, keep), pruner.positions, questions(language))[0]
