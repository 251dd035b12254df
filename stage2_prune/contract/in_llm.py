"""The rules for methods that drop visual tokens inside the language model, checked on a small random Llama."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import torch

from stage2_prune.contract.inputs import TINY, visual_tokens
from stage2_prune.contract.rule import Broken, Case, Rule, require
from stage2_prune.contract.small_llama import (
    LAYERS,
    PATCHES,
    PROMPTS,
    VOCABULARY,
    WIDTH,
    answers,
    kept_by,
    small_language,
)
from stage2_prune.errors import Infeasible
from stage2_prune.language.assemble import ModelInputs, assemble, gather_kept
from stage2_prune.language.generate import generate
from stage2_prune.language.language import Language
from stage2_prune.pruning.in_llm import InLLMPruner
from stage2_prune.pruning.practice import Practice
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.schedule import TOLERANCE, Schedule
from stage2_prune.pruning.trained_inside import TrainedInside
from stage2_prune.training.forward.layered import Layered
from stage2_prune.training.packed import Lesson, answer_logits_together, pack
from stage2_prune.training.step import frozen

ROWS = tuple(range(len(PROMPTS)))
STEPS = 3
"""Tokens of an answer."""
GRID = (4, PATCHES // 4)
WIDTHS = (*TINY[:2], WIDTH)
"""Widths of arrays, of which the last is that of the language model."""
SHAPES = ((PATCHES, LAYERS), (576, 32), (576, 4), (1, 3))
"""Patches and layers for which schedules are planned."""


def asked(
    language: Language, pruner: InLLMPruner, schedule: Schedule, rows: Sequence[int] = ROWS
) -> ModelInputs:  # fmt: skip
    """Lay out questions about the patches that a method lets enter, each question about an image of its own."""
    tokens = visual_tokens(GRID, widths=WIDTHS)
    pruned = pruner.prune(tokens.only(pruner.needs, pruner.reads), schedule.entering)
    if pruned.index is None or pruned.merge is not None:
        raise Broken("expected an index alone of the patches that enter the language model, `prune` returned a merge")
    projected = torch.randn(len(ROWS), PATCHES, WIDTH, generator=torch.Generator().manual_seed(5)).to(language.dtype)
    visual, prompts = gather_kept(projected, pruned), [PROMPTS[row] for row in rows]
    return assemble(language, prompts, visual[list(rows)], pruned.index[list(rows)], PATCHES, pruner.positions)


def feasible(
    pruner: InLLMPruner, patches: int = PATCHES, depth: int = LAYERS, keeps: Iterable[int] = range(1, PATCHES + 1)
) -> Mapping[int, Schedule]:
    """Return the schedule of each budget that the method can meet; a method without a budget has a single schedule, under 0."""
    schedules: dict[int, Schedule] = {}
    for keep in (0,) if pruner.budget == "fixed" else keeps:
        try:
            schedules[keep] = pruner.schedule(patches, depth, keep)
        except Infeasible:
            continue
    return schedules


def _scheduled(pruner: Pruner, case: Case) -> None:
    """Check that every budget is met by the mean over layers or named infeasible."""
    inside = _inside(pruner)
    least = PATCHES // 2 if pruner.budget == "schedule" else 1
    met = len(feasible(inside))
    require(met >= least, f"{PATCHES} patches, {LAYERS} layers: it meets {met} budgets, expected {least} or more")
    for patches, depth in SHAPES:
        where = f"{patches} patches, {depth} layers"
        keeps = {*range(1, min(patches, PATCHES) + 1), patches // 9 + 1, patches // 3 + 1, patches // 2 + 1, patches}
        schedules = feasible(inside, patches, depth, sorted(keeps))
        require(len(schedules) > 0, f"{where}: it meets no budget")
        for keep, schedule in schedules.items():
            counts = list(schedule.tokens_per_layer)
            planned = f"{where}, keep {keep}: its schedule is {counts[:8]}{'…' * (len(counts) > 8)}"
            require(
                len(counts) == depth and counts[0] <= patches, f"{planned}, not {depth} counts of at most {patches}"
            )
            require(counts == sorted(counts, reverse=True), f"{planned}, a later layer has more")
            layers = list(schedule.layers)
            require(layers == sorted({*layers} - {0}), f"{planned}, it drops before the layers {layers}")
            near = pruner.budget == "fixed" or abs(schedule.mean - keep) <= TOLERANCE
            require(near, f"{planned}, a mean of {schedule.mean:g} tokens: use `fit`, which raises Infeasible instead")


def _kept(pruner: Pruner, case: Case) -> None:
    """Check that a method keeps to its schedule."""
    inside, language = _inside(pruner), _language(case.dtype)
    for keep, schedule in feasible(inside).items():
        questions = kept_by(language, inside, schedule, inside.positions, asked(language, inside, schedule))
        for row, kept in enumerate(questions):
            where = f"{_named(case)}, keep {keep}, question {row}"
            planned = list(schedule.layers)
            require(list(kept) == planned, f"{where}: it dropped before the layers {list(kept)}, not {planned}")
            for stage in schedule.stages:
                entering = kept[stage.layer]
                patches = [patch for patch in entering if patch >= 0]
                what_it_kept = f"{where}, layer {stage.layer}: it kept {entering}"
                planned = f"the schedule says {stage.keep} and {stage.merged} merged"
                require(patches == sorted(set(patches)), f"{what_it_kept}, not ascending or one patch twice")
                require(entering[: len(patches)] == patches, f"{what_it_kept}, merged tokens stand before patches")
                require(len(entering) == stage.keep + stage.merged, f"{what_it_kept}, {planned}")
                require(len(entering) - len(patches) >= stage.merged, f"{what_it_kept}, {planned}")


def _alone(pruner: Pruner, case: Case) -> None:
    """Check that a question keeps the same patches alone and in a batch."""
    inside, language = _inside(pruner), _language(case.dtype)
    for keep, schedule in list(feasible(inside).items())[::4]:
        together = kept_by(language, inside, schedule, inside.positions, asked(language, inside, schedule))
        for row in ROWS:
            batch = asked(language, inside, schedule, [row])
            alone = kept_by(language, inside, schedule, inside.positions, batch)[0]
            require(
                alone == together[row],
                f"{_named(case)}, keep {keep}, question {row}: alone it kept {alone}, in a batch {together[row]}",
            )


def _twice(pruner: Pruner, case: Case) -> None:
    """Check that the same question is answered alike twice, and that its embeddings are not written to."""
    inside, language = _inside(pruner), _language(case.dtype)
    keep, schedule = next(iter(feasible(inside).items()))
    batch = asked(language, inside, schedule)
    before = batch.inputs_embeds.clone()
    first, second = (answers(language, inside, schedule, inside.positions, batch, STEPS) for _ in range(2))
    require(torch.equal(first.logits, second.logits), f"{_named(case)}, keep {keep}: other logits the second time")
    require(
        torch.equal(batch.inputs_embeds, before),
        f"{_named(case)}, keep {keep}: it wrote to the embeddings of the prompt",
    )


def _everything(pruner: Pruner, case: Case) -> None:
    """Check that keeping every patch gives the bits of the stock model."""
    inside, language = _inside(pruner), _language(case.dtype)
    if pruner.budget != "schedule":
        return
    schedule = inside.schedule(PATCHES, LAYERS, PATCHES)
    batch = asked(language, inside, schedule)
    ours = answers(language, inside, schedule, inside.positions, batch, STEPS)
    stock = generate(language, batch, STEPS)
    require(
        torch.equal(ours.logits, stock.logits) and torch.equal(ours.tokens, stock.tokens),
        f"{_named(case)}, keep {PATCHES}: other logits than the stock model's, its schedule is {schedule.tokens_per_layer}",
    )


def _learnt(pruner: Pruner, case: Case) -> None:
    """Check that a training reaches the module, says the losses that it names, and is the stock call where all is kept."""
    assert isinstance(pruner, TrainedInside), "only trained methods learn"
    language, where = _language(case.dtype), _named(case)
    tokens = visual_tokens(GRID, widths=WIDTHS)
    visual, tokens = tokens.arrays["projected"], tokens.only(pruner.needs, pruner.reads)
    packed = [pack([Lesson(prompt, (VOCABULARY - 1, 2))], language.device) for prompt in PROMPTS]
    keep, part = next(iter(feasible(pruner).items()))
    for budget, schedule in ((keep, part), (PATCHES, pruner.schedule(PATCHES, LAYERS, PATCHES))):
        with frozen(language.model):
            course = Layered(language, visual, packed, pruner.asks)
            taught = pruner.teach(course, tokens, Practice(budget, 0.5, visual), schedule)
        if budget == PATCHES:
            stock = answer_logits_together(language, visual, None, packed)
            same = all(map(torch.equal, taught.logits, stock))
            require(same, f"{where}, keep {budget}: logits of a training are not the stock model's")
            return
        named = set(taught.losses)
        require(named == set(pruner.losses), f"{where}: losses are {sorted(named)}, not {sorted(pruner.losses)}")
        total = torch.cat([*(rows.flatten() for rows in taught.logits), *taught.losses.values()])
        require(bool(total.isfinite().all()), f"{where}, keep {budget}: a logit or a loss is not finite")
        require(total.requires_grad, f"{where}, keep {budget}: nothing has a gradient to train by")
        total.sum().backward()
        grads = [one.grad for one in pruner.module.parameters() if one.grad is not None]
        require(any(bool(grad.any()) for grad in grads), f"{where}, keep {budget}: the module's gradient is 0")


def _inside(pruner: Pruner) -> InLLMPruner:
    """Return the pruner as an InLLMPruner; raise Broken if it is none or has another kind of budget."""
    if not isinstance(pruner, InLLMPruner) or pruner.budget not in ("schedule", "fixed"):
        raise Broken(
            f"expected an InLLMPruner with the budget `schedule` or `fixed`, {type(pruner).__name__} is a "
            f"{type(pruner).__mro__[1].__name__} with the budget `{pruner.budget}`"
        )
    return pruner


def _named(case: Case) -> str:
    return f"{PATCHES} patches, {LAYERS} layers in {str(case.dtype).removeprefix('torch.')}"


@cache
def _language(dtype: torch.dtype) -> Language:
    """Make the Llama of a dtype once."""
    return small_language(dtype)


SCHEDULED = Rule("Every budget is met as a mean over layers, or named infeasible", _scheduled)
KEPT = Rule("Every feasible budget is kept to the token, in raster order", _kept)
ALONE = Rule("A question keeps the same patches alone and in a batch", _alone)
TWICE = Rule("The same question is answered alike twice, and its embeddings are not written to", _twice)
EVERYTHING = Rule("Where every patch is kept, the answers are the stock model's to the bit", _everything)
LEARNT = Rule(
    "A training reaches the module, and where every patch is kept it computes what the stock model does", _learnt
)
