"""Right or wrong: normalisation, and ranking of choices against a naive reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.experiment import ModelSection
from stage2_prune.find_family import open_language
from stage2_prune.language.assemble import assemble
from stage2_prune.language.generate import generate
from stage2_prune.language.score import choice_scores, is_right, likeliest, log_probabilities
from store.questions.answers import normalise
from tests.helpers.checkpoints import tiny_llava

QUESTIONS = ("what color is the circle ?", "is there a red square ?")


@pytest.mark.parametrize(
    ("prediction", "answers", "right"),
    [
        (" Red.\n", ("red",), True),
        ("dark  RED", ("blue", "Dark red"), True),
        ("a red", ("red",), False),  # articles stay
        ("", ("red",), False),
        ("", ("...",), False),  # an answer of punctuation is not an empty one
        ("...", ("...",), True),
        ("", (), False),
    ],
)
def test_a_prediction_is_right_if_it_equals_any_answer_after_normalisation(prediction, answers, right):
    assert is_right(prediction, answers) is right


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    checkpoint = tiny_llava(tmp_path_factory.mktemp("score") / "checkpoint")
    language = open_language(ModelSection(checkpoint=str(checkpoint), device="cpu"))
    visual = torch.randn(2, 5, language.width, generator=torch.Generator().manual_seed(0))
    prompts = [language.prompt(question) for question in QUESTIONS]
    index = torch.tensor([[0, 3, 4, 7, 8]]).expand(2, -1)
    return language, assemble(language, prompts, visual, index, 9, "original")


@torch.no_grad()
def naive(language, batch, row, option):
    """Log-probability of the option and the end of the answer, one token at a time, without padding."""
    valid = batch.attention_mask[row].bool()
    embeds, places = batch.inputs_embeds[row, valid][None], batch.position_ids[row, valid][None]
    total = 0.0
    for token in (*option, language.eos_token_ids[0]):
        logits = language.model(
            inputs_embeds=embeds, attention_mask=torch.ones_like(places), position_ids=places
        ).logits[0, -1]
        total += logits.float().log_softmax(-1)[token].item()
        embeds = torch.cat([embeds, language.embed(torch.tensor([[token]]))], 1)
        places = torch.cat([places, places[:, -1:] + 1], 1)
    return total


def rank(*arguments):
    return [None if scores is None else likeliest(scores) for scores in choice_scores(*arguments)]


def test_choices_of_several_tokens_are_ranked_as_a_naive_reference_ranks_them(asked):
    language, batch = asked
    options = [((5, 6), (7,), (8, 9, 10), (7, 5)), ((6, 6), (9,), (10, 5))]
    prefill = generate(language, batch, 1).logits[:, 0]
    expected = [
        max(range(len(o)), key=lambda i, o=o, r=r: naive(language, batch, r, o[i])) for r, o in enumerate(options)
    ]
    assert rank(language, batch, prefill, options) == expected


def test_choices_of_one_token_are_ranked_by_the_logits_of_the_same_forward(asked):
    language, batch = asked
    prefill = generate(language, batch, 1).logits[:, 0]
    best = rank(language, batch, prefill, [((5,), (6,), (7,)), None])
    assert best == [int(prefill[0, 5:8].argmax()), None]


def test_of_equal_choices_the_first_wins(asked):
    language, batch = asked
    prefill = torch.zeros(2, language.model.config.vocab_size)
    assert rank(language, batch, prefill, [((9,), (5,)), ((6,), (8,))]) == [0, 0]


def test_log_probabilities_are_among_the_choices_and_a_choice_given_twice_counts_once():
    found = log_probabilities(["yes", "no", "yes"], torch.tensor([3.0, 1.0, 3.0]))
    assert list(found) == ["yes", "no"]
    assert found["yes"] - found["no"] == pytest.approx(2, abs=2e-6)
    assert sum(math.exp(log) for log in found.values()) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_scores_of_choices_of_several_tokens_are_their_log_probabilities(asked):
    language, batch = asked
    options = [((5, 6), (7,)), None]
    scores, none = choice_scores(language, batch, generate(language, batch, 1).logits[:, 0], options)
    assert none is None
    assert scores.tolist() == pytest.approx([naive(language, batch, 0, option) for option in options[0]], abs=1e-4)
