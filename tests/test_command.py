"""The installed command: a wheel in an environment of its own, outside the checkout, beside folders of the packages' names."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from functools import partial
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from configs.command import HOMES, group
from configs.find_config import load_experiment, packaged_configs
from stage1_extract.cli import group as stage1
from stage1_extract.demo.cli import group as demo
from stage2_prune.cli import group as stage2
from store.cli import group as store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The bin folder of an environment with the wheel; what the wheel needs is found in the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # a build writes beside the sources
    source.mkdir()
    for name in ("configs", "store", "stage1_extract", "stage2_prune"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env"), "platbase": str(folder / "env")}))
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", own, wheel], check=True, cwd=folder)
    shared = sysconfig.get_path("purelib")
    (own / "shared.pth").write_text(
        f"import sys; sys.path.append({shared!r})\n"
    )  # behind the wheel, without its own .pth files
    script = folder / "env" / "bin" / "encode-once"
    script.write_text(f"#!{folder / 'env' / 'bin' / 'python'}\nfrom configs.begin import encode_once\nencode_once()\n")
    script.chmod(0o755)
    return folder / "env" / "bin"


@pytest.fixture
def run(installed, tmp_path):
    """Run `encode-once` in a folder that has a `configs` package and a `store.py` of its own."""
    folder = tmp_path / "mine"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "__init__.py").write_text("raise RuntimeError('the folder of the user was imported')\n")
    (folder / "store.py").write_text("raise RuntimeError('the file of the user was imported')\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}

    def execute(program, *arguments, **more):
        command = [installed / program, *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=environment | more, capture_output=True, text=True, check=False)

    run = partial(execute, "encode-once")
    run.folder, run.python = folder, partial(execute, "python")
    return run


def test_the_wheel_is_what_is_imported_and_it_holds_types_configs_and_checkpoint(installed):
    script = "import configs, store, sys; print(configs.__file__); print(store.__file__)"
    command, clean = [installed / "python", "-P", "-c", script], {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", env=clean)
    assert all(line.startswith(str(installed.parent)) for line in done.stdout.splitlines())
    packages = Path(done.stdout.splitlines()[0]).parents[1]
    for name in (
        "configs/py.typed",
        "configs/demo.yaml",
        "store/__init__.pyi",
        "stage1_extract/demo/checkpoint/config.json",
    ):
        assert (packages / name).is_file(), name


def test_a_run_from_an_empty_folder_finds_config_and_checkpoint_in_the_package(run):
    done = run("extract", "--config", "demo", "--dry-run")
    assert done.returncode == 5 and "data" in done.stderr, done.stderr
    assert run("demo", "--help").returncode == 0


def demo_config(folder: Path, train: int) -> Path:
    """The demo with few questions, methods and epochs; its data and results lie where those of `demo` lie."""
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    content["model"]["checkpoint"] = str(ROOT / content["model"]["checkpoint"])
    content["data"] |= {"train": train, "val": 5, "test": 5}
    content["prune"] = {"methods": [{"name": "uniform_grid"}, {"name": "learned_scorer"}], "budgets": [32]}
    content["train"] |= {"epochs": 1}
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_demo_from_a_wheel_goes_from_nothing_to_the_proof_and_says_where_everything_lies(run):
    demo_config(run.folder, train=5)
    done = run("demo", "--config", "demo.yaml")
    assert done.returncode == 0, done.stderr
    assert "| learned_scorer " in done.stdout and "IDENTICAL: 5 questions" in done.stdout
    written = done.stderr.partition("written:\n")[2].partition("to try next:\n")
    places = [line.split()[0] for line in written[0].splitlines()]
    assert places == [
        "data/demo/images",
        "runs/demo/store",
        "runs/demo/pruner",
        "runs/demo/eval/table.md",
        "runs/demo/parity.json",
    ]
    assert all((run.folder / place).exists() for place in places)
    assert {path.name for path in run.folder.iterdir()} == {"configs", "store.py", "demo.yaml", "data", "runs"}
    for line in written[2].splitlines()[:-1]:
        command = shlex.split(line.strip().partition("  ")[0])
        shown = run(*command[1:])
        assert shown.returncode == 0, f"{line}: {shown.stderr}"
    assert_an_own_pruner_is_checked_and_evaluated(run)
    assert_the_first_snippet_of_the_readme_prints_its_answers(run)


def assert_an_own_pruner_is_checked_and_evaluated(run):
    shutil.copy(ROOT / "docs" / "examples" / "my_pruner.py", run.folder)
    checked = run("check-pruner", "my_pruner.py")
    assert checked.returncode == 0 and "failed" not in checked.stdout, checked.stderr
    there = ("--config", "demo.yaml", "--run-dir", "runs/own", "--store.path", "runs/demo/store")
    own = run("eval", *there, "--prune.methods", "[my_pruner.py, uniform_grid]")
    assert own.returncode == 0 and "| my_pruner " in own.stdout, own.stderr


def assert_the_first_snippet_of_the_readme_prints_its_answers(run):
    snippet = (ROOT / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    done = run.python("-P", "-c", snippet)
    assert done.returncode == 0 and done.stdout.count("8 tokens, ") == 3, done.stderr


def test_a_step_that_fails_ends_the_demo_with_its_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = []

    def run_to_its_end(command, environment):
        started.append(command[-3])
        return 7 if command[-3] == "train" else 0

    monkeypatch.setattr("configs.command.run_to_its_end", run_to_its_end)
    ended = CliRunner().invoke(group, ["demo"], standalone_mode=False)
    assert ended.return_value == 7 and started == ["data", "extract", "train"]
    assert "step 3 of 5, train, ended with code 7" in ended.stderr and "written:" not in ended.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_demo_that_is_asked_to_stop_lets_its_step_end_by_itself(tmp_path, number, code):
    demo_config(tmp_path, train=20_000)
    process = subprocess.Popen(
        [sys.executable, "-c", "from configs.command import main; main()", "demo", "--config", "demo.yaml"],
        cwd=tmp_path, text=True, stderr=subprocess.PIPE, start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    images = tmp_path / "data" / "demo" / "images"
    while not any(images.glob("*_00005.png")):  # the step has imported all that it needs
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    # a terminal sends Ctrl-C to all processes in front of it, a supervisor sends SIGTERM to the one that it started
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    try:
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == code and f"step 1 of 5, data, ended with code {code}" in said
    assert said.count("run the same command again to go on") == 1 and "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no process of the demo is left


def test_help_lists_every_command_and_completion_knows_commands_and_flags(run):
    listed = run("--help").stdout
    assert all(f"  {name}" in listed for name in ("demo", *HOMES, "store", "completion"))
    script = run("completion", "bash")
    assert script.returncode == 0 and "_ENCODE_ONCE_COMPLETE" in script.stdout
    words = {"COMP_WORDS": "encode-once extract --dry", "COMP_CWORD": "2"}
    assert "plain,--dry-run" in run(_ENCODE_ONCE_COMPLETE="bash_complete", **words).stdout


def test_the_command_has_every_command_of_the_packages():
    from stage1_extract.cli import group as stage1
    from stage2_prune.cli import group as stage2

    assert set(stage1.commands) - {"reference"} | set(stage2.commands) == HOMES.keys()
    context = click.Context(group)
    for name in group.list_commands(context):
        assert group.get_command(context, name) is not None


def test_every_packaged_config_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "demo" in packaged_configs()
    for name in packaged_configs():
        experiment = load_experiment(name)
        assert experiment.name == name and experiment.run_dir == Path("runs") / name
    assert Path(load_experiment("demo").model.checkpoint).is_dir()


@pytest.mark.parametrize("commands", [group, store, stage1, stage2, demo], ids=lambda commands: commands.name)
def test_no_summary_in_a_list_of_commands_is_cut(commands):
    listed = CliRunner().invoke(commands, ["--help"], terminal_width=80).stdout.partition("Commands:\n")[2]
    assert len(listed.splitlines()) == len(commands.list_commands(click.Context(commands)))
    assert "..." not in listed
