"""Kinds of checkpoints that cannot be read as they are: how each is recognised, and how to make a readable checkpoint of it.

Adapters, quantised weights, other programs' formats and weights saved out of a wrapper are refused by name. Read as they
are, they would give noise, or an error that blames something else.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from store.checkpoint.json_files import as_object
from store.errors import UnusableCheckpoint

ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
QUANTISED_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "quantization_config.json": "a method of quantisation",
    "hf_quant_config.json": "ModelOpt",
}
"""Files beside config.json that describe quantised weights, each with the method that usually writes it."""
_QUANTISED_KEYS = ("quantization_config", "compression_config", "quantization")
_ORIGINAL_KEYS = {"mm_vision_tower", "mm_projector_type", "mm_hidden_size"}
_ORIGINAL_CLASS = re.compile(r"Llava\w+ForCausalLM")
_ORIGINAL = (
    "the layout of the original LLaVA repository, which transformers does not read: take the converted twin from the hub "
    "(llava-hf/llava-1.5-7b-hf is liuhaotian/llava-v1.5-7b), or convert it with convert_llava_weights_to_hf.py of "
    "transformers"
)
_PEFT = (
    "weights of a PEFT adapter: merge them into their base model with `merge_and_unload()` of peft, `save_pretrained(FOLDER)` "
    "the result, and name that folder"
)
_FULL_PRECISION = "take the checkpoint in 16 or 32 bit that it was made from, whose weights are read as they are"
_SIGNS = (
    (re.compile(r"^base_model\.model\.|\.(lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save)\."), _PEFT),
    (
        re.compile(r"^module\.|(^|\.)(_orig_mod|_fsdp_wrapped_module|_forward_module)\."),
        "weights saved out of a wrapper (DistributedDataParallel, FSDP, DeepSpeed or torch.compile): save them with "
        "`model.module.save_pretrained(FOLDER)`, or `model._orig_mod.save_pretrained(FOLDER)`, and name that folder",
    ),
    (re.compile(r"(^|\.)mm_projector\."), _ORIGINAL),
)
"""Names of tensors that show how a checkpoint was written, and what to do about it."""
_QUANTISED_NAMES = (
    (re.compile(r"\.(SCB|weight_format)$"), "bitsandbytes in 8 bit"),
    (re.compile(r"\.(absmax|quant_map|nested_absmax)$|\.quant_state\."), "bitsandbytes in 4 bit"),
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.(weight_packed|weight_zero_point)$"), "compressed-tensors"),
    (re.compile(r"\.(weight_scale|weight_scale_inv|input_scale)$"), "fp8 or int8 with scales"),
    (re.compile(r"\.W_q$"), "HQQ"),
    (re.compile(r"\.weight\._(data|scale|shift)$"), "quanto"),
)
"""Names of tensors that only methods of quantisation write, each with its method."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Kinds of numbers that weights may have, by safetensors' names."""


def refuse_file(source: str) -> None:
    """Refuse a single GGUF file that is named as a checkpoint (UnusableCheckpoint, exit 5); other files pass."""
    if source.endswith(".gguf"):
        raise UnusableCheckpoint(f"{source} is {_gguf(Path(source).name)}")


def refuse_adapter(source: str, names: Collection[str], settings: Mapping[str, Any]) -> None:
    """Refuse a checkpoint with an adapter, which stock code lays over the weights only if peft is installed."""
    if ADAPTER not in names:
        return
    base = settings.get("base_model_name_or_path")
    over = f" over {base}" if isinstance(base, str) else ""
    whole = any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in names)
    aside = f"; to leave the adapter out and read the weights beside it, move {ADAPTER} elsewhere" if whole else ""
    raise UnusableCheckpoint(f"{source} holds {ADAPTER}{over}, {_PEFT}{aside}")


def refuse_original(source: str, settings: Mapping[str, Any]) -> None:
    """Refuse a config.json in the layout of the original LLaVA repository; its `model_type` may be `llava` too."""
    named = _ORIGINAL_CLASS.search(str(settings.get("architectures")))
    # Converted checkpoints may keep a key of the original beside the text_config that stock loading reads.
    if named is not None or (_ORIGINAL_KEYS & settings.keys() and "text_config" not in settings):
        raise UnusableCheckpoint(f"config.json of {source} has {_ORIGINAL}")


