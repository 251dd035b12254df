"""Plans, metadata, ids and projector: what `verify` advises about a damaged one works, in every kind of store."""

import shutil

import pytest

from store.care.repair import repair
from store.care.verify import verify
from store.copies.contents import Contents
from store.copies.copies import write_copy
from store.errors import IntegrityError, StoreError
from store.layout.fingerprint import Fingerprint
from store.layout.ids import ARRAYS, ImageIds
from store.layout.manifest import manifest_path, read_manifest
from store.layout.plan import plan_path, read_plan, spare_of
from store.log.finding import ARCHIVE, COPY, REPAIR
from store.reading.reader import FEATURES, FeatureStore
from store.writing.growth import grown, plan_to_follow
from store.writing.writer import StoreWriter
from tests.store.stores import flip, image_ids, plan_of, projector, sha, small_and_large, spec, store_of, write_store
from tests.store.test_cli import store_command

PRINT = Fingerprint(semantic={"checkpoint": "tiny", "layer": -2}, numeric={"torch": "2"})
NAMED = [(sha(number), [f"image_{number}.png", f"copy/{number}.png"]) for number in range(8)]
"""What the images of the grown store are called by their config."""


def grown_store(path):
    """Five images, then an array, then three images."""
    store_of(path, 5)
    for images, arrays in (([], [(spec("third", (7, 1), "float32"), PRINT)]), (NAMED[5:], [])):
        store = FeatureStore.open(path)
        write_store(path, *grown(store.plan, store.ids, images, arrays))
    return path


def small_files(path):
    """All that is neither shard nor record, by its path in the store; the newest ids alone, as others are not read."""
    plan = read_plan(path)
    files = [path / FEATURES / name for name in read_manifest(path, plan.generation).files]
    files += [path / "plans" / file.name for file in (path / "plans").iterdir()]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(files)}


