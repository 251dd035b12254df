"""What was found in a store, for programs and for people."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from configs.files.portable import is_folder
from stage1_extract.diagnose.bench import Bench
from stage1_extract.diagnose.checks import Checked
from stage1_extract.diagnose.evidence import Evidence, Finding
from stage1_extract.diagnose.suspects import NOT_PROJECTED, OTHER_IMAGES, OTHER_PROJECTOR, Cause
from store.layout.fingerprint import SOURCES, differences
from store.layout.ids import printable

CLOSEST = 0.05
"""Relative difference up to which an array that nothing explains is said to be close to something."""
_SHOWN = 3


def refusals(bench: Bench) -> Iterable[str]:
    """Yield, field by field, what a command that needs this store would refuse it for."""
    plan = bench.store.plan
    if any(log.plan_digests - {plan.digest_of(one)} for one, log in enumerate(bench.store.logs)):
        yield "plan: it was changed after shards were committed"
    for name, spec in bench.store.arrays.items():
        if name not in bench.expected:
            yield f"{name}: this checkpoint makes no such array"
            continue
        expected, found = bench.expected[name].semantic, bench.store.fingerprint(name).semantic
        moved = [key for key in SOURCES if all(is_folder(str(one.get(key))) for one in (expected, found))]
        expected, found = (
            {key: value for key, value in one.items() if key not in moved}
            for one in (json.loads(json.dumps(expected)), found)
        )
        yield from (f"{name}: {difference}" for difference in differences(expected, found))
        wanted = next(one for one in bench.encoder.description.arrays if one.name == name).shape
        if spec.shape != wanted:
            yield f"{name}: shape: expected {wanted} per image, found {spec.shape}"


def conclude(bench: Bench, checked: Checked, evidence: Evidence, seed: int, checkpoint: str) -> dict[str, Any]:
    """Gather everything that was found into one JSON-able mapping."""
    causes = _causes(bench, checked, evidence)
    unknown = [name for name, rows in evidence.found.items() if not all(one.known for one in rows.values())]
    named = {name: [bench.image_name(row) for row in rows] for name, rows in _by_check(checked).items()}
    return {
        "store": str(bench.store.path),
        "checkpoint": checkpoint,
        "seed": seed,
        "images": len(evidence.rows),
        "of": bench.store.plan.n_images,
        "rows_checked": len(checked.rows),
        "encoded": [bench.image_name(row) for row in evidence.rows],
        "refusals": list(refusals(bench)),
        "causes": [
            vars(cause) | {"images": None if every else [bench.image_name(row) for row in rows]}
            for cause, (rows, every) in causes.items()
        ],
        "unknown": unknown,
        "checks": named,
        "not_examined": [name for name in bench.store.arrays if name not in evidence.found],
        "arrays": {name: _array(bench, evidence, name) for name in evidence.found},
    }


def _causes(bench: Bench, checked: Checked, evidence: Evidence) -> dict[Cause, tuple[list[int], bool]]:
    """Return every cause with the rows that show it, and whether those are all that were looked at."""
    shown: dict[Cause, set[int]] = {}
    for rows in evidence.found.values():
        for finding in rows.values():
            for cause in finding.causes:
                shown.setdefault(cause, set()).add(finding.row)
    for rows in checked.blank.values():
        for row, cause in rows.items():
            shown.setdefault(cause, set()).add(row)
    twins = {row for groups in checked.twins.values() for group in groups for row in group}
    if twins and not twins & shown.get(OTHER_IMAGES, set()) and not _unexplained(evidence) & twins:
        shown.setdefault(OTHER_IMAGES, set()).update(twins)
    if not any(cause.kind == "projector" for cause in shown) and bench.projector_differs():
        shown[OTHER_PROJECTOR] = set(evidence.rows)
    explained = {row for rows in shown.values() for row in rows} | _unexplained(evidence)
    if not explained & set(checked.not_projected) and checked.not_projected:
        shown[NOT_PROJECTED] = set(checked.not_projected)
    every = set(evidence.rows)
    return {cause: (sorted(rows), rows >= every) for cause, rows in shown.items()}


def _unexplained(evidence: Evidence) -> set[int]:
    return {row for rows in evidence.found.values() for row, finding in rows.items() if not finding.known}


def _by_check(checked: Checked) -> dict[str, list[int]]:
    """Name what the checks without the tower found."""
    found = {f"{name}: {cause.detail}": [] for name, rows in checked.blank.items() for cause in rows.values()}
    for name, rows in checked.blank.items():
        for row, cause in rows.items():
            found[f"{name}: {cause.detail}"].append(row)
    for name, groups in checked.twins.items():
        for group in groups:
            found.setdefault(f"{name}: equal rows of images that differ", []).extend(group)
    if checked.not_projected:
        found[NOT_PROJECTED.detail] = checked.not_projected
    return found


def _array(bench: Bench, evidence: Evidence, name: str) -> dict[str, Any]:
    """Describe what explains one array; the worst row decides."""
    findings, gaps = evidence.found[name], evidence.gaps[name]
    unknown = [one for one in findings.values() if not one.known]
    worst = max(unknown or findings.values(), key=lambda one: one.trial.residual)
    causes = dict.fromkeys(cause for one in findings.values() for cause in one.causes)
    closest = worst.trial.causes if unknown and worst.trial.residual <= CLOSEST else ()
    return {
        "causes": [vars(cause) for cause in (closest if unknown else causes)],
        "bit_equal": all(one.trial.equal for one in findings.values()),
        "residual": worst.trial.residual if worst.trial.residual < float("inf") else None,
        "known": not unknown,
        "close": bool(unknown) and worst.trial.residual <= CLOSEST,
        "note": worst.note,
        "wrong": [bench.image_name(row) for row, one in findings.items() if one.wrong],
        "unexplained": [bench.image_name(one.row) for one in unknown],
        "shown_in": _moved(bench, findings.values()),
        "made_elsewhere": bench.made_elsewhere(name),
        "max_abs_diff": max(gap.max_abs for gap in gaps),
        "mean_abs_diff": sum(gap.mean_abs for gap in gaps) / len(gaps),
        "allclose": all(gap.allclose for gap in gaps),
    }


def _moved(bench: Bench, findings: Iterable[Finding]) -> dict[str, str]:
    """Name, by image, the image whose features lie in its row."""
    return {bench.image_name(one.row): bench.image_name(one.image) for one in findings if one.image is not None}


def as_text(result: Mapping[str, Any]) -> str:
    """Say refusals, one paragraph per array, what the checks found, and the verdict."""
    lines = [f"{result['store']}: {_extent(result)}, by {result['checkpoint']}", ""]
    lines += [f"refused  {refusal}" for refusal in result["refusals"]] or ["refused  nothing: its fingerprints agree"]
    lines.append("")
    for name, one in result["arrays"].items():
        lines += _array_lines(name, one, result["images"])
    lines += [f"check    {what} ({_listed(images)})" for what, images in result["checks"].items()]
    if result["not_examined"]:
        lines.append(f"not examined: {', '.join(result['not_examined'])}")
    return "\n".join([*lines, "", _verdict(result)])


def _array_lines(name: str, one: Mapping[str, Any], images: int) -> list[str]:
    words = "; ".join(cause["detail"] for cause in one["causes"])
    some = 0 < len(one["wrong"]) < images
    if not one["known"]:
        left = "nothing tried has its shape" if one["residual"] is None else f"residual {one['residual']:.6f}"
        near = f"closest to {words or 'the right features'}, {left}" if one["close"] else f"nothing is close, {left}"
        said = f"UNKNOWN: {one['note'] or near}"
    else:
        exactly = "bit for bit" if one["bit_equal"] else f"up to rounding (residual {one['residual']:.1e})"
        said = f"{words or 'as it should be'}, {exactly}"
    lines = [f"{name:<14}{said}"]
    if some:
        lines.append(f"{'':<14}in {len(one['wrong'])} of {images} images: {_listed(one['wrong'])}")
    lines += [
        f"{'':<14}{printable(row)} holds {printable(image)}" for row, image in [*one["shown_in"].items()][:_SHOWN]
    ]
    if one["causes"] or not one["known"]:
        lines.append(
            f"{'':<14}against the model's own: max |diff| {one['max_abs_diff']:.6f}, mean |diff| "
            f"{one['mean_abs_diff']:.6f}, allclose(atol=1e-5) {one['allclose']}"
        )
    if not one["bit_equal"] and one["made_elsewhere"]:
        lines.append(
            f"{'':<14}made elsewhere ({'; '.join(one['made_elsewhere'][:_SHOWN])}): equal bits are not expected"
        )
    return lines


def _listed(images: Sequence[str]) -> str:
    more = f" and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
    return ", ".join(map(printable, images[:_SHOWN])) + more


def _extent(result: Mapping[str, Any]) -> str:
    return (
        f"{result['images']} of {result['of']} images encoded again (seed {result['seed']}), "
        f"{result['rows_checked']} rows checked without the tower"
    )


def _verdict(result: Mapping[str, Any]) -> str:
    causes = "; ".join(_with_images(cause) for cause in result["causes"])
    if result["unknown"]:
        verdict = f"UNKNOWN  {', '.join(result['unknown'])}" + (f"; causes found: {causes}" if causes else "")
    elif causes:
        verdict = f"CAUSES   {causes}"
    elif result["refusals"]:
        verdict = "REFUSED  the contents are right, the fingerprint is not"
    elif result["not_examined"]:
        verdict = f"UNKNOWN  {', '.join(result['not_examined'])}: this checkpoint makes no such array"
    else:
        exact = all(one["bit_equal"] for one in result["arrays"].values())
        verdict = f"SOUND    the store holds what its config asks for{'' if exact else ', up to rounding'}"
    return f"{verdict}\n         ({_extent(result)})"


def _with_images(cause: Mapping[str, Any]) -> str:
    images = cause["images"]
    return cause["detail"] if images is None else f"{cause['detail']} (in {_listed(images)})"
