"""The typed config of one experiment: eight sections, every field with its unit, an unknown key is an error."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from configs.budgets import Budget
from configs.errors import ConfigError
from configs.section import Section, path_component

Dtype = Literal["float32", "float16", "bfloat16"]
Positions = Literal["original", "compact"]
Flops = Literal["macs_vision", "macs_all", "macs_vision_2mlp", "macs_all_2mlp", "flops_vision_2mlp", "flops_all"]
Match = Literal["mean-tokens", "kept", "kv"]
ImageFormat = Literal["auto", "folder", "tar", "parquet"]
StoreLocation = Path | str
"""A folder, or the URL of one in an object store."""
Failures = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?%$|^\d+$")]


def store_location(value: Any) -> StoreLocation:
    """What a store's path says: text stays text only where it is a URL, of which a Path would swallow a slash."""
    if isinstance(value, str) and re.match(r"(s3|gs)://[^/]*@", value):
        raise ValueError(
            "expected a URL without user and password, which would lie in every config.yaml: use AWS_* variables"
        )
    if isinstance(value, str):
        return value if re.match(r"(s3|gs)://[^/]", value) else Path(value)
    if isinstance(value, Path):
        return value
    raise ValueError("expected a folder, or a URL such as s3://bucket/folder")


class ModelSection(Section):
    """The vision-language model whose features are cached and whose language half answers."""

    checkpoint: str
    """Folder or hub id of a checkpoint in the Hugging Face layout."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    dtype: Dtype = "float32"
    """Compute dtype of the vision tower, the projector and the language model; features keep it bit for bit."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, …; `auto` takes a GPU where there is one."""
    trust_remote_code: bool = False
    """Run Python code that the checkpoint brings, with all rights of this process; recorded in the fingerprint."""
    clip: str | None = None
    """Folder or hub id of the CLIP checkpoint whose vision tower the model has: for methods that compare patches with the
    question in CLIP's space."""
    clip_revision: str | None = None
    """Hub revision of that checkpoint."""


class DataSection(Section):
    """The images and the questions about them."""

    images: Path
    """Image root: a folder of image files, of webdataset shards (.tar) or of parquet files, or one such file.

    Every image path in `questions` is relative to this folder and stays inside it; in archives it is the member's or the
    cell's path, or `<file>/<member>` and `<file>/<row>` where several images have that path.
    """
    format: ImageFormat = "auto"
    """What `images` is; `auto` finds out where only one kind of file is there."""
    follow_links: bool = False
    """Follow links of an image folder that lead out of it, too; those that stay inside are always followed."""
    image_column: str | None = None
    """Column of the images in parquet files; default: the only one of `{bytes, path}`."""
    questions: Path | None = None
    """JSONL of questions or LLaVA's conversation JSON; without it the whole image folder is encoded."""
    identity: Literal["content", "name"] = "content"
    """`content`: an image is its file's sha256; `name` skips the hashing, for trusted, immutable sources."""
    post_prompt: str = ""
    """Text appended to every question, such as an instruction to answer with a single word."""
    train: PositiveInt | None = None
    """Questions of the training split, at most; null takes all. store/questions/splits.py deals out those
    that name no split.
    """
    val: PositiveInt | None = None
    """Questions of the validation split, at most; null takes all."""
    test: PositiveInt | None = None
    """Questions of the test split, at most; null takes all."""


class StoreSection(Section):
    """Where the cached features lie, and which of them are kept."""

    path: Annotated[StoreLocation, PlainValidator(store_location)] | None = None
    """Folder of the feature store, or `s3://bucket/folder` to read it there; default: `store` in the run directory."""
    arrays: tuple[str, ...] = ("raw", "projected", "cls_hidden", "cls_attention")
    """Names of the arrays to store."""
    shard_images: PositiveInt | None = None
    """Images per shard; default: the largest power of two that keeps a shard of `projected` within 320 MB."""


