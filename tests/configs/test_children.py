"""A step that runs in a process of its own ends before the command does, whenever a signal comes."""

import os
import signal
import subprocess

import pytest

from configs.processes.children import run_to_its_end
from configs.processes.signals import stop


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_while_a_step_is_started_leaves_no_step_running(monkeypatch, number, code):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: stop}
    before = {each: signal.signal(each, handler) for each, handler in usual.items()}
    try:
        assert run_to_its_end(["sleep", "0.2"], os.environ) == code
        assert {each: signal.getsignal(each) for each in usual} == usual
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert started[0].returncode is not None
