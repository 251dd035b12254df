"""Any pruner on a batch of questions: those that look at the question, and those that decide how many tokens they keep."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import ClipText, Merge, Pruned
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.prune_batch import QuestionReader, joined, per_question, prune_batch
from store.questions.question import Question
from tests.stage2_prune.tokens import visual_tokens

GRID = (3, 4)
WORDS = ("a", "b c", "d e f", "g", "h i", "a")
OF_QUESTION = (0, 0, 1, 2, 2, 2)


class WordReader(QuestionReader):
    """A question of n words becomes n rows, each a function of its word alone."""

    def __init__(self):
        object.__setattr__(self, "features", SimpleNamespace(project=lambda raw: raw[..., :3] * 2))

    def question(self, question):
        return torch.stack([self.row(word, 12) for word in question.question.split()])[None]

    def clip_text(self, question):
        rows = torch.stack([self.row(word, 5) for word in question.question.split()])[None]
        return ClipText(rows.mean(1, keepdim=True), rows, 1.0)

    def row(self, word, width):
        return torch.randn(width, generator=torch.Generator().manual_seed(ord(word)))


@dataclass(frozen=True)
class LikeTheQuestion(Pruner):
    """Patches whose projected features are most like any word."""

    needs: ClassVar = frozenset({"projected"})
    reads: ClassVar = frozenset({"question"})

    def select(self, tokens, keep):
        assert tokens.clip_text is None and tokens.projector is None
        likeness = (tokens.arrays["projected"] @ tokens.question.transpose(1, 2)).amax(-1)
        return likeness.topk(keep).indices.sort(-1).values


@dataclass(frozen=True)
class AboveTheMean(Pruner):
    """Patches whose raw norm, after the projector, is above the image's mean: as many as there are."""

    needs: ClassVar = frozenset({"raw"})
    reads: ClassVar = frozenset({"projector"})
    budget: ClassVar = "adaptive"

    def prune(self, tokens, keep):
        assert keep == tokens.patches and tokens.question is None
        norm = tokens.projector(tokens.arrays["raw"]).norm(dim=-1)
        above = norm > norm.mean(-1, keepdim=True)
        counts = above.sum(-1)
        index = above.long().sort(dim=-1, descending=True, stable=True).indices[:, : counts.max()]
        return Pruned(index, counts=counts)


def a_batch():
    """As it comes from a store: arrays, and nothing beside them."""
    tokens = visual_tokens(GRID)
    tokens = tokens.only(tokens.arrays)
    questions = tuple(
        Question(question_id=str(n), image=f"{of}.png", question=words)
        for n, (words, of) in enumerate(zip(WORDS, OF_QUESTION, strict=True))
    )
    return FeatureBatch(questions, torch.tensor(OF_QUESTION), tokens, tokens.arrays["projected"])


def test_a_method_that_reads_the_question_prunes_an_image_once_for_each_question_as_if_it_were_asked_alone():
    batch, reader, pruner = a_batch(), WordReader(), LikeTheQuestion()
    seen, pruned = prune_batch(pruner, batch, 5, reader)
    assert seen.of_question.tolist() == list(range(len(WORDS)))
    for place, (words, of) in enumerate(zip(WORDS, OF_QUESTION, strict=True)):
        assert seen.tokens.image_ids[place] == batch.tokens.image_ids[of]
        assert torch.equal(seen.projected[place], batch.projected[of])
        tokens = replace(batch.tokens.one(of), question=reader.question(batch.questions[place]))
        alone = pruner.prune(tokens.only(pruner.needs, pruner.reads), 5).index[0]
        assert torch.equal(pruned.index[place], alone), words
    assert len({tuple(row) for row in pruned.index.tolist()}) > len(set(OF_QUESTION))


def test_a_method_that_does_not_read_the_question_sees_each_image_once_and_nothing_of_the_question():
    seen, pruned = prune_batch(AboveTheMean(), a_batch(), 12, WordReader())
    assert seen.of_question.tolist() == list(OF_QUESTION)
    assert pruned.index.shape[0] == 3 and len(set(pruned.counts.tolist())) > 1


@dataclass(frozen=True)
class LikeTheWords(Pruner):
    """As LikeTheQuestion, in CLIP's space."""

    needs: ClassVar = frozenset({"raw"})
    reads: ClassVar = frozenset({"clip_text"})

    def select(self, tokens, keep):
        assert tokens.question is None
        likeness = (tokens.arrays["raw"][..., :5] @ tokens.clip_text.tokens.transpose(1, 2)).amax(-1)
        return likeness.topk(keep).indices.sort(-1).values


