"""The command `encode-once`: every command of the stages and the store under one name, from any folder.

It starts the packages by name, so that none is imported before its command is asked for; the import rule exempts this file.
"""

import subprocess
import sys
from importlib import import_module

import click
from click.shell_completion import get_completion_class

from configs.cli import main as run
from configs.flags import Commands

HOMES = {
    "extract": "stage1_extract",
    "diagnose": "stage1_extract",
    "verify": "stage1_extract",
    "train": "stage2_prune",
    "eval": "stage2_prune",
    "sweep": "stage2_prune",
    "parity": "stage2_prune",
    "compare": "stage2_prune",
    "analyse": "stage2_prune",
    "show": "stage2_prune",
    "calibrate": "stage2_prune",
    "pruners": "stage2_prune",
    "check-pruner": "stage2_prune",
}
"""The package of each command."""
STEPS = (
    ("stage1_extract.demo", "data"),
    ("stage1_extract", "extract"),
    ("stage2_prune", "train"),
    ("stage2_prune", "eval"),
    ("stage2_prune", "parity"),
)
"""What `encode-once demo` runs, each in a process of its own."""


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
@click.option("--config", default="demo", show_default=True, help="A packaged config, or a YAML file.")
def demo(config: str) -> int:
    """Run every step on generated images, in minutes.

    The steps are data, extract, train, eval and parity; files are written to ./data and ./runs.
    """
    for package, step in STEPS:
        click.echo(f"encode-once {step} --config {config}", err=True)
        # -P: a file of the current folder that is called as one of the packages must not be taken for it
        done = subprocess.run([sys.executable, "-P", "-m", package, step, "--config", config], check=False)
        if done.returncode:
            return done.returncode
    return 0


@group.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script by which your shell completes commands.

    Add `eval "$(encode-once completion bash)"` to ~/.bashrc.
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(group, {}, "encode-once", "_ENCODE_ONCE_COMPLETE").source())


def main() -> None:
    """Run the command; the entry point of the installed package."""
    run(group)
