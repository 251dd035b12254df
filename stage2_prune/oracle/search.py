"""Search the patches of every question that a model answers best from: for the right answer, and for its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from configs import plugin
from configs.experiment import OracleSection
from configs.load import build_pruner, method_of
from configs.progress import PROGRESS, ProgressBar, say
from stage2_prune import pruners
from stage2_prune.analysis.truth import Truth
from stage2_prune.errors import PrunerMisused
from stage2_prune.language.clock import seconds_after_work
from stage2_prune.language.generate import generate
from stage2_prune.oracle.greedy import SINGLES, greedy, rounds
from stage2_prune.oracle.pool import OF_EACH_METHOD, candidates
from stage2_prune.oracle.scoring import AnswerScorer
from stage2_prune.oracle.search_log import SearchLog
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.pruning.tokens import Pruned
from stage2_prune.session.ask import prepare, prompts
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.identity import digest, of_questions
from stage2_prune.session.prune_batch import choose_batch
from stage2_prune.session.session import Session
from stage2_prune.training.packed import Lesson
from stage2_prune.training.step import lesson_of
from store.questions.question import Question

_CODE = ("greedy.py", "pool.py", "scoring.py", "search.py")
"""Files of this folder that decide what is found."""


def proposing(section: OracleSection) -> dict[str, Pruner]:
    """Build the methods that put candidates forward; raise PrunerMisused (exit 2) for one that does not select by a budget."""
    classes = plugin.find_all(pruners, Pruner)
    methods = {name: build_pruner(method_of(name, {}), classes) for name in section.methods}
    for name, pruner in methods.items():
        if isinstance(pruner, TrainedPruner) or pruner.place == "in_llm" or pruner.budget != "exact":
            raise PrunerMisused(
                f"oracle.methods: expected training-free methods that select a number of patches before the language model, "
                f"{name} is none: name others, such as cls_attention"
            )
    return methods


def identity_of(session: Session, asked: Sequence[Question], truth: Truth, largest: int) -> dict[str, Any]:
    """Gather everything that the result of a search depends on, as JSON."""
    section = session.experiment.oracle
    regions = {name: shown.nonzero()[:, 0].tolist() for name, shown in sorted(truth.items())}
    code = b"".join((Path(__file__).parent / name).read_bytes() for name in _CODE)
    conditions = {name: value for name, value in session.conditions.items() if name != "eval.batch_size"}
    return conditions | {
        "oracle.seed": section.seed,
        "oracle.methods": list(section.methods),
        "oracle.pool": section.pool,
        "largest": largest,
        "questions": of_questions(asked),
        "regions": digest(regions),
        "features": {name: digest(made) for name, made in session.fingerprints.items()},
        "code": sha256(code).hexdigest(),
    }


@dataclass(frozen=True)
class Search:
    """The search for the best patches of one question after another."""

    session: Session
    methods: Mapping[str, Pruner]
    truth: Truth
    """The patches that show what a question is about, where they are known."""
    largest: int
    """Number of patches that are searched for."""

    def run(self, asked: Sequence[Question], log: SearchLog, folder: Path) -> None:
        """Search for all questions that the log lacks, and say first what this costs."""
        left = log.left(asked)
        batches = [[question] for question in left]
        with ProgressBar(
            what="oracle", total=len(asked), initial=len(asked) - len(left), unit="questions", file=folder / PROGRESS
        ) as bar:
            for number, batch in enumerate(self.session.features.batches(batches)):
                right, own = self._lessons(batch)
                pool = self._pool(batch)
                if number == 0:
                    self._say_price(AnswerScorer(self.session.language, right, batch.projected[0]), pool, len(left))
                of_right, of_own = self._found(batch, right, pool), None
                if own.answer != right.answer:
                    of_own = self._found(batch, own, pool)
                log.append(batch.questions[0], of_right, of_right if of_own is None else of_own)
                bar.update()

    def _found(self, batch: FeatureBatch, lesson: Lesson, pool: Sequence[int]) -> list[int]:
        return greedy(AnswerScorer(self.session.language, lesson, batch.projected[0]), pool, self.largest)

    @torch.no_grad()
    def _lessons(self, batch: FeatureBatch) -> tuple[Lesson, Lesson]:
        """Return the question with its first right answer, and with the unpruned model's own answer.

        The model is asked about one question at a time, so that no result depends on where a search was interrupted.
        """
        language, experiment = self.session.language, self.session.experiment
        question, post_prompt = batch.questions[0], experiment.data.post_prompt
        prepared = prepare(language, [question], post_prompt, rank=False)
        every = Pruned(torch.arange(batch.projected.shape[1], device=language.device)[None])
        asked = prompts(language, batch, prepared, every, "original")
        tokens: list[int] = generate(language, asked, experiment.eval.max_new_tokens).tokens[0].tolist()
        ends = [place for place, token in enumerate(tokens, start=1) if token in language.eos_token_ids]
        right = lesson_of(language, question.question + post_prompt, question.answers[0])
        return right, Lesson(right.prompt, tuple(tokens[: ends[0] if ends else None]))

    @torch.no_grad()
    def _pool(self, batch: FeatureBatch) -> list[int]:
        """Choose the candidates of the question of a batch."""
        section, reader = self.session.experiment.oracle, self.session.reader
        question, patches = batch.questions[0], batch.projected.shape[1]
        proposed: list[list[int]] = []
        for name, pruner in self.methods.items():
            index = choose_batch(pruner, batch, min(OF_EACH_METHOD, patches), reader)[1].index
            if index is None:
                raise PrunerMisused(
                    f"oracle.methods: expected methods that keep patches, {name} merges them: name another"
                )
            proposed.append(index[0].tolist())
        shown = self.truth.get(question.question_id)
        region = [] if shown is None else shown.nonzero()[:, 0].tolist()
        image_id = batch.tokens.image_ids[0]
        return candidates(region, proposed, patches, section.pool, section.seed, image_id, question.question_id)

    def _say_price(self, score: AnswerScorer, pool: Sequence[int], questions: int) -> None:
        """Say how many prompts a search reads, and how long it takes as measured on one round."""
        kept, text, device = min(SINGLES, self.largest), len(score.lesson.prompt.after), self.session.language.device
        sets = torch.tensor([sorted(pool[:kept])] * len(pool))
        score(sets)
        begun = seconds_after_work(device)
        score(sets)
        of_token = (seconds_after_work(device) - begun) / (len(pool) * (kept + text))
        listed = rounds(len(pool), self.largest)
        minutes = questions * of_token * sum(count * (size + text) for size, count in listed) / 60
        say(
            f"oracle: {questions} questions to search, {sum(count for _, count in listed):,} prompts of up to {self.largest} "
            f"patches each for the right answer, and as many where the model's own answer is another: {minutes:.1f} to "
            f"{2 * minutes:.1f} minutes"
        )