def test_questions_are_read_in_clips_space_too():
    batch, reader, pruner = a_batch(), WordReader(), LikeTheWords()
    _, pruned = prune_batch(pruner, batch, 4, reader)
    for place, of in enumerate(OF_QUESTION):
        tokens = replace(batch.tokens.one(of), clip_text=reader.clip_text(batch.questions[place]))
        assert torch.equal(pruned.index[place], pruner.select(tokens, 4)[0])


def test_a_batch_for_each_question_repeats_what_its_images_have():
    batch = a_batch()
    each = per_question(batch)
    for name, array in batch.tokens.arrays.items():
        assert torch.equal(each.tokens.arrays[name], array[list(OF_QUESTION)])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4), st.data())
def test_joined_results_are_those_of_the_parts_in_the_order_asked_for(parts, data):
    images = sum(map(len, parts))
    order = data.draw(st.permutations(range(images)))
    made, expected = [], []
    for counts in parts:
        index = torch.randint(0, 9, (len(counts), max(counts)))
        weights = torch.rand(len(counts), max(counts), 9)
        weights *= (torch.arange(max(counts)) < torch.tensor(counts)[:, None])[..., None]
        made.append(Pruned(index, Merge(weights, "raw"), counts=torch.tensor(counts)))
        expected += [(index[n, :c], weights[n, :c]) for n, c in enumerate(counts)]
    found = joined(made, order)
    for place, source in enumerate(order):
        index, weights = expected[source]
        count = int(found.counts[place])
        assert count == len(index)
        assert torch.equal(found.index[place, :count], index)
        assert torch.equal(found.merge.weights[place, :count], weights)
        assert not found.merge.weights[place, count:].any()


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_images_that_keep_different_numbers_of_tokens_are_laid_out_as_each_would_be_alone(positions):
    from stage2_prune.language.assemble import assemble
    from tests.stage2_prune.small_llama import PROMPTS, small_language

    language = small_language()
    prompts, patches = list(PROMPTS), 12
    counts = [5, 2, 12]
    visual = torch.randn(len(prompts), max(counts), language.width)
    index = torch.stack([torch.randperm(patches)[: max(counts)].sort().values for _ in prompts])
    together = assemble(language, prompts, visual, index, patches, positions, counts)
    for row, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        alone = assemble(
            language, [prompt], visual[row : row + 1, :count], index[row : row + 1, :count], patches, positions
        )
        tail = slice(-alone.input_ids.shape[1], None)
        assert torch.equal(together.inputs_embeds[row, tail], alone.inputs_embeds[0])
        assert torch.equal(together.position_ids[row, tail], alone.position_ids[0])
        assert int(together.attention_mask[row].sum()) == alone.input_ids.shape[1]
        assert int(together.slots[row].sum()) == count


@dataclass(frozen=True)
class OneTooMany(Pruner):
    """Keeps a patch more than it may."""

    def select(self, tokens, keep):
        return torch.arange(keep + 1).expand(len(tokens.image_ids), -1)


def test_a_method_that_does_not_keep_to_its_budget_is_refused_not_reported():
    with pytest.raises(PrunerMisused, match="expected 5 visual tokens per image of OneTooMany, it returned 6"):
        prune_batch(OneTooMany(), a_batch(), 5, WordReader())


@dataclass(frozen=True)
class Returning(Pruner):
    """Selects what it is given."""

    index: object = None

    def select(self, tokens, keep):
        return self.index


@dataclass(frozen=True)
class Nothing(Pruner):
    """Has neither method."""


@dataclass(frozen=True)
class Unpacked(Pruner):
    """Forgets to make a Pruned of its index."""

    def prune(self, tokens, keep):
        return torch.zeros(3, keep, dtype=torch.long)


@pytest.mark.parametrize(
    ("pruner", "said"),
    [
        (Returning(torch.arange(5)), r"\(image, keep\) = \(3, 5\) from Returning.select \(.*py, line \d+\), got shape \(5,\)"),
        (Returning([0, 1]), "got a list"),
        (Returning(), "got None"),
        (Returning(torch.rand(3, 5)), "got shape .* of float32"),
        (Returning(torch.zeros(7, 5).long()), r"got shape \(7, 5\)"),
        (Returning(torch.zeros(3, 5).int()), "expected indices in int64 from Returning.select"),
        (Nothing(), "Nothing has neither select nor prune"),
        (Unpacked(), r"expected a Pruned from Unpacked.prune \(.*py, line \d+\), got shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_as_a_result_is_refused_with_the_place_of_the_method(pruner, said):
    with pytest.raises(PrunerMisused, match=said):
        prune_batch(pruner, a_batch(), 5, WordReader())
