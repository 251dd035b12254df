"""A small experiment in a folder, and the real command lines run on it as a user would."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from configs.cli import run_to_exit_code

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "extract": ("-m", "stage1_extract", "extract"),
    "train": ("-m", "stage2_prune", "train"),
    "eval": ("-m", "stage2_prune", "eval"),
    "parity": ("-m", "stage2_prune", "parity"),
    "inspect": ("-m", "store", "inspect"),
    "verify": ("-m", "store", "verify"),
    "status": ("-m", "store", "status"),
    "repair": ("-m", "store", "repair"),
    "compact": ("-m", "store", "compact"),
    "export": ("-m", "store", "export"),
    "import": ("-m", "store", "import"),
}


def config_file(folder: Path, checkpoint: object, **sections: Mapping[str, Any]) -> Path:
    """An experiment over `folder/data` that writes to `folder/run`; keyword arguments are laid over its sections."""
    content: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "model": {"checkpoint": str(checkpoint), "device": "cpu"},
        "data": {"images": str(folder / "data" / "images"), "questions": str(folder / "data" / "questions.jsonl")},
        "store": {"shard_images": 2},
        "extract": {"tower_batch": 1},
        "prune": {"methods": [{"name": "keep_all"}, {"name": "learned_scorer"}], "budgets": [4], "seeds": 1},
        "train": {"epochs": 1, "batch_size": 4, "min_keep": 2, "max_keep": 12, "val_keep": 4},
        "eval": {"batch_size": 4, "max_new_tokens": 2, "bootstrap": 20},
    }
    for section, fields in sections.items():
        content[section] = content[section] | dict(fields)
    path = folder / "trial.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return path


def trial(home: Path, folder: Path, **sections: Mapping[str, Any]) -> Path:
    """The experiment of the fixture `home`, with a run folder of its own."""
    data = {"images": str(home / "data" / "images"), "questions": str(home / "data" / "questions.jsonl")}
    return config_file(folder, home / "checkpoint", **{"data": data} | sections)


def run(
    command: str,
    *arguments: object,
    cwd: Path,
    expect: int | None = 0,
    env: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    prefix: Sequence[str] = (),
    timeout: float = 120,
    program: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """`python -m …` in `cwd`, and what it said; `env` is added to the environment, `without` taken from it.

    `program` is run in place of the module.
    """
    environment = (
        {k: v for k, v in os.environ.items() if k not in without} | {"PYTHONPATH": str(ROOT)} | dict(env or {})
    )
    entry = COMMANDS[command] if program is None else ("-c", program, COMMANDS[command][-1])
    done = subprocess.run(
        [*prefix, sys.executable, *entry, *map(str, arguments)],
        cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        timeout=timeout,
    )  # fmt: skip
    assert expect is None or done.returncode == expect, (
        f"{command}: exit {done.returncode}\n{done.stderr}\n{done.stdout}"
    )
    return done


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file under a folder, with its content; links and folders by what they are."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = path.read_bytes() if path.is_file() else "folder"
    return found


def invoke(capsys: Any, command: str, *arguments: object, expect: int = 0) -> str:
    """The same command line in this process, where no environment is at stake: no seconds of imports; returns its stderr."""
    _, package, name = COMMANDS[command]
    group = import_module(f"{package}.cli").group
    capsys.readouterr()
    code = run_to_exit_code(lambda: group.main([name, *map(str, arguments)], standalone_mode=False))
    said = capsys.readouterr()
    assert code == expect, f"{command}: exit {code}\n{said.err}\n{said.out}"
    assert "Traceback" not in said.err
    return said.err
