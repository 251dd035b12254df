"""Checkpoints and configs that somebody crafted: nothing of them runs, and one sentence says what is wrong."""

import json
import logging
import pickle
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import ConfigError, EncodeOnceError
from configs.experiment import Experiment
from configs.load import load
from stage1_extract.dry_run import dry_run
from stage1_extract.extract import extract
from store.checkpoint.opening import load_config
from store.checkpoint.weights import load_tensors
from store.errors import CheckpointMissing, CustomCode, DamagedCheckpoint
from store.reading.reader import FeatureStore
from tests.faults.runs import ROOT, config_file, invoke, snapshot
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.data import tiny_images, tiny_questions

TOWER = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
LANGUAGE = "language_model.model.layers.1.mlp.up_proj.weight"
PROJECTOR = "multi_modal_projector.linear_1.weight"
ENTRIES = 20_000
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A good checkpoint in the hub's layout, and two images."""
    folder = tmp_path_factory.mktemp("crafted")
    tiny_llava(folder / "checkpoint", layout="hub4")
    tiny_images(folder / "images", 2)
    return folder


@pytest.fixture
def checkpoint(whole, tmp_path):
    """A copy of it to break."""
    return Path(shutil.copytree(whole / "checkpoint", tmp_path / "checkpoint"))


def experiment(whole: Path, checkpoint: Path, **model: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(checkpoint.parent / "run"),
            "model": {"checkpoint": str(checkpoint), "device": "cpu"} | model,
            "data": {"images": str(whole / "images")},
            "extract": {"tower_batch": 1},
        }
    )


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Let the header of a safetensors file say something else about the same bytes."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        content = json.loads(data[8 : 8 + length])
        change(content)
        text = json.dumps(content).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(path: Path) -> None:
        content = load_file(path)
        change(content)
        save_file(content, path, {"format": "pt"})

    return damage


def length_of_header(announced: int) -> Damage:
    return lambda path: path.write_bytes(struct.pack("<Q", announced) + path.read_bytes()[8:])


def offsets(name: str, first: int) -> Damage:
    def move(content: dict[str, Any]) -> None:
        begin, end = content[name]["data_offsets"]
        content[name]["data_offsets"] = [first, first + end - begin]

    return header(move)


def shape(name: str, *sizes: int) -> Damage:
    return tensors(lambda content: content.update({name: torch.zeros(sizes)}))


def value(name: str, number: float) -> Damage:
    return tensors(lambda content: content[name].view(-1).__setitem__(3, number))


def many(prefix: str, entries: int = ENTRIES) -> Damage:
    return tensors(lambda content: content.update({f"{prefix}{n}": torch.zeros(1) for n in range(entries)}))


BIAS = PROJECTOR.replace("weight", "bias")
CRAFTED: dict[str, tuple[Damage, str]] = {
    "a header longer than any": (length_of_header(2**62), "header too large"),
    "a header longer than the file": (length_of_header(10**6), "invalid header length"),
    "two tensors on the same bytes": (offsets(TOWER, 0), "invalid offset for tensor"),
    "a tensor beyond the end": (offsets(TOWER, 10**12), "invalid offset for tensor"),
    "more values than there are bytes": (header(lambda c: c[TOWER].update(shape=[2**40, 2**40])), "overflow"),
    "a file cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not fully covered"),
    "an empty file": (lambda path: path.write_bytes(b""), "header too small"),
    "a pickle under its name": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "not a safetensors file"),
    "nan in the tower": (value(TOWER, float("nan")), r"vision_tower\.encoder\.layers\.0\.mlp\.fc1\.weight has NaN"),
    "infinity in the projector": (value(PROJECTOR, float("inf")), r"multi_modal_projector\.linear_1\.weight has NaN"),
    "a tower's matrix of another shape": (shape(TOWER, 3, 5), r"fc1\.weight \(3, 5\) not \(64, 32\)"),
    "a tower's matrix that is a number": (shape(TOWER), r"fc1\.weight \(\) not \(64, 32\)"),
    "a projector that is no matrix": (shape(PROJECTOR, 7), r"linear_1\.weight, it has the shape \(7,\)"),
    "a projector as wide as no feature": (shape(PROJECTOR, 48, 33), r"linear_1\.weight, .* \(48, 33\)"),
    "a bias of another length": (shape(BIAS, 5), r"48 values in .*linear_1\.bias, it has the shape \(5,\)"),
    "a tensor too few": (tensors(lambda c: c.pop(TOWER)), r"missing_keys: \['encoder\.layers\.0\.mlp\.fc1\.weight'"),
    "a projector without its first matrix": (tensors(lambda c: c.pop(PROJECTOR)), "found linear_1.bias"),
    "a tower of 20,000 tensors too many": (many("vision_tower.vision_model.x."), r"unexpected_keys: \['x\.0'"),
    "a projector of 20,000 tensors too many": (many("multi_modal_projector.x."), "another kind of projector"),
}


