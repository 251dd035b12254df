"""A signal in the first and in the last moments of a command: an exit code, and no traceback."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EARLY = """
import os, sys
class Signalling:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Signalling())
sys.argv = ["{command}", "--help"]
{run}
"""
PACKAGE = "import runpy; runpy.run_module({package!r}, run_name='__main__', alter_sys=True)"
COMMANDS = {
    "encode-once": "from configs.begin import encode_once; encode_once()",
    **{
        package: PACKAGE.format(package=package)
        for package in ("store", "stage1_extract", "stage1_extract.demo", "stage2_prune")
    },
}
IGNORED = """
import os, signal
import click
from configs.begin import end_quietly_on_signals
from configs.cli import main

@click.command()
def nothing():
    os.kill(os.getpid(), {number})
    click.echo("still there")

signal.signal({number}, signal.SIG_IGN)
end_quietly_on_signals()
os.kill(os.getpid(), {number})
main(click.Group("group", {{"nothing": nothing}}), ["nothing"])
"""
LATE = """
import os, threading, time
import click
from configs.cli import main

class Last:
    def __del__(self, write=os.write, kill=os.kill, me=os.getpid()):  # called when Python has reset its handlers
        write(1, b"last")
        kill(me, {number})

def still_there():
    threading.main_thread().join()
    os.kill(os.getpid(), {number})
    time.sleep(30)

@click.command()
def nothing():
    {work}

main(click.Group("group", {{"nothing": nothing}}), ["nothing"])
"""


def ended(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_while_modules_are_imported_ends_a_command_silently(command, number, code):
    done = ended(EARLY.format(command=command, run=COMMANDS[command], number=int(number)))
    assert (done.returncode, done.stderr, done.stdout) == (code, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_shell_has_told_the_process_to_ignore_stays_ignored(number):
    done = ended(IGNORED.format(number=int(number)))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "still there\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_shuts_down_changes_no_exit_code(number):
    done = ended(LATE.format(number=int(number), work="global last; last = Last()"))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "last")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_while_python_waits_for_a_thread_of_an_ended_command_ends_the_process_at_once(number, code):
    done = ended(LATE.format(number=int(number), work="threading.Thread(target=still_there).start()"))
    assert (done.returncode, done.stderr) == (code, "")
