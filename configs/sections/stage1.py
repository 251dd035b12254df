"""The config's sections that stage 1 reads: the model, the images and questions, the store, and the extraction.

Stage 2 reads `model`, `data` and `store` too. Import these classes from configs.experiment.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from configs.sections.section import Section

Dtype = Literal["float32", "float16", "bfloat16"]
ImageFormat = Literal["auto", "folder", "tar", "parquet"]
StoreLocation = Path | str
"""A folder, or the URL of a folder in an object store."""


def _failures(value: str) -> str:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?%|[0-9]+", value):
        raise ValueError("expected a count such as 5, or a share such as 1%")
    return value


Failures = Annotated[str, AfterValidator(_failures)]
"""A count such as `5`, or a share such as `1%`."""


def _above_zero(value: Any) -> Any:
    if re.fullmatch(r"0+|-[0-9]+", str(value)):
        raise ValueError("expected a number greater than 0; null takes all")
    return value


_AtMost = Annotated[PositiveInt | None, BeforeValidator(_above_zero)]


def store_location(value: Any) -> StoreLocation:
    """Read the path of a store: a URL stays text, because a Path would swallow one of its slashes; all else is a Path.

    Raises ValueError for a URL with credentials, and for what is neither text nor a path.
    """
    if isinstance(value, str) and re.match(r"(s3|gs)://[^/]*@", value):
        raise ValueError(
            "expected a URL without user and password, because every config.yaml would show them: set AWS_* variables"
        )
    if isinstance(value, str):
        return value if re.match(r"(s3|gs)://[^/]", value) else Path(value)
    if isinstance(value, Path):
        return value
    raise ValueError("expected a folder, or a URL such as s3://bucket/folder")


class ModelSection(Section):
    """The vision-language model whose features are cached and whose language half answers."""

    checkpoint: str
    """Folder or hub id of a checkpoint in the Hugging Face layout; `demo` is the demo's, installed with the package."""
    revision: str | None = None
    """Hub revision of the checkpoint (branch, tag or commit)."""
    dtype: Dtype = "float32"
    """Compute dtype of the vision tower, the projector and the language model; features keep it bit for bit."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, …; `auto` takes a GPU if the machine has one."""
    trust_remote_code: bool = False
    """Run Python code that the checkpoint brings, with all rights of this process; the fingerprint records this."""
    clip: str | None = None
    """Folder or hub id of the CLIP checkpoint that the model's vision tower comes from: for methods that compare patches
    with the question in CLIP's space."""
    clip_revision: str | None = None
    """Hub revision of the CLIP checkpoint."""
    vision_family: str | None = None
    """Family that opens the vision half: a file of stage1_extract/families, an entry point, or the path of a .py file;
    default: the family that serves the checkpoint's type."""
    tower: str | None = None
    """Kind of vision tower, chosen in the same way from stage1_extract/towers."""
    language_family: str | None = None
    """Family that opens the language half, chosen in the same way from stage2_prune/families."""


class DataSection(Section):
    """The images and the questions about them."""

    images: Path
    """Image root: a folder of image files, of webdataset shards (.tar) or of parquet files, or a single such file.

    Every image path in `questions` is relative to this folder and stays inside it. In archives an image path is the path
    of a member or the path in a cell; where several images have the same path, it is `<file>/<member>` or `<file>/<row>`.
    """
    format: ImageFormat = "auto"
    """Kind of files that `images` holds; `auto` finds it out where all files are of one kind."""
    follow_links: bool = False
    """Follow links that lead out of the image folder too; links that stay inside it are always followed."""
    image_column: str | None = None
    """Column of the images in parquet files; default: the only column of type `{bytes, path}`."""
    questions: Path | None = None
    """JSONL of questions or LLaVA's conversation JSON; without it the whole image folder is encoded."""
    identity: Literal["content", "name"] = "content"
    """`content` identifies an image by the sha256 of its file; `name` skips the hashing, for trusted, immutable sources."""
    datasets: tuple[str, ...] = ()
    """Names of the data sets that images and questions come from, as cards of trained pruners name them: hub ids, or words such
    as `GQA, training split`."""
    licence: str = "unknown"
    """Licence of images and questions, as cards name it: the hub's word for it, such as `cc-by-4.0`."""
    post_prompt: str = ""
    """Text appended to every question, such as an instruction to answer with a single word."""
    train: _AtMost = None
    """Questions of the training split, at most; null takes all. Questions that name no split are dealt out by
    store/questions/splits.py.
    """
    val: _AtMost = None
    """Questions of the validation split, at most; null takes all."""
    test: _AtMost = None
    """Questions of the test split, at most; null takes all."""


class StoreSection(Section):
    """Where the cached features lie, and which arrays of them are kept."""

    path: Annotated[StoreLocation, PlainValidator(store_location)] | None = None
    """Folder of the feature store, or `s3://bucket/folder` to read it there; default: `store` in the run directory."""
    arrays: tuple[str, ...] = ("raw", "projected", "cls_hidden", "cls_attention")
    """Names of the arrays to store."""
    shard_images: PositiveInt | None = None
    """Images per shard; default: the largest power of two that keeps a shard of `projected` within 320 MB."""


class ExtractSection(Section):
    """Stage 1: how images become features."""

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, given: Any) -> Any:
        """Read configs that still say `exact_batch`: features are exact now, whatever it says."""
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in cast("dict[Any, Any]", given).items() if key != "exact_batch"}

    tower_batch: PositiveInt | Literal["auto"] = "auto"
    """Images per call of the vision tower; `auto` is 32 on a GPU, or all images of a shard if these are fewer, and 2 on a
    CPU. A store records the shape of its calls, and whoever goes on with it uses the recorded one."""
    capture: tuple[str, ...] = ()
    """Side arrays to store beside store.arrays: `core`, `all`, or names, such as `keys,received_attention`."""
    decode_threads: PositiveInt | Literal["auto"] = "auto"
    """Threads that read and decode images; they change no result. `auto` is 2 on a CPU. Beside a GPU the workers share the cores:
    a worker with up to 4 cores decodes in as many threads, one with more in processes, at most 16."""
    max_failures: Failures = "0"
    """Unreadable images that are tolerated: a count (`5`) or a share of all images (`1%`)."""
    max_pixels: PositiveInt = 50_000_000
    """Largest number of pixels of an image; a larger image is refused from its header, before it is decoded."""
    engine: Literal["local", "slurm", "ray"] = "local"
    """What runs the workers: processes on this machine, SLURM jobs, or Ray actors; it changes no byte."""
    workers: PositiveInt | None = None
    """Workers of the engine; default: one per device."""
    worker_index: NonNegativeInt | None = None
    """Which of `num_workers` this run is, from 0: the run encodes its share of the shards, under any batch system."""
    num_workers: PositiveInt | None = None
    """How many runs share the store, each with its own `worker_index`."""
    without_stage2: bool = False
    """Store the features of a model whose language half stage 2 cannot open, for use elsewhere; without this flag such a
    model is refused before any work."""
    stall_seconds: PositiveFloat = 300.0
    """Seconds without progress after which a worker is taken for dead and its shard goes to another worker."""
    slurm: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Parameters of submitit's executor, such as `slurm_partition` and `timeout_min`; `cluster: local` runs the jobs on
    this machine."""
