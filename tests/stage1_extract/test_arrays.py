"""What is captured beside the features: from the same forward, without a changed bit, and equal to eager attention."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from configs.experiment import Experiment
from stage1_extract.checking.verify import encode_again
from stage1_extract.diagnose.run import run as diagnose
from stage1_extract.dry_run import dry_run
from stage1_extract.encoding.arrays import CAPTURED, CLIP_SPACE, CORE, NAMES, hidden_mean_states
from stage1_extract.errors import UnsupportedModel
from stage1_extract.extract import extract
from store.layout.tensors import from_storage, torch_dtype
from store.reading.reader import FeatureStore
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.clip import clip_checkpoint
from tests.helpers.data import tiny_images

IMAGES, LAYERS, HEADS, PATCHES, HIDDEN = 3, 4, 4, 16, 32
WITHOUT_CLIP = [name for name in NAMES if name not in CLIP_SPACE]
"""What needs no CLIP checkpoint."""


def extracted(
    folder: Path,
    checkpoint: Path,
    arrays=WITHOUT_CLIP,
    dtype: str = "float32",
    batch: int = 1,
    clip: Path | None = None,
) -> FeatureStore:
    if not (folder / "images").exists():
        tiny_images(folder / "images", IMAGES)
    wanted = experiment(folder, checkpoint, arrays, dtype, batch, clip)
    extract(wanted, overwrite=True)
    return FeatureStore.open(wanted.store_path)


def experiment(
    folder: Path,
    checkpoint: Path,
    arrays=WITHOUT_CLIP,
    dtype: str = "float32",
    batch: int = 1,
    clip: Path | None = None,
) -> Experiment:
    named = {} if clip is None else {"clip": str(clip)}
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "model": {"checkpoint": str(checkpoint), "device": "cpu", "dtype": dtype} | named,
            "data": {"images": str(folder / "images")},
            "store": {"shard_images": 2, "arrays": list(arrays)},
            "extract": {"tower_batch": batch},
        }
    )


def array(store: FeatureStore, name: str, row: int) -> torch.Tensor:
    return from_storage(store.gather(name, [row]), store.arrays[name].dtype)[0]


@torch.no_grad()
def eager(folder: Path, checkpoint: Path, store: FeatureStore, row: int, dtype: str = "float32"):
    """Stock hidden states and attention weights, and the keys and queries of every layer."""
    from transformers import AutoImageProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch_dtype(dtype), attn_implementation="eager"
    )
    tower, seen = model.model.vision_tower.eval(), {}
    for name, module in tower.named_modules():
        if name.endswith(("q_proj", "k_proj")):
            module.register_forward_hook(lambda _, given, made, name=name: seen.__setitem__(name, made[0].float()))
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    with Image.open(folder / "images" / store.ids.names(row)[0]) as image:
        pixels = processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"].to(torch_dtype(dtype))
    found = tower(pixels, output_hidden_states=True, output_attentions=True)
    queries, keys = (
        [seen[name] for name in sorted(seen) if name.endswith(kind)] for kind in ("q_proj", "k_proj")
    )  # layers 0..3 in order
    return found.hidden_states, [weights[0] for weights in found.attentions], queries, keys


@pytest.mark.parametrize("vision", ["clip", "dinov2"])
def test_each_array_equals_what_eager_attention_shows(tmp_path, vision):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision=vision)
    store = extracted(tmp_path, checkpoint)
    assert set(store.arrays) == set(WITHOUT_CLIP)
    for row in range(IMAGES):
        states, weights, queries, keys = eager(tmp_path, checkpoint, store, row)
        by_head = keys[-2].view(1 + PATCHES, HEADS, HIDDEN // HEADS)
        whole = torch.softmax(queries[-1][0] @ keys[-1].T / HIDDEN**0.5, -1)[1:]
        late = torch.stack([states[s][0, 1:] for s in hidden_mean_states(LAYERS)]).mean(0)
        expected = {
            "cls_attention": weights[-2][:, 0, 1:],
            "cls_attention_layers": torch.stack([one[:, 0, 1:].mean(0) for one in weights]),
            "received_attention": torch.stack([one.mean((0, 1))[1:] for one in weights]),
            "self_attention_diagonal": weights[-2].diagonal(dim1=1, dim2=2).mean(0)[1:],
            "keys": by_head.mean(1),
            "last_layer_keys": keys[-1][1:],
            "last_layer_attention": whole,
            "hidden_mean": late,
        }
        assert set(expected) == {*CAPTURED, "hidden_mean"}
        for name, values in expected.items():
            relative = 0 if "attention" in name else 1e-5  # hidden states and keys are not bounded by 1
            torch.testing.assert_close(
                array(store, name, row), values, rtol=relative, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_asking_for_all_of_them_changes_no_bit_of_the_features(tmp_path, dtype):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    plain = extracted(tmp_path, checkpoint, ["raw", "projected"], dtype)
    before = {(name, row): array(plain, name, row) for name in plain.arrays for row in range(IMAGES)}
    store = extracted(tmp_path, checkpoint, NAMES, dtype, clip=clip_checkpoint(tmp_path / "clip", checkpoint))
    assert set(store.arrays) == set(NAMES)
    assert all(torch.equal(array(store, name, row), values) for (name, row), values in before.items())
    kept = {name: spec.dtype for name, spec in store.arrays.items()}
    assert {name for name, one in kept.items() if one == "float32"} >= {n for n in kept if "attention" in n}
    assert {kept[n] for n in ("keys", "hidden_mean", "last_layer_keys", "clip_patches", "clip_projected")} == {dtype}
    assert kept["image_area"] == "float32"


def test_the_batch_of_the_tower_changes_no_bit_of_any_of_them(tmp_path):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    clip = clip_checkpoint(tmp_path / "clip", checkpoint)
    alone = {
        (name, row): array(store, name, row)
        for store in [extracted(tmp_path, checkpoint, NAMES, clip=clip)]
        for name in NAMES
        for row in range(IMAGES)
    }
    together = extracted(tmp_path, checkpoint, NAMES, batch=3, clip=clip)
    assert together.fingerprint("keys").numeric["batch_invariant"]
    assert all(torch.equal(array(together, name, row), values) for (name, row), values in alone.items())


def test_a_tower_without_a_cls_row_gives_what_does_not_need_one(tmp_path):
    checkpoint = tiny_llava(tmp_path / "checkpoint", vision="siglip", strategy="full")
    store = extracted(tmp_path, checkpoint)
    lacking = {"cls_hidden", "cls_attention", "cls_attention_layers", "last_layer_attention"}
    assert set(store.arrays) == set(WITHOUT_CLIP) - lacking
    assert sum("the tower has no CLS row" in note for note in store.plan.notes) == len(lacking)
    assert store.arrays["received_attention"].shape == (LAYERS, PATCHES)
    assert store.arrays["keys"].shape == (PATCHES, HIDDEN // HEADS)
    for row in range(IMAGES):
        received = array(store, "received_attention", row)
        torch.testing.assert_close(received.sum(-1), torch.ones(LAYERS), rtol=0, atol=1e-5)


def test_a_captured_store_is_verified_live_and_diagnosed(tmp_path, capsys):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    clip = clip_checkpoint(tmp_path / "clip", checkpoint)
    extracted(tmp_path, checkpoint, NAMES, clip=clip)
    wanted = experiment(tmp_path, checkpoint, NAMES, clip=clip)
    assert encode_again(wanted, 2)["unequal"] == []
    assert diagnose(wanted, 2, as_json=False) == 0
    said = capsys.readouterr().out
    assert "not examined" not in said
    assert all(f"{name:<14}as it should be, bit for bit" in said for name in NAMES)


@pytest.mark.parametrize(("layers", "first", "last"), [(24, 16, 24), (4, 3, 4), (12, 8, 12), (27, 18, 27)])
def test_published_layers_are_rescaled_to_the_depth_of_a_tower(layers, first, last):
    found = hidden_mean_states(layers)
    assert (found[0], found[-1]) == (first, last)


def capturing(folder: Path, checkpoint: Path, capture) -> Experiment:
    wanted = experiment(folder, checkpoint, ["raw", "projected"]).model_dump(mode="json")
    return Experiment.model_validate(wanted | {"extract": wanted["extract"] | {"capture": capture}})


@pytest.mark.parametrize(
    ("capture", "more"),
    [
        ("core", CORE),
        (["all"], WITHOUT_CLIP),
        ("keys,received_attention", ("keys", "received_attention")),
        ("core,hidden_mean", (*CORE, "hidden_mean")),
    ],
)
def test_capture_adds_groups_or_names_to_what_is_stored(tmp_path, capture, more, caplog):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    tiny_images(tmp_path / "images", IMAGES)
    wanted = capturing(tmp_path, checkpoint, capture)
    price = dry_run(wanted)
    assert set(price["bytes_per_image"]) == {"raw", "projected", *more}
    assert price["bytes_per_image"]["raw"] == PATCHES * HIDDEN * 4
    extract(wanted, overwrite=False)
    assert re.search(r"\d\.\d\d times as long \(measured on noise\), between [\d.]+ and [\d.]+ in 5 runs", caplog.text)
    store = FeatureStore.open(wanted.store_path)
    assert set(store.arrays) == {"raw", "projected", *more}
    assert extract(experiment(tmp_path, checkpoint, store.arrays), overwrite=False)["tower_images"] == 0


def test_without_side_arrays_nothing_is_measured(tmp_path, caplog):
    extracted(tmp_path, tiny_llava(tmp_path / "checkpoint"), ["raw", "cls_attention"])
    assert "times as long" not in caplog.text


def test_a_name_that_no_tower_gives_is_refused(tmp_path):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    tiny_images(tmp_path / "images", 1)
    with pytest.raises(UnsupportedModel, match="got key_s"):
        dry_run(capturing(tmp_path, checkpoint, "key_s"))
