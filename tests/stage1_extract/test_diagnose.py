"""Wrong stores, built two ways: honest ones are refused, lying ones are found out from their contents."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from configs.experiment import Experiment
from stage1_extract.cli import group
from stage1_extract.diagnose import run as diagnose
from stage1_extract.diagnose.bench import Bench
from stage1_extract.errors import GoneImage
from stage1_extract.extract import extract
from store.errors import StoreMissing
from store.reading.reader import FeatureStore
from tests.helpers import stores
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.data import tiny_questions


def edit_processor(checkpoint: Path, **fields: object) -> None:
    for path in checkpoint.glob("*processor_config.json"):
        content = json.loads(path.read_text())
        holder = content.get("image_processor", content)
        holder |= fields
        path.write_text(json.dumps(content))


def other_projector(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    generator = torch.Generator().manual_seed(1)
    for name in weights:
        if "multi_modal_projector" in name:
            weights[name] = torch.randn(weights[name].shape, generator=generator)
    save_file(weights, path, {"format": "pt"})


def through_float16(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float16).astype(np.float32)


def transposed(rows: np.ndarray) -> np.ndarray:
    images, patches, width = rows.shape
    edge = int(patches**0.5)
    return rows.reshape(images, edge, edge, width).transpose(0, 2, 1, 3).reshape(rows.shape)


WRONG_CHECKPOINTS = {
    "the CLS row was kept": lambda c: edit_config(c, vision_feature_select_strategy="full"),
    "layer -1 (= last_hidden_state) instead of -2": lambda c: edit_config(c, vision_feature_layer=-1),
    "layer -3 instead of -2": lambda c: edit_config(c, vision_feature_layer=-3),
    "resampled bilinear instead of bicubic": lambda c: edit_processor(c, resample=2),
    "normalised by 0.5 mean and std": lambda c: edit_processor(c, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    "squeezed to a square instead of cropped": lambda c: edit_processor(
        c, do_center_crop=False, size={"height": 56, "width": 56}
    ),
    "another projector, the one in the store": other_projector,
    "layer -1 (= last_hidden_state) instead of -2; the CLS row was kept": lambda c: edit_config(
        c, vision_feature_layer=-1, vision_feature_select_strategy="full"
    ),
    "layer -3 instead of -2; another projector, the one in the store": lambda c: (
        edit_config(c, vision_feature_layer=-3),
        other_projector(c),
    ),
}
WRONG_ARRAYS = {
    "raw went through float16": through_float16,
    "patches column by column (transposed)": transposed,
}
HONEST = {
    "the CLS row was kept": "vision_feature_select_strategy: expected 'default', found 'full'",
    "layer -1 (= last_hidden_state) instead of -2": "vision_feature_layer: expected -2, found -1",
    "layer -3 instead of -2": "vision_feature_layer: expected -2, found -3",
    "resampled bilinear instead of bicubic": "image_processor.config.resample: expected 3, found 2",
    "another projector, the one in the store": "projector_sha256: expected",
    "raw went through float16": "dtype: expected 'float32', found 'float16'",
    "patches column by column (transposed)": "patch_order: expected 'raster', found 'transposed'",
    "layer -1 (= last_hidden_state) instead of -2; the CLS row was kept": "vision_feature_layer: expected -2, found -1",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A sound store, its checkpoint and its images."""
    folder = tmp_path_factory.mktemp("diagnose")
    tiny_llava(folder / "checkpoint")
    tiny_questions(folder / "data", images=5, per_image=1)
    extract(experiment(folder), overwrite=False)
    return folder


def experiment(folder: Path, checkpoint: str | Path = "checkpoint", store: str | Path = "store") -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": folder / "run",
            "model": {"checkpoint": str(folder / checkpoint), "device": "cpu"},
            "data": {"images": folder / "data" / "images", "questions": folder / "data" / "questions.jsonl"},
            "store": {"path": folder / store, "shard_images": 2},
        }
    )


def wrong_store(home: Path, cause: str, to: Path) -> Path:
    """A store that `cause` explains; its fingerprints say so too."""
    if cause in WRONG_CHECKPOINTS:
        checkpoint = tiny_llava(to.parent / "checkpoint")
        WRONG_CHECKPOINTS[cause](checkpoint)
        extract(experiment(home, checkpoint, to), overwrite=False)
        return to
    stores.copy(home / "store", to)
    change = WRONG_ARRAYS[cause]
    claimed = {"dtype": "float16"} if change is through_float16 else {"patch_order": "transposed"}
    stores.rewrite(to, {"raw": change} if change is through_float16 else {"raw": change, "projected": change})
    stores.claim(to, lambda semantic: semantic.update(claimed))
    return to