@pytest.mark.parametrize(("damage", "said"), CRAFTED.values(), ids=CRAFTED.keys())
@pytest.mark.timeout(60)
def test_fault_28_crafted_weights_are_refused_in_one_sentence_that_names_the_tensor(whole, checkpoint, damage, said):
    damage(checkpoint / "model.safetensors")
    before = snapshot(checkpoint)
    with pytest.raises(EncodeOnceError, match=said) as caught:
        extract(experiment(whole, checkpoint), overwrite=False)
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert len(message) < 800 and "\n" not in message
    assert snapshot(checkpoint) == before and not (checkpoint.parent / "run").exists()


def test_fault_28_100_000_tensors_of_another_part_cost_seconds_and_change_nothing(whole, checkpoint):
    many("x.", 100_000)(checkpoint / "model.safetensors")
    begun = time.monotonic()
    assert len(load_tensors(str(checkpoint), ["multi_modal_projector."])) == 4
    assert time.monotonic() - begun < 20


NAMES = {
    "a path that climbs": ("../../outside.safetensors", "names '../../outside.safetensors'"),
    "an absolute path": ("/etc/hostname", "names '/etc/hostname'"),
    "a folder below": ("sub/model.safetensors", "names 'sub/model.safetensors'"),
    "a pickle": ("pytorch_model.bin", "names 'pytorch_model.bin'"),
    "a number": (7, "weight_map"),
    "a file that lacks the tensor": ("model-00001.safetensors", "does not contain tensor"),
}


@pytest.mark.parametrize(("named", "said"), NAMES.values(), ids=NAMES.keys())
def test_an_index_names_safetensors_files_beside_it_and_nothing_else(whole, checkpoint, named, said):
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"vision_tower.a": named}}))
    (checkpoint / "sub").mkdir()
    shutil.copy(checkpoint / "model.safetensors", checkpoint / "sub")
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001.safetensors")
    with pytest.raises(DamagedCheckpoint, match=said):
        extract(experiment(whole, checkpoint), overwrite=False)


@pytest.mark.parametrize(
    "text", ["{", "[]", "7", "{}", '{"weight_map": []}', "[" * 100_000], ids=lambda text: text[:20]
)
def test_an_index_that_is_no_map_is_said_to_be_damaged(whole, checkpoint, text):
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(text)
    with pytest.raises(DamagedCheckpoint, match=r"weight_map .* in .*index\.json"):
        extract(experiment(whole, checkpoint), overwrite=False)


CONFIGS = {
    "not json": "{bad",
    "a list": "[]",
    "no model type": "{}",
    "an unknown type": '{"model_type": "nope"}',
    "a type that is a list": '{"model_type": ["llava"]}',
    "a tower that is a number": '{"model_type": "llava", "vision_config": 5}',
    "a tower of an unknown type": '{"model_type": "llava", "vision_config": {"model_type": "nope"}}',
    "100,000 lists in each other": "[" * 100_000,
}


