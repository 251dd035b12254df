"""Files that are no images, images that are bombs, and images of every odd kind: fault cases 20 to 23."""

import io
import json
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from configs.load import load
from stage1_extract.encoding.processor import MAX_RESIZED_PIXELS, ImageProcessor
from stage1_extract.errors import BadImage
from stage1_extract.extract import extract
from stage1_extract.sources.images import REASONS, decode_image
from store.reading.reader import FeatureStore
from tests.faults.runs import ROOT, config_file, run
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_images

GOOD = 3
BOMB_LIMIT = 300_000_000
"""Bytes beyond those of the imports."""


def noise(width: int = 64, height: int = 56) -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])


def blank_png(width: int, height: int) -> bytes:
    """All of its black pixels, one bit each: 1000 times smaller than in memory."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return png(width, height, chunk(b"IDAT", data), depth=1, color=0)


def text_bomb() -> bytes:
    """64 MB of text in 64 kB, in a picture of one pixel."""
    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"a" * 64_000_000, 9))
    return png(1, 1, *[text] * 3, chunk(b"IDAT", zlib.compress(b"\0\0\0\0")))


def header_only(data: bytes) -> bytes:
    """A JPEG up to the first byte of its pixels."""
    return data[: data.index(b"\xff\xda") + 14]


JPEG = encoded(noise(), "JPEG")
BAD: dict[str, tuple[str, bytes, str]] = {
    "half a jpeg": ("half.jpg", JPEG[: len(JPEG) // 2], "truncated_image"),
    "the header of a jpeg": ("header.jpg", header_only(JPEG), "truncated_image"),
    "no bytes": ("empty.jpg", b"", "empty_file"),
    "text": ("text.jpg", b"not a picture\n" * 50, "not_an_image"),
    "svg": ("vector.png", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "not_an_image"),
    "eps": ("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not_an_image"),
    "tiff named jpg": ("scan.jpg", encoded(noise(), "TIFF"), "undecoded_format (TIFF)"),
    "pdf named png": ("paper.png", encoded(noise(), "PDF"), "not_an_image"),
    "a python script": ("script.png", b"#!/usr/bin/env python\nopen('marker', 'w')\n", "not_an_image"),
    "900 megapixels": ("bomb.png", blank_png(30_000, 30_000), "too_many_pixels"),
    "108 megapixels": ("large.png", blank_png(12_000, 9_000), "too_many_pixels"),
    "a text chunk of 64 MB": ("chatty.png", text_bomb(), "not_an_image"),
    "a line of pixels": ("line.png", encoded(Image.new("RGB", (60_000, 1)), "PNG"), "too_narrow"),
}  # fmt: skip
"""What it is -> its name, its bytes, the reason it is refused for."""
ODD: dict[str, Callable[[Path], object]] = {
    "folder.png": lambda path: path.mkdir(),
    "pipe.png": os.mkfifo,
    "dangling.png": lambda path: path.symlink_to("nowhere.png"),
    "device.png": lambda path: path.symlink_to("/dev/zero"),
    "outside.png": lambda path: path.symlink_to("/etc/passwd"),
    "itself.png": lambda path: path.symlink_to("itself.png"),
}
ODD_REASONS = {
    "folder.png": "not_a_regular_file",
    "pipe.png": "not_a_regular_file",
    "dangling.png": "missing_file",
    "device.png": "link_out_of_image_root (device.png, data.follow_links: true follows it)",
    "outside.png": "link_out_of_image_root (outside.png, data.follow_links: true follows it)",
    "itself.png": "outside_image_root",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("model") / "checkpoint")


def questions(folder: Path, names: list[str]) -> None:
    rows = [{"question_id": str(n), "image": name, "question": "is it red ?"} for n, name in enumerate(names)]
    (folder / "data" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.timeout(120)
def test_of_a_folder_full_of_odd_files_the_good_ones_are_stored_and_each_other_has_its_reason(tmp_path, checkpoint):
    images = tmp_path / "data" / "images"
    good = tiny_images(images, GOOD)
    for name, data, _ in BAD.values():
        (images / name).write_bytes(data)
    for name, make in ODD.items():
        make(images / name)
    expected = {name: reason for name, _, reason in BAD.values()} | ODD_REASONS
    questions(tmp_path, [*list(expected)[:5], *good, *list(expected)[5:]])
    config = config_file(tmp_path, checkpoint)
    begun = time.monotonic()
    done = json.loads(
        run("extract", "--config", config, "--max-failures", len(expected), "--json", cwd=tmp_path).stdout
    )
    assert time.monotonic() - begun < 90, "something was waited for"
    assert done["failures"] == expected and {why.split(" (")[0] for why in expected.values()} <= REASONS.keys()
    assert done["tower_images"] == GOOD
    store = FeatureStore.open(tmp_path / "run" / "store")
    rows = [store.ids.row_of_name(name) for name in good]
    assert all(np.isfinite(store.gather(array, rows)).all() for array in store.arrays)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "run", "trial.yaml"]


def test_a_bombs_file_is_small_and_its_pixels_would_not_be():
    assert len(BAD["900 megapixels"][1]) < 150_000 and len(BAD["a text chunk of 64 MB"][1]) < 250_000


MEASURE = """
import json, resource, sys
from pathlib import Path
from stage1_extract.sources.images import decode_image
from stage1_extract.errors import BadImage

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (virtual + {limit}, virtual + {limit}))
before, reasons = peak(), {{}}
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    try:
        decode_image(data, path.name, 50_000_000)
    except BadImage as bad:
        reasons[path.name] = bad.reason
