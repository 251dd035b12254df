"""The vision tower is called at one recorded shape wherever the number of images in a call decides an image's bits.

The test towers are those of transformers, in the store's tower and in the stock model alike, whose embeddings are shifted.
"""

import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from configs.errors import ConfigError
from configs.experiment import Experiment
from stage1_extract import cli
from stage1_extract.checking import reference, verify
from stage1_extract.diagnose import run as diagnose
from stage1_extract.errors import DeviceTooSmall, InexactDevice
from stage1_extract.extract import extract
from stage1_extract.families.llava import LlavaEncoder
from stage1_extract.work.open_encoder import OpenEncoder
from stage1_extract.work.self_test import follow_call, noise
from stage2_prune.parity import run as parity
from store.care.compare import differences_between
from store.layout.tensors import to_storage
from store.layout.tower_call import TowerCall, call_of
from store.reading.reader import FeatureStore
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions

IMAGES = 11
"""More than a call of 8 holds, so that a call is filled up."""
Shift = Callable[[Tensor], Tensor]


def by_number(embedded: Tensor) -> Tensor:
    """Shift all images by how many there are: an image's bits depend on the shape of the call, not on its company."""
    return embedded + 0.01 * (len(embedded) - 1)


def by_place(embedded: Tensor) -> Tensor:
    """Shift each image by its place in the call."""
    return embedded + 0.01 * torch.arange(len(embedded), dtype=embedded.dtype)[:, None, None]


def by_company(embedded: Tensor) -> Tensor:
    """Shift all images by the mean of the call."""
    return embedded + embedded.mean()


@pytest.fixture
def tower(monkeypatch) -> Callable[[Shift | None], None]:
    """Shift the embeddings of every CLIP tower of this process, or stop doing so."""
    stock = CLIPVisionEmbeddings.forward

    def use(shift: Shift | None) -> None:
        def shifted(self, *arguments, **named):
            embedded = stock(self, *arguments, **named)
            return embedded if shift is None else shift(embedded)

        monkeypatch.setattr(CLIPVisionEmbeddings, "forward", shifted)

    return use


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fixed_shape")
    tiny_llava(folder / "checkpoint")
    tiny_questions(folder, images=IMAGES, per_image=1)
    return folder