class ExtractSection(Section):
    """Stage 1: how images become features."""

    tower_batch: PositiveInt = 8
    """Images per forward of the vision tower; part of the numeric fingerprint."""
    exact_batch: bool = True
    """Encode one image at a time on a device whose bits depend on the batch; false keeps `tower_batch`, and is only close."""
    capture: tuple[str, ...] = ()
    """Side arrays to store beside store.arrays: `core`, `all`, or names, such as `keys,received_attention`."""
    decode_threads: PositiveInt = 2
    """Threads that read and decode images; changes no result."""
    max_failures: Failures = "0"
    """Unreadable images that are tolerated: a count (`5`) or a share of all images (`1%`)."""
    max_pixels: PositiveInt = 50_000_000
    """Images with more pixels than this are refused from their header, before they are decoded."""
    engine: Literal["local", "slurm", "ray"] = "local"
    """Who runs the workers: processes on this machine, SLURM jobs, Ray actors; changes no byte."""
    workers: PositiveInt | None = None
    """Workers of the engine; default: one per device."""
    worker_index: NonNegativeInt | None = None
    """Which of `num_workers` this run is, from 0: it encodes its share of the shards, for any batch system."""
    num_workers: PositiveInt | None = None
    """How many runs share the store, each with its own `worker_index`."""
    without_stage2: bool = False
    """Store the features of a model whose language half stage 2 cannot open, for use elsewhere; such a model is refused
    otherwise, before any work."""
    stall_seconds: PositiveFloat = 300.0
    """A worker without progress for so long is taken for dead: its shard goes to another."""
    slurm: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Parameters of submitit's executor, such as `slurm_partition` and `timeout_min`; `cluster: local` runs them here."""


class Method(BaseModel):
    """A pruning method: its file's name in `stage2_prune/pruners`, and its parameters beside it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    weights: Annotated[Path | None, Field(exclude_if=lambda folder: folder is None)] = None
    """Folder with the `pruner.json` of a trained method; default: the run directory's."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Take a plain name for a method with its defaults."""
        return {"name": given} if isinstance(given, str) else given

    @property
    def parameters(self) -> dict[str, Any]:
        """Every key beside `name` and `weights`."""
        return dict(self.model_extra or {})


class PruneSection(Section):
    """The methods under test and their budgets."""

    methods: tuple[Method, ...] = (Method(name="keep_all"),)
    """Pruners to evaluate: names, or `{name: NAME, parameter: value, …}`."""
    budgets: tuple[Budget, ...] = (64,)
    """Visual tokens kept, in tokens per image; a fraction such as 206.5 for methods whose budget is a mean over layers, or
    `published:192`, the schedule that a method's paper or code calls so."""
    positions: tuple[Literal["default"] | Positions, ...] = ("default",)
    """RoPE positions of the kept tokens; `default` is each method's published choice."""
    match: Match = "mean-tokens"
    """What a budget is for methods inside the language model: the mean of the tokens that enter its layers, the number kept
    behind the first drop, or the size of the cache, as that of so many tokens in every layer."""
    seeds: PositiveInt = 5
    """Seeds over which a randomised pruner is averaged."""


class TrainSection(Section):
    """Training of one pruner; the language model stays frozen."""

    pruner: str = "learned_scorer"
    """Name of the method in `prune.methods` to train."""
    epochs: NonNegativeInt = 2
    """Passes over the training questions; 0 saves the freshly seeded pruner."""
    batch_size: PositiveInt = 10
    """Questions per optimiser step."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW, after a linear warm-up; cosine decay."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of AdamW."""
    kl_weight: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the unpruned model's answer distribution, beside the language-model loss."""
    min_keep: PositiveInt = 16
    """Smallest budget drawn for a batch, in tokens per image."""
    max_keep: PositiveInt = 192
    """Largest budget drawn for a batch, in tokens per image."""
    val_keep: PositiveInt = 32
    """Budget at which an epoch is judged on the validation split, in tokens per image."""
    seed: NonNegativeInt = 0
    """Seed of the pruner's weights, of the order of questions and of the budgets."""


