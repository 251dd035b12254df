"""Images in webdataset shards and in parquet files: read where they lie, the same bytes as from a folder."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.experiment import Experiment
from stage1_extract.checking import reference
from stage1_extract.diagnose import run as diagnose
from stage1_extract.errors import BadImage, DamagedArchive, ReaderMissing, UnusableImages
from stage1_extract.extract import extract
from stage1_extract.sources import find_sources, image_source, parquet, stored_sources
from stage1_extract.sources.detect import open_images
from stage1_extract.sources.image_source import Catalogue
from stage1_extract.sources.images import MAX_IMAGE_BYTES, content_id, read_image_bytes
from stage2_prune.parity import run as parity
from store.care.compare import differences_between
from store.errors import DataMissing
from store.layout.plan import read_plan
from store.reading.opening import stored_ids
from tests.faults.runs import snapshot
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_images, tiny_questions

IMAGES = 5


def tar_of(path: Path, members: list[tuple[str, bytes]], layout: int = tarfile.PAX_FORMAT) -> Path:
    """A tar with these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=layout) as made:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return path


def special(path: Path, *members: tuple[str, bytes, str]) -> Path:
    """A tar of members that are no files: name, type, link target."""
    with tarfile.open(path, "w") as made:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            made.addfile(info)
    return path


def parquet_of(path: Path, rows: list[tuple[str | None, bytes | None] | None], group: int = 2, **columns) -> Path:
    """A parquet file as `datasets` writes it: path and bytes of every image; None is a null cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [None if row is None else {"path": row[0], "bytes": row[1]} for row in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"label": list(range(len(rows))), "image": pa.array(cells, kind), **columns})
    pq.write_table(table, path, row_group_size=group)
    return path


def reason_of(source, name: str) -> str:
    with pytest.raises(BadImage) as caught:
        source.read(name)
    return caught.value.reason


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The same images in a folder, in tar shards and in parquet files, with questions about them, and a checkpoint."""
    folder = tmp_path_factory.mktemp("home")
    tiny_llava(folder / "checkpoint")
    tiny_questions(folder, images=IMAGES)
    files = [(path.name, path.read_bytes()) for path in sorted((folder / "images").iterdir())]
    shards = [
        [m for name, data in part for m in ((name, data), (name + ".json", b"{}"))] for part in (files[:2], files[2:])
    ]
    for number, members in enumerate(shards):
        tar_of(folder / "tar" / f"{number:05d}.tar", members)
    parquet_of(folder / "parquet" / "data" / "train-0.parquet", files[:3])
    parquet_of(folder / "parquet" / "data" / "train-1.parquet", files[3:])
    return folder


def experiment(home: Path, run_dir: Path, images: str | Path, **data) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(run_dir),
            "model": {"checkpoint": str(home / "checkpoint"), "device": "cpu"},
            "data": {"images": str(home / images)} | data,
            "store": {"shard_images": 2},
            "extract": {"tower_batch": 2},
        }
    )


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("asked", [True, False])
def test_an_archive_gives_the_same_store_as_the_folder_byte_for_byte_and_is_left_as_it_was(home, tmp_path, kind, asked):
    before = snapshot(home / kind)
    data = {"questions": str(home / "questions.jsonl")} if asked else {}
    for images in ("images", kind):
        done = extract(experiment(home, tmp_path / images, images, **data), overwrite=False)
        assert done["tower_images"] == IMAGES and done["failures"] == {}
    assert differences_between(tmp_path / "images" / "store", tmp_path / kind / "store") == []
    assert (tmp_path / kind / "store/features.zarr/raw").is_dir()
    assert snapshot(home / kind) == before
    assert {path.suffix for path in tmp_path.rglob("*")} & {".png", ".tar", ".parquet"} == set()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_worker_that_joins_reopens_the_archive_from_the_config(home, tmp_path, kind):
    wanted = experiment(home, tmp_path, kind)
    extract(wanted, overwrite=False)
    plan = read_plan(wanted.store_path)
    joined = stored_sources(pickle.loads(pickle.dumps(wanted)), plan, stored_ids(wanted.store_path, plan))
    assert [content_id(joined.images.read(row.names[0])) for row in joined.rows] == [row.sha for row in joined.rows]