def refuse_quantised(source: str, settings: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse weights that are quantised according to config.json, a part of it, or a file beside it.

    Args:
        source: Folder or hub id of the checkpoint.
        settings: The content of config.json.
        beside: The content of each file of `QUANTISED_FILES` that the checkpoint has, by its name.

    """
    for key, quantisation in _quantisations(settings):
        _refuse_method(source, _method(quantisation) or "a method that is not named", f"{key} of config.json")
    for name, content in beside.items():
        _refuse_method(source, _method(content) or QUANTISED_FILES[name], name)


def refuse_names(source: str, names: Iterable[str]) -> None:
    """Refuse tensors whose names show that they cannot be read as they are."""
    for name in names:
        for pattern, kind in _SIGNS:
            if pattern.search(name):
                raise UnusableCheckpoint(f"{source} has the tensor {name!r:.120}, as {kind}")
        for pattern, method in _QUANTISED_NAMES:
            if pattern.search(name):
                _refuse_method(source, method, f"the tensor {name!r:.120}")


def refuse_kinds_of_numbers(source: str, kinds: Mapping[str, str]) -> None:
    """Refuse weights that are not floats of 16 bit or more; `kinds` holds the kind of number of each tensor, by its name."""
    for name, kind in kinds.items():
        if name.endswith(".weight") and kind not in FLOATS:
            raise UnusableCheckpoint(
                f"expected weights in 16 or 32 bit in {source}, {name} holds {kind}: a quantised number, which means "
                f"nothing without the scales that its method knows; {_FULL_PRECISION}"
            )


def refuse_without(source: str, wanted: str, names: Collection[str]) -> None:
    """Refuse a checkpoint that lacks config.json or model.safetensors and whose other files show what it is.

    Args:
        source: Folder or hub id of the checkpoint.
        wanted: The file that is missing; for any file but those two, this function does nothing.
        names: The names of the files that the checkpoint has.

    """
    if wanted not in ("config.json", "model.safetensors"):
        return
    expected = f"expected {wanted} in {source}, found "
    if gguf := _first(names, ".gguf"):
        raise UnusableCheckpoint(f"{expected}{_gguf(gguf)}")
    if original := next((n for n in ("mm_projector.bin", "non_lora_trainables.bin") if n in names), None):
        raise UnusableCheckpoint(f"{expected}{original}: {_ORIGINAL}")
    if wanted == "config.json":
        return
    variants = [name for name in sorted(names) if re.fullmatch(r"model\.[\w-]+\.safetensors(\.index\.json)?", name)]
    if variants and variants[0] != "model.safetensors.index.json":
        raise UnusableCheckpoint(
            f"{expected}{variants[0]}, a variant, which transformers reads only where it is asked for: rename it to {wanted}"
        )
    if pickle := _first(names, *PICKLES):
        raise UnusableCheckpoint(
            f"{expected}{pickle}: a pickle can run any code when it is opened, so it is never read; take a revision with "
            "safetensors, or convert it where it can do no harm, with `from_pretrained(…).save_pretrained(…)` of its class "
            "in transformers"
        )
    if other := _first(names, ".safetensors"):
        raise UnusableCheckpoint(
            f"{expected}{other}, which no index lists: name it {wanted} if it holds all weights, or add the index"
        )


def refuse_shards_of_ranks(source: str, names: Collection[str]) -> None:
    """Refuse files that each rank of a training wrote for itself; newer versions of transformers read these first."""
    pattern = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors$")
    shard = next((name for name in sorted(names) if pattern.match(name)), None)
    if shard is not None:
        raise UnusableCheckpoint(
            f"{source} holds {shard}, what one rank of a training saved: load the whole model with transformers, save it "
            "with `save_pretrained(FOLDER)`, and name that folder"
        )


def _quantisations(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each part of a config that describes a quantisation, with its dotted path."""
    parts = {"": settings} | {f"{name}.": as_object(part) for name, part in settings.items()}
    for path, part in parts.items():
        for key in _QUANTISED_KEYS:
            if part.get(key):
                yield f"{path}{key}", part[key]


def _method(settings: Any) -> str | None:
    """Return the method of quantisation that a config names, with its bits where the config gives them."""
    named = as_object(settings)
    flags = {bits: named.get(f"load_in_{bits}bit") for bits in (4, 8)}
    bits: Any = next((count for count, is_set in flags.items() if is_set), named.get("bits") or named.get("w_bit"))
    method: Any = (
        named.get("quant_method") or named.get("quant_algo") or ("bitsandbytes" if any(flags.values()) else None)
    )
    if method is None and "quantization" in named:
        return _method(named["quantization"])
    return None if method is None else f"{method}" if bits is None else f"{method} in {bits} bit"


def _refuse_method(source: str, method: str, where: str) -> None:
    raise UnusableCheckpoint(
        f"expected weights in 16 or 32 bit in {source}, they are quantised by {method} ({where}): {_FULL_PRECISION}"
    )


def _gguf(name: str) -> str:
    return (
        f"{name}, weights in GGUF, the format of llama.cpp: take the checkpoint in the Hugging Face layout that they were "
        "made from, a folder with config.json and model.safetensors"
    )


def _first(names: Iterable[str], *endings: str) -> str | None:
    """Return the first name, in order, with the first of `endings` that any name has."""
    return next((name for ending in endings for name in sorted(names) if name.endswith(ending)), None)
