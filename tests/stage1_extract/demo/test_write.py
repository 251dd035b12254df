"""The data set: ordinary files, the same bytes for the same settings, splits that share nothing."""

import hashlib
import json
from collections import Counter

import pytest
from PIL import Image

from configs.errors import ConfigError
from stage1_extract.demo.write import write_dataset

COUNTS = {"train": 12, "val": 5, "test": 7}


def contents(folder) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "demo"
    assert write_dataset(folder, COUNTS, 0)
    return folder


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]


def test_each_split_has_its_number_of_questions_and_the_last_scene_may_be_cut(written):
    assert Counter(row["split"] for row in rows(written)) == COUNTS
    assert len({row["question_id"] for row in rows(written)}) == sum(COUNTS.values())


def test_every_image_named_is_there_and_no_other(written):
    named = {row["image"] for row in rows(written)}
    assert named == {path.name for path in (written / "images").iterdir()}
    assert "train_00000.png" in named
    with Image.open(written / "images" / "train_00000.png") as image:
        assert image.size == (336, 336)


def test_splits_share_no_image_by_name_or_by_content(written):
    by_split = {split: {row["image"] for row in rows(written) if row["split"] == split} for split in COUNTS}
    hashes = {split: {contents(written)[f"images/{name}"] for name in names} for split, names in by_split.items()}
    assert not by_split["train"] & by_split["test"] and not by_split["train"] & by_split["val"]
    assert len(set.union(*hashes.values())) == sum(map(len, hashes.values()))


def test_the_same_settings_give_the_same_bytes(written, tmp_path):
    write_dataset(tmp_path / "again", COUNTS, 0)
    assert contents(tmp_path / "again") == contents(written)


def test_another_seed_gives_other_images(written, tmp_path):
    write_dataset(tmp_path / "other", COUNTS, 1)
    ours, theirs = contents(written), contents(tmp_path / "other")
    assert not {ours[name] for name in ours if name.startswith("images")} & set(theirs.values())


def test_more_test_questions_leave_the_other_splits_as_they_are(written, tmp_path):
    write_dataset(tmp_path / "large", COUNTS | {"test": 20}, 0)
    large = contents(tmp_path / "large")
    kept = {name: digest for name, digest in contents(written).items() if name.startswith("images/")}
    assert kept.items() <= large.items()
    lines = (tmp_path / "large" / "questions.jsonl").read_text().splitlines()
    assert set((written / "questions.jsonl").read_text().splitlines()) <= set(lines)


def test_a_second_run_writes_nothing(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    assert not write_dataset(written, COUNTS, 0)
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_an_interrupted_run_is_done_again(written, tmp_path, monkeypatch):
    folder = tmp_path / "interrupted"
    saves = []

    def interrupted_save(image, path):
        saves.append(path)
        if len(saves) == 3:
            raise KeyboardInterrupt
        save(image, path)

    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", interrupted_save)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(folder, COUNTS, 0)
    monkeypatch.undo()
    assert write_dataset(folder, COUNTS, 0)
    assert contents(folder) == contents(written)


def test_a_folder_that_it_did_not_write_is_left_as_it_is(tmp_path):
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "holiday.jpg").write_bytes(b"a photograph")
    (folder / "questions.jsonl").write_text("my questions")
    before = contents(folder)
    with pytest.raises(ConfigError, match="mine"):
        write_dataset(folder, COUNTS, 0)
    assert contents(folder) == before
