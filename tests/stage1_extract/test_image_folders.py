"""Image folders as people have them: links, odd suffixes, no suffixes. No image is left out without a word."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.cli import run_to_exit_code
from stage1_extract.cli import group
from stage1_extract.errors import BadImage, UnusableImages
from stage1_extract.sources.folder import FolderSource
from stage1_extract.sources.images import image_format, read_image_bytes
from stage1_extract.sources.walk import MAX_WAYS
from store.questions.image_files import FORMATS
from store.reading.reader import FeatureStore
from tests.faults.runs import config_file
from tests.helpers.data import tiny_images

KINDS = dict.fromkeys([".jpg", ".JPG", ".Jpeg", ".jfif", ".JFIF", ".jpe", ".hidden"], "JPEG") | {
    ".png": "PNG", ".apng": "PNG", ".bmp": "BMP", ".dib": "BMP", ".gif": "GIF", ".webp": "WEBP", "": "PNG",
}  # fmt: skip
"""Suffix, or the whole name of a hidden file, and the format that lies under it."""


@pytest.fixture
def root(tmp_path):
    """A root with two images, and beside it a folder with two others."""
    tiny_images(tmp_path / "data" / "images", 2, seed=1)
    for name in tiny_images(tmp_path / "elsewhere", 2, seed=2):
        (tmp_path / "elsewhere" / name).rename(tmp_path / "elsewhere" / f"far_{name}")
    return tmp_path / "data" / "images"


def extracted(folder, checkpoint, *flags, questions=None, expect=0):
    """Extract through the command line; returns the store's names by row, and the failures."""
    written = folder / "data" / "questions.jsonl"
    if questions is not None:
        rows = [{"question_id": str(n), "image": name, "question": "?"} for n, name in enumerate(questions)]
        written.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {} if questions is not None else {"questions": None}
    config = config_file(folder, checkpoint, data=data)
    arguments = ["extract", "--config", str(config), *flags]
    assert run_to_exit_code(lambda: group.main(arguments, standalone_mode=False)) == expect
    if expect:
        return None
    store = FeatureStore.open(folder / "run" / "store")
    failed = store.failed()
    return {name: failed.get(row) for row in range(len(store.ids)) for name in store.ids.names(row)}


def test_images_are_found_by_suffix_in_any_case_and_without_one_by_their_first_bytes(tmp_path, checkpoint):
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for suffix, kind in KINDS.items():
        name = suffix if suffix == ".hidden" else f"a{suffix}"
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(images / name, kind)
    for name in ("README", "labels.json", "notes.txt", "Makefile"):
        (images / name).write_text("BM is how this text begins")
    os.mkfifo(images / "pipe")
    found = extracted(tmp_path, checkpoint)
    assert found == dict.fromkeys([*(f"a{suffix}" for suffix in KINDS if suffix != ".hidden"), ".hidden"])


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow cannot decode AVIF")
def test_avif_is_decoded_as_stock_processors_would_open_it(tmp_path, checkpoint):
    images = tmp_path / "data" / "images"
    tiny_images(images, 1)
    with Image.open(images / "image_000.png") as image:
        image.save(images / "a.avif")
    assert extracted(tmp_path, checkpoint) == {"a.avif": None, "image_000.png": None}
    from stage1_extract.sources.images import decode_image

    with Image.open(images / "a.avif") as stock:
        decoded = decode_image((images / "a.avif").read_bytes(), "a.avif", 10**6)
        assert decoded.tobytes() == stock.convert("RGB").tobytes()
    cut = (images / "a.avif").read_bytes()[:300]
    with pytest.raises(BadImage, match="not_an_image|truncated_image"):
        decode_image(cut, "cut.avif", 10**6)


OTHERS = {
    "a.heic": (b"\0\0\0\x18ftypheic" + bytes(60), "undecoded_format (HEIC)"),
    "b.heif": (b"\0\0\0\x18ftypmif1" + bytes(60), "undecoded_format (HEIF)"),
    "c.jxl": (b"\xff\x0a" + bytes(60), "undecoded_format (JPEG XL)"),
    "d.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), "undecoded_format (JPEG 2000)"),
    "e.avif": (b"no avif at all", "not_an_image"),
    "photo": (b"\0\0\0\x18ftypheic" + bytes(60), "undecoded_format (HEIC)"),
}


