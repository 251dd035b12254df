"""Processes that are forked off the preloaded server do what a new process would do; see tests/helpers/preloaded."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SPAWNED = "from multiprocessing.spawn import spawn_main;"  # how a command begins that the server takes
HAS_TORCH = "import sys; print('torch' in sys.modules)"


def run(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", f"{SPAWNED}{code}", *arguments], capture_output=True, text=True, timeout=60, **options
    )


def test_a_process_has_the_arguments_folder_files_and_variables_of_its_launcher(tmp_path):
    code = "import os, sys; print(sys.argv, os.getcwd(), os.environ['COLOUR'], sys.stdin.read(), sys.executable)"
    done = run(code, "a b", cwd=tmp_path, env=os.environ | {"COLOUR": "blue"}, input="in")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[0] == f"['-c', 'a b'] {tmp_path} blue in {sys.executable}"


def test_an_open_file_is_handed_on_by_its_number(tmp_path):
    with (tmp_path / "file").open("w+") as file:
        run(f"import os; os.write({file.fileno()}, b'here')", pass_fds=(file.fileno(),))
    assert (tmp_path / "file").read_text() == "here"


@pytest.mark.parametrize(
    ("code", "expected"), [("import sys; sys.exit(7)", 7), ("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_a_launcher_ends_as_its_process_ends(code, expected):
    assert run(code).returncode == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_process(number):
    handled = f"import signal, sys, time; signal.signal({int(number)}, lambda *_: sys.exit(5))"
    code = f"{SPAWNED}{handled}; print('up', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(30) == 5


def test_a_process_does_not_outlive_its_launcher():
    code = f"{SPAWNED}import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        assert child != process.pid
        process.kill()
    for _ in range(300):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.1)
    pytest.fail("the process is still there")


@pytest.mark.parametrize(
    "different",
    [{"env": os.environ | {"LC_ALL": "C"}}, {"env": os.environ | {"OMP_NUM_THREADS": "3"}}, {"umask": 0o77}],
)
def test_a_process_that_would_not_be_the_same_is_a_new_one(different):
    assert run(HAS_TORCH, **different).stdout == "False\n"
    assert run(HAS_TORCH).stdout == "True\n"


@pytest.mark.usefixtures("real_python")
def test_a_test_may_ask_for_new_processes():
    assert run(HAS_TORCH).stdout == "False\n"
