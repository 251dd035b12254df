"""Open a language half beside a store of features, to ask it questions and let pruners choose what it sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from configs import plugin
from configs.errors import WrongCall
from configs.experiment import Experiment, Positions
from configs.find_config import DEFAULT, load_experiment
from configs.load import method_of
from stage2_prune import pruners
from stage2_prune.errors import PrunerMisused
from stage2_prune.evaluation.cells import build
from stage2_prune.evaluation.opening import bind
from stage2_prune.language.assemble import assemble
from stage2_prune.language.generate import generate
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session.arguments import question_answer_pairs, require_visual_tokens
from stage2_prune.session.ask import ask, prepare
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.prune_batch import ABOUT_QUESTIONS, QuestionReader, choose_batch, prune_batch
from stage2_prune.session.session import Session, open_session
from stage2_prune.training.step import frozen, lesson_of, mean_loss
from store.questions.question import Question
from store.reading.by_name import rows_of


def load_pruner(method: str, **parameters: Any) -> Pruner:
    """Make a pruner by its name in a config or by the path of its file; ConfigError (exit 2) names what is wrong.

    Examples:
        >>> load_pruner("div_prune")
        DivPrune()

    """
    return build(method_of(method, parameters), plugin.find_all(pruners, Pruner))


@dataclass(frozen=True)
class CachedModel:
    """The language half of a model beside the cached features of its images; no vision tower is in memory.

    Examples:
        >>> model = CachedModel.open("demo")  # doctest: +SKIP
        >>> model.answer("image_0001.png", "what color is the star ?", load_pruner("cls_attention"), keep=64)  # doctest: +SKIP
        'red'

    """

    session: Session

    @classmethod
    def open(cls, config: Experiment | Path | str = DEFAULT, **settings: Any) -> "CachedModel":
        """Open the store and the language half of an experiment.

        Args:
            config: An experiment, a config file, or the name of a packaged config.
            **settings: Values of the config's fields.

        Raises:
            EncodeOnceError: As `python -m stage2_prune eval`, with its exit code in `exit_code`.

        """
        experiment = load_experiment(config, **settings)
        return cls(open_session(experiment, frozenset()))

    def answer(
        self,
        image: str,
        question: str,
        pruner: Pruner | str | None = None,
        keep: int | None = None,
        positions: Positions | None = None,
    ) -> str:
        """Answer a question about a stored image.

        Args:
            image: Name of the image, as in the questions.
            question: What is asked; `data.post_prompt` is appended, as in an evaluation.
            pruner: A method that prunes before the language model, or its name. None keeps every visual token.
            keep: Visual tokens to keep. None for methods without a budget.
            positions: RoPE positions of kept tokens. None takes the method's published choice.

        """
        if pruner is None and keep is not None:
            raise WrongCall(
                f"expected a pruner that keeps {keep} visual tokens, got none: give `pruner`, or leave out `keep`"
            )
        pruner = self.bound("keep_all" if pruner is None else pruner)
        batch, pruned = prune_batch(pruner, *self._asked([image], question, pruner, keep))
        language, experiment = self.session.language, self.session.experiment
        prepared = prepare(language, batch.questions, experiment.data.post_prompt, rank=False)
        steps = experiment.eval.max_new_tokens
        return ask(language, batch, prepared, pruned, positions or pruner.positions, steps)[0].prediction

    def answer_features(self, features: Float[Tensor, "kept embed"], question: str) -> str:
        """Answer a question from visual tokens in the language model's embedding space, at consecutive positions.

        Raises WrongCall (exit 2) unless the features are a tensor of that shape, as wide as the embeddings.
        """
        language, experiment = self.session.language, self.session.experiment
        require_visual_tokens(features, language.width)
        prompt = language.prompt(question + experiment.data.post_prompt)
        with torch.no_grad():
            batch = assemble(language, [prompt], features[None].to(language.device), None, self.patches, "compact")
        return language.decode(generate(language, batch, experiment.eval.max_new_tokens).tokens)[0]

    def loss(
        self,
        features: Float[Tensor, "*image token embed"],
        questions: Sequence[str] | str,
        answers: Sequence[str] | str,
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the answers' tokens, in nats: differentiable in the features alone.

        The weights of the language model are frozen, and the loss is that of `run_training`, so a module of your own that makes
        visual tokens can be trained through the language model. Visual tokens stand at consecutive positions.

        Args:
            features: Visual tokens in the language model's embedding space: (image, token, embed) with an image for each
                question, or (token, embed) of a single image that all questions are about.
            questions: What is asked; `data.post_prompt` is appended, as in a training.
            answers: The right answer to each question; the end of the answer is learned with it.

        Raises:
            WrongCall: (exit 2) The features are no such tensor, or the numbers of images, questions and answers differ.

        """
        language, post_prompt = self.session.language, self.session.experiment.data.post_prompt
        require_visual_tokens(features, language.width, batched=True)
        pairs = question_answer_pairs(features, questions, answers)
        lessons = [lesson_of(language, question + post_prompt, answer) for question, answer in pairs]
        own_image = features.dim() == 3
        visual = (features if own_image else features[None]).to(language.device)
        with frozen(language.model):
            return mean_loss(language, visual, [number if own_image else 0 for number in range(len(pairs))], lessons)

    def select(
        self, pruner: Pruner | str, images: Sequence[str], keep: int, question: str = ""
    ) -> Int[Tensor, "image {keep}"]:
        """Return the patches of stored images that a pruner keeps, as indices in raster order or in the method's own.

        Args:
            pruner: A method that selects before the language model, or its name.
            images: Names of images.
            keep: Visual tokens to keep of each image.
            question: What is asked of every image, for methods that read the question.

        """
        pruner = self.bound(pruner)
        batch, pruned = choose_batch(pruner, *self._asked(images, question, pruner, keep))
        if pruned.index is None:
            raise PrunerMisused(
                f"expected a method that selects patches, {type(pruner).__name__} makes new tokens of them"
            )
        return pruned.index[batch.of_question]

    def bound(self, pruner: Pruner | str) -> Pruner:
        """Return the pruner as this store and this model need it: a trained one with the weights of the experiment's run.

        Args:
            pruner: A method, or its name as `load_pruner` takes it.

        Raises:
            NotTrained: (exit 5) There are no weights: run `make train`, or `load_pruner(name, weights=FOLDER)`.

        """
        if isinstance(pruner, str):
            pruner = load_pruner(pruner)
        if not isinstance(pruner, TrainedPruner):
            self.session.features.check(type(pruner).__name__, pruner)
            return pruner
        label = pruner.file.stem
        return pruner if pruner.has_module else bind(self.session, {label: pruner})[0][label]

    @property
    def patches(self) -> int:
        """Visual tokens of an unpruned image."""
        return self.session.features.patches

    def _asked(
        self, images: Sequence[str], question: str, pruner: Pruner, keep: int | None
    ) -> tuple[FeatureBatch, int, QuestionReader]:
        """Read what a pruner needs of some images, as the arguments that follow the pruner in `prune_batch`."""
        features = self.session.features.reading(pruner.needs)
        if pruner.place != "before_llm":
            raise PrunerMisused(
                f"expected a method that prunes before the language model, {type(pruner).__name__} prunes inside it: "
                "evaluate it with run_evaluation"
            )
        if pruner.reads & ABOUT_QUESTIONS and not question:
            raise PrunerMisused(
                f"expected a question for {type(pruner).__name__}, which reads it, got none: give `question`"
            )
        rows_of(features.store, images)  # raises an error that names an unknown image
        asked = [Question(question_id=image, image=image, question=question) for image in images]
        (batch,) = features.batches([asked])
        budget = pruner.asked_tokens(self.patches, -1 if keep is None else keep)
        if pruner.budget != "fixed" and not 1 <= budget <= self.patches:
            raise PrunerMisused(
                f"expected `keep` between 1 and {self.patches} visual tokens for {type(pruner).__name__}, got {keep}"
            )
        return batch, budget, self.session.reader
