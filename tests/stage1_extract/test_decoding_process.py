"""Images are decoded in processes to the same bits and for the same reasons not at all; no process outlives its parent."""

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from stage1_extract.encoding.processor import ImageProcessor
from stage1_extract.errors import BadImage, WorkerFailed
from stage1_extract.extract import extract
from stage1_extract.families.llava import LlavaEncoder
from stage1_extract.sources import find_sources
from stage1_extract.sources.images import decode_image
from stage1_extract.work import decoding, worker
from stage1_extract.work.decoding import decode, decode_threads, start_processes
from stage1_extract.work.decoding_process import DecodingProcess, DecodingProcesses
from store.care.compare import differences_between
from store.log.leases import FOLDER as LEASES
from store.log.processes import process_start
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_images
from tests.stage1_extract.test_extract import experiment

LIMIT = 100_000
CUDA = torch.device("cuda")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("decoding") / "checkpoint")


@pytest.fixture
def processor(checkpoint):
    return ImageProcessor(str(checkpoint), None, False)


@pytest.fixture
def processes(real_python, processor):
    """Two decoding processes that have started."""
    started = DecodingProcesses(processor, LIMIT, 2)
    started.wait()
    yield started
    started.end()


@pytest.fixture
def wanted(tmp_path, checkpoint):
    tiny_images(tmp_path / "images", 6)
    return experiment(tmp_path / "run", checkpoint, tmp_path / "images")


class Alone(LlavaEncoder):
    """The image processor of a family without its model."""

    def __init__(self, processor, area=None):
        self.image_processor, self._area = processor, area


def encoded(mode, size, kind):
    file = io.BytesIO()
    shape = (size[1], size[0], *([3] if mode == "RGB" else []))
    noise = RNG.integers(0, 65536, shape, dtype=np.uint16)
    picture = Image.fromarray(noise if mode == "I;16" else noise.astype(np.uint8))
    (picture.convert("P") if mode == "P" else picture).save(file, kind)
    return file.getvalue()


PICTURES = [
    encoded(mode, size, kind)
    for mode, size, kind in [
        ("RGB", (64, 48), "PNG"),
        ("RGB", (31, 90), "JPEG"),
        ("RGB", (3, 3), "WEBP"),
        ("L", (200, 100), "JPEG"),
        ("P", (50, 60), "GIF"),
        ("I;16", (40, 40), "PNG"),
    ]
]


def test_pixels_are_those_of_the_stock_processor_bit_for_bit(processor, processes):
    for data in (*PICTURES, *reversed(PICTURES)):  # a small image after a large one, and the other way round
        here, there = processor(decode_image(data, "a", LIMIT)), processes.pixels(data)
        assert there is not None and there.keys() == here.keys()
        for name, expected in here.items():
            assert there[name].dtype == expected.dtype and there[name].stride() == expected.stride()
            assert there[name].numpy().tobytes() == expected.numpy().tobytes()


def test_broken_images_have_the_same_reasons_and_the_next_image_is_decoded(wanted, processor, processes):
    folder = wanted.data.images
    for name, data in {"cut": PICTURES[0][:200], "text": b"text", "huge": encoded("L", (400, 400), "PNG")}.items():
        (folder / f"{name}.png").write_bytes(data)
    sources, encoder = find_sources(wanted), Alone(processor)
    reasons = [
        [
            image.reason
            for row in sources.rows
            if isinstance(image := decode(row, sources, encoder, LIMIT, way), BadImage)
        ]
        for way in (None, processes)
    ]
    assert reasons[0] == reasons[1] and len(reasons[0]) == 3
    assert processes.pixels(PICTURES[0]) is not None


def test_a_process_that_is_still_starting_is_not_waited_for(real_python, processor):
    starting = DecodingProcesses(processor, LIMIT, 1)
    assert starting.pixels(PICTURES[0]) is None
    starting.end()


def use(processes, monkeypatch):
    monkeypatch.setattr(decoding, "start_processes", lambda *given: processes)


def have_ended(processes):
    return all(process._process.poll() is not None for process in processes._all)


