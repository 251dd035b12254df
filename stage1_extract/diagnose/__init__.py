"""Names what is wrong with a store from its contents: a few images are encoded again under every suspicion.

Nothing that the store says about itself is believed; what it says and would be refused for is listed first.

sample.py (beside this room)  which rows         bench.py   the tower, the images, what both make of each other
checks.py                     without the tower  bases.py   what one forward shows, by array
fit.py                        one row and one forward       search.py  all rows, few suspicions first
verdict.py                    what was found, in words
"""

import json

import click

from configs.experiment import Experiment
from stage1_extract.diagnose.bench import Bench
from stage1_extract.diagnose.checks import check, price
from stage1_extract.diagnose.search import Search
from stage1_extract.diagnose.verdict import as_text, conclude
from stage1_extract.sample import drawn, readable
from store.reader import FeatureStore

SOUND, WRONG = 0, 4
"""Exit codes."""
CHECKED = 64
"""Rows that are checked without the tower, unless all are asked for."""
TRIES = 120
"""Forwards of the tower that other pictures may cost."""


def run(
    experiment: Experiment, sample: int, as_json: bool, seed: int = 0, whole: bool = False, tries: int = TRIES
) -> int:
    """Diagnose `experiment`'s store against its checkpoint; prints the findings.

    Args:
        experiment: Names store, checkpoint and images.
        sample: Images to encode again.
        as_json: Whether to print JSON.
        seed: Decides which images are sampled, spread over the store.
        whole: Whether the checks that need no tower look at every row.
        tries: Forwards of the tower that other pictures may cost.

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
    search = Search(bench, sampled, checked, tries, say)
    search.first_look()
    for name in search.arrays:
        search.explain(name)
    result = conclude(bench, checked, search, seed, experiment.model.checkpoint)
    click.echo(json.dumps(result) if as_json else as_text(result))
    found = ("refusals", "causes", "unknown", "checks", "not_examined")
    return WRONG if any(result[one] for one in found) else SOUND


def say(line: str) -> None:
    """Tell how far a diagnosis is, in a log as on a terminal."""
    click.echo(f"diagnose: {line}", err=True)


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
