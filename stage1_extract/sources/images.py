"""Read and decode one image file, which may be anything: it is checked before it is decoded, and never outside its root."""

import hashlib
import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from stage1_extract.errors import BadImage, GoneImage
from store.layout.ids import printable
from store.log.commits import SUPERSEDED
from store.questions.image_files import FORMATS, OutsideRoot, locate

_SUFFIXES = ".jpg .jpeg .jpe .jfif .pjpeg .pjp .png .apng .webp .bmp .dib .gif .tif .tiff .avif .heic .heif .jxl .jp2"
SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes by which a file counts as an image where no questions name images; files of some of these formats cannot be
decoded, and are reported."""
MAX_IMAGE_BYTES = 1 << 30
"""Largest image file that is read: more than any image of extract.max_pixels needs."""
START = 16
"""Number of bytes at the beginning of a file by which its format is recognised."""
_MAGIC = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"II*\0": "TIFF",
    b"MM\0*": "TIFF", b"\0\0\0\x0cJXL ": "JPEG XL", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cjP  ": "JPEG 2000",
}  # fmt: skip
_BRANDS: dict[bytes, str] = {
    b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"hevc": "HEIC",
    b"hevx": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF",
}  # fmt: skip
REASONS = {
    SUPERSEDED: "its file has other content by now, which has a row of its own",
    "outside_image_root": "the path leads out of the image root",
    "link_out_of_image_root": "a link on the path leads out of the image root, and data.follow_links is false",
    "missing_file": "there is no such file",
    "not_a_regular_file": "it is a folder, a pipe or a device, or a link inside an archive",
    "ambiguous_name": "several images of the archives have this name",
    "too_many_bytes": "it is larger than any image",
    "empty_file": "it has no bytes",
    "not_an_image": f"its content is none of {', '.join(FORMATS)}",
    "undecoded_format": f"it is an image of another format than {', '.join(FORMATS)}: convert it",
    "too_many_pixels": "its header announces more pixels than extract.max_pixels",
    "too_narrow": "resized for the tower before it is cropped, it would have more than 50 million pixels",
    "truncated_image": "its pixels end early or cannot be decoded",
    "unreadable": "the operating system refuses to read it",
    "changed_while_running": "its content is not what was planned for",
}
"""Why an image cannot be encoded: the words that the commit log records, with their meaning."""
# Pillow's own limit is a constant; here the header is compared with extract.max_pixels before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I")


def gone(bad: BadImage, name: str, root: Path) -> GoneImage:
    """Make the error about an image of a store that cannot be read below `root` any more."""
    return GoneImage(bad, REASONS[bad.reason.partition(" (")[0]], printable(name), root)


def is_companion(name: str) -> bool:
    """Return whether a file is macOS's companion `._x` of a file `x`: it holds attributes of that file, and no image."""
    return name.rpartition("/")[2].startswith("._")


def has_image_suffix(name: str) -> bool:
    """Return whether a file's name ends like an image's."""
    stem, dot, suffix = name.rpartition(".")
    return bool(stem) and (dot + suffix).lower() in SUFFIXES


def read_image_bytes(root: Path, name: str, follow_links: bool = False) -> bytes:
    """Read the bytes of an image file under `root`; with `follow_links`, also of a file that a link out of `root` leads to.

    Raises BadImage for everything that is no regular file under `root`, or is empty or too large.
    """
    try:
        path = locate(root, name, follow_links)
    except OutsideRoot as outside:
        if outside.link is None:
            raise BadImage("outside_image_root", name) from None
        addition = f"{printable(outside.link)}, data.follow_links: true follows it"
        raise BadImage("link_out_of_image_root", name, addition) from None
    try:
        # O_NONBLOCK: opening a pipe must not wait for someone to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise BadImage("missing_file", name) from None
    except OSError as error:
        raise BadImage("unreadable", f"{name} ({error.strerror})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadImage("not_a_regular_file", name)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > MAX_IMAGE_BYTES:
            raise BadImage("too_many_bytes", f"{name} ({size:,}, at most {MAX_IMAGE_BYTES:,})")
        data = file.read()
    if not data:
        raise BadImage("empty_file", name)
    return data


def decode_image(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Decode an RGB image; the header is checked before any pixel is decoded. Raises BadImage.

    Alpha is dropped and palettes are resolved as stock processors do (`convert("RGB")`); 16-bit grey keeps its upper
    byte. EXIF orientation is not applied, as stock processors do not apply it either.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, RuntimeError):
        other = image_format(data)
        if other in (None, *FORMATS):
            raise BadImage("not_an_image", name) from None
        raise BadImage("undecoded_format", name, other) from None
    with image:
        if image.width * image.height > max_pixels:
            raise BadImage("too_many_pixels", f"{name} ({image.width}x{image.height}, at most {max_pixels:,})")
        try:
            image.load()
            return _rgb(image)
        except (OSError, ValueError, SyntaxError, IndexError, EOFError, RuntimeError) as error:
            raise BadImage("truncated_image", f"{name} ({error})") from None


def image_format(start: bytes) -> str | None:
    """Return the format of an image by the first START bytes of its file; None for a file that is no image."""
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:2] == b"BM" and start[6:10] == bytes(4):
        return "BMP"
    return _BRANDS.get(start[8:12]) if start[4:8] == b"ftyp" else None


def read_start(path: Path) -> bytes:
    """Read the first START bytes of a file; empty for a file that cannot be read, or is not a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        try:
            return file.read(START) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        except OSError:
            return b""


def content_id(data: bytes) -> str:
    """Return the identity of an image: the sha256 of its file, in hex."""
    return hashlib.sha256(data).hexdigest()


def name_id(name: str) -> str:
    """Return the identity of an image that is known by its name only, or that cannot be read."""
    return hashlib.sha256(b"name:" + name.encode(errors="surrogatepass")).hexdigest()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
