"""The digest of weights is taken once: the remembered one is the computed one, and counts only for files that did not change."""

import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.experiment import ModelSection
from stage2_prune.find_family import open_language
from stage2_prune.language.clip_text import open_clip_text
from store.checkpoint import digests
from store.checkpoint.digests import cache_folder, origin_of, remembered_digest
from store.checkpoint.weights import load_tensors, weights_digest
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.clip import clip_checkpoint

SINGLE = "model.safetensors"
LANGUAGE = ("language_model.", "lm_head.")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("digests") / "checkpoint")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, in which also files that were just written are remembered."""
    monkeypatch.setenv("ENCODE_ONCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 0.0)
    return tmp_path / "cache" / "digests"


@pytest.fixture
def computed(monkeypatch):
    """Counts how often a digest is computed."""
    calls = []
    monkeypatch.setattr(digests, "weights_digest", lambda tensors: calls.append(1) or weights_digest(tensors))
    return calls


def opened(checkpoint, dtype="float32"):
    return open_language(ModelSection(checkpoint=str(checkpoint), dtype=dtype, device="cpu"))


def of_tower(checkpoint):
    origin = origin_of(str(checkpoint), ("vision_tower.",))
    return remembered_digest(load_tensors(str(checkpoint), ("vision_tower.",)), origin)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["hub4", "v5"])
def test_the_remembered_digest_of_a_language_half_is_that_of_its_loaded_weights(tmp_path, computed, layout, dtype):
    folder = tiny_llava(tmp_path / "checkpoint", layout=layout)
    first, second = opened(folder, dtype), opened(folder, dtype)
    assert len(computed) == 1
    assert first.digest == second.digest == weights_digest(second.model.state_dict())


def test_dtypes_have_digests_of_their_own(checkpoint, computed):
    assert opened(checkpoint, "float32").digest != opened(checkpoint, "bfloat16").digest
    assert len(computed) == 2


def test_clips_text_encoder_is_digested_once(checkpoint, tmp_path, computed):
    model = ModelSection(checkpoint="unused", clip=str(clip_checkpoint(tmp_path / "clip", checkpoint)))
    first, second = (open_clip_text(model, torch.device("cpu")) for _ in range(2))
    assert len(computed) == 1 and first.digest == second.digest == weights_digest(second.encoder.state_dict())


def test_a_copy_at_another_path_has_the_same_digest(checkpoint, tmp_path, computed):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    assert of_tower(checkpoint) == of_tower(copy)
    assert len(computed) == 2


def test_a_file_that_changed_is_digested_again_even_if_size_and_mtime_are_as_before(checkpoint, tmp_path, computed):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    before, status = of_tower(copy), (copy / SINGLE).stat()
    weights = load_file(copy / SINGLE)
    changed = {name: tensor + 1 if "vision" in name else tensor for name, tensor in weights.items()}
    save_file(changed, copy / SINGLE, {"format": "pt"})
    os.utime(copy / SINGLE, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (copy / SINGLE).stat().st_size == status.st_size
    assert of_tower(copy) != before
    assert of_tower(copy) == weights_digest(load_tensors(str(copy), ("vision_tower.",)))
    assert len(computed) == 2


def test_a_touched_file_is_digested_again(checkpoint, tmp_path, computed):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    before = of_tower(copy)
    os.utime(copy / SINGLE, (0, 0))
    assert of_tower(copy) == before and len(computed) == 2


def test_another_config_counts_as_a_change(checkpoint, tmp_path, computed):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    of_tower(copy)
    edit_config(copy, note="anything")
    of_tower(copy)
    assert len(computed) == 2


def test_a_file_that_has_just_changed_is_not_remembered(checkpoint, tmp_path, computed, cache, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 3600.0)
    assert of_tower(shutil.copytree(checkpoint, tmp_path / "copy"))
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: b"",
        lambda entry: b"\xff\x00",
        lambda entry: b"[" * 100_000,
        lambda entry: b"[1]",
        lambda entry: entry[:-20],
        lambda entry: json.dumps(json.loads(entry) | {"sha256": "0" * 64}).encode(),
        lambda entry: json.dumps(json.loads(entry) | {"sha256": None}).encode(),
    ],
    ids=["empty", "binary", "nested", "no object", "cut", "wrong", "none"],
)
def test_a_damaged_or_wrong_entry_is_ignored_and_replaced(checkpoint, cache, computed, damage):
    right = of_tower(checkpoint)
    (entry,) = cache.glob("*.json")
    entry.write_bytes(damage(entry.read_bytes()))
    assert of_tower(checkpoint) == right and len(computed) == 2
    assert of_tower(checkpoint) == right and len(computed) == 2


def test_a_cache_that_cannot_be_written_costs_time_alone(checkpoint, tmp_path, computed, monkeypatch):
    right = of_tower(checkpoint)
    (tmp_path / "file").touch()
    monkeypatch.setenv("ENCODE_ONCE_CACHE", str(tmp_path / "file" / "below"))
    assert of_tower(checkpoint) == of_tower(checkpoint) == right
    monkeypatch.setenv("ENCODE_ONCE_CACHE", str(tmp_path / "other"))

    def refuse(*_):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(digests, "write_atomically", refuse)
    assert of_tower(checkpoint) == right
    assert len(computed) == 4


def test_the_cache_lies_where_the_user_says(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ENCODE_ONCE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/encode-once")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/encode-once")


def _remember_often(checkpoint, start):
    origin, tensors = origin_of(str(checkpoint), LANGUAGE), load_tensors(str(checkpoint), LANGUAGE)
    start.wait()
    for _ in range(20):
        digests._remember(digests._path(tensors, origin), origin, weights_digest(tensors))


def test_two_processes_may_write_at_once(checkpoint, cache, computed):
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(2)
    writers = [fork.Process(target=_remember_often, args=(checkpoint, start)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0] and len(list(cache.iterdir())) == 1
    tensors = load_tensors(str(checkpoint), LANGUAGE)
    assert remembered_digest(tensors, origin_of(str(checkpoint), LANGUAGE)) == weights_digest(tensors)
    assert not computed
