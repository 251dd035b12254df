"""Reporting what a store holds, as JSON and as text; imports neither torch nor transformers."""

from typing import Any

from configs.counted import counted
from configs.experiment import StoreLocation
from store.layout.ids import printable
from store.log.commits import SUPERSEDED
from store.log.progress import nameless_shards
from store.reading.reader import FeatureStore

_SHOWN = 20


def report(path: StoreLocation) -> dict[str, Any]:
    """Report the arrays, fingerprints, committed and missing shards and failures of a store, as a value for JSON.

    Shards whose images have lost all their names are not missing: they are never encoded.
    """
    store = FeatureStore.open(path)
    plan = store.plan
    missing = store.missing_shards
    nameless = nameless_shards(plan, store.ids, missing)
    return {
        "path": str(path),
        "format": plan.format,
        "generation": plan.generation,
        "images": plan.n_images,
        "identity": plan.identity,
        "codec": store.codec,
        "geometry": plan.geometry.model_dump(mode="json"),
        "arrays": [
            {
                "name": spec.name,
                "axes": ["image", *spec.axes],
                "shape": [plan.n_rows, *spec.shape],
                "dtype": spec.dtype,
                "stored_as": spec.storage.str,
                "bytes": plan.n_rows * spec.row_bytes,
            }
            for spec in plan.arrays
        ],
        "projector": None if (projector := store.projector) is None else projector.kind,
        "shards": {
            "images_per_shard": plan.shard_images,
            "total": plan.n_shards,
            "committed": store.committed_shards,
            "missing": [shard for shard in missing if shard not in nameless],
        },
        "failures": _failures(store),
        "fingerprints": {name: made_by.model_dump(mode="json") for name, made_by in plan.fingerprints.items()},
        "notes": list(plan.notes),
    }


def _failures(store: FeatureStore) -> list[dict[str, Any]]:
    """List the rows that lack an array because their image could not be encoded, with the arrays that they lack.

    Rows of files that have changed since are left out: their names belong to other rows.
    """
    lacking = {name: store.failed([name]) for name in store.arrays}
    return [
        {
            "row": row,
            "names": store.ids.names(row),
            "reason": why,
            "arrays": [name for name, rows in lacking.items() if row in rows],
        }
        for row, why in store.failed().items()
        if why != SUPERSEDED and store.ids.names(row)
    ]


def as_text(contents: dict[str, Any]) -> str:
    """Format a report for a reader."""
    shards, failures = contents["shards"], contents["failures"]
    grid, tokens = contents["geometry"]["grid"], contents["geometry"]["tokens"]
    tokens_of_each = f"{grid[0]}x{grid[1]} patches" if grid else f"{tokens} tokens without a grid"
    lines = [
        f"{contents['path']}: {counted(contents['images'], 'image')} of {tokens_of_each}, "
        f"format {contents['format']}, generation {contents['generation']}, identity by {contents['identity']}",
        "",
    ]
    lines += [
        f"  {array['name']:<16} {' x '.join(map(str, array['shape'])):<22} {array['dtype']:<9} "
        f"{array['bytes'] / 1e6:>12,.1f} MB   ({', '.join(array['axes'])})"
        for array in contents["arrays"]
    ]
    if contents["codec"] != "none":
        lines += ["", f"codec      {contents['codec']}: an archive, which is only read"]
    lines += ["", f"projector  {contents['projector'] or 'none: it could not be reached apart from the model'}"]
    lines += [
        f"shards     {len(shards['committed'])} of {shards['total']} committed, "
        f"{counted(shards['images_per_shard'], 'image')} each"
        + (f"; missing {_some(shards['missing'])}" if shards["missing"] else "")
    ]
    lines += [f"failures   {len(failures)}"]
    lines += [
        f"  row {failure['row']} {', '.join(map(printable, failure['names']))}: {failure['reason']}"
        + (f" ({', '.join(failure['arrays'])} only)" if len(failure["arrays"]) < len(contents["arrays"]) else "")
        for failure in failures[:_SHOWN]
    ]
    lines += [f"note       {note}" for note in contents["notes"]]
    for name, fingerprint in contents["fingerprints"].items():
        lines += ["", f"fingerprint of {name}"]
        for part, fields in fingerprint.items():
            lines += [f"  {part:<9} {key}: {value}" for key, value in fields.items()]
    return "\n".join(lines)


def _some(numbers: list[int]) -> str:
    """List the first numbers, with an ellipsis if there are more."""
    listed = ", ".join(map(str, numbers[:_SHOWN]))
    return listed + (" …" if len(numbers) > _SHOWN else "")
