"""Commit the shards of a teacher's part that are missing, one after another; a killed run loses the shard at work."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from configs.counted import counted
from configs.progress import ProgressBar
from stage2_prune.errors import OtherRun
from stage2_prune.session.session import Session
from stage2_prune.teaching.compute import Compute, Placed, Rows
from stage2_prune.teaching.parts import Asked, Part
from stage2_prune.training.teacher import OTHER_TEACHER
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.writing.writer import StoreWriter


@torch.no_grad()
def commit_missing(
    session: Session, part: Part, plan: Plan, ids: ImageIds, asked: Sequence[Asked], compute: Compute
) -> int:
    """Compute and commit every missing shard of a part, and return how many questions were computed.

    Questions of a shard that can share a forward pass share one, whatever was committed before: so an interrupted run and an
    uninterrupted one make the same bytes. A question whose rows lie in two shards is computed for each of them.

    Raises:
        StoreLocked: (exit 6) if another process writes.
        NonFiniteTeacher: (exit 3) naming the question.
        OtherRun: (exit 2) if a shard that an earlier run left unfinished needs questions that this config does not name.
    """
    placed = sorted((_placed(ids, question) for question in asked), key=lambda question: question.first)
    starts = [question.first for question in placed]
    computed: set[int] = set()
    with StoreWriter.open(part.folder, plan, ids, None) as writer:
        shards = {shard: _inside(part, plan.rows(shard), placed, starts) for shard in writer.missing_shards()}
        work = {shard: _groups(questions) for shard, questions in shards.items() if questions}
        for shard, questions in shards.items():
            if questions:
                _require_all(part, plan.rows(shard), questions)
        features = session.features.batches([[group[0].asked.question] for groups in work.values() for group in groups])
        with ProgressBar(
            what=f"teach {part.folder.name}", total=sum(map(len, shards.values())), unit="questions"
        ) as bar:
            for shard, groups in work.items():
                rows = plan.rows(shard)
                arrays = {s.name: np.empty((len(rows), *s.shape), s.storage) for s in part.arrays}
                for group in groups:
                    visual = next(features).projected[0]
                    for question, values in zip(group, compute(session.language, visual, group), strict=True):
                        _put(arrays, rows, question.first, values)
                    bar.update(len(group))
                    computed.update(question.first for question in group)
                writer.commit_shard(shard, arrays, {}, {})
    return len(computed)


def _placed(ids: ImageIds, asked: Asked) -> Placed:
    first = ids.row_of_sha(asked.key)
    assert first is not None, "the plan has a row for every question that is asked"
    return Placed(asked, first)


def _inside(part: Part, rows: range, placed: Sequence[Placed], starts: Sequence[int]) -> list[Placed]:
    """List the questions that have a row in a shard."""
    begin = bisect_left(starts, rows.start)
    if begin and starts[begin - 1] + part.rows(placed[begin - 1].asked) > rows.start:
        begin -= 1
    return list(placed[begin : bisect_left(starts, rows.stop)])


def _require_all(part: Part, rows: range, placed: Sequence[Placed]) -> None:
    """Raise OtherRun (exit 2) unless every row of a shard belongs to one of the questions."""
    known = sum(len(_overlap(rows, question.first, part.rows(question.asked))) for question in placed)
    if known < len(rows):
        raise OtherRun(
            f"expected all questions of an unfinished shard of {part.folder}, this config does not name those of "
            f"{counted(len(rows) - known, 'row')}: name the questions of the earlier run again (data.train, data.val), or "
            f"{OTHER_TEACHER}"
        )


def _groups(placed: Sequence[Placed]) -> list[list[Placed]]:
    """Group neighbours that can share a forward pass."""
    return [list(group) for _, group in groupby(placed, key=lambda question: question.asked.company)]


def _put(arrays: dict[str, NDArray[Any]], rows: range, first: int, values: Rows) -> None:
    """Lay those rows of a question into a shard's arrays that belong to the shard."""
    for name, own in values.items():
        inside = _overlap(rows, first, len(own))
        arrays[name][inside.start - rows.start : inside.stop - rows.start] = own[
            inside.start - first : inside.stop - first
        ]


def _overlap(rows: range, first: int, count: int) -> range:
    return range(max(first, rows.start), min(first + count, rows.stop))
