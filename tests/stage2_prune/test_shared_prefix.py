"""A prefix that is read once for all questions about an image: the logits of the whole prompts, up to rounding."""

import pytest
import torch

from configs.experiment import ModelSection, Positions
from stage2_prune.find_family import open_language
from stage2_prune.language.assemble import assemble
from stage2_prune.language.generate import generate
from stage2_prune.language.score import choice_scores
from stage2_prune.language.shared_prefix import share_prefixes
from tests.helpers.checkpoints import tiny_llava

QUESTIONS = ("what color is the circle ?", "is there a red square ?", "how many ?", "what is it ?", "how many ?")
OF_QUESTION = [0, 0, 1, 2, 1]
PATCHES, STEPS = 9, 4
INDEX = torch.tensor([[0, 3, 4, 7, 8], [1, 2, 4, 5, 6], [0, 1, 2, 3, 8]])


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    checkpoint = tiny_llava(tmp_path_factory.mktemp("prefix") / "checkpoint")
    return open_language(ModelSection(checkpoint=str(checkpoint), device="cpu"))


def both(language, positions: Positions = "original", counts=None):
    """The batch as it is asked without a shared prefix, and with it."""
    prompts = [language.prompt(question) for question in QUESTIONS]
    visual = torch.randn(3, 5, language.width, generator=torch.Generator().manual_seed(0))
    index = INDEX if positions == "original" else None
    kept = None if counts is None else [counts[image] for image in OF_QUESTION]
    of_question = torch.tensor(OF_QUESTION)
    whole = assemble(
        language,
        prompts,
        visual[of_question],
        None if index is None else index[of_question],
        PATCHES,
        positions,
        kept,
    )
    return whole, share_prefixes(language, prompts, OF_QUESTION, visual, index, PATCHES, positions, counts)


CASES = [("original", None), ("compact", None), ("original", [5, 2, 4]), ("compact", [1, 5, 3])]


@pytest.mark.parametrize(("positions", "counts"), CASES)
def test_logits_behind_a_shared_prefix_are_those_of_the_whole_prompts_within_a_ten_thousandth(
    language, positions, counts
):
    whole, shared = both(language, positions, counts)
    expected, answers = generate(language, whole, STEPS), generate(language, shared, STEPS)
    assert torch.equal(answers.tokens, expected.tokens)
    assert (answers.logits - expected.logits).abs().max() < 1e-4
    again = generate(language, shared, STEPS)
    assert torch.equal(again.logits, answers.logits)  # the prefixes were not written to


@pytest.mark.parametrize(("positions", "counts"), CASES)
def test_choices_of_several_tokens_continue_from_the_prefix_too(language, positions, counts):
    whole, shared = both(language, positions, counts)
    prefill = generate(language, whole, 1).logits[:, 0]
    choices = [((5, 6), (7,)), ((8,), (9,)), None, ((4, 5, 6), (6, 5)), ((5,), (6, 7, 8))]
    expected = choice_scores(language, whole, prefill, choices)
    scores = choice_scores(language, shared, prefill, choices)
    for score, should in zip(scores, expected, strict=True):
        assert (score is None) == (should is None)
        if score is not None and should is not None:
            assert (score - should).abs().max() < 1e-4


def test_the_prefix_of_an_image_is_read_once_for_all_its_questions(language, monkeypatch):
    lengths, forward = [], language.model.forward

    def counted(*arguments, **named):
        lengths.append(tuple(named["inputs_embeds"].shape[:2]) if named.get("inputs_embeds") is not None else None)
        return forward(*arguments, **named)

    monkeypatch.setattr(language.model, "forward", counted)
    _, shared = both(language)
    before = len(language.prompt(QUESTIONS[0]).before)
    assert lengths == [(3, before + 5)]
    assert shared.slots.sum(-1).tolist() == [5] * 5 and shared.unpruned == both(language)[0].unpruned