class EvalSection(Section):
    """Evaluation: greedy generation and, where choices exist, ranking."""

    split: Literal["train", "val", "test"] = "test"
    """Split to score."""
    batch_size: PositiveInt = 20
    """Questions per forward of the language model; the same for every method, because it can change logits."""
    max_new_tokens: PositiveInt = 16
    """Longest answer, in tokens."""
    bootstrap: PositiveInt = 1000
    """Resamples of the confidence intervals, clustered by image."""
    seed: NonNegativeInt = 0
    """Seed of the bootstrap."""
    rank: bool = True
    """Also rank the choices of questions that have some, by their likelihood; false skips that forward."""
    flops: Flops = "macs_vision"
    """How the table counts the prefill, the only thing it changes: MACs or FLOPs (2 x MACs), of visual or all tokens; `2mlp`
    counts two of the MLP's three matrices, as some papers do."""


class SweepSection(Section):
    """Many methods at once: the methods named here x the budgets, positions and seeds of `prune` x what is crossed here."""

    methods: Literal["all", "configured"] | tuple[str, ...] = "all"
    """`all`: every file of stage2_prune/pruners; `configured`: those of prune.methods; or names. A method has the parameters
    that prune.methods gives it, or its defaults."""
    without: tuple[str, ...] = ()
    """Methods to leave out, by name."""
    vary: dict[str, Literal["every"] | tuple[Any, ...]] = Field(
        default_factory=dict[str, Literal["every"] | tuple[Any, ...]]
    )
    """Values of a parameter to cross, such as `quirks: every` or `scope.alpha: [0.5, 1]`: for each method that has the
    parameter, or for the one named; `every` takes each value that the method has."""
    order: tuple[Literal["default", "raster"], ...] = ("default",)
    """Order of kept patches: `default` as the method gives them, `raster` where that differs."""
    matches: tuple[Match, ...] = ()
    """Meanings of a budget to cross for methods inside the language model; default: prune.match alone."""
    workers: PositiveInt | None = None
    """Processes that share the cells; changes no answer. Default: one per GPU, or as many as the CPU's cores have room for."""
    threads: PositiveInt = 1
    """CPU threads of each worker: they change last bits, so they are the same whatever the number of workers."""
    rounds: PositiveInt = 5
    """Questions on which the latency of every cell is measured, each in turn with the unpruned model."""


class Experiment(Section):
    """One experiment; the name is the config file's."""

    name: Annotated[str, AfterValidator(path_component)]
    run_dir: Path
    """Folder of everything this experiment writes; default: `runs/<name>`."""
    model: ModelSection
    data: DataSection
    store: StoreSection = StoreSection()
    extract: ExtractSection = ExtractSection()
    prune: PruneSection = PruneSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    sweep: SweepSection = SweepSection()

    @property
    def store_location(self) -> StoreLocation:
        """Where the feature store is read: a folder, or a URL."""
        return self.store.path or self.run_dir / "store"

    @property
    def store_path(self) -> Path:
        """Folder of the feature store, to write to; ConfigError (exit 2) where it is a URL."""
        return local_folder(self.store_location)

    def with_arrays(self, names: Iterable[str]) -> "Experiment":
        """The same, storing these arrays."""
        store = self.store.model_copy(update={"arrays": tuple(dict.fromkeys(names))})
        return self.model_copy(update={"store": store})


def local_folder(location: StoreLocation) -> Path:
    """What is written to must be a folder; ConfigError (exit 2) for a URL, which is only read."""
    if isinstance(location, Path):
        return location
    raise ConfigError(
        f"expected a folder to write to, got {location}, which is only read: write to a folder and copy it"
    )
