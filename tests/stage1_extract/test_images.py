"""Image files may be anything: a bad one gets its reason and its place in the list, the others are stored."""

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.experiment import Experiment
from stage1_extract.dry_run import dry_run
from stage1_extract.errors import BadImage, TooManyFailures
from stage1_extract.extract import extract
from stage1_extract.sources.images import REASONS, decode_image, read_image_bytes
from stage1_extract.work.failures import allowed_failures
from store.errors import RowUnavailable
from store.reading.reader import FeatureStore
from tests.helpers.data import tiny_images

GOOD = 4
MAX_PIXELS = 100_000


def noise(width: int = 64, height: int = 56) -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8))


def truncated_jpeg(path: Path) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def truncated_png(path: Path) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:-2000])


def png_announcing(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises a huge picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def link_out_of_the_root(path: Path) -> None:
    outside = path.parent.parent / "outside.png"
    noise().save(outside)
    path.symlink_to(outside)


def tiff(path: Path) -> None:
    noise().save(path, "TIFF")


NAMED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a truncated jpeg": ("bad.jpg", truncated_jpeg, "truncated_image"),
    "a truncated png": ("bad.png", truncated_png, "truncated_image"),
    "an empty file": ("bad.jpg", lambda path: path.write_bytes(b""), "empty_file"),
    "text named jpg": ("bad.jpg", lambda path: path.write_text("not a picture\n" * 50), "not_an_image"),
    "a format that is not decoded": ("bad.tif", tiff, "undecoded_format (TIFF)"),
    "postscript named png": (
        "bad.png",
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n"),
        "not_an_image",
    ),
    "more pixels than allowed": ("bad.png", lambda path: noise(500, 300).save(path), "too_many_pixels"),
    "a header of 900 megapixels": (
        "bad.png",
        lambda path: path.write_bytes(png_announcing(30_000, 30_000)),
        "too_many_pixels",
    ),
    "a folder": ("bad.png", lambda path: path.mkdir(), "not_a_regular_file"),
    "a pipe": ("bad.png", os.mkfifo, "not_a_regular_file"),
    "no file at all": ("bad.png", lambda path: None, "missing_file"),
    "a dangling link": ("bad.png", lambda path: path.symlink_to("nowhere.png"), "missing_file"),
    "a link out of the root": (
        "bad.png",
        link_out_of_the_root,
        "link_out_of_image_root (bad.png, data.follow_links: true follows it)",
    ),
    "a link to itself": ("bad.png", lambda path: path.symlink_to("bad.png"), "outside_image_root"),
    "a path that climbs": ("../outside.png", noise().save, "outside_image_root"),
    "an absolute path": ("/etc/hostname", lambda path: None, "outside_image_root"),
    "a name with a null character": ("bad\0.png", lambda path: None, "outside_image_root"),
    "a name that is too long": ("x" * 300 + ".png", lambda path: None, "unreadable"),
}
"""What it is -> its name among the questions, what makes it, the reason it is refused for."""


def experiment(folder: Path, checkpoint: Path, names: list[str], **changes) -> Experiment:
    """One question about each name."""
    rows = [
        {"question_id": str(number), "image": name, "question": "is it red ?", "split": "train"}
        for number, name in enumerate(names)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "model": {"checkpoint": str(checkpoint), "device": "cpu"},
            "data": {"images": str(folder / "images"), "questions": str(folder / "questions.jsonl")},
            "store": {"shard_images": 2},
            "extract": {"max_pixels": MAX_PIXELS, "tower_batch": 1} | changes,
        }
    )


def with_bad(folder: Path, number_of_bad: int = 1) -> list[str]:
    """Good images with some empty files in between."""
    names = tiny_images(folder / "images", GOOD)
    for number in range(number_of_bad):
        name = f"empty_{number}.jpg"
        (folder / "images" / name).write_bytes(b"")
        names.insert(1 + 2 * number, name)
    return names


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [pytest.param(*case, id=what) for what, case in NAMED.items()],
)
@pytest.mark.timeout(60)
def test_a_bad_image_gets_its_reason_and_the_others_are_stored(tmp_path, checkpoint, name, make, reason):
    names = tiny_images(tmp_path / "images", GOOD)
    if "\0" not in name:
        make(tmp_path / "images" / name)
    names.insert(1, name)
    wanted = experiment(tmp_path, checkpoint, names, max_failures=1)
    done = extract(wanted, overwrite=False)
    assert done["failures"] == {name: reason} and reason.split(" (")[0] in REASONS
    assert done["tower_images"] == GOOD and done["images"] == GOOD + 1
    store = FeatureStore.open(wanted.store_path)
    bad_row = store.ids.row_of_name(name)
    assert store.failed() == {bad_row: reason} and store.missing_shards == []
    good_rows = [store.ids.row_of_name(good) for good in names if good != name]
    assert all(np.isfinite(store.gather(array, good_rows)).all() for array in store.arrays)
    with pytest.raises(RowUnavailable, match=re.escape(reason)):
        store.gather("raw", [bad_row])


