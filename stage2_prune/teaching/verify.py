"""Verify a teacher: every byte as in any store, and that the spans say which rows belong to which question."""

from pathlib import Path

from configs.counted import counted
from configs.errors import TEACH
from stage2_prune.errors import NotTaught
from stage2_prune.training.teacher import ANSWERS, ATTENTION, SPAN, row_id
from store.care.verify import verify
from store.layout.plan import FEATURES, newest_generation
from store.log.finding import Finding
from store.reading.reader import FeatureStore


def findings(teacher: Path) -> list[Finding]:
    """List everything that is wrong with the parts of a teacher; raises NotTaught (exit 5) if there are none."""
    parts = [teacher / name for name in (ANSWERS, ATTENTION) if newest_generation(teacher / name) is not None]
    if not parts:
        raise NotTaught(f"expected the unpruned model's answers in {teacher}, there are none: run {TEACH} first")
    found = [finding for part in parts for finding in verify(part, quick=False)]
    if not found and parts[0].name == ANSWERS:
        found += _wrong_spans(parts[0])
    return found


def _wrong_spans(folder: Path) -> list[Finding]:
    """Report the shards in which a row is not the row of its question that its span says."""
    store = FeatureStore.open(folder)
    found: list[Finding] = []
    for shard in store.committed_shards:
        rows = store.plan.rows(shard)
        spans = store.gather(SPAN, rows).tolist()
        wrong = [row for row, (first, count) in zip(rows, spans, strict=True) if not _fits(store, row, first, count)]
        if wrong:
            path, problem = store.plan.layout(SPAN).relative_path(shard), f"{counted(len(wrong), 'span')} of other rows"
            remedy = "teach again with --overwrite"
            found.append(Finding(str(folder / FEATURES / path), problem, shard, remedy))
    return found


def _fits(store: FeatureStore, row: int, first: int, count: int) -> bool:
    inside = 0 <= first <= row < first + count <= store.plan.n_rows
    return inside and store.ids.sha_of_row(row) == row_id(store.ids.sha_of_row(first), row - first)
