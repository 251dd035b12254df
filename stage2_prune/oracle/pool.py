"""Choose the candidates of a search: patches that are likely to matter for a question, and random ones."""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from stage2_prune.primitives.draw import permutation
from store.questions.question import Question

OF_EACH_METHOD = 32
"""Number of patches that each method puts forward."""


def candidates(
    region: Sequence[int],
    of_methods: Sequence[Sequence[int]],
    patches: int,
    pool: int,
    seed: int,
    image_id: str,
    question_id: str,
) -> list[int]:
    """Return the candidates of one question, at most `pool` and no more than the image has.

    They are the patches that show what the question is about, then those that the methods choose, then random ones. A region
    fills at most half of the pool. Each of the three groups is in an order that is random, but a function of `seed`, image
    and question, so that what a full pool leaves out, and which of equal candidates counts as first, depends on no place in
    the image.

    Args:
        region: the patches that show what the question is about; empty where they are not known.
        of_methods: the patches that each method chooses.
        patches: the number of patches of the image.
        pool: the number of candidates.
        seed: the seed of the order.
        image_id: the sha256 of the image's file.
        question_id: the id of the question.
    """
    order = permutation(seed, f"{image_id} {question_id}", patches)
    place = np.argsort(order)
    shown = sorted(set(region), key=lambda patch: place[patch])[: pool // 2]
    chosen = sorted({patch for of_method in of_methods for patch in of_method}, key=lambda patch: place[patch])
    return list(dict.fromkeys([*shown, *chosen, *order.tolist()]))[:pool]


def sample(asked: Sequence[Question], count: int, seed: int) -> list[Question]:
    """Choose `count` questions by seed and id, in the order in which they are asked.

    A question's place in the choice depends on no other question, so that splits, models and runs share the choice.
    """

    def drawn(question: Question) -> str:
        return sha256(f"{seed} {question.question_id}".encode()).hexdigest()

    chosen = {question.question_id for question in sorted(asked, key=drawn)[:count]}
    return [question for question in asked if question.question_id in chosen]
