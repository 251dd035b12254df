"""Processes that decode and preprocess images: threads of one process would wait for Python's lock.

`python -m` of this module reads a line of JSON, what it needs to open the image processor, and then a line for each image; it
answers every line by a line. The bytes of an image and its pixels go through memory that both processes share; the system frees
that memory when both have ended, however they end. The process ends when its input ends, so that it does not outlive the process
that started it.
"""

import json
import os
import select
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any

import numpy as np
import torch

from configs.processes.children import module_process
from stage1_extract.encoding.family import Pixels
from stage1_extract.encoding.processor import ImageProcessor
from stage1_extract.errors import WorkerFailed
from stage1_extract.sources.images import decode_image

ALONE = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
"""Environment of a decoding process: it touches no GPU, and uses one core."""


class DecodingProcess:
    """Decodes and preprocesses images in a process of its own, one after the other."""

    def __init__(self, processor: ImageProcessor, max_pixels: int) -> None:
        """Start the process, which opens the image processor as this process did; it is not waited for."""
        self._memory = os.memfd_create("pixels")
        self._fingerprint = json.loads(json.dumps(processor.fingerprint))
        command, environment = module_process(__name__, str(self._memory))
        self._process = subprocess.Popen(
            command, env=environment | ALONE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            pass_fds=[self._memory], process_group=0,  # a group of its own: Ctrl-C in a terminal goes to this process alone
        )  # fmt: skip
        # The memory is freed with this object, and not by `end`: another thread may still write to it.
        weakref.finalize(self, _free, self._process, self._memory)
        assert self._process.stdout is not None
        self._poll = select.poll()
        self._poll.register(self._process.stdout)
        self._ready = False
        self._send(processor.opening | {"max_pixels": max_pixels})

    def is_ready(self, wait: bool = False) -> bool:
        """Return whether the process has opened the image processor, or wait until it has."""
        if not self._ready and (wait or self._poll.poll(0)):
            opened = self._answer()
            if "error" in opened:
                raise WorkerFailed(3, f"a decoding process cannot open the image processor: {opened['error']}")
            if opened != self._fingerprint:
                raise WorkerFailed(
                    4, "a decoding process opened another image processor: leave the checkpoint as it is"
                )
            self._ready = True
        return self._ready

    def pixels(self, data: bytes) -> Pixels | None:
        """Decode and preprocess the bytes of an image file; None where that fails.

        Raises WorkerFailed (exit 3) if the process has ended.
        """
        if os.pwrite(self._memory, data, 0) != len(data):
            return None
        self._send(len(data))
        pixels: Pixels = {}
        offset = 0
        for name, dtype, shape in self._answer():
            array = np.empty(shape, dtype)
            if os.preadv(self._memory, [array.data], offset) != array.nbytes:
                return None
            offset += array.nbytes
            pixels[name] = torch.from_numpy(array)
        return pixels or None

    def end(self) -> None:
        """Kill the process: nothing that it does has to be kept."""
        self._process.kill()
        self._process.wait()

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `_answer` says that the process has ended
            _write(self._process.stdin, message)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise WorkerFailed(
            3,
            f"a process that decodes images ended with {ending}: run the same command again, which goes on, or decode in "
            "threads with --extract.decode-threads 8",
        )


class DecodingProcesses:
    """Some decoding processes, each used by one thread at a time."""

    def __init__(self, processor: ImageProcessor, max_pixels: int, count: int) -> None:
        """Start `count` processes; they are not waited for."""
        self._all = [DecodingProcess(processor, max_pixels) for _ in range(count)]
        self._idle: SimpleQueue[DecodingProcess] = SimpleQueue()
        for process in self._all:
            self._idle.put(process)

    def __len__(self) -> int:
        """Return the number of processes."""
        return len(self._all)

    def pixels(self, data: bytes) -> Pixels | None:
        """Decode and preprocess an image; None where that fails, or where the process at hand is still starting."""
        process = self._idle.get()
        try:
            return process.pixels(data) if process.is_ready() else None
        finally:
            self._idle.put(process)

    def wait(self) -> None:
        """Wait until all processes have started."""
        for process in self._all:
            process.is_ready(wait=True)

    def end(self) -> None:
        """Kill all processes."""
        for process in self._all:
            process.end()


def _write(pipe: IO[bytes], message: Any) -> None:
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def _free(process: "subprocess.Popen[bytes]", memory: int) -> None:
    process.kill()
    process.wait()
    os.close(memory)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def _serve(memory: int, questions: IO[bytes], answers: IO[bytes]) -> None:
    opening = json.loads(questions.readline())
    max_pixels = opening.pop("max_pixels")
    try:
        processor = ImageProcessor(**opening)
    except Exception as error:  # the process that asks raises it as an error of its own
        _write(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    _write(answers, processor.fingerprint)
    for line in questions:
        try:
            arrays = _arrays(processor(decode_image(os.pread(memory, int(line), 0), "", max_pixels)))
            _share(memory, arrays)
        except Exception:  # the process that asks tries again, and raises the error where it is expected
            arrays = {}
        _write(answers, [(name, array.dtype.str, array.shape) for name, array in arrays.items()])


def _arrays(pixels: Pixels) -> dict[str, Any]:
    """Return the values of tensors in C order; raises ValueError for another order, as the order may decide later bits."""
    if not all(tensor.is_contiguous() for tensor in pixels.values()):
        raise ValueError("expected contiguous tensors")
    return {name: tensor.numpy() for name, tensor in pixels.items()}


def _share(memory: int, arrays: dict[str, Any]) -> None:
    """Write arrays one behind the other; raise OSError if the system takes less than all of an array."""
    offset = 0
    for array in arrays.values():
        if os.pwrite(memory, array, offset) != array.nbytes:
            raise OSError("the shared memory takes no more")
        offset += array.nbytes


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # batch systems send it to all: the process that asks decides when to stop
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as pipe:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what code of a checkpoint prints is no answer
        _serve(int(sys.argv[1]), sys.stdin.buffer, pipe)
