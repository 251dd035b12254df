"""A script that starts workers without the guard of its main module is told so, by each worker and in one sentence."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEGIN = """
import multiprocessing, sys
from configs.processes.workers import require_guard
"""
RUN = """
require_guard()  # as every run does
worker = multiprocessing.get_context("spawn").Process(target=require_guard)
worker.start()
worker.join()
sys.exit(worker.exitcode)
"""


def ended(script, content):
    script.write_text(content)
    environment = {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)


def test_a_worker_that_imports_a_script_without_a_guard_says_so_in_one_sentence(tmp_path, real_python):
    run = ended(tmp_path / "mine.py", BEGIN + RUN)
    assert run.returncode == 2
    assert run.stderr.startswith("error: expected a script that starts workers") and len(run.stderr.splitlines()) == 1
    assert f"imports {tmp_path / 'mine.py'}" in run.stderr


def test_a_worker_of_a_script_with_a_guard_may_run_anything(tmp_path, real_python):
    guarded = "if __name__ == '__main__':" + RUN.replace("\n", "\n    ")
    run = ended(tmp_path / "mine.py", BEGIN + guarded.rstrip() + "\n")
    assert (run.returncode, run.stderr) == (0, "")