def test_a_store_is_the_same_whether_threads_or_processes_decoded(wanted, processes, monkeypatch, tmp_path):
    extract(wanted, overwrite=False)
    use(processes, monkeypatch)
    other = wanted.model_copy(update={"run_dir": tmp_path / "other"})
    extract(other, overwrite=False)
    assert not differences_between(wanted.store_path, other.store_path)
    assert have_ended(processes)


def test_a_killed_process_ends_the_run_with_a_sentence_and_loses_nothing(wanted, processes, monkeypatch):
    pixels, decoded = DecodingProcesses.pixels, []

    def killing(self, data):
        while len(decoded) == 4 and not list(wanted.store_path.glob("commits/*.json")):
            time.sleep(0.01)  # the third shard is asked for: the first is being committed
        if len(decoded) == 4:
            self.end()
        decoded.append(data)
        return pixels(self, data)

    monkeypatch.setattr(DecodingProcesses, "pixels", killing)
    monkeypatch.setattr(worker, "lookahead", lambda pool, work, items, depth: map(work, items))
    use(processes, monkeypatch)
    with pytest.raises(WorkerFailed, match="ended with SIGKILL: run the same command again") as failed:
        extract(wanted, overwrite=False)
    committed = len(list(wanted.store_path.glob("commits/*.json")))
    assert failed.value.exit_code == 3 and committed and not list((wanted.store_path / LEASES).glob("*"))
    monkeypatch.undo()
    assert extract(wanted, overwrite=False)["tower_images"] == 6 - 2 * committed


def test_ctrl_c_ends_the_processes(wanted, processes, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    use(processes, monkeypatch)
    monkeypatch.setattr(worker.Worker, "_encode_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(wanted, overwrite=False)
    assert have_ended(processes)


PARENT = """
import sys, time
from stage1_extract.encoding.processor import ImageProcessor
from stage1_extract.work.decoding_process import DecodingProcess
process = DecodingProcess(ImageProcessor(sys.argv[1], None, False), 1000)
process.is_ready(wait=True)
print(process._process.pid, flush=True)
time.sleep(60)
"""


def test_a_process_ends_when_its_parent_is_killed(real_python, checkpoint):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PARENT, str(checkpoint)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert process_start(pid) is not None
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while process_start(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process_start(pid) is None


def test_processes_decode_beside_a_gpu_on_many_cores_where_the_image_processor_can_be_opened_alone(
    wanted, processor, monkeypatch
):
    class Own(Alone):
        def preprocess(self, image):
            return {}

    monkeypatch.setattr(decoding, "DecodingProcesses", lambda processor, limit, count: count)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16))
    asked = wanted.model_copy(update={"extract": wanted.extract.model_copy(update={"decode_threads": 3})})
    alone = Alone(processor)
    assert start_processes(wanted, alone, CUDA) == 14
    assert start_processes(wanted, alone, torch.device("cpu")) is None
    assert start_processes(asked, alone, CUDA) is None
    assert start_processes(wanted, Alone(processor, area="asked for"), CUDA) is None
    assert start_processes(wanted, Own(processor), CUDA) is None
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(100))
    assert start_processes(wanted, alone, CUDA) == decoding.MOST_PROCESSES
    for section in ({"engine": "ray"}, {"workers": 25}):
        of_many = wanted.model_copy(update={"extract": wanted.extract.model_copy(update=section)})
        assert start_processes(of_many, alone, CUDA) is None and decode_threads(of_many, CUDA) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))
    assert start_processes(wanted, alone, CUDA) is None


def test_another_image_processor_is_refused(real_python, processor):
    class Other(ImageProcessor):
        def __init__(self):
            self.opening = processor.opening

        @property
        def fingerprint(self):
            return {"class": "another"}

    with pytest.raises(WorkerFailed, match="opened another image processor") as failed:
        DecodingProcess(Other(), LIMIT).is_ready(wait=True)
    assert failed.value.exit_code == 4


def test_why_an_image_processor_cannot_be_opened_is_said(real_python, processor, tmp_path):
    class Gone(ImageProcessor):
        def __init__(self):
            self.opening = processor.opening | {"source": str(tmp_path)}

        @property
        def fingerprint(self):
            return processor.fingerprint

    with pytest.raises(WorkerFailed, match=f"cannot open the image processor: .*{tmp_path}") as failed:
        DecodingProcess(Gone(), LIMIT).is_ready(wait=True)
    assert failed.value.exit_code == 3
