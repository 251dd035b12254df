"""Judge a pruner on the validation split, by the hard selection and the greedy generation of an evaluation."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from configs.experiment import Positions
from configs.progress import ProgressBar
from stage2_prune.language.layer_loop import pruning_inside
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.pruning.scored import ThresholdPruner
from stage2_prune.pruning.trained_inside import TrainedInside
from stage2_prune.session.ask import Prepared, ask
from stage2_prune.session.batch_size import batch_size
from stage2_prune.session.prune_batch import prune_batch
from stage2_prune.session.session import Session
from stage2_prune.training.calibration.calibrate_mean import calibrate_mean
from stage2_prune.training.ranks import Ranks
from store.questions.question import Question


@torch.no_grad()
def right_of(
    pruner: TrainedPruner, session: Session, questions: Sequence[Question], ranks: Ranks
) -> Float[np.ndarray, " question"]:
    """Tell which questions are answered right at `train.val_keep` tokens (1 or 0), scored as in `eval`.

    Ranks share whole batches, so that each question is answered as in one process.
    """
    if isinstance(pruner, ThresholdPruner) and pruner.adaptive:
        calibrate_mean(pruner, session, questions)
    experiment, language = session.experiment, session.language
    size = batch_size(experiment)
    starts = ranks.share(range(0, len(questions), size))
    batches = [questions[start : start + size] for start in starts]
    choice = experiment.prune.positions[0]
    positions: Positions = pruner.positions if choice == "default" else choice
    right = torch.zeros(len(questions), device=language.device)
    keep = experiment.train.val_keep
    if isinstance(pruner, TrainedInside):
        schedule = pruner.schedule(session.features.patches, language.depth, keep, experiment.prune.match)
        language, keep = pruning_inside(language, pruner, schedule, positions), schedule.entering
    with ProgressBar(what="validation", total=sum(map(len, batches)), unit="answers", leave=False) as bar:
        for start, batch in zip(starts, session.features.batches(batches), strict=True):
            texts = [question.question + experiment.data.post_prompt for question in batch.questions]
            unranked = Prepared(tuple(language.prompt(text) for text in texts), (None,) * len(texts))
            seen, pruned = prune_batch(pruner, batch, keep, session.reader)
            answers = ask(language, seen, unranked, pruned, positions, experiment.eval.max_new_tokens)
            right[start : start + len(answers)] = torch.tensor([float(answer.right) for answer in answers])
            bar.update(len(texts))
    ranks.add([right])
    return right.double().cpu().numpy()
