"""Files of a store that are missing, cut or changed: fault cases 10 to 13, as a user meets them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.load import load
from stage1_extract.extract import extract
from store.care.compare import differences_between
from store.care.verify import verify
from store.errors import StoreError
from store.layout.plan import PLAN
from store.log.commits import COMPACTED, compact
from store.reading.reader import FEATURES, FeatureStore
from tests.faults.runs import invoke, trial
from tests.store.stores import flip, image_ids, plan_of, projector, store_of, values

SHARD = 4
DAMAGE = {"missing": None, "empty": 0, "half": 0.5}


def cut(file: Path, how: str) -> None:
    """Let a file be gone, or end earlier."""
    if DAMAGE[how] is None:
        file.unlink()
    else:
        with file.open("r+b") as opened:
            opened.truncate(int(DAMAGE[how] * file.stat().st_size))


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_shard_stops_who_reads_it_and_repair_lets_just_it_be_computed_again(
    home, whole, tmp_path, capsys, how
):
    config = trial(home, tmp_path)
    experiment = load(config, {})
    store = Path(shutil.copytree(whole, experiment.store_path))
    file = store / FEATURES / "projected" / "c" / str(SHARD) / "0" / "0"
    cut(file, how)
    rest = [row for row in range(24) if row // 2 != SHARD]
    opened, reference = FeatureStore.open(store), FeatureStore.open(whole)
    assert np.array_equal(opened.gather("projected", rest), reference.gather("projected", rest))
    said = invoke(capsys, "eval", "--config", config, "--prune.methods", "[{name: keep_all}]", expect=4)
    assert str(file) in said and f"shard {SHARD}" in said and f"python -m store repair {store}" in said
    said = invoke(capsys, "extract", "--config", config, expect=4)  # not done, though all shards are committed
    assert str(file) in said and f"python -m store repair {store}" in said
    for quick in ([], ["--quick"]):
        invoke(capsys, "verify", store, *quick, expect=4)
    assert [one.shard for one in verify(store, quick=True)] == [SHARD]
    kept = {path: path.stat().st_ino for path in (store / FEATURES).rglob("0") if path.is_file() and path != file}
    invoke(capsys, "repair", store)
    done = extract(experiment, overwrite=False)
    assert (done["shards_written"], done["tower_images"]) == (1, 2)
    written_again = {path for path in kept if path.stat().st_ino != kept[path]}
    assert {path.relative_to(store / FEATURES).parts[2] for path in written_again} <= {str(SHARD)}
    assert differences_between(whole, store) == []
    invoke(capsys, "verify", store)


COUNT = 5
FLIPS = {
    "payload": (60, "small/c/1/0/0", "large/c/0/0/0"),
    "checksums": (10, "large/c/0/0/0"),
    "index": (20, "small/c/1/0/0", "large/c/0/0/0"),
    "zarr.json": (30, "zarr.json", "small/zarr.json", "ids/sha256/zarr.json", "projector/zarr.json"),
    "ids": (30, "ids/sha256/c/0/0", "ids/names_utf8/c/0", "ids/sorted_names/c/0"),
    "projector": (20, "projector/linear_1.weight/c/0/0", "projector/linear_1.bias/c/0"),
    "log": (30, "../commits/0.json", "../commits/1.json"),
    "compacted log": (20, f"../commits/{COMPACTED}"),
    "plan": (30, f"../{PLAN}"),
    "manifest": (20, "../plans/0.manifest.json"),
    "spares": (20, f"../{PLAN}.spare", "../plans/0.manifest.json.spare"),
}
"""How many bits of which files, below `features.zarr`: 290 in all."""


def bits_of(part: str, file: Path, number: int) -> list[int]:
    """Places in that part of a file, the same on every run."""
    size, first = file.stat().st_size, 0
    layout = plan_of(image_ids(COUNT)).layout("large")
    if part == "checksums":  # behind the first row
        first, size = layout.spec.row_bytes, layout.stride
    elif part == "index":
        first = size - 20 * (2 if file.parts[-5] == "large" else 1) + 4
    elif part == "payload":
        size = layout.spec.row_bytes if file.parts[-5] == "large" else 2 * 15 * 4
    elif part == "log":  # telemetry is no part of what was committed
        size = file.read_bytes().index(b'"telemetry"')
    drawn = np.random.default_rng(sum(map(ord, str(part) + file.name))).integers(8 * first, 8 * size, number)
    return drawn.tolist()


def read_everything(path: Path) -> None:
    """Whatever a reader gets is what was committed; raises a StoreError if it gets nothing."""
    for access in ("mmap", "preadv", "zarr"):
        store = FeatureStore.open(path, access=access)
        for one in store.plan.arrays:
            assert np.array_equal(store.gather(one.name, range(COUNT)), values(one, range(COUNT)))
        assert [store.ids.row_of_name(f"image_{n}.png") for n in range(COUNT)] == list(range(COUNT))
        assert {row: store.ids.row_of_sha(store.ids.sha_of_row(row)) for row in range(COUNT)} == {
            row: row for row in range(COUNT)
        }
        state = store.projector
        assert state is not None and state.config == projector().config
        assert {n: w.tobytes() for n, w in state.weights.items()} == {
            n: w.tobytes() for n, w in projector().weights.items()
        }


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    path = store_of(tmp_path_factory.mktemp("sound") / "store", COUNT)
    read_everything(path)
    assert verify(path, quick=False) == []
    return path


@pytest.mark.parametrize("part", FLIPS)
def test_one_flipped_bit_anywhere_is_found_by_verify_and_never_read_as_data(sound, tmp_path, part):
    path = Path(shutil.copytree(sound, tmp_path / "store"))
    if part == "compacted log":
        compact(path)
    number, *names = FLIPS[part]
    unseen, read = [], 0
    for name in names:
        file = path / FEATURES / name
        for bit in bits_of(part, file, number // len(names)):
            flip(file, bit)
            try:
                found = bool(verify(path, quick=False))
            except StoreError as error:
                found = error.exit_code == 4
            if not found:
                unseen.append((name, bit))
            try:
                read_everything(path)
                read += 1
            except StoreError:
                pass
            flip(file, bit)
    assert unseen == []
    assert verify(path, quick=False) == []
    # An index may be wrong for a map that needs none, a damaged first line of the log loses no record, a spare is not read.
    assert read == 0 or part in ("index", "compacted log", "spares"), read


def test_a_flipped_bit_in_the_telemetry_of_a_record_changes_nothing_that_is_read(sound, tmp_path):
    path = Path(shutil.copytree(sound, tmp_path / "store"))
    file = path / "commits" / "1.json"
    begin = file.read_bytes().index(b"here")
    for bit in range(8 * begin, 8 * begin + 8):
        flip(file, bit)
        try:
            read_everything(path)
        except StoreError as error:
            assert error.exit_code == 4
        flip(file, bit)


def test_of_random_bytes_in_place_of_any_file_nothing_is_read(sound, tmp_path):
    path = Path(shutil.copytree(sound, tmp_path / "store"))
    unread = {"writer.lock", "0.json.spare", "0.manifest.json.spare"}
    files = [file for file in path.rglob("*") if file.is_file() and file.name not in unread]
    assert len(files) > 25
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(np.random.default_rng(len(whole)).bytes(len(whole)))
        with pytest.raises(StoreError) as caught:
            found = verify(path, quick=False)
            assert found, file
            read_everything(path)
        assert caught.value.exit_code == 4
        file.write_bytes(whole)