OF_PROCESSORS = ("not json", "a list", "no model type", "100,000 lists in each other")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(pytest.param("config.json", text, id=what) for what, text in CONFIGS.items()),
        *(pytest.param("processor_config.json", CONFIGS[what], id=f"processor: {what}") for what in OF_PROCESSORS),
    ],
)
def test_a_config_that_transformers_cannot_read_is_said_to_be_so(whole, checkpoint, name, text):
    (checkpoint / name).write_text(text)
    with pytest.raises(DamagedCheckpoint, match=r"that transformers can read, it says") as caught:
        extract(experiment(whole, checkpoint), overwrite=False)
    assert len(str(caught.value)) < 700


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_the_bomb_of_these_tests_does_go_off(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


PICKLED = ("pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt")


@pytest.mark.parametrize("name", PICKLED)
def test_fault_27_a_pickle_in_place_of_the_weights_is_refused_by_name_and_never_opened(whole, checkpoint, name):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(pickle.dumps(Bomb(checkpoint / "marker")))
    with pytest.raises(CheckpointMissing, match=rf"found {name}: a pickle .* never read") as caught:
        extract(experiment(whole, checkpoint), overwrite=False)
    assert caught.value.exit_code == 5 and not (checkpoint / "marker").exists()


ONLY_KEEP_ALL = {"extract": (), "train": (), "parity": (), "eval": ("--prune.methods", "[{name: keep_all}]")}
"""Nothing is trained here."""


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """The config of an experiment whose store is made."""
    folder = tmp_path_factory.mktemp("extracted")
    tiny_llava(folder / "checkpoint", layout="hub4")
    tiny_questions(folder / "data", images=6)
    config = config_file(folder, folder / "checkpoint")
    extract(load(config, {}), overwrite=False)
    return config


@pytest.mark.parametrize("command", ["train", "eval", "parity"])
def test_fault_27_pickles_are_not_opened_by_stage_2_either_whose_loader_would_fall_back_to_them(
    extracted, checkpoint, tmp_path, capsys, command
):
    (checkpoint / "model.safetensors").unlink()
    weights = extracted.parent / "run" / "pruner" / "learned_scorer" / "weights.pt"
    weights.parent.mkdir(parents=True, exist_ok=True)
    for path in (checkpoint / "pytorch_model.bin", checkpoint / "model.pt", weights):
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    flags = ("--config", extracted, "--model.checkpoint", checkpoint, *ONLY_KEEP_ALL[command])
    said = invoke(capsys, command, *flags, expect=5)
    assert "found pytorch_model.bin: a pickle" in said and not (tmp_path / "marker").exists()


def test_a_file_given_as_a_checkpoint_is_told_to_be_a_folder(whole, checkpoint):
    single = checkpoint / "model.pt"
    single.write_bytes(pickle.dumps(Bomb(checkpoint / "marker")))
    with pytest.raises(CheckpointMissing, match="it is a file: name the folder"):
        extract(experiment(whole, single), overwrite=False)
    assert not (checkpoint / "marker").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [(value(LANGUAGE, float("nan")), "has NaN"), (shape(LANGUAGE, 3, 5), "missing or of another shape")],
    ids=["nan", "shape"],
)
def test_damaged_weights_of_the_language_model_are_named_before_they_answer(
    extracted, checkpoint, tmp_path, capsys, damage, said
):
    damage(checkpoint / "model.safetensors")
    where = ("--run-dir", tmp_path / "run", "--store.path", extracted.parent / "run" / "store")
    found = invoke(
        capsys,
        "eval",
        "--config",
        extracted,
        "--model.checkpoint",
        checkpoint,
        *where,
        *ONLY_KEEP_ALL["eval"],
        expect=4,
    )
    assert "layers.1.mlp.up_proj.weight" in found and said in found


CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlavaConfig
class OwnConfig(LlavaConfig):
    model_type = "llava"