def found_in(home: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    code = diagnose.run(experiment(home, store=store), sample=3, as_json=True)
    return code, json.loads(capsys.readouterr().out)


def test_a_sound_store_is_called_sound(home, capsys):
    code, found = found_in(home, home / "store", capsys)
    assert code == 0 and found["causes"] == [] and found["refusals"] == [] and found["unknown"] == []
    assert all(one["bit_equal"] for one in found["arrays"].values())


@pytest.mark.parametrize("cause", [*WRONG_CHECKPOINTS, *WRONG_ARRAYS])
def test_the_cause_is_found_in_a_store_whose_fingerprint_lies(cause, home, tmp_path, capsys):
    store = wrong_store(home, cause, tmp_path / "store")
    stores.claim_as(store, home / "store")
    code, found = found_in(home, store, capsys)
    assert code == 4
    assert {one["detail"] for one in found["causes"]} == set(cause.split("; "))
    assert found["unknown"] == []
    explained = found["arrays"]["projected" if "projector" in cause else "raw"]
    assert (explained["bit_equal"] and not explained["allclose"]) or "float16" in cause


@pytest.mark.parametrize("cause", HONEST)
def test_a_store_with_an_honest_fingerprint_is_refused_with_the_field_that_differs(cause, home, tmp_path, capsys):
    from stage2_prune.errors import StoreMismatch
    from stage2_prune.session.session import open_features

    store = wrong_store(home, cause, tmp_path / "store")
    with pytest.raises(StoreMismatch) as caught:
        open_features(experiment(home, store=store), {"raw"}, exact=True)
    assert caught.value.exit_code == 4 and HONEST[cause] in str(caught.value)
    code, found = found_in(home, store, capsys)
    assert code == 4 and any(HONEST[cause] in refusal for refusal in found["refusals"])


def test_damage_that_nothing_explains_is_unknown_with_the_closest_match_and_its_residual(home, tmp_path, capsys):
    store = stores.copy(home / "store", tmp_path / "store")
    noise = np.random.default_rng(0)
    stores.rewrite(store, {"raw": lambda rows: rows + noise.normal(0, 0.1, rows.shape).astype(rows.dtype)})
    code, found = found_in(home, store, capsys)
    assert code == 4 and found["unknown"] == ["raw"]
    assert found["arrays"]["raw"]["causes"] == [] and 0.001 < found["arrays"]["raw"]["residual"] < 1


def test_one_flipped_bit_is_unknown_and_not_explained_away(home, tmp_path, capsys):
    store = stores.copy(home / "store", tmp_path / "store")
    stores.flip_bit(store, "raw", row=0, element=5)
    code, found = found_in(home, store, capsys)
    assert code == 4 and found["unknown"] == ["raw"]


def test_an_image_that_changed_since_is_not_diagnosed_from(home, tmp_path):
    from stage1_extract.errors import ChangedImage

    image = home / "data" / "images" / "image_000.png"
    before = image.read_bytes()
    image.write_bytes((home / "data" / "images" / "image_001.png").read_bytes())
    try:
        with pytest.raises(ChangedImage, match="image_000"):
            diagnose.run(experiment(home), sample=5, as_json=True)
    finally:
        image.write_bytes(before)


def test_an_image_that_is_gone_is_named_with_the_folder_where_it_was_expected(home):
    image = home / "data" / "images" / "image_000.png"
    before = image.read_bytes()
    image.unlink()
    expected = (
        rf"expected the image image_000.png below {image.parent} .* no such file \(missing_file\): .* --data.images"
    )
    try:
        with pytest.raises(GoneImage, match=expected):
            Bench(experiment(home), FeatureStore.open(home / "store")).image(0)
    finally:
        image.write_bytes(before)


def test_the_report_says_in_words_what_is_refused_and_what_was_found(home, tmp_path, capsys):
    store = wrong_store(home, "layer -3 instead of -2", tmp_path / "store")
    diagnose.run(experiment(home, store=store), sample=2, as_json=False)
    said = capsys.readouterr().out
    assert said.index("refused  raw: vision_feature_layer: expected -2, found -3") < said.index("CAUSES")
    about = "2 of 5 images encoded again (seed 0), 5 rows checked without the tower"
    assert said.rstrip().endswith(f"CAUSES   layer -3 instead of -2\n         ({about})")
    assert said.splitlines()[0] == f"{store}: {about}, by {home / 'checkpoint'}"
    assert "max |diff|" in said


@pytest.mark.parametrize("command", ["verify", "diagnose"])
def test_a_run_folder_in_place_of_its_store_is_told_where_the_store_is(home, tmp_path, command):
    run = tmp_path / "run"
    run.mkdir()
    (run / "store").symlink_to(home / "store")
    done = CliRunner().invoke(group, [command, str(run)])
    assert isinstance(done.exception, StoreMissing) and done.exception.exit_code == 5
    assert f"did you mean {run / 'store'}?" in str(done.exception)
