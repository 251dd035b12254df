"""State the findings of a diagnosis, as JSON for programs and as text for people."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from configs.counted import counted
from configs.files.portable import is_folder
from stage1_extract.diagnose.bench import Bench
from stage1_extract.diagnose.checks import Checked
from stage1_extract.diagnose.evidence import Evidence, RowFinding
from stage1_extract.diagnose.suspects import NOT_PROJECTED, OTHER_IMAGES, OTHER_PROJECTOR, Cause
from store.layout.fingerprint import SOURCES, differences
from store.layout.ids import first_names, printable

CLOSEST = 0.05
"""Relative difference up to which an array that nothing explains is reported as close to the best hypothesis."""
_SHOWN = 3
"""Number of images or differences that a line of text lists."""


def refusals(bench: Bench) -> Iterable[str]:
    """Yield the differences, field by field, for which a command that needs this store would refuse it."""
    plan = bench.store.plan
    if any(log.plan_digests - {plan.digest_of(generation)} for generation, log in enumerate(bench.store.logs)):
        yield "plan: it was changed after shards were committed"
    for name, spec in bench.store.arrays.items():
        if name not in bench.expected:
            yield f"{name}: this checkpoint makes no such array"
            continue
        expected, recorded = bench.expected[name].semantic, bench.store.fingerprint(name).semantic
        # A checkpoint in a folder may have moved; its weights are compared by their digests.
        moved = [key for key in SOURCES if all(is_folder(str(part.get(key))) for part in (expected, recorded))]
        expected, recorded = (
            {key: value for key, value in part.items() if key not in moved}
            for part in (json.loads(json.dumps(expected)), recorded)
        )
        yield from (f"{name}: {difference}" for difference in differences(expected, recorded))
        wanted = next(array for array in bench.encoder.description.arrays if array.name == name).shape
        if spec.shape != wanted:
            yield f"{name}: shape: expected {wanted} per image, found {spec.shape}"


def conclude(bench: Bench, checked: Checked, evidence: Evidence, seed: int, checkpoint: str) -> dict[str, Any]:
    """Gather all findings into one JSON-able mapping."""
    causes = _causes(bench, checked, evidence)
    unknown = [name for name, rows in evidence.findings.items() if not all(row.known for row in rows.values())]
    objections = {words: [bench.image_name(row) for row in rows] for words, rows in _by_check(checked).items()}
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
            vars(cause) | {"images": None if in_all else [bench.image_name(row) for row in rows]}
            for cause, (rows, in_all) in causes.items()
        ],
        "unknown": unknown,
        "checks": objections,
        "not_examined": [name for name in bench.store.arrays if name not in evidence.findings],
        "arrays": {name: _array(bench, evidence, name) for name in evidence.findings},
    }


def _causes(bench: Bench, checked: Checked, evidence: Evidence) -> dict[Cause, tuple[list[int], bool]]:
    """Return every cause with the rows that show it, and whether all sampled rows show it."""
    shown: dict[Cause, set[int]] = {}
    for rows in evidence.findings.values():
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
    sampled = set(evidence.rows)
    return {cause: (sorted(rows), rows >= sampled) for cause, rows in shown.items()}


def _unexplained(evidence: Evidence) -> set[int]:
    """Return the rows of which some array is not explained."""
    return {row for rows in evidence.findings.values() for row, finding in rows.items() if not finding.known}


def _by_check(checked: Checked) -> dict[str, list[int]]:
    """Return the rows that the checks without the tower objected to, by the objection in words."""
    objections: dict[str, list[int]] = {}
    for name, rows in checked.blank.items():
        for row, cause in rows.items():
            objections.setdefault(f"{name}: {cause.detail}", []).append(row)
    for name, groups in checked.twins.items():
        for group in groups:
            objections.setdefault(f"{name}: equal rows of images that differ", []).extend(group)
    if checked.not_projected:
        objections[NOT_PROJECTED.detail] = checked.not_projected
    return objections


def _array(bench: Bench, evidence: Evidence, name: str) -> dict[str, Any]:
    """Return the findings about one array as JSON-able values; the worst row decides."""
    findings, gaps = evidence.findings[name], evidence.gaps[name]
    unknown = [finding for finding in findings.values() if not finding.known]
    worst = max(unknown or findings.values(), key=lambda finding: finding.trial.residual)
    causes = dict.fromkeys(cause for finding in findings.values() for cause in finding.causes)
    closest = worst.trial.causes if unknown and worst.trial.residual <= CLOSEST else ()
    return {
        "causes": [vars(cause) for cause in (closest if unknown else causes)],
        "bit_equal": all(finding.trial.equal for finding in findings.values()),
        "residual": worst.trial.residual if worst.trial.residual < float("inf") else None,
        "known": not unknown,
        "close": bool(unknown) and worst.trial.residual <= CLOSEST,
        "note": worst.note,
        "wrong": [bench.image_name(row) for row, finding in findings.items() if finding.wrong],
        "unexplained": [bench.image_name(finding.row) for finding in unknown],
        "shown_in": _moved(bench, findings.values()),
        "made_elsewhere": bench.made_elsewhere(name),
        "max_abs_diff": max(gap.max_abs for gap in gaps),
        "mean_abs_diff": sum(gap.mean_abs for gap in gaps) / len(gaps),
        "allclose": all(gap.allclose for gap in gaps),
    }


def _moved(bench: Bench, findings: Iterable[RowFinding]) -> dict[str, str]:
    """Return, for each row with another image's features, the row's own image and that other image, by name."""
    return {
        bench.image_name(finding.row): bench.image_name(finding.image)
        for finding in findings
        if finding.image is not None
    }


def as_text(result: Mapping[str, Any]) -> str:
    """Write the result of `conclude` as text: refusals, a paragraph per array, objections of the checks, and the verdict."""
    lines = [f"{result['store']}: {_extent(result)}, by {result['checkpoint']}", ""]
    lines += [f"refused  {refusal}" for refusal in result["refusals"]] or ["refused  nothing: its fingerprints agree"]
    lines.append("")
    for name, array in result["arrays"].items():
        lines += _array_lines(name, array, result["images"])
    lines += [f"check    {objection} ({first_names(images, _SHOWN)})" for objection, images in result["checks"].items()]
    if result["not_examined"]:
        lines.append(f"not examined: {', '.join(result['not_examined'])}")
    return "\n".join([*lines, "", _verdict(result)])


def _array_lines(name: str, array: Mapping[str, Any], images: int) -> list[str]:
    words = "; ".join(cause["detail"] for cause in array["causes"])
    only_some = 0 < len(array["wrong"]) < images
    if not array["known"]:
        left = "nothing tried has its shape" if array["residual"] is None else f"residual {array['residual']:.6f}"
        near = f"closest to {words or 'the right features'}, {left}" if array["close"] else f"nothing is close, {left}"
        statement = f"UNKNOWN: {array['note'] or near}"
    else:
        exactly = "bit for bit" if array["bit_equal"] else f"up to rounding (residual {array['residual']:.1e})"
        statement = f"{words or 'as it should be'}, {exactly}"
    lines = [f"{name:<14}{statement}"]
    if only_some:
        lines.append(f"{'':<14}in {len(array['wrong'])} of {images} images: {first_names(array['wrong'], _SHOWN)}")
    lines += [
        f"{'':<14}{printable(row)} holds {printable(image)}" for row, image in [*array["shown_in"].items()][:_SHOWN]
    ]
    if array["causes"] or not array["known"]:
        lines.append(
            f"{'':<14}against the model's own: max |diff| {array['max_abs_diff']:.6f}, mean |diff| "
            f"{array['mean_abs_diff']:.6f}, allclose(atol=1e-5) {array['allclose']}"
        )
    if not array["bit_equal"] and array["made_elsewhere"]:
        lines.append(
            f"{'':<14}made elsewhere ({'; '.join(array['made_elsewhere'][:_SHOWN])}): equal bits are not expected"
        )
    return lines


def _extent(result: Mapping[str, Any]) -> str:
    return (
        f"{result['images']} of {result['of']} images encoded again (seed {result['seed']}), "
        f"{counted(result['rows_checked'], 'row')} checked without the tower"
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
        exact = all(array["bit_equal"] for array in result["arrays"].values())
        verdict = f"SOUND    the store holds what its config asks for{'' if exact else ', up to rounding'}"
    return f"{verdict}\n         ({_extent(result)})"


def _with_images(cause: Mapping[str, Any]) -> str:
    images = cause["images"]
    return cause["detail"] if images is None else f"{cause['detail']} (in {first_names(images, _SHOWN)})"
