"""What the tower saw of an image, and where boxes lie in it, for processors that resize, crop and pad."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from configs.experiment import DataSection, ModelSection
from stage2_prune.analysis.tower_view import TowerView, read_image, rgb
from stage2_prune.errors import CannotShow, StoreMismatch
from store.errors import DataMissing
from tests.helpers.checkpoints import tiny_llava

GRID = (4, 4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Short edge to 56 pixels, then the middle 56 x 56 of it."""
    return tiny_llava(tmp_path_factory.mktemp("view") / "checkpoint")


@pytest.fixture(scope="module")
def view(checkpoint):
    return TowerView(ModelSection(checkpoint=str(checkpoint)), GRID)


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_an_image_of_the_towers_size_is_shown_pixel_for_pixel(view):
    image = noise(56, 56)
    assert np.abs(view.picture(image) * 255 - np.asarray(image)).max() < 1e-3


def test_other_sizes_are_shown_as_pillow_resizes_and_crops_them(view):
    image = noise(112, 90)
    resized = image.resize((round(56 * 112 / 90 - 0.5), 56), Image.Resampling.BICUBIC)
    left = (resized.width - 56) // 2
    middle = np.asarray(resized.crop((left, 0, left + 56, 56)))
    assert np.abs(view.picture(image) * 255 - middle).max() < 1e-3


def test_a_tower_whose_patches_leave_pixels_over_is_shown_without_them(tmp_path):
    folder = tiny_llava(tmp_path / "checkpoint", image_size=50, patch_size=14)
    picture = TowerView(ModelSection(checkpoint=str(folder)), (3, 3)).picture(noise(50, 50))
    assert picture.shape == (42, 42, 3)
    assert np.abs(picture * 255 - np.asarray(noise(50, 50))[:42, :42]).max() < 1e-3


def rows_and_columns(shown):
    return [(patch // 4, patch % 4) for patch in shown.nonzero().flatten().tolist()]


def test_boxes_of_a_square_image_lie_where_their_fractions_say(view):
    shown = view.showing((100, 100), [(0.5, 0.0, 1.0, 0.25), (0.0, 0.75, 0.25, 1.0)])
    assert rows_and_columns(shown) == [(0, 2), (0, 3), (3, 0)]


def test_boxes_follow_the_crop_of_a_wide_image(view):
    # of 4 : 1 the middle quarter is left: from 3/8 to 5/8 of the width
    assert rows_and_columns(view.showing((400, 100), [(0.5, 0.0, 0.625, 0.5)])) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert view.showing((400, 100), [(0.0, 0.0, 0.3, 1.0)]) is None


def test_boxes_follow_the_padding_of_an_image_that_is_padded(checkpoint, view, monkeypatch):
    class Padding(CLIPImageProcessorPil):
        """An image in the upper left corner of a grey square, as large as its longer side."""

        def __call__(self, images, **options):
            side = max(images[0].size)
            padded = Image.new("RGB", (side, side), (122, 116, 104))
            padded.paste(images[0])
            return super().__call__(images=[padded], **options)

    monkeypatch.setattr(
        "stage2_prune.analysis.tower_view.open_image_processor", lambda *_: Padding.from_pretrained(checkpoint)
    )
    padding = TowerView(ModelSection(checkpoint=str(checkpoint)), GRID)
    assert rows_and_columns(padding.showing((100, 50), [(0.5, 0.0, 1.0, 0.5)])) == [(0, 2), (0, 3)]
    picture = padding.picture(noise(100, 50))
    assert np.abs(picture[40:] - np.array([122, 116, 104]) / 255).max() < 1e-3


def test_a_box_that_fills_a_tenth_of_no_patch_is_in_the_patch_that_it_fills_most(view):
    assert rows_and_columns(view.showing((560, 560), [(0.26, 0.26, 0.265, 0.265)])) == [(1, 1)]


def data(root, **changes):
    return DataSection.model_validate({"images": root, **changes})


def test_an_image_is_read_below_its_folder_and_nowhere_else(tmp_path):
    (tmp_path / "images").mkdir()
    noise(8, 8).save(tmp_path / "outside.png")
    noise(8, 8).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").write_text("no image")
    inside = data(tmp_path / "images")
    with read_image(inside, "a.png") as image:
        assert image.size == (8, 8)
    for name in ("../outside.png", "missing.png"):
        with pytest.raises(DataMissing, match="no such file"):
            read_image(inside, name)
    with pytest.raises(CannotShow, match="cannot be read"):
        read_image(inside, "b.png")
    with pytest.raises(StoreMismatch, match="has changed since"):
        read_image(inside, "a.png", "0" * 64)


def test_images_inside_archives_are_left_to_stage_1(tmp_path):
    (tmp_path / "images.tar").write_bytes(b"")
    with pytest.raises(CannotShow, match="unpack those"):
        read_image(data(tmp_path / "images.tar"), "a.png")
    with pytest.raises(CannotShow, match="unpack those"):
        read_image(data(tmp_path, format="tar"), "a.png")


def test_16_bit_grey_is_shown_by_its_upper_byte():
    grey = Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16))
    assert np.asarray(rgb(grey))[0, :, 0].tolist() == [0, 1, 255]
    assert torch.equal(torch.tensor(np.asarray(rgb(noise(4, 4)))), torch.tensor(np.asarray(noise(4, 4))))
