"""Write what parity found, for people and for programs."""

from typing import Any

from configs.counted import agreeing, counted
from stage2_prune.parity.differences import ATOL, Pair
from stage2_prune.parity.findings import Findings, ParityScorer
from stage2_prune.parity.modes import BASELINE, EMB_REPLACED, MODES, SOFT_PRUNING
from stage2_prune.session.features import left_out


def as_json(findings: Findings) -> dict[str, Any]:
    """Gather the content of `parity.json`."""
    return {
        "identical": findings.identical,
        "n_questions": findings.questions,
        "scored_by": None if SOFT_PRUNING in findings.without else vars(findings.scorer),
        "n_scored": findings.scored,
        "modes": {
            mode: {"accuracy": _accuracy(findings, mode), "reason": findings.without.get(mode)} for mode in MODES
        },
        "pairs": [pair.as_json() for pair in findings.pairs],
        "shapes": {name: list(shape) for name, shape in findings.shapes.items()},
        "excluded": [
            {"question_id": question.question_id, "reason": question.reason} for question in findings.excluded
        ],
        "notes": findings.notes,
    }


def as_text(findings: Findings) -> str:
    """Write shapes and differences of the features, then a line per pair of modes, then the verdict."""
    lines = [f"{name:<22}{shape}" for name, shape in findings.shapes.items()]
    reprojected = next((pair for pair in findings.pairs if (pair.a, pair.b) == (BASELINE, EMB_REPLACED)), None)
    if reprojected is not None:
        lines += [
            "",
            "vision_in_emb against vision_reprojected",
            f"  max |diff|   {reprojected.features.max_abs:.6f}",
            f"  mean |diff|  {reprojected.features.mean_abs:.6f}",
            f"  torch.allclose (atol={ATOL:g})  {reprojected.features.allclose}",
        ]
    lines += ["", *_pair_table(findings.pairs), "", *_mode_lines(findings)]
    if SOFT_PRUNING not in findings.without:
        lines.append(_scored_by(findings.scorer))
    lines += [f"note: {note}" for note in findings.notes]
    if (unanswered := findings.questions - findings.scored) > 0:
        without = f"{counted(unanswered, 'question')} {agreeing(unanswered, 'has', 'have')} no answer"
        lines.append(f"note: {without}: compared, but not scored")
    lines += [f"note: {sentence}" for sentence in left_out(question.reason for question in findings.excluded)]
    return "\n".join([*lines, "", _verdict(findings)])


def _pair_table(pairs: list[Pair]) -> list[str]:
    header = f"{'modes':<28}{'features max':>14}{'mean':>12}{'allclose':>10}{'logits max':>14}{'bit-equal':>11}{'tokens':>11}"
    return [header] + [
        f"{f'{pair.a} - {pair.b}':<28}{pair.features.max_abs:>14.6f}{pair.features.mean_abs:>12.6f}"
        f"{pair.features.allclose!s:>10}{pair.logits.max_abs:>14.6f}"
        f"{'yes' if pair.features.bit_equal and pair.logits.bit_equal else 'NO':>11}"
        f"{'equal' if pair.tokens_equal else 'DIFFERENT':>11}"
        for pair in pairs
    ]


def _mode_lines(findings: Findings) -> list[str]:
    lines: list[str] = []
    for mode in MODES:
        accuracy = _accuracy(findings, mode)
        shown = "unknown: no question has an answer" if accuracy is None else f"{accuracy:.4f}"
        shown = f"cannot run: {findings.without[mode]}" if mode in findings.without else shown
        lines.append(f"accuracy {mode:<14}{shown}")
    return lines


def _scored_by(scorer: ParityScorer) -> str:
    """Say which pruner's decision was overridden."""
    parameters = "".join(f", {name} {value}" for name, value in scorer.parameters.items())
    weights = "" if scorer.weights is None else f", {scorer.weights} weights"
    return (
        f"soft_pruning scored by {scorer.label} (keep {scorer.keep}{parameters}{weights}), then overridden to all ones"
    )


def _accuracy(findings: Findings, mode: str) -> float | None:
    if mode in findings.without or not findings.scored:
        return None
    return findings.right[mode] / findings.scored


def _verdict(findings: Findings) -> str:
    asked = counted(findings.questions, "question")
    if findings.identical:
        return f"IDENTICAL: {asked}, every feature, logit and token the same bits in all four modes"
    if findings.identical is None:
        return f"INCOMPLETE: {asked}, what could run is the same bits, but {', '.join(findings.without)} could not run"
    apart = [f"{pair.a} - {pair.b}" for pair in findings.pairs if not pair.equal]
    differ = f"{len(apart)} of {counted(len(findings.pairs), 'pair')} {agreeing(len(apart), 'differs', 'differ')}"
    return f"DIFFERENT: {asked}, {differ} ({', '.join(apart)}); {_where(findings)}"


def _where(findings: Findings) -> str:
    """Say where to look for a difference: in the store only where features differ."""
    if not all(pair.features.bit_equal for pair in findings.pairs):
        return f"`python -m stage1_extract diagnose {findings.store}` names the cause"
    return (
        "every feature is the same bits in all modes, so the store is not the cause: the language model computed other bits "
        "from the same features; the notes and the limits in docs/exactness.md (device, attention kernel, threads, versions) "
        "say why that can happen"
    )
