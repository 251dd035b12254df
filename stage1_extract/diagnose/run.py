"""The command `diagnose`: encode a few images of a store again and print what is wrong with the store."""

import json

import click

from configs.counted import counted
from configs.experiment import Experiment
from configs.progress import say
from stage1_extract.checking.sample import drawn, readable
from stage1_extract.diagnose.bench import Bench
from stage1_extract.diagnose.checks import check, price
from stage1_extract.diagnose.evidence import Evidence
from stage1_extract.diagnose.pictures import Pictures, affordable
from stage1_extract.diagnose.search import Search
from stage1_extract.diagnose.verdict import as_text, conclude
from store.layout.tower_call import call_of
from store.reading.reader import FeatureStore

SOUND, WRONG = 0, 4
"""Exit codes of the command."""
CHECKED = 64
"""Number of rows that are checked without the tower, unless every row is asked for."""
FINDINGS = ("refusals", "causes", "unknown", "checks", "not_examined")
"""Keys of the result under which findings lie; a store is wrong if any of them holds a finding."""


def run(
    experiment: Experiment, sample: int, as_json: bool, seed: int = 0, whole: bool = False, tries: int | None = None
) -> int:
    """Diagnose the experiment's store against its checkpoint and print the findings.

    Args:
        experiment: Names store, checkpoint and images.
        sample: Number of images to encode again.
        as_json: Whether to print JSON.
        seed: Decides which images are sampled, spread over the store.
        whole: Whether the checks that need no tower look at every row.
        tries: Most forwards of the tower to spend on changed pictures; None is as many as take about three minutes.

    Returns:
        0 if the store holds what its config asks for, 4 otherwise.

    Raises:
        StoreMissing, CheckpointMissing, DataMissing: Something must be made or fetched first (exit 5).
        IntegrityError: Bytes of the store are damaged (exit 4).
        ChangedImage: The file of a sampled image has changed (exit 4).

    """
    store = FeatureStore.open(experiment.store_location, believe_plan=True)
    rows = readable(store)
    for line in _other_dtypes(experiment, store):
        say(line)
    sampled = drawn(rows, sample, seed)
    bench = Bench(experiment, store, drawn(rows, call_of(store.plan).images, seed))
    looked_at = rows if whole else sorted({*sampled, *drawn(rows, CHECKED, seed)})
    say(price(bench, looked_at))
    checked = check(bench, looked_at, sample)
    sampled += [row for row in checked.conspicuous if row not in sampled]
    say(f"encoding {counted(len(sampled), 'image')} again")
    evidence = Evidence(bench, sampled)
    evidence.first_look()
    _explain(Search(evidence, checked, say), affordable(bench) if tries is None else tries)
    result = conclude(bench, checked, evidence, seed, experiment.model.checkpoint)
    click.echo(json.dumps(result) if as_json else as_text(result))
    return WRONG if any(result[key] for key in FINDINGS) else SOUND


def _explain(search: Search, tries: int) -> None:
    """Explain every array: first by causes that need no changed picture, then by changed pictures, at most `tries` in all."""
    evidence, pictures = search.evidence, Pictures(search, tries)
    for name in evidence.arrays:
        search.explain(name)
        if evidence.unexplained(name):
            minutes = pictures.left * evidence.bench.seconds / 60
            say(f"{name}: trying other pictures, at most {pictures.left} forwards of the tower, {minutes:.1f} minutes")
            pictures.explain(name)
        search.simplify(name)


def _other_dtypes(experiment: Experiment, store: FeatureStore) -> list[str]:
    """Say which features are stored in another dtype than the config asks for; no model is loaded for this."""
    asked = experiment.model.dtype
    others = {
        name: spec.dtype
        for name, spec in store.arrays.items()
        if name in ("raw", "projected", "cls_hidden") and spec.dtype != asked
    }
    return [
        f"{name} is stored in {dtype}, the config asks for {asked}: compared in {dtype}"
        for name, dtype in others.items()
    ]
