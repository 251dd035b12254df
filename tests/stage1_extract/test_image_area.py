"""How much of each patch is image: tried out on the checkpoint's own processor, whether it crops or pads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from configs.experiment import Experiment
from stage1_extract.checking.verify import encode_again
from stage1_extract.encoding.arrays import CORE
from stage1_extract.encoding.processor import ImageArea, ImageProcessor
from stage1_extract.errors import UnsupportedModel
from stage1_extract.extract import extract
from store.layout.tensors import from_storage
from store.reading.reader import FeatureStore
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_images

PATCHES, EDGE, PATCH = 16, 56, 14
GRID = (4, 4)


def experiment(folder: Path, checkpoint: Path, capture: str) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "model": {"checkpoint": str(checkpoint), "device": "cpu"},
            "data": {"images": str(folder / "images")},
            "store": {"shard_images": 2, "arrays": ["raw"]},
            "extract": {"tower_batch": 2, "capture": capture},
        }
    )


def array(store: FeatureStore, name: str, row: int) -> torch.Tensor:
    return from_storage(store.gather(name, [row]), store.arrays[name].dtype)[0]


def processor(tmp_path: Path, stock) -> ImageProcessor:
    stock.save_pretrained(tmp_path / "processor")
    return ImageProcessor(str(tmp_path / "processor"), None, False)


CROPPED = CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE})
PADDED = LlavaImageProcessorPil(
    do_pad=True, size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE}
)  # LLaVA-1.5's own


@pytest.mark.parametrize("size", [(64, 64), (80, 40), (30, 91), (1, 50)], ids=str)
def test_where_the_processor_crops_every_patch_is_image(tmp_path, size):
    area = ImageArea(processor(tmp_path, CROPPED), GRID, PATCH).of(size)
    assert torch.equal(area, torch.ones(1, PATCHES))


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((64, 64), [1, 1, 1, 1], [1, 1, 1, 1]),
        ((80, 40), [0, 1, 1, 0], [1, 1, 1, 1]),  # a quarter above and below
        ((40, 80), [1, 1, 1, 1], [0, 1, 1, 0]),
        ((160, 120), [0.5, 1, 1, 0.5], [1, 1, 1, 1]),  # an eighth above and below
        ((30, 240), [1, 1, 1, 1], [0, 0.25, 0.25, 0]),  # a strip of an eighth
    ],
    ids=str,
)
def test_where_it_pads_to_a_square_the_padding_is_no_image(tmp_path, size, rows, columns):
    area = ImageArea(processor(tmp_path, PADDED), GRID, PATCH).of(size)
    expected = torch.outer(torch.tensor(rows), torch.tensor(columns)).reshape(1, PATCHES)
    torch.testing.assert_close(area, expected.float(), rtol=0, atol=0.02)  # pixels on the border are blends of both
    if set(rows) == {1} == set(columns):
        assert torch.equal(area, torch.ones(1, PATCHES))


def test_a_strip_thinner_than_a_pixel_keeps_its_part_of_it(tmp_path):
    area = ImageArea(processor(tmp_path, PADDED), GRID, PATCH).of((5, 1000))
    assert area.mean().item() == pytest.approx(5 / 1000, rel=0.25)


def test_images_of_one_size_are_tried_once(tmp_path):
    stock = processor(tmp_path, PADDED)
    seen = []
    area = ImageArea(lambda image: seen.append(image.size) or stock(image), GRID, PATCH)
    seen.clear()
    for size in ((80, 40), (40, 80), (80, 40)):
        area.of(size)
    assert seen == [(80, 40)] * 2 + [(40, 80)] * 2


def test_a_processor_that_makes_all_colours_equal_cannot_show_its_padding():
    with pytest.raises(UnsupportedModel, match="black from white"):
        ImageArea(lambda image: {"pixel_values": torch.zeros(1, 3, EDGE, EDGE)}, GRID, PATCH)


def test_the_area_is_stored_for_each_image_of_a_llava_that_pads_and_is_part_of_core(tmp_path):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    file = checkpoint / "processor_config.json"
    content = json.loads(file.read_text())
    content["image_processor"] = json.loads(PADDED.to_json_string())
    file.write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for name, shape in {"square": (64, 64), "wide": (40, 80), "tall": (80, 40)}.items():
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
    wanted = experiment(tmp_path, checkpoint, capture="core")
    extract(wanted, overwrite=False)
    store = FeatureStore.open(wanted.store_path)
    assert "image_area" in CORE and store.arrays["image_area"].dtype == "float32"
    areas = {
        name: array(store, "image_area", store.ids.row_of_name(f"{name}.png")).view(GRID)
        for name in ("square", "wide", "tall")
    }
    assert areas["square"].eq(1).all()
    assert torch.equal(areas["wide"][0], torch.zeros(4)) or areas["wide"][0].max() < 0.02
    torch.testing.assert_close(areas["wide"], areas["tall"].T, rtol=0, atol=0.01)
    assert encode_again(wanted, 3)["unequal"] == []


def test_an_area_alone_is_no_work_of_the_tower_and_its_time_is_not_measured(tmp_path, caplog):
    tiny_images(tmp_path / "images", 3)
    wanted = experiment(tmp_path, tiny_llava(tmp_path / "checkpoint"), capture="image_area")
    extract(wanted, overwrite=False)
    assert FeatureStore.open(wanted.store_path).gather("image_area", [0]).tolist() == [[1] * PATCHES]
    assert "times as long" not in caplog.text