@pytest.mark.parametrize(("kind", "told"), [("tar", {}), ("parquet", {"format": "parquet", "image_column": "image"})])
def test_parity_and_diagnose_read_the_archive_too(home, tmp_path, kind, told, monkeypatch, capsys):
    def here(command: list[str], **streams):
        reference.run(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0)

    wanted = experiment(home, tmp_path / "run", kind, questions=str(home / "questions.jsonl"), **told)
    extract(wanted, overwrite=False)
    capsys.readouterr()
    monkeypatch.setattr(subprocess, "run", here)
    assert parity.run(wanted, limit=None, as_json_text=True) == parity.IDENTICAL
    assert json.loads(capsys.readouterr().out)["identical"] is True
    assert diagnose.run(wanted, sample=2, as_json=True) == diagnose.SOUND
    assert json.loads(capsys.readouterr().out)["images"] == 2


def test_a_folder_without_questions_names_all_its_images_sorted(tmp_path):
    names = ["b.PNG", "a.jpg", "sub/c.jpeg", "sub/deeper/d.webp"]
    for name in (*names, "notes.txt", "e.json", ".png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert open_images(tmp_path).names() == sorted(names)
    with pytest.raises(DataMissing, match="folder of images"):
        open_images(tmp_path / "none")


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_the_bytes_that_tarfile_itself_extracts(tmp_path, layout):
    rng = np.random.default_rng(0)
    deep = "/".join(["a" * 40] * 3) + "/deep.png"
    names = ["b.jpg", "./a.png", "k1.left.JPG", "k1.right.jpg", "k1.json", deep, "ohne.txt", "x/ünï.webp"]
    path = tar_of(tmp_path / "one.tar", [(name, rng.bytes(int(rng.integers(1, 2000)))) for name in names], layout)
    source = open_images(path)
    assert source.names() == [name.removeprefix("./") for name in names if not name.endswith(("json", "txt"))]
    with tarfile.open(path) as oracle:
        for name in names:
            if not name.endswith(("json", "txt")):
                assert source.read(name.removeprefix("./")) == oracle.extractfile(name).read()


def test_names_that_climb_are_only_names_and_links_and_devices_are_failures_with_a_reason(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    folder = tmp_path / "shards"
    tar_of(folder / "a.tar", [("../secret.png", b"one"), (str(secret), b"two"), ("folder.png/../x.png", b"three")])
    special(
        folder / "b.tar", ("soft.png", tarfile.SYMTYPE, str(secret)), ("hard.png", tarfile.LNKTYPE, "../secret.png"),
        ("pipe.png", tarfile.FIFOTYPE, ""), ("null.png", tarfile.CHRTYPE, ""), ("disk.png", tarfile.BLKTYPE, ""),
        ("folder.png", tarfile.DIRTYPE, ""),
    )  # fmt: skip
    before = snapshot(tmp_path)
    source = open_images(folder)
    special_names = ["soft.png", "hard.png", "pipe.png", "null.png", "disk.png"]
    assert source.names() == ["../secret.png", str(secret), "folder.png/../x.png", *special_names]
    assert [source.read(name) for name in source.names()[:3]] == [b"one", b"two", b"three"]
    assert {reason_of(source, name) for name in special_names} == {"not_a_regular_file"}
    assert reason_of(source, "secret.png") == reason_of(source, "folder.png") == "missing_file"
    assert snapshot(tmp_path) == before


def test_members_that_cannot_be_encoded_are_listed_in_the_store_by_reason(home, tmp_path):
    good = [(f"{n}.png", (home / "images" / f"image_00{n}.png").read_bytes()) for n in range(2)]
    tar_of(tmp_path / "tar" / "a.tar", [*good, ("twice.png", b"x"), ("twice.png", b"y"), ("empty.png", b"")])
    special(tmp_path / "tar" / "b.tar", ("link.png", tarfile.SYMTYPE, "0.png"))
    wanted = experiment(home, tmp_path / "run", tmp_path / "tar")
    wanted = wanted.model_copy(update={"extract": wanted.extract.model_copy(update={"max_failures": "3"})})
    done = extract(wanted, overwrite=False)
    assert done["tower_images"] == 2
    assert done["failures"] == {
        "a.tar/twice.png": "ambiguous_name",
        "empty.png": "empty_file",
        "link.png": "not_a_regular_file",
    }


def test_a_name_in_several_shards_is_refused_without_its_shard_and_found_with_it(tmp_path):
    tar_of(tmp_path / "x" / "0.tar", [("same.png", b"first"), ("one.png", b"one")])
    tar_of(tmp_path / "x" / "1.tar", [("same.png", b"second")])
    source = open_images(tmp_path / "x")
    assert source.names() == ["0.tar/same.png", "one.png", "1.tar/same.png"]
    assert source.read("0.tar/same.png") == b"first" and source.read("1.tar/same.png") == b"second"
    assert source.read("0.tar/one.png") == source.read("one.png") == b"one"
    assert reason_of(source, "same.png") == "ambiguous_name"
    assert reason_of(source, "1.tar/one.png") == reason_of(source, "2.tar/one.png") == "missing_file"


@given(st.lists(st.lists(st.sampled_from(["a", "b", "0/a", "1/b", None]), max_size=5), max_size=3))
@settings(max_examples=200)
def test_every_image_has_a_name_that_means_it_or_one_that_means_nothing(archives):
    entries = [(number, place, short) for number, shorts in enumerate(archives) for place, short in enumerate(shorts)]
    catalogue = Catalogue(
        (short for *_, short in entries), lambda n: f"{entries[n][0]}/{entries[n][2] or entries[n][1]}"
    )
    found, refused = [], 0
    for name in catalogue.names():
        try:
            found.append(catalogue.find(name))
        except BadImage as bad:
            refused += bad.reason == "ambiguous_name"
    assert len(set(found)) == len(found) and found == sorted(found)
    assert set(found) <= set(range(len(entries)))
    assert len(found) == len(entries) or refused
    unique = [s for s, n in Counter(short for *_, short in entries).items() if n == 1 and s in ("a", "b")]
    assert all(entries[catalogue.find(short)][2] == short for short in unique)


@pytest.mark.parametrize(
    ("pack", "method"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")], ids=["gzip", "bzip2", "xz"]
)
def test_a_compressed_tar_is_refused_in_one_sentence_whatever_its_name(tmp_path, pack, method):
    with tarfile.open(tmp_path / "a.tar", pack) as made:
        made.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(UnusableImages, match=f"compressed with {method}: uncompress it first") as caught:
        open_images(tmp_path)
    assert caught.value.exit_code == 2
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.gz")
    with pytest.raises(UnusableImages, match="uncompress them first"):
        open_images(tmp_path)


def cut(data: bytes) -> bytes:
    return data[:1536]


def without_end_mark(data: bytes) -> bytes:
    return data[:3072]


def with_a_damaged_header(data: bytes) -> bytes:
    return data[:1030] + b"\xff" + data[1031:]


def followed_by_another(data: bytes) -> bytes:
    return data + data


def with_a_negative_size(data: bytes) -> bytes:
    header = bytearray(data[:512])
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # base 256: minus 1024
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + data[512:]


def with_an_extended_header_of_a_gigabyte(data: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    return info.tobuf(tarfile.USTAR_FORMAT) + data


def with_a_thousand_nested_headers(data: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 0
    return info.tobuf(tarfile.USTAR_FORMAT) * 2000 + data


DAMAGES = [
    cut, without_end_mark, with_a_damaged_header, followed_by_another, with_a_negative_size,
    with_an_extended_header_of_a_gigabyte, with_a_thousand_nested_headers, lambda data: b"words" * 300, lambda data: b"",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.timeout(20)
def test_a_tar_that_is_not_whole_is_refused_and_never_half_read(tmp_path, damage):
    path = tar_of(tmp_path / "a.tar", [(f"{n}.png", b"x" * 512) for n in range(3)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedArchive, match=r"a\.tar") as caught:
        open_images(path)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.timeout(20)
def test_flipped_bytes_in_archives_are_an_error_of_ours_or_go_unseen_but_never_crash(tmp_path, seed):
    rng = np.random.default_rng(seed)
    paths = [
        tar_of(tmp_path / "a.tar", [(f"{n}.png", b"x" * 600) for n in range(4)]),
        parquet_of(tmp_path / "a.parquet", [(f"{n}.png", b"x" * 60) for n in range(4)]),
    ]
    for path in paths:
        data = bytearray(path.read_bytes())
        for place in rng.integers(0, len(data), 6):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            source = open_images(path)
        except (DamagedArchive, UnusableImages):
            continue
        for name in source.names():
            with suppress(BadImage):
                assert source.read(name)


def test_a_member_of_two_gigabytes_is_refused_unread(tmp_path):
    info = tarfile.TarInfo("huge.png")
    info.size = 2 * MAX_IMAGE_BYTES
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(info.tobuf())
        file.truncate(512 + info.size + 1024)
    assert reason_of(open_images(tmp_path / "a.tar"), "huge.png") == "too_many_bytes"
    (tmp_path / "images").mkdir()
    with (tmp_path / "images" / "huge.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(BadImage, match="too_many_bytes"):
        read_image_bytes(tmp_path / "images", "huge.png")


def test_a_tar_that_shrinks_or_goes_is_a_reason(tmp_path):
    path = tar_of(tmp_path / "a.tar", [("a.png", b"x" * 5000)])
    source = open_images(path)
    os.truncate(path, 2000)
    assert reason_of(source, "a.png") == "unreadable"
    path.unlink()
    assert reason_of(source, "a.png") == "unreadable"


def test_rows_without_a_path_of_their_own_are_named_by_file_and_row(tmp_path):
    parquet_of(tmp_path / "a.parquet", [("one.png", b"1"), (None, b"2"), ("same.png", b"3"), None, ("none.png", None)])
    parquet_of(tmp_path / "b.parquet", [("same.png", b"4"), ("", b"5"), ("../up.png", b"6"), ("x" * 5000, b"7")])
    source = open_images(tmp_path)
    assert source.names() == [
        "one.png", "a.parquet/1", "a.parquet/2", "a.parquet/3", "none.png",
        "b.parquet/0", "b.parquet/1", "../up.png", "b.parquet/3",
    ]  # fmt: skip
    readable = [name for name in source.names() if name not in ("a.parquet/3", "none.png")]
    assert b"".join(map(source.read, readable)) == b"1234567"
    assert reason_of(source, "a.parquet/3") == reason_of(source, "none.png") == "empty_file"
    assert source.read("b.parquet/2") == b"6" and reason_of(source, "same.png") == "ambiguous_name"
    for name in (
        "a.parquet/5",
        "b.parquet/4",
        "a.parquet/-1",
        "a.parquet/01",
        "c.parquet/0",
        "a.parquet",
        "a.parquet/x",
    ):
        assert reason_of(source, name) == "missing_file"


def test_the_column_of_images_is_found_if_there_is_one_and_asked_for_if_there_are_two(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    depth = pa.array([{"bytes": b"depth", "path": "d.png"}], kind)
    path = parquet_of(tmp_path / "a.parquet", [("a.png", b"color")], depth=depth)
    with pytest.raises(UnusableImages, match=r"image, depth: set data\.image_column"):
        open_images(path)
    assert open_images(path, "auto", "depth").read("d.png") == b"depth"
    with pytest.raises(UnusableImages, match="the column label of"):
        open_images(path, "auto", "label")
    pq.write_table(pa.table({"image": [b"bytes alone"]}), tmp_path / "b.parquet")
    with pytest.raises(UnusableImages, match="its columns are image: binary"):
        open_images(tmp_path / "b.parquet")


def test_a_row_group_of_a_thousand_to_one_is_refused_from_its_metadata_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 1_000_000)
    table = pa.table({"image": [{"bytes": b"\0" * 900_000, "path": f"{n}.png"} for n in range(4)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False, row_group_size=2)
    assert (tmp_path / "a.parquet").stat().st_size < 4 * 900_000 / 1000
    opened = []
    monkeypatch.setattr(parquet, "_cells", lambda *given: opened.append(given))
    with pytest.raises(UnusableImages, match=r"image\.bytes in a row group.*row_group_size=100") as caught:
        open_images(tmp_path)
    assert caught.value.exit_code == 2 and opened == []


def test_a_row_group_that_repeats_one_huge_value_stops_at_the_limit_while_it_is_read(tmp_path, monkeypatch):
    table = pa.table({"image": [{"bytes": b"\0" * 900_000, "path": f"{n}.png"} for n in range(200)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    assert (tmp_path / "a.parquet").stat().st_size < 1_000_000
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 20_000_000)
    decoded = []
    cells = parquet._cells

    def counting(*given):
        for cell in cells(*given):
            decoded.append(len(cell))
            yield cell

    source = open_images(tmp_path)
    monkeypatch.setattr(parquet, "_cells", counting)
    assert reason_of(source, "7.png") == "too_many_bytes"
    assert sum(decoded) < 22_000_000


def test_more_images_than_memory_holds_names_of_are_refused(tmp_path, monkeypatch):
    for module in (image_source, parquet):
        monkeypatch.setattr(module, "MAX_IMAGES", 3)
    tar_of(tmp_path / "a.tar", [(f"{n}.png", b"x") for n in range(4)])
    parquet_of(tmp_path / "a.parquet", [(f"{n}.png", b"x") for n in range(4)])
    for name in ("a.tar", "a.parquet"):
        with pytest.raises(UnusableImages, match="at most 3 images"):
            open_images(tmp_path / name)


def test_memory_for_headers_is_bounded_tarfile_keeps_none(tmp_path):
    import tracemalloc

    count = 3000
    path = tar_of(tmp_path / "a.tar", [(f"{n:08d}.png", b"x") for n in range(count)])
    tracemalloc.start()
    source = open_images(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source.names()) == count
    assert peak / count < 512, "a member takes less memory than its header on disk"
    assert held <= peak


def test_row_groups_are_read_once_in_order_and_kept_within_their_bytes(tmp_path, monkeypatch):
    rows = [(f"{n}.png", bytes([n]) * 1000) for n in range(12)]
    source = open_images(parquet_of(tmp_path / "a.parquet", rows, group=3))
    loaded = []
    load = parquet.ParquetSource._load
    monkeypatch.setattr(parquet, "CACHE_BYTES", 6000)
    monkeypatch.setattr(parquet.ParquetSource, "_load", lambda *given: loaded.append(given[1]) or load(*given))
    assert [source.read(name) for name, _ in rows] == [data for _, data in rows]
    assert loaded == [0, 1, 2, 3]
    source.read("11.png"), source.read("6.png")
    assert loaded == [0, 1, 2, 3]
    source.read("0.png")
    assert loaded == [0, 1, 2, 3, 0]


def test_images_that_questions_name_in_any_order_are_hashed_in_the_order_of_the_file(home, tmp_path, monkeypatch):
    rows = [(f"{n}.png", b"%d" % n) for n in range(12)]
    parquet_of(tmp_path / "x" / "a.parquet", rows, group=3)
    names = [rows[n][0] for n in np.random.default_rng(0).permutation(12)]
    asked = [{"question_id": name, "image": name, "question": "?", "split": "train"} for name in names]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    loaded = []
    load = parquet.ParquetSource._load
    monkeypatch.setattr(parquet, "CACHE_BYTES", 0)
    monkeypatch.setattr(parquet.ParquetSource, "_load", lambda *given: loaded.append(given[1]) or load(*given))
    wanted = experiment(home, tmp_path / "run", tmp_path / "x", questions=str(tmp_path / "q.jsonl"))
    wanted = wanted.model_copy(update={"extract": wanted.extract.model_copy(update={"decode_threads": 1})})
    found = find_sources(wanted)
    assert [row.names for row in found.rows] == [(name,) for name in names]
    assert all(row.sha == content_id(row.names[0].removesuffix(".png").encode()) for row in found.rows)
    assert loaded == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_many_threads_read_the_same_bytes(tmp_path, kind, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [(f"{n}.png", rng.bytes(2000)) for n in range(60)]
    monkeypatch.setattr(parquet, "CACHE_BYTES", 20_000)
    path = tar_of(tmp_path / "a.tar", rows) if kind == "tar" else parquet_of(tmp_path / "a.parquet", rows, group=7)
    source = open_images(path)
    wanted = [rows[n] for n in rng.integers(0, 60, 300)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, [name for name, _ in wanted])) == [data for _, data in wanted]


def test_a_mix_is_refused_with_what_was_found_until_the_config_says_which(tmp_path):
    tiny_images(tmp_path / "x", 1)
    tar_of(tmp_path / "x" / "in" / "a.tar", [("t.png", b"tar")])
    parquet_of(tmp_path / "x" / "a.parquet", [("p.png", b"parquet")])
    with pytest.raises(UnusableImages) as caught:
        open_images(tmp_path / "x")
    assert caught.value.exit_code == 2
    for part in (
        "image files (image_000.png)",
        "1 tar shards (in/a.tar)",
        "1 parquet files (a.parquet)",
        "data.format",
    ):
        assert part in str(caught.value)
    assert open_images(tmp_path / "x", "folder").names() == ["image_000.png"]
    assert open_images(tmp_path / "x", "tar").names() == ["t.png"]
    assert open_images(tmp_path / "x", "parquet").names() == ["p.png"]


def test_what_cannot_be_read_in_place_is_told_what_to_become(tmp_path):
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(UnusableImages, match="to_parquet"):
        open_images(tmp_path)
    with pytest.raises(UnusableImages, match="expected tar shards"):
        open_images(tmp_path, "tar")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UnusableImages, match=r"a folder, a \.tar or a \.parquet file"):
        open_images(tmp_path / "a.zip")


def test_shards_that_are_links_are_followed_as_the_hubs_cache_consists_of_them(tmp_path):
    parquet_of(tmp_path / "blobs" / "0a1b", [("a.png", b"x")])
    (tmp_path / "snapshot" / "data").mkdir(parents=True)
    (tmp_path / "snapshot" / "data" / "train.parquet").symlink_to(tmp_path / "blobs" / "0a1b")
    assert open_images(tmp_path / "snapshot").read("a.png") == b"x"


def test_parquet_without_its_library_names_the_extra(tmp_path, monkeypatch):
    path = parquet_of(tmp_path / "a.parquet", [("a.png", b"x")])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ReaderMissing, match=r"encode-once\[parquet\]") as caught:
        open_images(path)
    assert caught.value.exit_code == 5


def test_a_parquet_file_that_is_none_or_is_cut_is_damaged(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", [("a.png", b"x" * 4000)])
    whole = path.read_bytes()
    for data in (b"", b"words" * 100, whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(DamagedArchive, match=r"a\.parquet"):
            open_images(path)


def test_a_parquet_file_that_changes_while_it_is_used_is_a_reason(tmp_path):
    path = parquet_of(tmp_path / "a.parquet", [(f"{n}.png", b"x") for n in range(4)])
    source = open_images(path)
    parquet_of(path, [("0.png", b"x")])
    assert reason_of(source, "0.png") == reason_of(source, "3.png") == "unreadable"
    path.unlink()
    assert reason_of(source, "0.png") == "unreadable"