@pytest.fixture
def experiment(home, tmp_path, monkeypatch) -> Callable[..., Experiment]:
    """An experiment with a folder of its own; the reference of parity runs in this process, where the towers are shifted."""

    def here(command: list[str], **streams):
        reference.run(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", here)

    def make(tower_batch: int | str = 8, run: str = "run", **extraction) -> Experiment:
        return Experiment.model_validate(
            {
                "name": "tiny",
                "run_dir": str(tmp_path / run),
                "model": {"checkpoint": str(home / "checkpoint"), "device": "cpu"},
                "data": {"images": str(home / "images"), "questions": str(home / "questions.jsonl")},
                "store": {"shard_images": 4},
                "extract": {"tower_batch": tower_batch, **extraction},
                "prune": {"methods": [{"name": "cls_attention"}]},
                "train": {"val_keep": 4},
                "eval": {"max_new_tokens": 2, "batch_size": 3},
            }
        )

    return make


def recorded(wanted: Experiment) -> TowerCall:
    return call_of(FeatureStore.open(wanted.store_path).plan)


@pytest.mark.parametrize("tower_batch", [1, 8, 32])
def test_fixed_shape_of_the_stock_tower_is_one_and_parity_is_identical_at_any_batch(experiment, tower_batch, caplog):
    wanted = experiment(tower_batch)
    extract(wanted, overwrite=False)
    assert recorded(wanted) == TowerCall() and "note: on" not in caplog.text
    assert parity.run(wanted, limit=5, as_json_text=False) == parity.IDENTICAL


def test_fixed_shape_makes_parity_identical_at_eight_and_different_where_the_reference_is_forced_to_one(
    experiment, tower, monkeypatch
):
    tower(by_number)
    wanted = experiment(8)
    extract(wanted, overwrite=False)
    assert recorded(wanted) == TowerCall(8, projector_images=recorded(wanted).projector_images)
    assert parity.run(wanted, limit=None, as_json_text=False) == parity.IDENTICAL
    order = reference.read_order

    def forced(folder):
        asked, prompts = order(folder)
        return asked.model_copy(update={"tower_batch": 1}), prompts

    monkeypatch.setattr(reference, "read_order", forced)
    assert parity.run(wanted, limit=None, as_json_text=False) == parity.DIFFERENT


def test_fixed_shape_projects_image_by_image_in_the_reference_where_the_self_test_found_a_batch_unequal(
    experiment, tower, monkeypatch
):
    tower(by_number)
    monkeypatch.setattr(LlavaEncoder, "projects_together", lambda self, batch: False)
    wanted = experiment(8)
    extract(wanted, overwrite=False)
    assert recorded(wanted) == TowerCall(8, projector_images=1)
    assert parity.run(wanted, limit=None, as_json_text=False) == parity.IDENTICAL


@pytest.mark.parametrize("shift", [by_place, by_company])
def test_fixed_shape_falls_back_to_one_image_where_place_or_company_decides(experiment, tower, shift, caplog):
    tower(shift)
    wanted = experiment(8)
    extract(wanted, overwrite=False)
    assert recorded(wanted) == TowerCall() and "images are encoded one at a time" in caplog.text
    assert parity.run(wanted, limit=None, as_json_text=False) == parity.IDENTICAL


def test_fixed_shape_is_kept_by_whoever_goes_on_with_a_store(experiment, tower, home, tmp_path, caplog):
    tower(by_number)
    images = tmp_path / "images"
    shutil.copytree(home / "images", images)
    whole = experiment(4, run="whole")
    whole = whole.model_copy(update={"data": whole.data.model_copy(update={"images": images, "questions": None})})
    extract(whole, overwrite=False)

    growing = whole.model_copy(update={"run_dir": tmp_path / "growing"})
    names = sorted(path.name for path in images.iterdir())
    (tmp_path / "later").mkdir()
    for name in names[8:]:
        (images / name).rename(tmp_path / "later" / name)
    extract(growing, overwrite=False)
    for name in names[8:]:
        (tmp_path / "later" / name).rename(images / name)
    other = growing.model_copy(update={"extract": growing.extract.model_copy(update={"tower_batch": 2})})
    extract(other, overwrite=False, append=True)
    assert recorded(other).images == 4
    ours, theirs = FeatureStore.open(whole.store_path), FeatureStore.open(other.store_path)
    for name in names:
        rows = ours.ids.row_of_name(name), theirs.ids.row_of_name(name)
        assert ours.gather("raw", [rows[0]]).tobytes() == theirs.gather("raw", [rows[1]]).tobytes()

    for record in (other.store_path / "commits" / "1").iterdir():
        record.unlink()
    extract(other, overwrite=False)  # a resumed run
    assert verify.encode_again(other, IMAGES)["unequal"] == []


def test_fixed_shape_is_the_same_whichever_worker_encodes(experiment, tower):
    tower(by_number)
    alone, shared = experiment(8, run="alone"), experiment(8, run="shared", worker_index=0, num_workers=2)
    extract(alone, overwrite=False)
    extract(shared, overwrite=False)
    extract(experiment(2, run="shared", worker_index=1, num_workers=2), overwrite=False)
    assert differences_between(alone.store_path, shared.store_path) == []


def test_fixed_shape_is_taken_from_the_store_by_verify_and_diagnose(experiment, tower, capsys):
    tower(by_number)
    wanted = experiment(8)
    extract(wanted, overwrite=False)
    other = experiment(1)
    assert verify.encode_again(other, 5)["unequal"] == []
    assert diagnose.run(other, sample=3, as_json=True, seed=0, whole=False, tries=0) == diagnose.SOUND
    store = str(wanted.store_path)
    for command in ("verify", "diagnose"):
        with pytest.raises(ConfigError, match=r"--tower-batch: expected 8, as .* records, got 2"):
            cli.group.main([command, store, "--extract.tower-batch", "2"], standalone_mode=False)
    assert cli.group.main(["verify", store, "--extract.tower-batch", "8"], standalone_mode=False) == 0


def test_fixed_shape_that_a_device_cannot_keep_is_refused(experiment, tower, monkeypatch):
    tower(by_number)
    wanted = experiment(8)
    extract(wanted, overwrite=False)
    tower(by_company)
    with pytest.raises(InexactDevice, match="in every call of 8 images") as inexact:
        extract(wanted, overwrite=False)
    assert inexact.value.exit_code == 4

    tower(by_number)
    encode = LlavaEncoder.encode

    def small(self, batch):
        if len(batch) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return encode(self, batch)

    monkeypatch.setattr(LlavaEncoder, "encode", small)
    with pytest.raises(DeviceTooSmall, match="expected memory for 8 images at a time") as too_small:
        extract(wanted, overwrite=False)
    assert too_small.value.exit_code == 7
    fresh = experiment(8, run="fresh")
    extract(fresh, overwrite=False)
    assert recorded(fresh).images == 4, "before the first commit a smaller shape is chosen"


def test_fixed_shape_is_one_image_for_pictures_of_several_sizes(experiment, monkeypatch, caplog):
    preprocess = LlavaEncoder.preprocess

    def tiled(self, image: Image.Image):
        pixels = preprocess(self, image)
        return pixels | {"tiles": torch.zeros(1, image.width)}

    monkeypatch.setattr(LlavaEncoder, "preprocess", tiled)
    assert OpenEncoder.load(experiment(8), "cpu").batch == 1 and "pictures are of several sizes" in caplog.text


def test_fixed_shape_of_stores_of_earlier_versions_is_one_or_stays_close(experiment, tower, caplog):
    tower(by_number)
    caplog.set_level(logging.WARNING)
    encoder = OpenEncoder.load(experiment(4), "cpu").encoder
    device = torch.device("cpu")
    alone = follow_call(encoder, 4, device, TowerCall())
    assert (alone.batch, alone.call) == (1, TowerCall())
    close = follow_call(encoder, 4, device, TowerCall(2, exact=False))
    assert (close.batch, close.call, close.filled) == (2, TowerCall(2, exact=False), False)
    assert experiment(4, exact_batch=False).extract == experiment(4).extract


@given(sizes=st.lists(st.integers(1, 11), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_fixed_shape_gives_an_image_the_same_bits_in_every_call(opened, sizes):
    pictures = noise(opened.encoder, 12)
    alone = {number: opened.encode([pictures[number]]) for number in range(12)}
    for size in sizes:
        made = opened.encode(pictures[:size], company=pictures[size:])
        for name, rows in made.items():
            assert all(rows[number].tobytes() == alone[number][name][0].tobytes() for number in range(size))


@pytest.fixture(scope="module", params=[None, by_number], ids=["any batch", "eight"])
def opened(request, home):
    stock = CLIPVisionEmbeddings.forward
    with pytest.MonkeyPatch.context() as patched:
        if request.param is not None:
            patched.setattr(CLIPVisionEmbeddings, "forward", lambda self, *a, **k: request.param(stock(self, *a, **k)))
        wanted = Experiment.model_validate(
            {
                "name": "tiny", "run_dir": str(home / "opened"), "extract": {"tower_batch": 8},
                "model": {"checkpoint": str(home / "checkpoint"), "device": "cpu"}, "data": {"images": str(home / "images")},
            }
        )  # fmt: skip
        yield OpenEncoder.load(wanted, "cpu")


def test_fixed_shape_fills_a_call_with_company_and_returns_nothing_of_it(opened):
    pictures = noise(opened.encoder, 3)
    launched = opened.launch(pictures[:1], company=pictures[1:])
    assert all(to_storage(values).shape[0] == 1 for values in launched.values())