@pytest.mark.parametrize("identity", ["content", "name"])
def test_a_bad_image_changes_nothing_about_the_features_of_the_others(tmp_path, checkpoint, identity):
    stores = []
    for folder, bad in ((tmp_path / "clean", 0), (tmp_path / "dirty", 1)):
        wanted = experiment(folder, checkpoint, with_bad(folder, bad), max_failures=1)
        wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"identity": identity})})
        extract(wanted, overwrite=False)
        stores.append(FeatureStore.open(wanted.store_path))
    names = [f"image_{number:03d}.png" for number in range(GOOD)]
    for array in stores[0].arrays:
        clean, dirty = (store.gather(array, [store.ids.row_of_name(name) for name in names]) for store in stores)
        assert np.array_equal(clean, dirty)


def test_more_failures_than_tolerated_stop_with_exit_code_3_and_list_every_one(tmp_path, checkpoint):
    wanted = experiment(tmp_path, checkpoint, with_bad(tmp_path, 3), max_failures=2)
    with pytest.raises(TooManyFailures) as caught:
        extract(wanted, overwrite=False)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "3 images cannot be encoded, 2 are tolerated" in message
    for number in range(3):
        assert f"empty_{number}.jpg: empty_file" in message
    assert not wanted.run_dir.exists()


def test_failures_that_decoding_finds_count_too_and_raising_the_limit_goes_on_from_there(tmp_path, checkpoint):
    names = tiny_images(tmp_path / "images", GOOD)
    (tmp_path / "images" / "zz.jpg").write_text("words")
    (tmp_path / "images" / "zy.jpg").write_text("other words")
    names += ["zy.jpg", "zz.jpg"]
    wanted = experiment(tmp_path, checkpoint, names, max_failures=1)
    with pytest.raises(TooManyFailures) as caught:
        extract(wanted, overwrite=False)
    assert "zy.jpg: not_an_image" in str(caught.value) and "zz.jpg: not_an_image" in str(caught.value)
    assert FeatureStore.open(wanted.store_path).missing_shards == [2]
    done = extract(experiment(tmp_path, checkpoint, names, max_failures=2), overwrite=False)
    assert done["tower_images"] == 0 and set(done["failures"]) == {"zy.jpg", "zz.jpg"}


def test_failures_of_an_earlier_run_count_towards_the_limit_of_the_next(tmp_path, checkpoint):
    names = tiny_images(tmp_path / "images", GOOD)
    (tmp_path / "images" / "a.jpg").write_text("words")
    (tmp_path / "images" / "z.jpg").write_text("other words")
    names = ["a.jpg", *names, "z.jpg"]
    for _ in range(2):
        with pytest.raises(TooManyFailures, match="2 images cannot be encoded, 1 is tolerated"):
            extract(experiment(tmp_path, checkpoint, names, max_failures=1), overwrite=False)


@pytest.mark.parametrize(("share", "enough"), [("40%", True), ("33.4%", True), ("33%", False), ("0%", False)])
def test_a_share_of_all_images_may_fail(tmp_path, checkpoint, share, enough):
    names = with_bad(tmp_path, 2)
    assert len(names) == 6
    wanted = experiment(tmp_path, checkpoint, names, max_failures=share)
    if enough:
        assert len(extract(wanted, overwrite=False)["failures"]) == 2
    else:
        with pytest.raises(TooManyFailures, match="2 images cannot be encoded"):
            extract(wanted, overwrite=False)


@pytest.mark.parametrize(
    ("share", "images", "expected"),
    [
        ("5", 3, 5),
        ("1%", 99, 0),
        ("1%", 250, 2),
        ("0.5%", 1000, 5),
        ("100%", 7, 7),
        ("29%", 100, 29),
    ],
)  # fmt: skip
def test_the_number_of_images_that_may_fail_is_the_share_rounded_down(share, images, expected):
    assert allowed_failures(share, images) == expected


def test_a_dry_run_names_the_files_that_cannot_be_read(tmp_path, checkpoint):
    found = dry_run(experiment(tmp_path, checkpoint, with_bad(tmp_path, 2)))
    assert found["unreadable"] == {"empty_0.jpg": "empty_file", "empty_1.jpg": "empty_file"}


