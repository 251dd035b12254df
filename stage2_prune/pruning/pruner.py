"""The one interface that a pruning method implements; docs/adding-a-pruner.md explains it step by step."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict
from torch import Tensor, nn

from configs.experiment import Positions
from configs.files.source_code import code_digest
from stage2_prune.errors import NotTrained, PrunerMisused
from stage2_prune.pruning.practice import Practice, Shown, Signal
from stage2_prune.pruning.returned import check_selected, file_of
from stage2_prune.pruning.tokens import Beside, Pruned, VisualTokens

Place = Literal["before_llm", "in_llm"]
BudgetKind = Literal["exact", "schedule", "adaptive", "fixed"]
TokenOrder = Literal["raster", "own"]
Trained = TypeVar("Trained", bound="TrainedPruner")


class Pruner:
    """A pruning method. A subclass is a frozen dataclass in a file of its own, and its fields are its parameters.

    Every image is pruned on its own: its result depends on its arrays, on the fields and, where random, on (seed, image id),
    and on nothing else, least of all on its batch.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    needs: ClassVar[frozenset[str]] = frozenset()
    """Store arrays that the method reads; stage 2 checks them before anything runs."""
    reads: ClassVar[frozenset[Beside]] = frozenset()
    """What the method looks at beside arrays: the `question`, its `clip_text`, or the `projector`. A method that reads the
    question or its CLIP text prunes an image once per question.
    """
    place: ClassVar[Place] = "before_llm"
    """Whether tokens are dropped before the language model or inside it."""
    budget: ClassVar[BudgetKind] = "exact"
    """`exact` keeps the number asked for; `schedule` meets it as a mean over layers; `adaptive` decides for each image; `fixed`
    takes no budget.
    """
    positions: ClassVar[Positions] = "original"
    """The published choice of RoPE positions for kept tokens."""
    order: ClassVar[TokenOrder] = "raster"
    """`raster`: kept patches stand in raster order, indices ascending; `own`: in an order that the method documents."""
    nested: ClassVar[bool] = False
    """Whether the choice at every budget is the beginning of one ranking: `ranking` is implemented then, in place of `select`."""
    randomised: ClassVar[bool] = False
    """Whether the method has a `seed` field, over which results are averaged."""

    @property
    def adaptive(self) -> bool:
        """Return whether the method itself decides how many tokens an image keeps; a field of a method may influence the
        answer.

        `prune` then returns the `counts`. It is called with keep = patches, the most that it may keep, unless the method
        `takes_budget`.
        """
        return self.budget == "adaptive"

    @property
    def takes_budget(self) -> bool:
        """Return whether a budget says how many tokens are kept.

        An adaptive method that takes a budget meets it as a mean over images, by thresholds that its training calibrates on
        the validation split (stage2_prune/pruning/scored.py).
        """
        return self.budget != "fixed" and not self.adaptive

    def fixed_keep(self, patches: int) -> int:
        """Return the visual tokens per image of a method whose budget is `fixed`; other methods do not implement this."""
        raise NotImplementedError(f"{type(self).__name__} takes a budget")

    def asked_tokens(self, patches: int, budget: int) -> int:
        """Return the number that `prune` is called with: the method's own, or the budget if the method takes one."""
        if self.budget == "fixed":
            return self.fixed_keep(patches)
        return budget if self.takes_budget else patches

    def tower_layers(self, layers: int) -> dict[str, int]:
        """Return the tower layers that fields name, resolved for a tower of `layers` layers, by the names of the fields."""
        return {}

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the patches to keep, ascending unless `order` is `own`."""
        if self.nested:
            return self.arrange(self.ranking(tokens, keep))
        name = type(self).__name__
        if type(self).prune is not Pruner.prune:
            raise PrunerMisused(f"expected a method that selects patches, {name} has no select: call prune")
        raise PrunerMisused(
            f"{name} has neither select nor prune: write one of the two into its class{file_of(type(self))}"
        )

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return patches in the order in which a `nested` method chooses them: the first k are its choice at every k <= keep."""
        raise NotImplementedError(f"{type(self).__name__} is not nested: call select")

    def arrange(self, ranking: Int[Tensor, "image kept"]) -> Int[Tensor, "image kept"]:
        """Put the chosen patches of a `nested` method into the order in which they go on: ascending, unless overridden."""
        return ranking.sort(dim=-1).values

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Return the tokens that go on; a merging method overrides this instead of `select`."""
        index = self.select(tokens, keep)
        check_selected(index, type(self), len(tokens.image_ids), keep)
        return Pruned(index)

    @property
    def file(self) -> Path:
        """Return the file that defines the method."""
        return Path(inspect.getfile(type(self)))

    @property
    def code(self) -> str:
        """Return the sha256 of the method's file and of what it imports from this project.

        Predictions record it, so that predictions of other code are not taken for this method's own.
        """
        return code_digest(self.file)

    def parameters(self) -> dict[str, Any]:
        """Return field values by name, as a config may state them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModuleSpec:
    """Everything that the shape of a learned module may depend on."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of one image in each array that the pruner needs: `raw` is (patch, hidden)."""
    embed: int
    """Width of the language model's embeddings."""


