"""Copies of sound stores, made wrong in every known way and in pairs of ways: diagnose names just those causes."""

import json
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from configs.experiment import Experiment
from stage1_extract.cli import group
from stage1_extract.diagnose import run as diagnose
from stage1_extract.extract import extract
from store.care.derive import derive_projected
from store.layout.tensors import to_storage
from tests.helpers.wrong_stores import ARRAYS, CHECKPOINTS, PICTURES, Home, damaged

TOWERS = {"clip": {}, "siglip": {"vision": "siglip", "strategy": "full"}, "dinov2": {"vision": "dinov2"}}
ALIKE = [
    {cause for cause in PICTURES if "mirrored" in cause or "turned" in cause},
    {cause for cause in CHECKPOINTS if "layer" in cause},
    {cause for cause in ARRAYS if "patches" in cause},
]
"""Causes of one axis: of these a store has one at most."""
SINGLES = [(cause,) for cause in (*PICTURES, *CHECKPOINTS, *ARRAYS)]
PAIRS = [
    pair for pair in combinations([cause for (cause,) in SINGLES], 2) if not any({*pair} <= alike for alike in ALIKE)
]
HARD_PAIRS = [
    ("pictures turned by 90 degrees", "pictures went through JPEG of quality 75"),
    ("channels in the order BGR", "squeezed to a square instead of cropped"),
]
"""Pairs of which neither alone comes nearer, and of which the order matters."""
SOME_PAIRS = [*HARD_PAIRS, *random.Random(9).sample(PAIRS, 12)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("sets"))


def found_in(
    home: Home, store: Path, capsys: pytest.CaptureFixture[str], sample: int = 5, **options
) -> tuple[int, dict]:
    dtype = options.pop("dtype", "float32")
    code = diagnose.run(home.experiment(store, dtype), sample, as_json=True, **options)
    return code, json.loads(capsys.readouterr().out)


def causes(found: dict) -> set[str]:
    return {one["detail"] for one in found["causes"]}


@pytest.mark.parametrize("wrong", [*SINGLES, *SOME_PAIRS], ids="; ".join)
def test_just_the_causes_are_named_that_made_a_store_wrong(wrong, home, tmp_path, capsys):
    code, found = found_in(home, home.wrong(wrong, tmp_path / "store"), capsys)
    assert code == 4 and causes(found) == {*wrong} and found["unknown"] == []


@pytest.mark.parametrize("tower", ["siglip", "dinov2"])
@pytest.mark.parametrize(
    "wrong",
    [
        ("channels in the order BGR", "patches permuted, in an order that has no name"),
        ("pictures turned by 90 degrees", "raw went through float16"),
        ("normalised by 0.5 mean and std", "values multiplied by 0.5"),
    ],
    ids="; ".join,
)
def test_other_towers_are_diagnosed_as_well(tower, wrong, homes, tmp_path, capsys):
    code, found = found_in(homes(tower), homes(tower).wrong(wrong, tmp_path / "store"), capsys)
    assert code == 4 and causes(found) == {*wrong} and found["unknown"] == []


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    made: dict[str, Home] = {}

    def of(tower: str) -> Home:
        if tower not in made:
            made[tower] = Home(tmp_path_factory.mktemp(tower), **TOWERS[tower])
        return made[tower]

    return of


