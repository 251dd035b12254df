"""Parquet files are read in a process of their own: a damaged one, or the end of that process, is a listed failure."""

import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stage1_extract.errors import BadImage, DamagedArchive, UnusableImages
from stage1_extract.sources.detect import open_images
from stage1_extract.sources.parquet_process import ParquetProcess, ParquetUnreadable
from store.log.processes import process_start
from tests.stage1_extract.test_archive_sources import parquet_of, reason_of

pytestmark = pytest.mark.usefixtures("real_python")  # it is the process that is killed
ROWS = [(f"{n}.png", bytes([n]) * 700) for n in range(4)]


def test_the_images_of_a_file_are_read_by_one_process_which_ends_with_their_reader(tmp_path):
    source = open_images(parquet_of(tmp_path / "a.parquet", ROWS))
    process = source._process._process
    assert [source.read(name) for name, _ in ROWS] == [data for _, data in ROWS]
    assert source._process._process is process and process.poll() is None
    del source
    assert process.poll() is not None


def test_a_process_that_ended_is_started_anew(tmp_path):
    source = open_images(parquet_of(tmp_path / "a.parquet", ROWS))
    os.kill(source._process._process.pid, signal.SIGKILL)
    source._process._process.wait()
    assert source.read("3.png") == ROWS[3][1]


def test_an_abort_inside_the_library_is_a_listed_failure_and_the_next_image_is_read(tmp_path, monkeypatch):
    source = open_images(parquet_of(tmp_path / "a.parquet", ROWS, group=1))
    ask = ParquetProcess.cells

    def aborting(process, *given):
        os.kill(process._process.pid, signal.SIGSTOP)  # so that it has not answered before it is aborted
        answers = ask(process, *given)
        os.kill(process._process.pid, signal.SIGABRT)
        os.kill(process._process.pid, signal.SIGCONT)
        yield from answers

    monkeypatch.setattr(ParquetProcess, "cells", aborting)
    assert reason_of(source, "1.png") == "unreadable"
    monkeypatch.undo()
    assert source.read("2.png") == ROWS[2][1]


def test_the_end_of_the_process_is_said_by_its_signal(tmp_path):
    reader = ParquetProcess()
    path = parquet_of(tmp_path / "a.parquet", [("a.png", b"x" * 9_000_000), ("b.png", b"y" * 9_000_000)])
    cells = reader.cells(path, 0, "image.bytes")
    assert next(cells) == b"x" * 9_000_000  # the second is larger than the pipe: it is still being written
    os.kill(reader._process.pid, signal.SIGABRT)
    with pytest.raises(ParquetUnreadable, match="ended its process with SIGABRT"):
        next(cells)


@settings(deadline=None, max_examples=6, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_flipped_bit_is_read_around_or_listed_and_never_ends_the_reader(tmp_path_factory, data):
    path = parquet_of(tmp_path_factory.mktemp("flip") / "a.parquet", ROWS)
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    at = data.draw(st.integers(footer, len(content) - 1) | st.integers(0, footer))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        source = open_images(path)
    except (DamagedArchive, UnusableImages) as refused:
        assert str(path) in str(refused)
        return
    for name in source.names():
        try:
            source.read(name)
        except BadImage as bad:
            assert bad.reason in ("unreadable", "empty_file", "too_many_bytes", "ambiguous_name")


def test_the_process_does_not_outlive_whoever_started_it(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", ROWS)
    script = (
        "from pathlib import Path; from stage1_extract.sources.detect import open_images; import time\n"
        f"source = open_images(Path({str(path)!r})); print(source._process._process.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(200):
        if process_start(child) is None:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the process is still there")