def damage(file, how):
    if how == "missing":
        file.unlink()
    else:
        flip(file, 8 * (file.stat().st_size // 2) + 1)


def found_and_mended(path):
    """Repair a store; the findings, those of a plan that could not even be read among them."""
    try:
        findings = verify(path, quick=False)
    except IntegrityError as error:
        assert f"let `python -m store repair {path}` restore it" in str(error)
        findings = None
    assert findings != []
    return findings, repair(path, quick=False)


def extract(path):
    """What `make extract` does about what is no shard, with the config that the grown store was last made with."""
    ids = ImageIds.build(NAMED)
    wanted = plan_of(ids, [*small_and_large(), spec("third", (7, 1), "float32")])
    plan, ids = plan_to_follow(path, wanted, ids, (), append=False)
    with StoreWriter.open(path, plan, ids, projector()) as writer:
        assert writer.missing_shards() == []


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_what_is_advised_about_any_small_file_of_a_grown_store_makes_it_as_it_was(tmp_path, how):
    path = grown_store(tmp_path / "store")
    whole = small_files(path)
    assert len([name for name in whole if name.startswith("plans/")]) == 12
    advice = {}
    for name, content in whole.items():
        damage(path / name, how)
        if name.endswith(".spare") and how == "missing":  # stores of before there were spares have none
            assert verify(path, quick=False) == []
            (path / name).write_bytes(content)
            continue
        findings, done = found_and_mended(path)
        advice[name] = "repair" if not findings or findings[0].remedy == REPAIR else findings[0].remedy
        if advice[name] != "repair":
            assert "`make extract`" in advice[name] and [one.path for one in done.left] == [str(path / name)]
            with pytest.raises(StoreError):
                store = FeatureStore.open(path)
                assert store.ids.columns(ARRAYS) and store.projector
            extract(path)
        assert verify(path, quick=False) == [] and small_files(path) == whole
        assert done.withdrawn == {}
    left = {name for name, one in advice.items() if one != "repair"}
    primary = {"sha256/c/0/0", "names_utf8/c/0", "name_offsets/c/0", "name_rows/c/0"}
    assert {n for n in left if "/projector/" not in n} == {f"{FEATURES}/ids_2/{name}" for name in primary}


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_what_is_advised_about_any_small_file_of_an_archive_is_never_an_extraction(tmp_path, how):
    original = store_of(tmp_path / "original", 5)
    path = tmp_path / "archive"
    write_copy(Contents.of(FeatureStore.open(original)), path, "zstd")
    whole = small_files(path)
    mended = set()
    for name, content in whole.items():
        if name.endswith(".spare") and how == "missing":
            continue
        damage(path / name, how)
        findings, done = found_and_mended(path)
        if done.left:
            assert [one.remedy for one in findings] == [one.remedy for one in done.left] == [ARCHIVE]
            (path / name).write_bytes(content)
        else:
            mended.add(name)
        assert verify(path, quick=False) == [] and small_files(path) == whole
    assert {f"{FEATURES}/{name}/zarr.json" for name in ("small", "large", "ids", "ids/sha256")} <= mended
    assert {f"{FEATURES}/zarr.json", "plans/0.json", "plans/0.manifest.json"} <= mended


def test_ids_that_cannot_be_made_again_are_said_to_be_restored_and_nothing_else_is_promised(tmp_path):
    path = grown_store(tmp_path / "store")
    damage(path / FEATURES / "ids_2" / "sha256" / "c" / "0" / "0", "flipped")
    [found] = verify(path, quick=False)
    assert "if the image files are still those that were encoded; otherwise restore it from a copy" in found.remedy
    said = store_command("repair", path)
    assert said.returncode == 4
    assert "ids_2/sha256/c/0/0: changed or missing; `make extract` writes it again if" in said.stdout
    others = ImageIds.build([*NAMED[:6], (sha(77), ["image_6.png"])])
    with pytest.raises(IntegrityError, match=r"restore .*ids_2 from a copy, or extract into another folder"):
        plan_to_follow(path, plan_of(others), others, (), append=True)


@pytest.mark.parametrize("generation", [0, 1, 2])
def test_without_a_spare_a_lost_plan_is_said_to_be_restored_and_no_shard_is_withdrawn_for_it(tmp_path, generation):
    path = grown_store(tmp_path / "store")
    for file in (path / "plans").glob("*.spare"):
        file.unlink()
    plan = plan_path(path, generation)
    text = plan.read_text()
    plan.write_text(text.replace('"checkpoint": "tiny"', '"checkpoint": "tinz"'))
    [found] = verify(path, quick=False)
    assert found.path == str(plan) and found.shard is None and found.remedy.startswith(COPY)
    done = repair(path, quick=False)
    assert (done.withdrawn, done.left) == ({}, [found])
    assert {file.suffix for file in done.written} == {".spare"}
    plan.write_text(text)
    assert verify(path, quick=False) == []
    extract(path)
    assert {spare_of(plan_path(path, one)).is_file() for one in range(3)} == {True}


def test_a_changed_plan_withdraws_no_shard_even_where_its_manifest_is_lost_too(tmp_path):
    path = store_of(tmp_path / "store", 5)
    for file in (path / "plans").glob("*.spare"):
        file.unlink()
    manifest_path(path, 0).write_bytes(b"")
    text = plan_path(path, 0).read_text()
    plan_path(path, 0).write_text(text.replace('"checkpoint": "tiny"', '"checkpoint": "tinz"'))
    done = repair(path, quick=False)
    assert done.withdrawn == {} and len(done.left) == 2
    ids = image_ids(5)
    write_store(path, plan_of(ids), ids)
    assert verify(path, quick=False) == [] and plan_path(path, 0).read_text() == text


def test_a_shard_of_an_archive_is_not_promised_to_be_computed_again(tmp_path):
    path = tmp_path / "archive"
    write_copy(Contents.of(FeatureStore.open(store_of(tmp_path / "original", 5))), path, "zstd")
    flip(path / FEATURES / "large/c/1/0/0", 3)
    assert [one.remedy for one in verify(path, quick=False)] == [ARCHIVE]
    said = store_command("repair", path)
    assert said.returncode == 7 and "archive its store again" in said.stderr and "shards [1]" in said.stderr


def test_repair_of_a_sound_store_touches_nothing(tmp_path):
    path = grown_store(tmp_path / "store")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert "none is withdrawn" in store_command("repair", path).stdout
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    shutil.rmtree(path)
    assert store_command("repair", path).returncode == 5
    assert not path.exists()
