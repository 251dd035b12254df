"""Names what is wrong with a store from its contents: a few images are encoded again under every suspicion.

Nothing that the store says about itself is believed; what it says and would be refused for is listed first.

checks.py        what can be seen without the tower      bench.py      the store, the tower, the images
bases.py         how a row of each array is made         fit.py        one stored row against one forward
evidence.py      what is known about every row           search.py     what costs no other picture
other_images.py  rows that are another image's           pictures.py   what costs a forward each
verdict.py       what was found, in words
"""

import json

import click

from configs.experiment import Experiment
from configs.progress import say
from stage1_extract.checking.sample import drawn, readable
from stage1_extract.diagnose.bench import Bench
from stage1_extract.diagnose.checks import check, price
from stage1_extract.diagnose.evidence import Evidence
from stage1_extract.diagnose.pictures import Pictures, affordable
from stage1_extract.diagnose.search import Search
from stage1_extract.diagnose.verdict import as_text, conclude
from store.reading.reader import FeatureStore

SOUND, WRONG = 0, 4
"""Exit codes."""
CHECKED = 64
"""Rows that are checked without the tower, unless all are asked for."""


def run(
    experiment: Experiment, sample: int, as_json: bool, seed: int = 0, whole: bool = False, tries: int | None = None
) -> int:
    """Diagnose `experiment`'s store against its checkpoint; prints the findings.

    Args:
        experiment: Names store, checkpoint and images.
        sample: Images to encode again.
        as_json: Whether to print JSON.
        seed: Decides which images are sampled, spread over the store.
        whole: Whether the checks that need no tower look at every row.
        tries: Forwards of the tower that other pictures may cost; None is some three minutes' worth.

    Returns:
        0 for a store that is what its config asks for, 4 otherwise.

    Raises:
        StoreMissing, CheckpointMissing, DataMissing: Something must be made or fetched first (exit 5).
        IntegrityError: Bytes of the store are damaged (exit 4).
        ChangedImage: The file of a sampled image has changed (exit 4).

    """
    store = FeatureStore.open(experiment.store_location, believe_plan=True)
    rows = readable(store)
    for line in _other_dtypes(experiment, store):
        say(line)
    bench = Bench(experiment, store)
    sampled = drawn(rows, sample, seed)
    looked_at = rows if whole else sorted({*sampled, *drawn(rows, CHECKED, seed)})
    say(price(bench, looked_at))
    checked = check(bench, looked_at, sample)
    sampled += [row for row in checked.conspicuous if row not in sampled]
    say(f"encoding {len(sampled)} images again")
    evidence = Evidence(bench, sampled)
    evidence.first_look()
    search = Search(evidence, checked, say)
    pictures = Pictures(search, affordable(bench) if tries is None else tries)
    for name in evidence.arrays:
        search.explain(name)
        if evidence.unexplained(name):
            seconds = pictures.left * bench.seconds
            say(
                f"{name}: trying other pictures, at most {pictures.left} forwards of the tower, {seconds / 60:.1f} minutes"
            )
            pictures.explain(name)
        search.simplify(name)
    result = conclude(bench, checked, evidence, seed, experiment.model.checkpoint)
    click.echo(json.dumps(result) if as_json else as_text(result))
    found = ("refusals", "causes", "unknown", "checks", "not_examined")
    return WRONG if any(result[one] for one in found) else SOUND


def _other_dtypes(experiment: Experiment, store: FeatureStore) -> list[str]:
    """Say which features are stored in another dtype than the config asks for: known before anything is loaded."""
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