print(json.dumps([peak() - before, reasons]))
"""


def test_bombs_are_refused_under_a_memory_limit_within_300_mb(tmp_path):
    bombs = [name for name, _, _ in BAD.values() if name in ("bomb.png", "large.png", "chatty.png")]
    for name, data, _ in BAD.values():
        if name in bombs:
            (tmp_path / name).write_bytes(data)
    script = MEASURE.format(limit=BOMB_LIMIT)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    grown, reasons = json.loads(done.stdout)
    assert reasons == {"bomb.png": "too_many_pixels", "large.png": "too_many_pixels", "chatty.png": "not_an_image"}
    assert grown < BOMB_LIMIT


def test_the_same_limit_is_too_small_for_the_bombs_pixels(tmp_path):
    """So the test above can fail."""
    (tmp_path / "bomb.png").write_bytes(BAD["900 megapixels"][1])
    script = MEASURE.format(limit=BOMB_LIMIT).replace("50_000_000", "10**10")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "MemoryError" in done.stderr


def test_a_line_of_pixels_is_refused_before_it_is_resized_and_one_within_the_limit_is_not(checkpoint):
    """1 x 20,000 pixels, 100 bytes as a file, took 22 GB and a minute in CLIP's own processor at 336 pixels."""
    processor = ImageProcessor(str(checkpoint), None, trust_remote_code=False)
    edge = processor.stock.size["shortest_edge"]
    longest = MAX_RESIZED_PIXELS // edge**2
    assert processor(Image.new("RGB", (1, 500)))["pixel_values"].shape == (1, 3, edge, edge)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in ((longest + 1, 1), (1, longest + 1), (1, 10 * longest)):
        with pytest.raises(BadImage) as caught:
            processor(Image.new("RGB", size))
        assert caught.value.reason == "too_narrow"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_pillow_is_not_told_to_make_up_the_missing_half_of_a_picture():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


SIDE = 4
RNG = np.random.default_rng(3)
PALETTE = RNG.integers(0, 256, (SIDE, 3), dtype=np.uint8)
INDEX = RNG.integers(0, SIDE, (SIDE, SIDE), dtype=np.uint8)
GREY = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
LONG = RNG.integers(0, 256, (20_000, 1), dtype=np.uint8)
DEEP = RNG.integers(0, 2**16, (SIDE, SIDE), dtype=np.uint16)


def indexed() -> Image.Image:
    image = Image.fromarray(INDEX).convert("L")
    image = Image.frombytes("P", (SIDE, SIDE), INDEX.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


def thrice(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


TURNED = Image.Exif()
TURNED[0x0112] = 6
GOLDEN: dict[str, tuple[bytes, np.ndarray]] = {
    "palette": (encoded(indexed(), "PNG"), PALETTE[INDEX]),
    "palette with a transparent colour": (encoded(indexed(), "PNG", transparency=1), PALETTE[INDEX]),
    "palette with an alpha for each colour": (
        encoded(indexed(), "PNG", transparency=bytes([0, 50, 99, 255])),
        PALETTE[INDEX],
    ),
    "grey with alpha": (encoded(Image.fromarray(np.dstack([GREY, ALPHA])), "PNG"), thrice(GREY)),
    "colour with alpha": (encoded(Image.fromarray(np.dstack([COLOR, ALPHA])), "PNG"), COLOR),
    "16-bit grey": (encoded(Image.fromarray(DEEP), "PNG"), thrice((DEEP >> 8).astype(np.uint8))),
    "two colours": (
        encoded(Image.fromarray(GREY > 99), "PNG"),
        thrice(np.where(GREY > 99, 255, 0).astype(np.uint8)),
    ),
    "turned by exif": (encoded(Image.fromarray(COLOR), "PNG", exif=TURNED), COLOR),
    "first of three frames": (
        encoded(indexed(), "GIF", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE), c) for c in ("red", "blue")]),
        PALETTE[INDEX],
    ),
    "one pixel": (encoded(Image.fromarray(COLOR[:1, :1]), "PNG"), COLOR[:1, :1]),
    "1 x 20,000": (encoded(Image.fromarray(thrice(LONG)), "PNG"), thrice(LONG)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize(("data", "expected"), GOLDEN.values(), ids=GOLDEN.keys())
def test_an_odd_image_becomes_the_rgb_that_its_format_defines(data, expected):
    decoded = decode_image(data, "odd", 1_000_000)
    assert decoded.mode == "RGB" and np.array_equal(np.asarray(decoded), expected)


def test_cmyk_becomes_the_light_that_its_inks_leave():
    inks = np.array([[10, 200, 90, 30], [0, 0, 0, 128], [255, 0, 0, 0]], np.uint8)
    for ink in inks:
        patch = Image.frombytes("CMYK", (16, 16), ink.tobytes() * 256)
        decoded = np.asarray(decode_image(encoded(patch, "JPEG", quality=100), "print.jpg", 1_000_000))
        expected = (255 - ink[:3].astype(float)) * (255 - ink[3]) / 255
        assert np.abs(decoded - expected).max() <= 2


def test_that_exif_is_ignored_is_in_the_fingerprint(tmp_path, checkpoint):
    tiny_images(tmp_path / "data" / "images", 1)
    experiment = load(config_file(tmp_path, checkpoint, data={"questions": None}), {})
    extract(experiment, overwrite=False)
    assert FeatureStore.open(experiment.store_path).fingerprint("raw").semantic["image_processor"]["exif"] == "ignored"
