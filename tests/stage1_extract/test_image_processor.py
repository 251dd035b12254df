"""Image processors: on Pillow, whether torchvision is installed or not."""

import json

import pytest
from transformers.image_processing_backends import PilBackend

from configs.cli import run_to_exit_code
from stage1_extract.cli import group
from store.checkpoint.image_processor import open_image_processor
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions


def of_kind(folder, kind):
    """A checkpoint whose image processor is of this class."""
    tiny_llava(folder)
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"]["image_processor_type"] = kind
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"])
def test_a_processor_is_opened_on_pillow_whatever_its_class_in_the_checkpoint_is_called(tmp_path, kind):
    stock = open_image_processor(str(of_kind(tmp_path / "checkpoint", kind)))
    assert isinstance(stock, PilBackend) and type(stock).__name__ == "CLIPImageProcessorPil"


def test_a_processor_that_exists_on_torchvision_alone_is_refused_before_anything_is_encoded(tmp_path, capsys):
    """With torchvision stock takes it without a word where Pillow is asked for; without, it says what to install."""
    checkpoint = of_kind(tmp_path / "checkpoint", "Sam2ImageProcessor")
    tiny_questions(tmp_path / "data")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run_dir: {tmp_path / 'run'}\nmodel: {{checkpoint: {checkpoint}, device: cpu}}\n"
        f"data: {{images: {tmp_path / 'data' / 'images'}, questions: {tmp_path / 'data' / 'questions.jsonl'}}}\n"
    )
    code = run_to_exit_code(lambda: group.main(["extract", "--config", str(config)], standalone_mode=False))
    said = capsys.readouterr().err
    assert code == 2 and "for torchvision alone" in said and "Pillow" in said and str(checkpoint) in said
    assert not (tmp_path / "run" / "store" / "commits").exists()
