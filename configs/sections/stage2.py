"""The config's sections that stage 2 reads: the methods, their training, their evaluation, and a sweep over them.

Import these classes from configs.experiment.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from configs.budgets import Budget
from configs.plugin import is_path
from configs.sections.section import Section, path_component

Positions = Literal["original", "compact"]
Flops = Literal["macs_vision", "macs_all", "macs_vision_2mlp", "macs_all_2mlp", "flops_vision_2mlp", "flops_all"]
Match = Literal["mean-tokens", "kept", "kv"]


class Method(BaseModel):
    """A pruning method: its name, and its parameters beside it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    """A file's name in `stage2_prune/pruners`, the name of an entry point, or the path of a file, which ends in `.py`."""
    label: Annotated[
        Annotated[str, AfterValidator(path_component)] | None, Field(exclude_if=lambda label: label is None)
    ] = None
    """What tables and file names call the method; default: its name, of a path the file's name without `.py`."""
    weights: Annotated[Path | None, Field(exclude_if=lambda folder: folder is None)] = None
    """Folder with the `pruner.json` of a trained method; default: the folder in the run directory that `train` writes."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Read a plain name as a method with its default parameters."""
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _safe(self) -> "Method":
        """Refuse a path whose file's name cannot begin the names of result files."""
        if self.label is None and is_path(self.name):
            path_component(self.known_as)
        return self

    @property
    def known_as(self) -> str:
        """What tables and file names call the method, without its parameters."""
        return self.label or (Path(self.name).stem if is_path(self.name) else self.name)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every key beside `name`, `label` and `weights`."""
        return dict(self.model_extra or {})


class PruneSection(Section):
    """The methods under test and their budgets."""

    methods: tuple[Method, ...] = (Method(name="keep_all"),)
    """Pruners to evaluate: names or paths of .py files, or `{name: NAME, parameter: value, …}`."""
    budgets: tuple[Budget, ...] = (64,)
    """Visual tokens kept, in tokens per image; a fraction such as 206.5 for methods whose budget is a mean over layers; or
    `published:192`, the schedule that a method's paper or code gives for 192 tokens."""
    positions: tuple[Literal["default"] | Positions, ...] = ("default",)
    """RoPE positions of the kept tokens; `default` is each method's published choice."""
    match: Match = "mean-tokens"
    """What a budget counts for methods inside the language model: `mean-tokens`, the mean of the tokens that enter its layers;
    `kept`, the tokens kept behind the first drop; `kv`, the size of the cache, as if every layer had that many tokens."""
    seeds: PositiveInt = 5
    """Seeds over which a randomised pruner is averaged."""


class TrainSection(Section):
    """Training of one pruner; the language model stays frozen."""

    pruner: str = "learned_scorer"
    """Name of the method in `prune.methods` to train; of a path the file's name without `.py`."""
    epochs: NonNegativeInt = 2
    """Passes over the training questions; 0 saves the freshly seeded pruner."""
    batch_size: PositiveInt = 10
    """Questions per optimiser step."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW, reached by a linear warm-up and followed by a cosine decay."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW."""
    kl_weight: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the unpruned model's answer distribution, beside the language-model loss."""
    teacher: Literal["live", "cached"] = "live"
    """Where that distribution comes from: `live` computes it in every step by a second forward pass, `cached` reads what the
    command `teach` has written, the likeliest tokens and the remaining mass."""
    min_keep: PositiveInt = 16
    """Smallest budget drawn for a batch, in tokens per image."""
    max_keep: PositiveInt = 192
    """Largest budget drawn for a batch, in tokens per image."""
    val_keep: PositiveInt = 32
    """Budget at which an epoch is judged on the validation split, in tokens per image."""
    images_at_once: PositiveInt | Literal["auto"] = "auto"
    """Images per forward pass of the language model in training; `auto` is 1 on a CPU, and on a GPU every image of a step, or as
    many as its memory carries."""
    gradient_checkpointing: bool = False
    """Compute the language model's layers again in the backward pass instead of keeping their activations: less memory, more
    time."""
    seed: NonNegativeInt = 0
    """Seed of the pruner's weights, of the order of questions and of the budgets."""
    licence: str = "unknown"
    """Licence of the trained weights, as their card names it: the hub's word for it, such as `apache-2.0`."""
    kinds: Annotated[tuple[str, ...] | None, Field(exclude_if=lambda kinds: kinds is None)] = None
    """Kinds of question to train and to validate on, such as `[colour, count]`; default: all. Evaluations still ask all kinds."""

    @property
    def distils_cached(self) -> bool:
        """Whether the training reads the unpruned model's cached answers."""
        return self.teacher == "cached" and self.kl_weight > 0