class TrainedPruner(Pruner, ABC):
    """A method with learned weights, which live in a module beside the parameters; `with_module` binds the module.

    The parameters alone (the frozen dataclass) say how to `build` the module. Until a module is bound the pruner cannot select.
    """

    # Bound per instance. It is no field, so it is neither a parameter nor part of equality.
    _module: ClassVar[nn.Module | None] = None

    weights: ClassVar[Path | None] = None
    """Folder of the weights: the folder that the config names, or the folder that the module was loaded from. It is bound per
    instance, like the module.
    """
    learns_from: ClassVar[frozenset[Signal]] = frozenset()
    """What the method learns from beside the answers: the `regions` of the questions, or the unpruned model's `attention`."""
    losses: ClassVar[tuple[str, ...]] = ()
    """The names of the losses that `practise` returns beside what is shown."""

    @abstractmethod
    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build a new module, initialised from torch's global generator; use `fresh` to seed it."""

    @abstractmethod
    def soft(self, tokens: VisualTokens, keep: int) -> Float[Tensor, "image patch"]:
        """Return differentiable weights in [0, 1] for training, exactly 1 everywhere at keep = patches."""

    def practise(self, tokens: VisualTokens, practice: Practice) -> Shown:
        """Return what the language model is shown in a training step: every patch with its soft weight, unless overridden."""
        return Shown(self.soft(tokens, practice.keep))

    def policy(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Return differentiable scores of the patches, whose softmax draws the first patch of a set; see training/grpo.py.

        A method that `train.grpo` can finish implements this. Its `select` keeps the patches with the highest of these scores.
        """
        raise PrunerMisused(f"{type(self).__name__} has no policy: leave train.grpo out")

    @property
    def has_policy(self) -> bool:
        """Whether the method implements `policy`."""
        return type(self).policy is not TrainedPruner.policy

    @property
    def has_module(self) -> bool:
        """Whether a learned module is bound."""
        return self._module is not None

    @property
    def module(self) -> nn.Module:
        """Return the learned module; raise NotTrained (exit 5) where none is bound."""
        if self._module is None:
            raise NotTrained(f"{type(self).__name__} has no weights: bind a module with `with_module` or `fresh`")
        return self._module

    def with_module(self: Trained, module: nn.Module) -> Trained:
        """Return the same pruner, scoring with `module`."""
        bound = copy.copy(self)
        object.__setattr__(bound, "_module", module)  # the dataclass is frozen
        return bound

    def trained_in(self: Trained, folder: Path) -> Trained:
        """Return the same pruner, with `folder` as the folder of its weights."""
        bound = copy.copy(self)
        object.__setattr__(bound, "weights", folder)  # the dataclass is frozen
        return bound

    def fresh(self: Trained, spec: ModuleSpec, seed: int) -> Trained:
        """Return the same pruner with an untrained module that is a function of `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.with_module(self.build(spec).eval())
