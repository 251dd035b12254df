"""The commands of the demo and of the harder benchmark: write data, or train checkpoints."""

from pathlib import Path
from typing import Any

import click

from configs.counted import counted
from configs.flags import Commands, experiment_from, experiment_options


@click.group(cls=Commands)
def group() -> None:
    """Write scenes of coloured shapes, or train tiny LLaVAs on such scenes."""


@group.command()
@experiment_options("data")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the scenes; 1 is refused, as the checkpoint's."
)
def data(config_path: Path, seed: int, **flags: Any) -> None:
    """Write the images and questions of a demo's config.

    The config says how many questions train, val and test have. A data folder called `scenes_hard` gets the harder scenes.
    """
    from configs.errors import ConfigError
    from stage1_extract.demo.hard.world import FOLDER, HARD
    from stage1_extract.demo.write import DEMO, write_dataset

    wanted = experiment_from(config_path, flags).data
    out = wanted.images.parent
    world = HARD if out.name == FOLDER else DEMO
    if seed == world.training_seed:
        raise ConfigError(f"seed {seed} draws the scenes that the checkpoint was trained on: choose another")
    if wanted.images.name != "images" or wanted.questions != out / "questions.jsonl":
        raise ConfigError(
            f"expected a folder with `images` and `questions.jsonl` as the demo's data, {config_path} names {wanted.images} "
            f"and {wanted.questions}: use one of the demo's configs"
        )
    splits = {"train": wanted.train, "val": wanted.val, "test": wanted.test}
    counts = {name: count for name, count in splits.items() if count is not None}
    if len(counts) < len(splits):
        raise ConfigError(
            f"expected a number of questions for data.train, data.val and data.test, {config_path} leaves one of them open: "
            "give all three"
        )
    written = write_dataset(out, counts, seed, world)
    click.echo(
        f"{out}: {counted(sum(counts.values()), 'question')} " + ("written" if written else "already there"), err=True
    )


@group.command("train-checkpoint")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the checkpoint to write.")
@click.option("--log", type=click.Path(path_type=Path), required=True, help="JSONL of measurements to write.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--workers", type=int, default=16, show_default=True, help="Processes that draw scenes.")
def train(out: Path, log: Path, seed: int, device: str, workers: int) -> None:
    """Train the demo's checkpoint from random weights.

    This takes about 8 minutes and 30 GB of memory on one H100.
    """
    import torch

    from stage1_extract.demo.recipe import Recipe
    from stage1_extract.demo.train_checkpoint import summary, train_checkpoint

    torch.set_float32_matmul_precision("high")
    train_checkpoint(Recipe(seed=seed, device=device, workers=workers), out, log)
    click.echo(summary(log))


@group.command("train-hard")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of both checkpoints and of the state."
)
@click.option("--log", type=click.Path(path_type=Path), required=True, help="JSONL of measurements to write.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cuda", show_default=True, help="It decides the recipe too."
)
def train_hard(out: Path, log: Path, device: str) -> None:
    """Train the two checkpoints of the harder scenes.

    This takes hours on a CPU. A run that was stopped goes on when the same command is run again.
    """
    import torch

    from stage1_extract.demo.hard.recipe import RECIPES
    from stage1_extract.demo.hard.training import train

    torch.set_float32_matmul_precision("high")
    train(RECIPES[device], out, log)
