"""The command `encode-once`: every command of the stages and the store under one name, from any folder.

It starts the packages by name, so that none is imported before its command is asked for; the import rule exempts this file.
"""

from collections.abc import Mapping
from importlib import import_module

import click
from click.shell_completion import get_completion_class

from configs.budgets import file_part
from configs.cli import main as run
from configs.experiment import Experiment
from configs.find_config import load_experiment
from configs.flags import Commands
from configs.processes.children import module_process, run_to_its_end

HOMES = {
    "extract": "stage1_extract",
    "diagnose": "stage1_extract",
    "verify": "stage1_extract",
    "teach": "stage2_prune",
    "train": "stage2_prune",
    "eval": "stage2_prune",
    "sweep": "stage2_prune",
    "parity": "stage2_prune",
    "claim": "stage2_prune",
    "oracle": "stage2_prune",
    "read": "stage2_prune",
    "compare": "stage2_prune",
    "analyse": "stage2_prune",
    "show": "stage2_prune",
    "calibrate": "stage2_prune",
    "pruners": "stage2_prune",
    "check-pruner": "stage2_prune",
    "card": "stage2_prune",
    "push": "stage2_prune",
    "pull": "stage2_prune",
}
"""The package of each command."""
STEPS = {
    "data": ("stage1_extract.demo", "draw images and questions"),
    "extract": ("stage1_extract", "encode every image once, into the store"),
    "train": ("stage2_prune", "train a pruner from the store"),
    "eval": ("stage2_prune", "answer the test questions with each pruner at each budget"),
    "parity": ("stage2_prune", "prove that the store gives the answers of the full model"),
}
"""What `encode-once demo` runs, each step in a process of its own: the package, and what the step is for."""


class Everything(Commands):
    """The commands of all packages; a package is imported when one of its commands is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of a run, then the store's."""
        return ["demo", *HOMES, "store", "completion"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the package of a command, and return the command."""
        if cmd_name == "store":
            return import_module("store.cli").group
        if cmd_name in HOMES:
            return import_module(f"{HOMES[cmd_name]}.cli").group.get_command(ctx, cmd_name)
        return super().get_command(ctx, cmd_name)


@click.group(cls=Everything)
@click.version_option(package_name="encode-once")
@click.pass_context
def group(context: click.Context) -> None:
    """Encode every image once; train and evaluate visual-token pruners from the cache, bit for bit."""
    if context.invoked_subcommand in HOMES:
        import_module("store.checkpoint.versions").note_untested()


@group.command()
@click.option("--config", default="demo", show_default=True, help="A packaged config of the demo, or a YAML file.")
def demo(config: str) -> int:
    """Run every step on generated images, in minutes.

    The steps are data, extract, train, eval and parity; files are written to ./data and ./runs.

    A demo that was stopped continues where it stopped when the same command is run again.
    """
    experiment = load_experiment(config)
    for number, (step, (package, purpose)) in enumerate(STEPS.items(), start=1):
        click.secho(f"demo {number}/{len(STEPS)} {step}: {purpose}", err=True, bold=True)
        code = run_to_its_end(*module_process(package, step, "--config", config))
        if code:
            click.echo(f"demo: step {number} of {len(STEPS)}, {step}, ended with code {code}; see above", err=True)
            return code
    click.echo(_where_things_are(experiment, config), err=True)
    return 0


def _where_things_are(experiment: Experiment, config: str) -> str:
    """List the files that the demo has written, and the commands to try next."""
    run_dir, store = experiment.run_dir, experiment.store_location
    only = "".join(f"--only '*-{file_part(budget)}-*' " for budget in experiment.prune.budgets[-1:])
    written = {
        f"{experiment.data.images}": f"the images; {experiment.data.questions} holds the questions",
        f"{store}": "the features, a plain Zarr group with a log",
        f"{run_dir / 'pruner'}": "the weights of the trained pruner",
        f"{run_dir / 'eval' / 'table.md'}": "the table; beside it lie a plot and every answer",
        f"{run_dir / 'parity.json'}": "the proof",
    }
    tries = {
        f"encode-once store inspect {store}": "look into the store",
        f"encode-once show test_00000.png --config {config}": "draw what pruners keep of an image",
        f"encode-once compare {run_dir} {only}--factor positions": "tell differences from chance",
        "encode-once extract --config llava-1.5-7b --dry-run": "what your images would cost, once they are in data/llava "
        "(files of the model come from the hub)",
    }
    return f"\nwritten:\n{_aligned(written)}\nto try next:\n{_aligned(tries)}"


def _aligned(lines: Mapping[str, str]) -> str:
    """Format lines of two columns."""
    width = max(map(len, lines))
    return "\n".join(f"  {name:<{width}}  {meaning}" for name, meaning in lines.items())


@group.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script by which your shell completes commands.

    Add `eval "$(encode-once completion bash)"` to ~/.bashrc.
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    click.echo(completion_class(group, {}, "encode-once", "_ENCODE_ONCE_COMPLETE").source())


def main() -> None:
    """Run the command; the entry point of the installed package."""
    run(group)