"""


@pytest.fixture
def with_code(checkpoint, tmp_path):
    """A repository that brings its own config class; importing it leaves a marker."""
    (checkpoint / "own_code.py").write_text(CODE.format(marker=str(tmp_path / "marker")))
    edit_config(checkpoint, model_type="own", auto_map={"AutoConfig": "own_code.OwnConfig"})
    return checkpoint


@pytest.mark.parametrize("command", ["extract", "train", "eval", "parity"])
def test_fault_29_code_that_a_checkpoint_brings_is_not_run_and_the_refusal_names_the_flag(
    extracted, with_code, tmp_path, capsys, monkeypatch, command
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    flags = ("--config", extracted, "--model.checkpoint", with_code, *ONLY_KEEP_ALL[command])
    said = invoke(capsys, command, *flags, expect=2)
    assert "--model.trust-remote-code true" in said
    assert not (tmp_path / "marker").exists() and not (tmp_path / "modules").exists()


def test_nobody_is_asked_whether_foreign_code_may_run(extracted, with_code, tmp_path):
    """Left to itself, transformers asks at the terminal, waits 15 seconds, and runs it after a `y`."""
    command = ["-m", "stage1_extract", "extract", "--config", extracted, "--model.checkpoint", with_code]
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, input="y\ny\ny\n", capture_output=True, text=True
    )
    assert done.returncode == 2 and "[y/N]" not in done.stdout + done.stderr
    assert not (tmp_path / "marker").exists()


def test_code_of_an_image_processor_is_not_run_either(whole, checkpoint, tmp_path):
    (checkpoint / "own_code.py").write_text(CODE.format(marker=str(tmp_path / "marker")))
    own = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own_code.OwnConfig"}}
    for name in ("processor_config.json", "preprocessor_config.json"):
        (checkpoint / name).write_text(json.dumps({"image_processor": own} | own))
    with pytest.raises(CustomCode, match="trust-remote-code") as caught:
        extract(experiment(whole, checkpoint), overwrite=False)
    assert caught.value.exit_code == 2 and not (tmp_path / "marker").exists()


def test_fault_29_code_that_is_asked_for_runs_with_a_warning_and_is_in_the_fingerprint(
    whole, with_code, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    with caplog.at_level(logging.WARNING):
        config = load_config(str(with_code), None, trust_remote_code=True)
    assert type(config).__name__ == "OwnConfig" and (tmp_path / "marker").exists()
    assert f"warning: model.trust_remote_code is on, code that {with_code} brings may be run" in caplog.text
    shutil.copy(whole / "checkpoint" / "config.json", with_code)
    asked = experiment(whole, with_code, trust_remote_code=True)
    extract(asked, overwrite=False)
    store = FeatureStore.open(asked.store_path)
    assert all(store.fingerprint(name).semantic["trust_remote_code"] is True for name in store.arrays)
    with pytest.raises(EncodeOnceError, match="trust_remote_code: expected 'nothing', found True") as caught:
        extract(experiment(whole, with_code), overwrite=False)
    assert caught.value.exit_code == 4


MINIMAL = "model:\n  checkpoint: x\ndata:\n  images: i\n"
BILLION = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
YAMLS = {
    "an object": (MINIMAL + "train: !!python/object/apply:os.mkdir [marker]\n", "line 5, column 8: .*python/object"),
    "a billion laughs": (BILLION + MINIMAL, r"more than 50,000 values, counting what aliases"),
    "an alias inside itself": (MINIMAL + "extract: &a {slurm: *a}\n", r"line 5, column 21: \*a stands before the end"),
    "a key given twice": (
        MINIMAL + "train:\n  epochs: 1\n  epochs: 2\n",
        "line 7, column 3: the key 'epochs' is given",
    ),
    "a tab": (MINIMAL + "train:\n\tepochs: 2\n", "line 6, column 1: .*indent with spaces"),
    "a key that is a list": (MINIMAL + "? [a, b]\n: 3\n", "line 5, column 3: found unhashable key"),
    "5,000 digits": (
        MINIMAL + f"train:\n  seed: {'9' * 5000}\n",
        "line 6, column 9: !!int of more than 1,000 characters",
    ),
    "a date that is none": (
        MINIMAL + "train:\n  seed: 2024-99-99\n",
        "line 6, column 9: '2024-99-99' is not a !!timestamp",
    ),
    "a whole number of no digits": (MINIMAL + 'train:\n  seed: !!int ""\n', "line 6, column 9: '' is not a !!int"),
    "a number of no digits": (MINIMAL + 'train:\n  seed: !!float ""\n', "line 6, column 9: '' is not a !!float"),
    "a truth that is none": (MINIMAL + "train: !!bool maybe\n", "line 5, column 8: 'maybe' is not a !!bool"),
    "a date that is a word": (MINIMAL + "name: !!timestamp soon\n", "line 5, column 7: 'soon' is not a !!timestamp"),
    "bytes that are none": (MINIMAL + "name: !!binary é\n", "line 5, column 7: "),
    "pairs that are none": (MINIMAL + "name: !!omap {a: 1}\n", "line 5, column 7: "),
    "a list that is a word": (MINIMAL + "name: !!seq word\n", "line 5, column 7: "),
    "a merge of a number": (MINIMAL + "train: {<<: 3}\n", "line 5, column 13: "),
    "a million digits": (
        MINIMAL + f"train:\n  seed: 0x{'f' * 900_000}\n",
        "line 6, column 9: !!int of more than 1,000",
    ),
    "aliases of a long text": (
        MINIMAL + f"extract: {{slurm: {{a: &a {'x' * 100_000}, b: [{', '.join(['*a'] * 20_000)}]}}}}\n",
        "line 5, column .*: more than 1,000,000 characters, counting what aliases",
    ),
    "a long key over many values": (
        MINIMAL + f"? {'k' * 100_000}\n: [{', '.join('x' * 10_000)}]\n",
        "line 5: k+….*: unknown key",
    ),
    "2,000 wrong values": (
        MINIMAL + f"prune:\n  budgets: [{'no, ' * 2_000}]\n",
        "budgets.0: .*\n(.*\n)+ .*and 1,980 more",
    ),
    "100,000 lists in each other": (MINIMAL + "extract: " + "[" * 100_000, "line 5, .*more than 50 lists"),
    "two documents": (MINIMAL + "---\na: 1\n", "line 5, column 1"),
    "a null character": (MINIMAL + "name: \0\n", "#x0000"),
    "an escaped null character": (MINIMAL + 'run_dir: "a\\0b"\n', "line 5, column 10: a null character"),
    "not utf-8": ((MINIMAL + "name: é\n").encode("latin-1"), "utf-8"),
    "an unknown section": (MINIMAL + "trian:\n  epochs: 2\n", "line 5: trian: unknown key: did you mean train"),
    "an unknown key": (MINIMAL + "train:\n  epoch: 2\n", "line 6: train.epoch: unknown key: did you mean epochs"),
    "a wrong value in a list": (MINIMAL + "prune:\n  budgets:\n  - 64\n  - no\n", r"line 8: prune\.budgets\.1: "),
    "a key that is missing": (
        "model:\n  dtype: float32\ndata:\n  images: i\n",
        r"line 1: model\.checkpoint: expected a value, there is none",
    ),
    "half a million characters": (MINIMAL + f"train:\n  seed: {'x' * 500_000}\n", r"line 6: train\.seed: .*x…\)"),
    "nothing": ("", "expected sections"),
    "a number": ("7\n", "expected sections"),
}


@pytest.mark.parametrize(("text", "said"), YAMLS.values(), ids=YAMLS.keys())
@pytest.mark.timeout(20)
def test_a_crafted_config_is_refused_with_the_line_before_anything_is_built_from_it(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "trial.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=said) as caught:
        load(path, {})
    assert caught.value.exit_code == 2 and len(str(caught.value)) < 2500
    assert [file.name for file in tmp_path.iterdir()] == ["trial.yaml"]


@pytest.mark.timeout(20)
def test_a_config_of_50_mb_is_refused_by_its_size_unread(tmp_path):
    path = tmp_path / "trial.yaml"
    with path.open("wb") as file:
        file.truncate(50_000_000)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="at most 1000000 bytes, this file has 50000000"):
        load(path, {})
    assert time.monotonic() - begun < 1


def test_a_flags_wrong_value_names_no_line_of_the_file(tmp_path):
    path = tmp_path / "trial.yaml"
    path.write_text(MINIMAL + "train:\n  epochs: 2\n")
    with pytest.raises(ConfigError, match=r"^the command line: 1 problem\n  --train\.epochs: .*got -1"):
        load(path, {"train.epochs": -1})


@pytest.mark.parametrize("name", ["..", ".", "...", "a/b", "/etc", "a\\b", "", "a\n", "x" * 101, "é" * 51])
def test_a_name_that_is_no_folders_name_is_refused_and_nothing_is_written_outside_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "trial.yaml"
    path.write_text(MINIMAL + f"name: {json.dumps(name)}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 5: name: expected"):
        load(path, {})


def test_the_name_of_a_file_that_is_no_folders_name_is_refused_too(tmp_path):
    path = tmp_path / "...yaml"
    path.write_text(MINIMAL)
    with pytest.raises(ConfigError, match=r"name: expected .*got '\.\.'"):
        load(path, {})


@pytest.mark.timeout(60)
def test_a_config_of_aliases_takes_little_memory(tmp_path):
    path = tmp_path / "trial.yaml"
    text = f"extract:\n  slurm:\n    ? {'k' * 100_000}\n    : &a [{', '.join('x' * 2_000)}]\n"
    path.write_text(MINIMAL + text + f"    b: [{', '.join(['*a'] * 20)}]\n")
    tracemalloc.start()
    try:
        load(path, {})
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_aliases_within_reason_and_merged_sections_mean_what_yaml_says(tmp_path):
    path = tmp_path / "trial.yaml"
    path.write_text(
        MINIMAL + "prune:\n  methods:\n  - &one {name: random, seed: 3}\n  - {<<: *one, name: other}\n"
        "extract:\n  slurm: {a: &list [1, 2], b: *list}\n"
    )
    found = load(path, {})
    assert [m.model_dump() for m in found.prune.methods] == [
        {"name": "random", "seed": 3},
        {"name": "other", "seed": 3},
    ]
    assert found.extract.slurm == {"a": [1, 2], "b": [1, 2]}


def test_a_dry_run_of_a_crafted_checkpoint_reads_no_weights_at_all(whole, checkpoint):
    (checkpoint / "model.safetensors").write_bytes(pickle.dumps(Bomb(checkpoint / "marker")))
    assert dry_run(experiment(whole, checkpoint))["distinct"] == 2
    assert not (checkpoint / "marker").exists()