class TeachSection(Section):
    """What the unpruned language model answers, computed once for all trainings."""

    path: Path | None = None
    """Folder of the teacher's signals; default: `teacher` in the run directory."""
    top: PositiveInt = 64
    """Likeliest tokens that are kept for each answer token, with their log-probabilities; the mass of all others is kept as one
    number."""
    attention_layers: tuple[NonNegativeInt, ...] = ()
    """Layers whose attention of the prompt's last token over the visual tokens is kept too, on the published scale of 32
    layers."""
    shard_rows: PositiveInt = 4096
    """Answer tokens per shard, or questions per shard of the attention: as much is computed again after a kill."""


class EvalSection(Section):
    """Evaluation: greedy generation and, where choices exist, ranking."""

    split: Literal["train", "val", "test"] = "test"
    """Split to score."""
    batch_size: PositiveInt | Literal["auto"] = 20
    """Questions per forward of the language model; the same for every method, because it can change logits. `auto` is as many
    as the memory of a GPU carries, at most 128, found once and written into the run directory; on a CPU it is 20."""
    sort_by_length: bool = False
    """Ask questions of like length together, within windows of 32 batches, so that batches hold less padding."""
    max_new_tokens: PositiveInt = 16
    """Longest answer, in tokens."""
    workers: PositiveInt | None = None
    """Processes that share the batches of each cell; they change no answer. Default: one per GPU, one on a CPU."""
    bootstrap: PositiveInt = 1000
    """Resamples of the confidence intervals, clustered by image."""
    seed: NonNegativeInt = 0
    """Seed of the bootstrap."""
    share_prefix: bool = False
    """Prefill the text before an image and its visual tokens once for all questions of a batch about the image, with methods that
    do not look at the question. Faster, but not bit for bit the answers to whole prompts."""
    rank: bool = True
    """Also rank the choices of questions that have choices, by their likelihood; false skips that forward."""
    flops: Flops = "macs_vision"
    """How the table counts the prefill: in MACs or FLOPs (2 x MACs), of visual or all tokens; `2mlp` counts two of the
    MLP's three matrices, as some papers do. This choice changes nothing else."""


class SweepSection(Section):
    """Many methods at once: the methods named here x the budgets, positions and seeds of `prune` x the values varied here."""

    methods: Literal["all", "configured"] | tuple[str, ...] = "all"
    """`all`: every file of stage2_prune/pruners, every entry point and prune.methods; `configured`: the methods of
    prune.methods; or names and paths. A method has the parameters that prune.methods gives it, or its defaults."""
    without: tuple[str, ...] = ()
    """Methods to leave out, by name or path."""
    vary: dict[str, Literal["every"] | tuple[Any, ...]] = Field(
        default_factory=dict[str, Literal["every"] | tuple[Any, ...]]
    )
    """Values of a parameter to cross, such as `quirks: every` or `scope.alpha: [0.5, 1]`: for each method that has the
    parameter, or for the named method alone; `every` takes each value that the method accepts."""
    order: tuple[Literal["default", "raster"], ...] = ("default",)
    """Order of kept patches: `default` as the method gives them, `raster` where that differs."""
    matches: tuple[Match, ...] = ()
    """Meanings of a budget to cross for methods inside the language model; default: prune.match alone."""
    workers: PositiveInt | None = None
    """Processes that share the cells; they change no answer. Default: one per GPU, or as many as the CPU's cores have room
    for."""
    threads: PositiveInt = 1
    """CPU threads of each worker. Threads change last bits, so their number does not depend on the number of workers."""
    rounds: PositiveInt = 5
    """Questions on which the latency of every cell is measured; each measurement alternates with the unpruned model."""


class OracleSection(Section):
    """A search for the patches that the language model answers best from: how far methods are from the best possible."""

    questions: PositiveInt = 300
    """Questions of `eval.split` that are searched, chosen by `seed` and their ids; all of a split that has no more."""
    seed: NonNegativeInt = 0
    """Seed of the choice of questions and of the random candidates."""
    methods: tuple[str, ...] = ("cls_attention", "feature_norm", "div_prune")
    """Training-free methods whose first 32 patches are candidates."""
    pool: PositiveInt = 96
    """Candidates of a question, in patches: those that show what it is about, those of `methods`, and random ones."""
    largest: PositiveInt = 64
    """Largest of prune.budgets that is searched for, in tokens per image; one search serves all budgets up to it."""

    @model_validator(mode="after")
    def _enough(self) -> "OracleSection":
        """Refuse a pool that cannot fill the largest budget."""
        if self.pool < self.largest:
            raise ValueError(
                f"expected a pool of at least `largest` patches, got pool {self.pool}, largest {self.largest}"
            )
        return self


class ClaimsSection(Section):
    """What is to be shown of trained methods, fixed before the test split is read; `claim` tests it."""

    ours: str | None = None
    """The method of this config that is compared beside the best trained one; null compares the best trained one alone."""
    budgets: tuple[Budget, ...] = (64, 32, 16)
    """The budgets of the claims, in tokens per image."""
    beside: tuple[Path, ...] = ()
    """Configs of the same questions with other models. Their claims are corrected together with this config's."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The adjusted p-value below which a difference is claimed."""
