"""The one interface a pruning method implements; docs/adding-a-pruner.md is the walk-through."""

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
from stage2_prune.errors import NotTrained
from stage2_prune.pruning.code import code_digest
from stage2_prune.pruning.tokens import Beside, Pruned, VisualTokens

Place = Literal["before_llm", "in_llm"]
Budget = Literal["exact", "schedule", "adaptive", "fixed"]
Order = Literal["raster", "own"]
Trained = TypeVar("Trained", bound="TrainedPruner")


class Pruner:
    """A pruning method: subclasses are frozen dataclasses in a file of their own, their fields are its
    parameters.

    Every image is pruned on its own: its result may not depend on its batch, nor on anything but its arrays,
    the fields and, where random, (seed, image id).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    needs: ClassVar[frozenset[str]] = frozenset()
    """Store arrays that the method reads; stage 2 checks them before anything runs."""
    reads: ClassVar[frozenset[Beside]] = frozenset()
    """What it looks at beside arrays: the `question` or its `clip_text`, by which an image is pruned once per question, and
    the `projector`."""
    place: ClassVar[Place] = "before_llm"
    """Whether tokens are dropped before the language model or inside it."""
    budget: ClassVar[Budget] = "exact"
    """`exact` keeps the number asked for; `schedule` meets it as a mean over layers; `adaptive` decides by
    itself; `fixed`
    takes none."""
    positions: ClassVar[Positions] = "original"
    """The published choice of RoPE positions for kept tokens."""
    order: ClassVar[Order] = "raster"
    """Whether kept patches stand in raster order, indices ascending, or in an order that the method documents."""
    randomised: ClassVar[bool] = False
    """Whether the method has a `seed` field over which results are averaged."""

    @property
    def adaptive(self) -> bool:
        """Whether it decides by itself how many tokens an image keeps; a field of a method may have a say in it.

        `prune` is then called with keep = patches, the most that it may keep, and tells the `counts`.
        """
        return self.budget == "adaptive"

    def fixed_keep(self, patches: int) -> int:
        """Visual tokens per image of a method whose budget is `fixed`; the others do not have it."""
        raise NotImplementedError(f"{type(self).__name__} takes a budget")

    def tower_layers(self, layers: int) -> dict[str, int]:
        """The tower layers that fields name, as resolved for a tower of so many layers, by the fields' names."""
        return {}

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Patches to keep, ascending unless `order` is the method's own."""
        raise NotImplementedError(f"{type(self).__name__} merges: call prune")

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """The tokens that go on; a merging method overrides this instead of `select`."""
        return Pruned(self.select(tokens, keep))

    @property
    def file(self) -> Path:
        """The file that defines the method."""
        return Path(inspect.getfile(type(self)))

    @property
    def code(self) -> str:
        """sha256 of that file and what it imports of this project: predictions of other code are not taken for its own."""
        return code_digest(self.file)

    def parameters(self) -> dict[str, Any]:
        """Field values by name, as a config may state them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModuleSpec:
    """All that a learned module's shape may depend on."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of one image in each array that the pruner needs: `raw` is (patch, hidden)."""
    embed: int
    """Width of the language model's embeddings."""


class TrainedPruner(Pruner, ABC):
    """A method with learned weights: they live in a module beside the parameters, bound by `with_module`.

    The parameters alone (the frozen dataclass) say how to `build` the module; until one is bound the pruner
    cannot select.
    """

    _module: ClassVar[nn.Module | None] = (
        None  # bound per instance: not a field, so no parameter and no part of equality
    )

    weights: ClassVar[Path | None] = None
    """Folder of its weights: where the config names one, and wherever its module was loaded from. Bound as the module is."""

    @abstractmethod
    def build(self, spec: ModuleSpec) -> nn.Module:
        """A new module, initialised from torch's global generator; use `fresh` to seed it."""

    @abstractmethod
    def soft(self, tokens: VisualTokens, keep: int) -> Float[Tensor, "image patch"]:
        """For training: differentiable weights in [0, 1], exactly 1 everywhere at keep = patches."""

    @property
    def has_module(self) -> bool:
        """Whether a learned module is bound."""
        return self._module is not None

    @property
    def module(self) -> nn.Module:
        """The learned module."""
        if self._module is None:
            raise NotTrained(f"{type(self).__name__} has no weights: bind a module with `with_module` or `fresh`")
        return self._module

    def with_module(self: Trained, module: nn.Module) -> Trained:
        """The same pruner, scoring with `module`."""
        bound = copy.copy(self)
        object.__setattr__(bound, "_module", module)  # the dataclass is frozen
        return bound

    def trained_in(self: Trained, folder: Path) -> Trained:
        """The same pruner, whose weights lie in `folder`."""
        bound = copy.copy(self)
        object.__setattr__(bound, "weights", folder)  # the dataclass is frozen
        return bound

    def fresh(self: Trained, spec: ModuleSpec, seed: int) -> Trained:
        """The same pruner with an untrained module that is a function of `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.with_module(self.build(spec).eval())