def test_images_of_formats_that_are_not_decoded_fail_with_their_formats_name(tmp_path, checkpoint):
    images = tmp_path / "data" / "images"
    (good,) = tiny_images(images, 1)
    for name, (content, _) in OTHERS.items():
        (images / name).write_bytes(content)
    found = extracted(tmp_path, checkpoint, "--max-failures", str(len(OTHERS)))
    assert found == {name: reason for name, (_, reason) in OTHERS.items()} | {good: None}


def test_images_with_another_files_suffix_are_left_out_with_their_names(root, caplog):
    for name in ("a.jpg_large", "b.png~", "c.bin", "d.orig"):
        shutil.copy(root / "image_000.png", root / name)
    (root / "real.bin").write_bytes(b"not an image")
    assert FolderSource(root).names() == ["image_000.png", "image_001.png"]
    assert "4 files" in caplog.text and "(a.jpg_large, b.png~, c.bin, …)" in caplog.text


def test_companions_that_macos_lays_beside_files_are_left_out_and_counted_once(tmp_path, root, checkpoint, caplog):
    (root / "sub").mkdir()
    for name in ("._image_000.png", "sub/._x.jpg", "._0.tar", ".DS_Store"):
        (root / name).write_bytes(b"\0\5\x16\7")
    with caplog.at_level(logging.WARNING):
        assert extracted(tmp_path, checkpoint) == {"image_000.png": None, "image_001.png": None}
    assert caplog.text.count(f"3 files of macOS in {root}, named ._…, are left out") == 1


def test_links_within_the_root_are_followed_to_files_and_to_folders(tmp_path, root, checkpoint):
    (root / "deep" / "er").mkdir(parents=True)
    (root / "image_000.png").rename(root / "deep" / "er" / "moved.png")
    (root / "linked").symlink_to("deep")
    (root / "absolute").symlink_to(root / "deep" / "er")
    (root / "file.png").symlink_to("image_001.png")
    (root / "bare").symlink_to("image_001.png")
    found = extracted(tmp_path, checkpoint)
    assert set(found) == {
        "deep/er/moved.png", "linked/er/moved.png", "absolute/moved.png", "image_001.png", "file.png", "bare"
    }  # fmt: skip
    assert len(FeatureStore.open(tmp_path / "run" / "store").ids) == 2, "an image is encoded once, whatever its names"


@pytest.mark.timeout(30)
def test_links_to_a_folder_above_end(root):
    (root / "a" / "b").mkdir(parents=True)
    shutil.copy(root / "image_000.png", root / "a" / "b" / "c.png")
    (root / "a" / "b" / "up").symlink_to("..")
    (root / "a" / "b" / "top").symlink_to(root)
    (root / "self").symlink_to(".")
    (root / "loop").symlink_to("loop")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    assert FolderSource(root).names() == ["a/b/c.png", "image_000.png", "image_001.png"]


@pytest.mark.timeout(60)
def test_folders_full_of_links_to_each_other_are_refused_before_they_fill_the_memory(root):
    for number in range(8):
        (root / str(number)).mkdir()
    for number in range(8):
        for other in range(8):
            (root / str(number) / f"to_{other}").symlink_to(root / str(other))
    with pytest.raises(UnusableImages, match=f"at most {MAX_WAYS} ways by links to one folder") as caught:
        FolderSource(root).names()
    assert caught.value.exit_code == 2


def test_links_out_of_the_root_are_counted_and_the_first_three_named(tmp_path, root, checkpoint, caplog):
    for name in "abcd":
        (root / name).symlink_to(tmp_path / "elsewhere")
    (root / "labels.txt").symlink_to(tmp_path / "nothing to do with images.txt")
    (root / "gone").symlink_to("nowhere")
    with caplog.at_level(logging.WARNING):
        assert set(extracted(tmp_path, checkpoint)) == {"image_000.png", "image_001.png"}
    assert (
        f"4 links out of {root} are not followed (a, b, c, …): data.follow_links: true follows such links"
        in caplog.text
    )
    assert f"1 link in {root} leads to nothing (gone)" in caplog.text


