"""Progress of long work: a bar on a terminal, a line a minute in a log, nothing for short work."""

import io
import json
import sys
import time

import pytest

from configs.progress import ProgressBar


class Clock:
    """A clock that a test moves on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self):
        return True


def worked(clock, bar, steps, units, seconds):
    """Update a bar some times, a number of units and seconds each."""
    for _ in range(steps):
        clock.now += seconds
        bar.update(units)


def test_a_log_gets_a_line_a_minute_with_the_rate_and_the_time_that_is_left(capsys):
    clock = Clock()
    with ProgressBar(what="encode", total=5000, unit="images", clock=clock) as bar:
        worked(clock, bar, 38, 31, 10)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 6  # 380 s
        assert lines[-1] == "encode: 1,116 of 5,000 images, 3.1/s, 21 min left"
        worked(clock, bar, 1, 5000 - 38 * 31, 10)
    assert capsys.readouterr().err.splitlines() == ["encode: 5,000 of 5,000 images, in 6 min"]


@pytest.mark.parametrize("as_items", [True, False])
def test_work_under_a_minute_logs_nothing(capsys, as_items):
    clock = Clock()
    if as_items:
        for _ in ProgressBar(range(59), "hash", unit="images", clock=clock):
            clock.now += 1
    else:
        with ProgressBar(what="hash", total=59, unit="images", clock=clock) as bar:
            worked(clock, bar, 59, 1, 1)
    assert capsys.readouterr() == ("", "")


def test_items_come_through_unchanged_and_count_as_done_when_the_next_one_is_asked_for(capsys):
    clock, seen = Clock(), []
    for item in ProgressBar("abc", "look", unit="letters", clock=clock):
        seen.append(item)
        clock.now += 60
    assert seen == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == [
        "look: 1 of 3 letters, 1.0/min, 2 min left",
        "look: 2 of 3 letters, 1.0/min, 1 min left",
        "look: 3 of 3 letters, 1.0/min, 0 s left",
        "look: 3 of 3 letters, in 3 min",
    ]


def test_what_an_earlier_run_did_counts_as_done_but_not_into_the_rate(capsys):
    clock = Clock()
    with ProgressBar(what="epoch 1/2", total=1000, initial=900, unit="steps", clock=clock) as bar:
        bar.note(loss="0.123")
        worked(clock, bar, 1, 50, 100)
        assert capsys.readouterr().err == "epoch 1/2: 950 of 1,000 steps, 30.0/min, 2 min left, loss 0.123\n"


def test_work_of_unknown_size_logs_its_count_and_rate(capsys):
    clock = Clock()
    items = ProgressBar((n for n in range(10)), "diagnose raw", unit="suspicions", clock=clock)
    for item in items:
        clock.now += 0 if item else 7200
    assert capsys.readouterr().err.splitlines()[0] == "diagnose raw: 1 suspicions, 0.5/h"


def test_a_log_of_work_that_was_broken_off_has_no_line_that_says_it_is_done(capsys):
    clock = Clock()
    with pytest.raises(KeyboardInterrupt), ProgressBar(what="eval", total=9, unit="answers", clock=clock) as bar:
        worked(clock, bar, 2, 1, 60)
        capsys.readouterr()
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_hidden_work_shows_nothing(capsys):
    clock = Clock()
    with ProgressBar(what="eval", total=9, unit="answers", hidden=True, clock=clock) as bar:
        worked(clock, bar, 9, 1, 60)
        assert bar.done == 9
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    clock = Clock()
    with ProgressBar(what="encode", total=9, unit="images", clock=clock) as bar:
        worked(clock, bar, 9, 1, 60)
    shown = terminal.getvalue()
    assert "encode: 100%" in shown and "9/9" in shown and "left" not in shown


def told(file):
    """What a file of a progress says beside the time, which is now."""
    content = json.loads(file.read_text())
    assert abs(time.time() - content.pop("written")) < 60
    return content


def test_other_processes_read_how_far_work_is_from_a_file_that_goes_when_it_ends(tmp_path):
    clock, file = Clock(), tmp_path / "progress.json"
    with ProgressBar(what="eval", total=90, initial=30, unit="answers", hidden=True, file=file, clock=clock) as bar:
        assert told(file) == {"done": 30, "total": 90, "per_second": None}
        worked(clock, bar, 4, 5, 2)
        assert told(file) == {"done": 45, "total": 90, "per_second": 2.5}
    assert not file.exists()
    with pytest.raises(KeyboardInterrupt), ProgressBar(what="eval", total=9, hidden=True, file=file, clock=clock):
        raise KeyboardInterrupt
    assert json.loads(file.read_text())["total"] == 9