def test_an_image_that_changes_after_it_was_planned_is_left_out(tmp_path, checkpoint, monkeypatch):
    from stage1_extract import extract as stage

    names = tiny_images(tmp_path / "images", GOOD)

    def changing(wanted: Experiment):
        found = found_before(wanted)
        noise().save(tmp_path / "images" / names[2])
        return found

    found_before = stage.find_sources
    monkeypatch.setattr(stage, "find_sources", changing)
    done = extract(experiment(tmp_path, checkpoint, names, max_failures=1), overwrite=False)
    assert done["failures"] == {names[2]: "changed_while_running"}


def test_a_link_within_the_root_is_followed(tmp_path):
    tiny_images(tmp_path, 1)
    (tmp_path / "other.png").symlink_to("image_000.png")
    assert read_image_bytes(tmp_path, "other.png") == (tmp_path / "image_000.png").read_bytes()


def test_a_root_that_is_itself_a_link_is_no_way_out(tmp_path):
    tiny_images(tmp_path / "real", 1)
    (tmp_path / "root").symlink_to("real")
    assert read_image_bytes(tmp_path / "root", "image_000.png")


def test_a_sibling_whose_name_begins_with_the_roots_is_outside(tmp_path):
    tiny_images(tmp_path / "images", 1)
    tiny_images(tmp_path / "images_private", 1)
    with pytest.raises(BadImage) as caught:
        read_image_bytes(tmp_path / "images", "../images_private/image_000.png")
    assert caught.value.reason == "outside_image_root"


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


ODD = {
    "palette": (noise().quantize(17), "PNG"),
    "palette with transparency": (noise().quantize(17), "GIF"),
    "grey": (noise().convert("L"), "PNG"),
    "grey with alpha": (noise().convert("LA"), "PNG"),
    "rgb with alpha": (noise().convert("RGBA"), "PNG"),
    "two colours": (noise().convert("1"), "PNG"),
    "cmyk": (noise().convert("CMYK"), "JPEG"),
    "one pixel": (noise(1, 1), "PNG"),
    "one row": (noise(64, 1), "PNG"),
    "webp": (noise(), "WEBP"),
    "bmp": (noise(), "BMP"),
}


@pytest.mark.parametrize(("image", "kind"), ODD.values(), ids=ODD.keys())
def test_an_odd_but_valid_image_decodes_as_stock_processors_convert_it(image, kind):
    data = encoded(image, kind)
    decoded = decode_image(data, "odd", MAX_PIXELS)
    assert decoded.mode == "RGB" and decoded.size == image.size
    with Image.open(io.BytesIO(data)) as stock:
        assert decoded.tobytes() == stock.convert("RGB").tobytes()


def test_sixteen_bit_grey_keeps_its_upper_byte():
    grey = np.random.default_rng(0).integers(0, 2**16, (20, 30), dtype=np.uint16)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(grey)), "grey", MAX_PIXELS))
    assert np.array_equal(decoded, np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data, "moving.gif", MAX_PIXELS).getpixel((3, 3)) == (255, 0, 0)


def test_exif_orientation_is_not_applied():
    image = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(image, "JPEG", exif=exif), "turned.jpg", MAX_PIXELS).size == (20, 10)


def test_an_image_of_exactly_as_many_pixels_as_allowed_is_decoded():
    assert decode_image(encoded(noise(20, 10)), "x.png", 200).size == (20, 10)
    with pytest.raises(BadImage) as caught:
        decode_image(encoded(noise(20, 10)), "x.png", 199)
    assert caught.value.reason == "too_many_pixels"


def test_the_limit_of_the_config_holds_and_not_pillows_own():
    header = encoded(Image.new("1", (14_000, 13_000)), "PNG")[:60]  # 182 million pixels, more than Pillow's limit
    with pytest.raises(BadImage, match="truncated_image"):
        decode_image(header, "x.png", 200_000_000)
    with pytest.raises(BadImage, match="too_many_pixels"):
        decode_image(header, "x.png", 100_000_000)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_bytes_are_a_reason_or_an_image_and_never_another_exception(seed):
    rng = np.random.default_rng(seed)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        data = bytearray(encoded(noise(24, 20), kind))
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(0, 256)
        try:
            assert decode_image(bytes(data[: rng.integers(1, len(data) + 1)]), kind, MAX_PIXELS).mode == "RGB"
        except BadImage as bad:
            assert bad.reason in REASONS
