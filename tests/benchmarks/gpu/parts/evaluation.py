"""Questions per second of an evaluation, by questions at once and visual tokens."""

import copy
import time

from configs.experiment import EvalSection, Experiment
from stage2_prune.evaluation.cell_progress import open_progress
from stage2_prune.evaluation.cells import configured_pruners, plan
from stage2_prune.evaluation.evaluate import answer
from stage2_prune.evaluation.opening import bind
from stage2_prune.session.choose import choose
from stage2_prune.session.session import Session
from store.questions.question import Question
from tests.benchmarks.gpu import before
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows

PRUNED = "cls_attention"


def measure(place: Place, rows: Rows) -> None:
    """Measure unpruned and pruned prompts; many questions about few images too, where their prefix can be shared."""
    scale, session = place.scale, place.session()
    assert session.language_digest  # computed once, for all configs below
    asked = questions_of(session.experiment, "test")
    for method, kept in (("keep_all", scale.patches), (PRUNED, scale.few)):
        for size in scale.questions:
            some = asked[: min(len(asked), 4 * size)]
            rate = _rate(place, session, method, some, batch_size=size)
            what = before.evaluating(kept, scale.new_tokens, size)
            rows.add("evaluation", what, rate, "questions/s")
    if "share_prefix" not in EvalSection.model_fields:
        rows.say("evaluation", "shared prefixes are not measured: `eval.share_prefix` is not there")
        return
    many = questions_of(session.experiment, "val")
    for method, kept in (("keep_all", scale.patches), (PRUNED, scale.few)):
        for shared in (False, True):
            rate = _rate(place, session, method, many, batch_size=scale.questions[-1], share_prefix=shared)
            what = f"{kept} visual tokens, 30 questions an image, prefix {'shared' if shared else 'not shared'}"
            rows.add("evaluation", what, rate, "questions/s")


def questions_of(experiment: Experiment, split: str) -> list[Question]:
    """Return the questions of a split."""
    return choose(experiment, split, None)


def _rate(place: Place, session: Session, method: str, asked: list[Question], **settings: object) -> float:
    """Answer questions as an evaluation does, after a batch that does not count."""
    wanted = place.asking(
        prune={"methods": [method]}, eval={"max_new_tokens": place.scale.new_tokens, "rank": False, **settings}
    )
    other = _with(session, wanted)
    _answer(other, asked[: int(wanted.eval.batch_size)])
    begun = time.perf_counter()
    _answer(other, asked)
    return len(asked) / (time.perf_counter() - begun)


def _answer(session: Session, asked: list[Question]) -> None:
    experiment, patches = session.experiment, session.features.patches
    bound, digests = bind(session, configured_pruners(experiment))
    cells, unmet = plan(experiment, bound, patches, session.language.model.config.num_hidden_layers)
    assert cells and not unmet
    answer(session, open_progress(session, cells, digests, asked, overwrite=True), asked)


def _with(session: Session, experiment: Experiment) -> Session:
    """Return the same opened session with another config; what it has computed of its weights is kept."""
    other = copy.copy(session)
    object.__setattr__(other, "experiment", experiment)
    return other
