"""Read a command as its program would, up to the place where the work would begin."""

import re
import shlex
import subprocess
from importlib import import_module
from importlib.util import find_spec

import click

from configs.flags import FieldOption
from stage2_prune.experiments import pruning_experiment as experiment_of
from tests.helpers.pages import ROOT

GROUPS = {
    "store": "store.cli:group",
    "stage1_extract": "stage1_extract.cli:group",
    "stage2_prune": "stage2_prune.cli:group",
    "stage1_extract.demo": "stage1_extract.demo.cli:group",
    "encode-once": "configs.command:group",
}
OTHER_PROGRAMS = {"cp", "sed", "pip"}
"""What else the pages tell people to type."""


def check(words: list[str]) -> None:
    """Read a command: `make` by its recipe, ours by click and by the loader of configs, and of other modules the name.

    Nothing of it is run. Paths of configs are those of the current folder.
    """
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    arguments = [argument.replace("$INDEX", "0") for argument in arguments]
    if program == "make":
        for line in recipe(arguments):
            check(line)
    elif program == "encode-once":
        read("encode-once", arguments)
    elif program == "python":
        flag, module, *rest = arguments
        assert flag == "-m", words
        if module in GROUPS:
            read(module, rest)
        else:
            assert find_spec(module), words
    else:
        assert program in OTHER_PROGRAMS, words


def recipe(arguments: list[str]) -> list[list[str]]:
    """The commands that `make` would run, the virtual environment being ready."""
    would = subprocess.run(
        ["make", "-n", "--old-file=.venv/.ready", *arguments], cwd=ROOT, capture_output=True, text=True
    )  # a process: how make reads a line is known to make alone
    assert would.returncode == 0, would.stderr
    commands = [shlex.split(line) for line in would.stdout.splitlines()]
    return [words for words in commands if words[0] == ".venv/bin/python"]


def read(program: str, arguments: list[str]) -> None:
    """Let click parse the arguments of one of our commands, and the loader read the config that they make."""
    module, _, name = GROUPS[program].partition(":")
    command = getattr(import_module(module), name)
    while isinstance(command, click.Group) and arguments:
        name, *arguments = arguments
        command = command.get_command(click.Context(command), name)
        assert command is not None, f"{program} has no command {name}"
    if isinstance(command, click.Group):  # without a command, it prints its help
        return
    context = command.make_context(name, list(arguments))
    fields = {option.name for option in command.params if isinstance(option, FieldOption)} | {"run_dir"}
    if "config_path" in context.params:
        flags = {key: value for key, value in context.params.items() if key in fields}
        experiment_of(context.params["config_path"], flags)
