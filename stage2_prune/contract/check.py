"""Check a method against the contract: one verdict for each rule, with the first example that breaks it."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs import plugin
from configs.import_code import place_of
from configs.load import build_pruner, method_of
from stage2_prune import pruners
from stage2_prune.contract import adaptive, every, in_llm, merging, selection, trained
from stage2_prune.contract.inputs import merges
from stage2_prune.contract.rule import Broken, Case, Rule
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.pruning.trained_inside import TrainedInside

EXIT_BROKEN = 4
"""Exit code of the command where a rule is broken."""
GRIDS = ((4, 4), (3, 5), (1, 7))
SMALL = tuple(Case(grid) for grid in GRIDS)
CASES = (*SMALL, Case((4, 4), dtype=torch.bfloat16))
"""Square and other grids, with every budget; and features in 16 bit."""
LARGE = Case((24, 24), images=4, keeps=(1, 2, 5, 64, 191, 576))
"""The grid of LLaVA-1.5."""
DRAWN = Case((8, 8), keeps=(16,))
"""A grid so large that two draws are not equal by chance."""
DTYPES = tuple(Case(in_llm.GRID, dtype=dtype, widths=in_llm.WIDTHS) for dtype in (torch.float32, torch.bfloat16))
"""The dtypes of the language model."""
WIDELY = (*CASES, LARGE)
Rules = tuple[tuple[Rule, Sequence[Case]], ...]
"""Rules, each with the features on which it is checked."""
SELECTING: Rules = ((selection.BUDGET, WIDELY), (selection.EVERYTHING, CASES), (every.ALONE, WIDELY))
MERGING: Rules = (
    (merging.BUDGET, WIDELY),
    (every.ALONE, WIDELY),
    *((rule, SMALL) for rule in (merging.PLACED, merging.IN_FLOAT32, merging.BLANK, merging.MADE)),
)
DECIDING: Rules = ((adaptive.REPORTED, WIDELY), (adaptive.ALONE, WIDELY), (merging.PLACED, SMALL))
DECLARED = (every.RETURNS, every.DECLARES)
"""The rules that are checked first, one by one, because a method that breaks any of these would break all others."""
BEFORE: Rules = ((every.NEIGHBOURS, CASES), (every.TWICE, CASES), (every.UNWRITTEN, CASES))
"""The rules for every method before the language model, beside `DECLARED` and the rules for its kind."""
RANDOMISED: Rules = ((every.SEEDED, (DRAWN,)),)
NESTED: Rules = ((selection.NESTED, WIDELY),)
TRAINED: Rules = ((every.SOFT, CASES), (trained.PRACTISED, CASES))
INSIDE: Rules = (
    (in_llm.SCHEDULED, DTYPES[:1]),  # a schedule has no dtype
    (in_llm.KEPT, DTYPES),
    (in_llm.ALONE, DTYPES[:1]),  # compared in float32 alone
    (in_llm.TWICE, DTYPES),
    (in_llm.EVERYTHING, DTYPES),
)
TRAINED_INSIDE: Rules = ((in_llm.LEARNT, DTYPES),)


@dataclass(frozen=True)
class Verdict:
    """Whether a method keeps one rule."""

    rule: str
    broken: str | None = None
    """The first example that breaks the rule; None where the rule holds."""


@dataclass(frozen=True)
class CheckedPruner:
    """The verdicts about one method."""

    label: str
    file: Path
    kind: str
    """What the method does, which decides the rules that apply."""
    verdicts: Sequence[Verdict]
    stopped: bool
    """Whether checking stopped at a broken rule on which all other rules depend."""

    @property
    def holds(self) -> bool:
        """Whether every rule was checked and holds."""
        return all(verdict.broken is None for verdict in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """Return everything, for programs."""
        rules = [
            {"rule": verdict.rule, "ok": verdict.broken is None, "example": verdict.broken} for verdict in self.verdicts
        ]
        return {"pruner": self.label, "file": str(self.file), "kind": self.kind, "holds": self.holds, "rules": rules}

    def as_text(self) -> str:
        """Return one line for each rule, and the example below a broken one."""
        lines = [f"{self.label} ({self.kind}), {self.file}"]
        for verdict in self.verdicts:
            lines.append(f"{'ok' if verdict.broken is None else 'failed':8}{verdict.rule}")
            lines += [f"{'':8}  {verdict.broken}"] * (verdict.broken is not None)
        lines += ["The other rules are checked once these rules hold."] * self.stopped
        return "\n".join(lines)


def check(name: str, parameters: Mapping[str, Any]) -> CheckedPruner:
    """Check the method that `name` names, which may be the path of a file, with the given parameters.

    Raises ConfigError (exit 2) for a name or a file that stands for no method, and for wrong parameters.
    """
    method = method_of(name, parameters)
    pruner_class = plugin.find(pruners, name, Pruner)
    file = Path(inspect.getfile(pruner_class))
    try:
        every.parameters_are_fields(pruner_class)
    except Broken as broken:
        return CheckedPruner(method.known_as, file, "no pruner", [Verdict(every.PARAMETERS, str(broken))], stopped=True)
    pruner: Pruner = build_pruner(method, {name: pruner_class})
    kind, verdicts, stopped = check_rules(pruner)
    return CheckedPruner(method.known_as, file, kind, [Verdict(every.PARAMETERS), *verdicts], stopped)


def check_rules(pruner: Pruner) -> tuple[str, list[Verdict], bool]:
    """Check the rules that apply to the kind of a pruner.

    Returns:
        The kind, the verdicts, and whether checking stopped early: a method that returns no result, or reads more than it
        declares, would break all later rules.
    """
    if pruner.place == "in_llm":
        rules = (*INSIDE, *TRAINED_INSIDE * isinstance(pruner, TrainedInside))
        return "inside the language model", [verdict(pruner, *rule) for rule in rules], False
    first: list[Verdict] = []
    for rule in DECLARED:
        first.append(verdict(pruner, rule, SMALL[1:2]))
        if first[-1].broken is not None:
            return "before the language model", first, True
    kind, rules = _before(pruner)
    return kind, [*first, *(verdict(pruner, *rule) for rule in rules)], False


def verdict(pruner: Pruner, rule: Rule, cases: Sequence[Case]) -> Verdict:
    """Check one rule on some features, and stop at the first example that breaks it."""
    examples = (_broken(rule, pruner, case) for case in cases)
    return Verdict(rule.says, next((example for example in examples if example is not None), None))


def _before(pruner: Pruner) -> tuple[str, Rules]:
    """List the rules for a method before the language model, with the features on which each is checked."""
    if pruner.adaptive:
        kind, rules = "deciding its number of tokens", DECIDING
    elif merges(pruner):
        kind, rules = "merging", MERGING
    else:
        kind, rules = "selecting", SELECTING
    learns = isinstance(pruner, TrainedPruner)
    nested = pruner.nested and not pruner.adaptive
    return kind, (*rules, *BEFORE, *NESTED * nested, *RANDOMISED * pruner.randomised, *TRAINED * learns)


def _broken(rule: Rule, pruner: Pruner, case: Case) -> str | None:
    """Return the example with which a pruner breaks a rule on the features of one case; None if the rule holds."""
    try:
        rule.check(case.ready(pruner), case)
    except Broken as broken:
        return str(broken)
    except Exception as error:
        return f"{case}: it raised {type(error).__name__} ({error}){place_of(error, pruner.file.parent)}"
    return None