@pytest.mark.parametrize("tower", TOWERS)
def test_a_sound_store_of_any_tower_is_sound_bit_for_bit(tower, homes, capsys):
    code, found = found_in(homes(tower), homes(tower).folder / "store", capsys)
    assert code == 0 and causes(found) == set() and all(one["bit_equal"] for one in found["arrays"].values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_sound_store_of_16_bit_is_sound_bit_for_bit(dtype, home, tmp_path, capsys):
    extract(home.experiment(tmp_path / "store", dtype), overwrite=False)
    code, found = found_in(home, tmp_path / "store", capsys, dtype=dtype)
    assert code == 0 and all(one["bit_equal"] for one in found["arrays"].values())


@pytest.mark.parametrize(
    ("stored", "asked"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32")]
)
def test_a_store_of_another_dtype_than_the_config_is_said_first_and_named(stored, asked, home, tmp_path, capsys):
    extract(home.experiment(tmp_path / "store", stored), overwrite=False)
    code = diagnose.run(home.experiment(tmp_path / "store", asked), 3, as_json=True)
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert code == 4 and found["unknown"] == []
    assert causes(found) == {f"computed and stored in {stored}, the config asks for {asked}"}
    said = next(line for line in printed.err.splitlines() if "raw is stored in" in line)
    assert said == f"raw is stored in {stored}, the config asks for {asked}: compared in {stored}"


def test_features_computed_in_float32_and_cast_to_what_the_config_asks_for_are_named(home, tmp_path, capsys):
    from stage1_extract.extract import extract

    extract(home.experiment(tmp_path / "sound", "bfloat16"), overwrite=False)

    def cast(arrays):
        made = home.encoded(())
        for name in ("raw", "projected", "cls_hidden"):
            arrays[name] = to_storage(torch.from_numpy(made[name]).bfloat16())
        arrays["cls_attention"] = made["cls_attention"]

    code, found = found_in(home, damaged(tmp_path / "sound", tmp_path / "store", cast), capsys, dtype="bfloat16")
    assert code == 4 and causes(found) == {"computed in float32, then cast to bfloat16"} and found["unknown"] == []


def all_but_the_first_zero(arrays):
    for rows in arrays.values():
        rows[1:] = 0


def one_value(arrays):
    arrays["raw"][2] = 0.25


def same_as_the_first(arrays):
    for rows in arrays.values():
        rows[3] = rows[0]


def all_moved_by_one(arrays):
    for name in arrays:
        arrays[name][:] = np.roll(arrays[name], 1, axis=0)


def one_token(arrays):
    arrays["raw"][1, 3] += 1


def noise(arrays):
    arrays["raw"] += np.random.default_rng(0).normal(0, 3, arrays["raw"].shape).astype(np.float32)


ROWS = {
    all_but_the_first_zero: ({"rows or tokens that are all zero"}, []),
    one_value: ({"rows or tokens in which all values are the same"}, []),
    same_as_the_first: ({"rows hold the features of other images"}, []),
    all_moved_by_one: ({"rows hold the features of other images"}, []),
    one_token: (set(), ["raw"]),
    noise: (set(), ["raw"]),
}


@pytest.mark.parametrize("change", ROWS, ids=lambda change: change.__name__)
@pytest.mark.parametrize("sample", [1, 5])
def test_a_store_with_wrong_rows_is_never_sound_whichever_are_sampled(change, sample, home, tmp_path, capsys):
    store = damaged(home.folder / "store", tmp_path / "store", change)
    code, found = found_in(home, store, capsys, sample, tries=100)  # without a limit, noise is sought for minutes
    assert code == 4 and (causes(found), found["unknown"]) == ROWS[change]


def test_nothing_is_guessed_where_nothing_is_close(home, tmp_path, capsys):
    diagnose.run(home.experiment(damaged(home.folder / "store", tmp_path / "store", noise)), 2, as_json=False, tries=20)
    said = capsys.readouterr().out
    assert "closest" not in said and "UNKNOWN  raw" in said and "nothing is close" in said


def test_one_wrong_row_of_forty_is_found_with_whole_and_named_by_its_image(tmp_path, capsys):
    forty = Home(tmp_path / "home", images=40)
    for number, change in enumerate((one_value, same_as_the_first, noise_in_the_last)):
        store = damaged(forty.folder / "store", forty.folder / f"store-{number}", change)
        told = CliRunner().invoke(
            group, ["diagnose", str(store), "--sample", "1", "--whole", "--json", "--tries", "5"], standalone_mode=False
        )
        found = json.loads(told.stdout)
        assert told.return_value == 4 and found["rows_checked"] == 40 and found["of"] == 40
        named = [image for images in found["checks"].values() for image in images]
        assert {f"image_{(2, 3, 39)[number]:03d}.png"} <= {*named} and len({*named}) <= 2
    assert "40 of 40 rows" in told.stderr and "GB to read" in told.stderr


def noise_in_the_last(arrays):
    arrays["projected"][-1] += 1


def test_the_sample_is_drawn_by_a_seed_that_is_said(home, capsys):
    drawn = {seed: found_in(home, home.folder / "store", capsys, 2, seed=seed)[1] for seed in range(6)}
    assert all(one["seed"] == seed and one["images"] == 2 and one["of"] == 5 for seed, one in drawn.items())
    assert len({tuple(one["encoded"]) for one in drawn.values()}) > 1
    again = found_in(home, home.folder / "store", capsys, 2, seed=3)[1]
    assert again["encoded"] == drawn[3]["encoded"]


def test_a_cause_that_only_some_rows_show_is_named_with_their_images(home, tmp_path, capsys):
    def mix(arrays):
        for name, rows in home.encoded(("pictures turned by 90 degrees",)).items():
            arrays[name][2] = rows[2]

    code, found = found_in(home, damaged(home.folder / "store", tmp_path / "store", mix), capsys)
    assert code == 4 and found["unknown"] == []
    assert [(one["detail"], one["images"]) for one in found["causes"]] == [
        ("pictures turned by 90 degrees", ["image_002.png"])
    ]


def test_a_store_that_grew_was_retried_and_derived_is_sound(tmp_path, capsys):
    grown = Home(tmp_path / "home", images=6)
    late, large = (grown.folder / "images" / f"image_00{number}.png" for number in (4, 5))
    late.rename(tmp_path / "late.png")
    Image.open(large).resize((200, 200)).save(large)

    def config(max_pixels: int, *arrays: str) -> Experiment:
        made = grown.experiment(tmp_path / "store")
        limits = made.extract.model_copy(update={"max_pixels": max_pixels, "max_failures": "1"})
        store = made.store.model_copy(update={"arrays": arrays})
        return made.model_copy(update={"extract": limits, "store": store})

    extract(config(10_000, "raw", "cls_hidden"), overwrite=False)
    (tmp_path / "late.png").rename(late)
    extract(config(10_000, "raw", "cls_hidden"), overwrite=False, append=True)
    extract(config(50_000, "raw", "cls_hidden"), overwrite=False, retry_failed=True)
    derive_projected(tmp_path / "store", "cpu")
    extract(config(50_000, "raw", "cls_hidden", "projected", "keys"), overwrite=False, append=True)
    code = diagnose.run(config(50_000, "raw"), 6, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["images"] == 6 and {*found["arrays"]} == {"raw", "cls_hidden", "projected", "keys"}