def test_a_folder_of_links_to_images_elsewhere_fails_by_name_until_it_may_follow_them(
    tmp_path, root, checkpoint, capsys
):
    for name in ("far_image_000.png", "far_image_001.png"):
        (root / name).symlink_to(tmp_path / "elsewhere" / name)
    (root / "part").symlink_to(tmp_path / "elsewhere")
    extracted(tmp_path, checkpoint, expect=3)
    said = capsys.readouterr().err
    assert "far_image_000.png: link_out_of_image_root (far_image_000.png, data.follow_links: true follows it)" in said
    found = extracted(tmp_path, checkpoint, "--data.follow-links", "true")
    assert set(found) == {
        "image_000.png", "image_001.png", "far_image_000.png", "far_image_001.png", "part/far_image_000.png",
        "part/far_image_001.png",
    }  # fmt: skip
    assert len(FeatureStore.open(tmp_path / "run" / "store").ids) == 4


def test_a_question_about_an_image_behind_a_link_out_of_the_root_fails_by_the_links_name(tmp_path, root, checkpoint):
    (root / "sub").mkdir()
    (root / "sub" / "part").symlink_to(tmp_path / "elsewhere")
    (root / "in").symlink_to("sub")
    asked = ["image_000.png", "sub/part/far_image_000.png", "in/part/far_image_001.png", "in/part/../../image_001.png"]
    found = extracted(tmp_path, checkpoint, "--max-failures", "3", questions=asked)
    reason = "link_out_of_image_root ({}, data.follow_links: true follows it)"
    assert found[asked[1]] == reason.format("sub/part") and found[asked[2]] == reason.format("in/part")
    again = extracted(tmp_path, checkpoint, "--data.follow-links", "true", "--overwrite", questions=asked)
    assert again == dict.fromkeys(asked)


def test_links_that_are_followed_are_no_way_for_names_that_climb(tmp_path, root):
    (root / "part").symlink_to(tmp_path / "elsewhere")
    assert read_image_bytes(root, "part/far_image_000.png", follow_links=True)
    for name in (
        "../../elsewhere/far_image_000.png",
        "part/../../elsewhere/far_image_000.png",
        str(tmp_path / "elsewhere/far_image_000.png"),
        "a\0b",
    ):
        with pytest.raises(BadImage, match="outside_image_root"):
            read_image_bytes(root, name, follow_links=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_said(root, caplog):
    (root / "closed").mkdir(mode=0)
    assert FolderSource(root).names() == ["image_000.png", "image_001.png"]
    assert "1 folder" in caplog.text and "closed/: Permission denied" in caplog.text


def test_a_folder_that_the_system_fails_to_list_is_said(root, caplog, monkeypatch):
    (root / "broken").mkdir()
    scandir = os.scandir

    def failing(path):
        if Path(path).name == "broken":
            raise OSError(5, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    assert FolderSource(root).names() == ["image_000.png", "image_001.png"]
    assert f"1 folder in {root} cannot be listed (broken/: Input/output error)" in caplog.text


def test_a_store_made_before_keeps_its_rows_when_images_are_found_that_were_not_seen(tmp_path, root, checkpoint):
    before = extracted(tmp_path, checkpoint)
    ids = FeatureStore.open(tmp_path / "run" / "store").ids
    rows = {name: (ids.row_of_name(name), ids.sha_of_row(ids.row_of_name(name))) for name in before}
    shutil.copy(tmp_path / "elsewhere" / "far_image_000.png", root / "a.jfif")
    (root / "0link").symlink_to(".")
    (root / "1link.png").symlink_to("image_001.png")
    extracted(tmp_path, checkpoint, expect=4)
    after = extracted(tmp_path, checkpoint, "--append")
    ids = FeatureStore.open(tmp_path / "run" / "store").ids
    assert {name: (ids.row_of_name(name), ids.sha_of_row(ids.row_of_name(name))) for name in before} == rows
    assert set(after) == {*before, "a.jfif", "1link.png"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", *({"AVIF"} & {*FORMATS})])
def test_a_format_is_told_by_the_first_bytes_that_pillow_writes(tmp_path, kind):
    Image.new("RGB", (9, 9)).save(tmp_path / "image", kind)
    assert image_format((tmp_path / "image").read_bytes()) == kind


@pytest.mark.parametrize(
    "content", [b"", b"BM", b"BM is a text", b"RIFF1234WAVE", b"\0\0\0\x18ftypmp42", b"GIF", b"%PDF-1.7"]
)
def test_what_is_no_image_has_no_format(content):
    assert image_format(content) is None
