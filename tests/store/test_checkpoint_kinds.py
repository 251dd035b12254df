"""Checkpoints of a kind that cannot be read as it lies there are refused by name, before any image and any question."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from configs.load import load
from stage1_extract.extract import extract
from tests.faults.runs import config_file, invoke
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.data import tiny_questions
from tests.helpers.kinds import (
    SINGLE,
    Change,
    all_of,
    edited,
    part,
    renamed,
    tensors,
    without,
    wrote,
)

LANGUAGE = "language_model.model.layers.0.mlp.up_proj."
KEEP_ALL = ("--prune.methods", "[{name: keep_all}]")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A good checkpoint, questions, the store that was made of them, and its config."""
    folder = tmp_path_factory.mktemp("kinds")
    tiny_llava(folder / "checkpoint", layout="hub4")
    tiny_questions(folder / "data", images=6)
    extract(load(config_file(folder, folder / "checkpoint"), {}), overwrite=False)
    return folder


@pytest.fixture
def checkpoint(home, tmp_path):
    """A copy of the checkpoint to change."""
    return Path(shutil.copytree(home / "checkpoint", tmp_path / "checkpoint"))


def refused(home: Path, source: object, where: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `extract` says of a checkpoint, and that each command of stage 2 says the same; no work was done."""
    shutil.rmtree(where / "run", ignore_errors=True)
    config = ("--config", home / "trial.yaml", "--model.checkpoint", source)
    said = invoke(capsys, "extract", *config, "--run-dir", where / "run", expect=5)
    assert not (where / "run").exists()
    store = ("--store.path", home / "run" / "store", "--run-dir", where / "run")
    for command in ("eval", "parity"):
        assert invoke(capsys, command, *config, *store, *KEEP_ALL, expect=5) == said
    assert "Traceback" not in said and said.count("\n") == 1 and len(said) < 900
    return said


def quantised(**settings: object) -> Change:
    return edited(quantization_config=settings)


def eight_bit(name: str) -> Change:
    """A matrix as bitsandbytes writes it in 8 bit, with its scales."""

    def change(content: dict[str, torch.Tensor]) -> None:
        content[f"{name}weight"] = (content[f"{name}weight"] * 50).to(torch.int8)
        content[f"{name}SCB"] = torch.ones(len(content[f"{name}weight"]))

    return tensors(change)


def stored_as(dtype: torch.dtype, name: str = LANGUAGE) -> Change:
    return tensors(lambda content: content.update({f"{name}weight": content[f"{name}weight"].to(dtype)}))


def beside(suffix: str) -> Change:
    return tensors(lambda content: content.update({f"{LANGUAGE}{suffix}": torch.ones(3)}))


QUANTISED: dict[str, tuple[Change, str]] = {
    "bitsandbytes 8 bit": (
        all_of(quantised(quant_method="bitsandbytes", load_in_8bit=True), eight_bit(LANGUAGE)),
        "quantised by bitsandbytes in 8 bit (quantization_config of config.json)",
    ),
    "bitsandbytes before it had a name": (quantised(load_in_4bit=True), "quantised by bitsandbytes in 4 bit"),
    "gptq": (quantised(quant_method="gptq", bits=4), "quantised by gptq in 4 bit"),
    "awq": (quantised(quant_method="awq", bits=4), "quantised by awq in 4 bit"),
    "fp8": (quantised(quant_method="fp8"), "quantised by fp8 (quantization_config"),
    "a method of tomorrow": (quantised(quant_method="novel"), "quantised by novel"),
    "no method": (quantised(bits=3), "quantised by a method that is not named"),
    "in the text config": (
        part("text_config", quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised by gptq in 4 bit (text_config.quantization_config of config.json)",
    ),
    "in the vision config": (
        part("vision_config", quantization_config={"quant_method": "awq"}),
        "(vision_config.quantization_config of config.json)",
    ),
    "compressed-tensors by its first key": (
        edited(compression_config={"quant_method": "compressed-tensors"}),
        "quantised by compressed-tensors (compression_config",
    ),
    "mlx": (edited(quantization={"group_size": 64, "bits": 4}), "(quantization of config.json)"),
    "a file of gptq": (wrote("quantize_config.json", {"bits": 4}), "quantised by GPTQ (quantize_config.json)"),
    "a file of awq": (wrote("quant_config.json", {"w_bit": 4}), "quantised by AWQ (quant_config.json)"),
    "a file of modelopt": (
        wrote("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}),
        "quantised by NVFP4 (hf_quant_config.json)",
    ),
    "scales of bitsandbytes without a config": (eight_bit(LANGUAGE), "up_proj.weight holds I8"),
    "scales of the tower alone": (
        eight_bit("vision_tower.vision_model.encoder.layers.0.mlp.fc1."),
        "fc1.weight holds I8",
    ),
    "bytes": (stored_as(torch.uint8), "up_proj.weight holds U8"),
    "float8": (stored_as(torch.float8_e4m3fn), "up_proj.weight holds F8_E4M3"),
    "scales beside floats": (beside("SCB"), "quantised by bitsandbytes in 8 bit (the tensor"),
    "4 bit": (beside("weight.absmax"), "quantised by bitsandbytes in 4 bit (the tensor"),
    "names of gptq": (beside("qweight"), "quantised by GPTQ or AWQ (the tensor"),
    "names of compressed-tensors": (beside("weight_packed"), "quantised by compressed-tensors (the tensor"),
    "names of fp8": (beside("weight_scale_inv"), "quantised by fp8 or int8 with scales (the tensor"),
}


@pytest.mark.parametrize(("change", "said"), QUANTISED.values(), ids=QUANTISED.keys())
def test_quantised_weights_are_refused_with_their_method_before_anything_is_encoded(
    home, checkpoint, tmp_path, capsys, change, said
):
    change(checkpoint)
    found = refused(home, checkpoint, tmp_path, capsys)
    assert said in found and "take the checkpoint in 16 or 32 bit" in found


def test_a_quantization_config_that_says_nothing_is_none_as_in_stock(home, checkpoint, tmp_path, capsys):
    edit_config(checkpoint, quantization_config=None)
    config = ("--config", home / "trial.yaml", "--model.checkpoint", checkpoint)
    invoke(capsys, "extract", *config, "--run-dir", tmp_path / "run")


def original(folder: Path) -> None:
    """As the original repository saves LLaVA-1.5: its own keys in a config that calls itself `llava`, its own names."""
    fields = {"architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "hidden_size": 48} | fields))


KINDS: dict[str, tuple[Change, str]] = {
    "the original layout": (original, "original LLaVA repository"),
    "the original layout by another type": (
        all_of(original, edited(model_type="llava_mistral", architectures=None)),
        "original LLaVA repository",
    ),
    "the original layout's weights beside a converted config": (
        renamed(lambda name: name.replace("multi_modal_projector.linear_1", "model.mm_projector.0")),
        "original LLaVA repository",
    ),
    "its projector alone": (
        all_of(without("config.json", SINGLE), wrote("mm_projector.bin", "")),
        "found mm_projector.bin: the layout of the original LLaVA repository",
    ),
    "an adapter alone": (
        all_of(
            without("config.json", SINGLE),
            wrote("adapter_config.json", {"base_model_name_or_path": "llava-hf/base"}),
            wrote("adapter_model.safetensors", ""),
        ),
        "holds adapter_config.json over llava-hf/base, weights of a PEFT adapter",
    ),
    "an adapter beside whole weights": (
        wrote("adapter_config.json", {"base_model_name_or_path": "base"}),
        "move adapter_config.json elsewhere",
    ),
    "an adapter whose config is cut": (wrote("adapter_config.json", '{"base'), "weights of a PEFT adapter"),
    "names of peft": (renamed(lambda name: f"base_model.model.{name}"), "weights of a PEFT adapter"),
    "lora beside its base layer": (
        renamed(lambda name: name.replace(".q_proj.weight", ".q_proj.base_layer.weight")),
        "weights of a PEFT adapter",
    ),
    "data parallel": (renamed(lambda name: f"module.{name}"), "saved out of a wrapper"),
    "half of it data parallel": (
        renamed(lambda name: f"module.{name}" if "projector" in name else name),
        "saved out of a wrapper",
    ),
    "compiled": (renamed(lambda name: f"_orig_mod.{name}"), "saved out of a wrapper"),
    "peft inside data parallel": (renamed(lambda name: f"module.base_model.model.{name}"), "saved out of a wrapper"),
    "gguf alone": (
        all_of(without("config.json", SINGLE), wrote("llava-v1.5-7b-Q4_K.gguf", "GGUF")),
        "expected config.json in {}, found llava-v1.5-7b-Q4_K.gguf, weights in GGUF",
    ),
    "gguf beside the config": (
        all_of(without(SINGLE), wrote("ggml-model-q4_k.gguf", "GGUF")),
        "expected model.safetensors in {}, found ggml-model-q4_k.gguf, weights in GGUF",
    ),
    "gguf and a pickle": (
        all_of(without(SINGLE), wrote("model.gguf", "GGUF"), wrote("pytorch_model.bin", "")),
        "found model.gguf, weights in GGUF",
    ),
    "a variant": (
        lambda folder: (folder / SINGLE).rename(folder / "model.fp16.safetensors"),
        "found model.fp16.safetensors, a variant",
    ),
    "a shard without an index": (
        lambda folder: (folder / SINGLE).rename(folder / "model-00001-of-00001.safetensors"),
        "found model-00001-of-00001.safetensors, which no index lists",
    ),
    "shards of ranks": (
        wrote("shard-00000-model-00001-of-00001.safetensors", ""),
        "what one rank of a training saved",
    ),
    "a quantised adapter in gguf's company": (
        all_of(wrote("adapter_config.json", {}), quantised(load_in_4bit=True), wrote("m.gguf", "")),
        "weights of a PEFT adapter",
    ),
}


@pytest.mark.parametrize(("change", "said"), KINDS.values(), ids=KINDS.keys())
def test_a_folder_of_another_kind_is_said_to_be_what_it_is_with_what_to_do(
    home, checkpoint, tmp_path, capsys, change, said
):
    change(checkpoint)
    assert said.format(checkpoint) in refused(home, checkpoint, tmp_path, capsys)


@pytest.mark.parametrize(
    "kind", ["an adapter alone", "gguf alone", "gguf beside the config", "a variant", "data parallel"]
)
def test_a_hub_cache_of_another_kind_is_told_apart_as_a_folder_is(
    home, checkpoint, tmp_path, capsys, monkeypatch, kind
):
    change, said = KINDS[kind]
    change(checkpoint)
    hub_cache(tmp_path / "hub", checkpoint, monkeypatch)
    assert said.format("maker/model") in refused(home, "maker/model", tmp_path, capsys)


def test_a_quantised_model_in_a_hub_cache_is_refused_too(home, checkpoint, tmp_path, capsys, monkeypatch):
    wrote("quantize_config.json", {"bits": 4})(checkpoint)
    hub_cache(tmp_path / "hub", checkpoint, monkeypatch)
    assert "quantised by GPTQ" in refused(home, "maker/model", tmp_path, capsys)


def test_a_gguf_file_named_as_the_checkpoint_is_said_to_be_one(home, checkpoint, tmp_path, capsys):
    (checkpoint / "model.gguf").write_bytes(b"GGUF")
    assert "weights in GGUF" in refused(home, checkpoint / "model.gguf", tmp_path, capsys)


def hub_cache(cache: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay a checkpoint out as `hf download maker/model` does, and take that cache."""
    repository = cache / "models--maker--model"
    shutil.copytree(checkpoint, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


UNEXPECTED = {
    "a layer too many": "language_model.model.layers.7.mlp.up_proj.weight",
    "a bias that its config does not know": "language_model.model.layers.0.mlp.up_proj.bias",
    "a tensor of the head": "language_model.lm_head.bias",
}


@pytest.mark.parametrize("name", UNEXPECTED.values(), ids=UNEXPECTED.keys())
def test_a_tensor_of_the_language_half_that_has_no_place_is_refused_by_name(home, checkpoint, tmp_path, capsys, name):
    tensors(lambda content: content.update({name: torch.ones(3)}))(checkpoint)
    config = ("--config", home / "trial.yaml", "--model.checkpoint", checkpoint, "--run-dir", tmp_path / "run")
    said = invoke(capsys, "eval", *config, *KEEP_ALL, "--store.path", home / "run" / "store", expect=4)
    assert not (tmp_path / "run" / "eval").exists()
    assert name.removeprefix("language_model.").removeprefix("model.") in said and "have no place" in said


IGNORED = {
    "frequencies of an old Llama": "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    "positions of an old CLIP": "vision_tower.vision_model.embeddings.position_ids",
    "a part that neither stage opens": "image_newline",
    "that part in the names of 4.52": "model.image_newline",
}


@pytest.mark.parametrize("name", IGNORED.values(), ids=IGNORED.keys())
def test_tensors_that_stock_loading_ignores_are_ignored(home, checkpoint, tmp_path, capsys, name):
    tensors(lambda content: content.update({name: torch.ones(3)}))(checkpoint)
    config = ("--config", home / "trial.yaml", "--model.checkpoint", checkpoint, "--run-dir", tmp_path / "run")
    invoke(capsys, "extract", *config)
    invoke(capsys, "eval", *config, *KEEP_ALL)


def test_a_tied_copy_of_the_embeddings_is_ignored(tmp_path, capsys):
    checkpoint = tiny_llava(tmp_path / "checkpoint", layout="hub4", tie=True)
    embeddings = "language_model.model.embed_tokens.weight"
    tensors(lambda c: c.update({"language_model.lm_head.weight": c[embeddings].clone()}))(checkpoint)
    tiny_questions(tmp_path / "data", images=3)
    config = ("--config", config_file(tmp_path, checkpoint))
    invoke(capsys, "extract", *config)
    invoke(capsys, "eval", *config, *KEEP_ALL)
