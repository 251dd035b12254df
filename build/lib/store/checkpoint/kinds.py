"""What a checkpoint is that cannot be read as it lies there, and what makes one of it that can.

Adapters, quantised weights, other programs' formats and weights saved out of a wrapper are refused by name: read as they
are, they would give noise, or an error that blames something else.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from store.errors import UnusableCheckpoint

ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
QUANTISED_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "quantization_config.json": "a method of quantisation",
    "hf_quant_config.json": "ModelOpt",
}
"""Files beside config.json that say how weights were quantised, and whose they usually are."""
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
"""Names of tensors that say how a checkpoint was written."""
_QUANTISED_NAMES = (
    (re.compile(r"\.(SCB|weight_format)$"), "bitsandbytes in 8 bit"),
    (re.compile(r"\.(absmax|quant_map|nested_absmax)$|\.quant_state\."), "bitsandbytes in 4 bit"),
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.(weight_packed|weight_zero_point)$"), "compressed-tensors"),
    (re.compile(r"\.(weight_scale|weight_scale_inv|input_scale)$"), "fp8 or int8 with scales"),
    (re.compile(r"\.W_q$"), "HQQ"),
    (re.compile(r"\.weight\._(data|scale|shift)$"), "quanto"),
)
"""Names of tensors that only a method of quantisation writes."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Kinds of numbers, as safetensors calls them, that weights are read from."""


def refuse_file(source: str) -> None:
    """Say which folder is meant where a file is named as a checkpoint."""
    if source.endswith(".gguf"):
        raise UnusableCheckpoint(f"{source} is {_gguf(Path(source).name)}")


def refuse_adapter(source: str, names: Collection[str], settings: Mapping[str, Any]) -> None:
    """Refuse a checkpoint with an adapter: stock code lays it over the weights only where peft is installed."""
    if ADAPTER not in names:
        return
    base = settings.get("base_model_name_or_path")
    over = f" over {base}" if isinstance(base, str) else ""
    whole = any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in names)
    aside = f"; to leave the adapter out and read the weights beside it, move {ADAPTER} elsewhere" if whole else ""
    raise UnusableCheckpoint(f"{source} holds {ADAPTER}{over}, {_PEFT}{aside}")


def refuse_original(source: str, settings: Mapping[str, Any]) -> None:
    """Refuse a config.json of the original LLaVA repository, some of which call themselves `llava` too."""
    named = _ORIGINAL_CLASS.search(str(settings.get("architectures")))
    # Converted checkpoints may keep a key of the original beside the text_config that stock loading reads.
    if named is not None or (_ORIGINAL_KEYS & settings.keys() and "text_config" not in settings):
        raise UnusableCheckpoint(f"config.json of {source} has {_ORIGINAL}")


def refuse_quantised(source: str, settings: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse weights that config.json, a part of it, or a file beside it calls quantised.

    Args:
        source: Folder or hub id of the checkpoint.
        settings: The content of config.json.
        beside: By its name, the content of each file of `QUANTISED_FILES` that is there.

    """
    for where, found in _quantisations(settings):
        _refuse_method(source, _method(found) or "a method that is not named", f"{where} of config.json")
    for name, content in beside.items():
        _refuse_method(source, _method(content) or QUANTISED_FILES[name], name)


def refuse_names(source: str, names: Iterable[str]) -> None:
    """Refuse tensors whose names say that they cannot be read as they are."""
    for name in names:
        for pattern, kind in _SIGNS:
            if pattern.search(name):
                raise UnusableCheckpoint(f"{source} has the tensor {name!r:.120}, as {kind}")
        for pattern, method in _QUANTISED_NAMES:
            if pattern.search(name):
                _refuse_method(source, method, f"the tensor {name!r:.120}")


def refuse_kinds_of_numbers(source: str, kinds: Mapping[str, str]) -> None:
    """Refuse weights, given as tensor name -> kind of number, that are no floats of 16 bit or more."""
    for name, kind in kinds.items():
        if name.endswith(".weight") and kind not in FLOATS:
            raise UnusableCheckpoint(
                f"expected weights in 16 or 32 bit in {source}, {name} holds {kind}: a quantised number, which means "
                f"nothing without the scales that its method knows; {_FULL_PRECISION}"
            )


def refuse_without(source: str, wanted: str, names: Collection[str]) -> None:
    """Say what a checkpoint is that has no config.json, or no model.safetensors, among the `names` of its files.

    Nothing is said of any other file that is `wanted`.
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
    """Refuse the files that ranks of a training wrote each for itself; newer transformers read these first."""
    found = next((n for n in sorted(names) if re.match(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors$", n)), None)
    if found is not None:
        raise UnusableCheckpoint(
            f"{source} holds {found}, what one rank of a training saved: load it with transformers and "
            "`save_pretrained(FOLDER)` the whole model, and name that folder"
        )


def read_settings(path: Path | None) -> Mapping[str, Any]:
    """The JSON object in a file; nothing where there is none or it cannot be parsed, which stock code says better."""
    try:
        content: Any = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return _object(content)


def _quantisations(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each part of a config that speaks of quantisation, with its dotted path."""
    parts = {"": settings} | {f"{name}.": _object(part) for name, part in settings.items()}
    for path, part in parts.items():
        for key in _QUANTISED_KEYS:
            if part.get(key):
                yield f"{path}{key}", part[key]


def _method(settings: Any) -> str | None:
    """The method of quantisation that a config names, with its bits where it says them."""
    found = _object(settings)
    flags = {bits: found.get(f"load_in_{bits}bit") for bits in (4, 8)}
    bits: Any = next((n for n, is_set in flags.items() if is_set), found.get("bits") or found.get("w_bit"))
    method: Any = (
        found.get("quant_method") or found.get("quant_algo") or ("bitsandbytes" if any(flags.values()) else None)
    )
    if method is None and "quantization" in found:
        return _method(found["quantization"])
    return None if method is None else f"{method}" if bits is None else f"{method} in {bits} bit"


def _object(value: Any) -> Mapping[str, Any]:
    """A JSON object, an empty one in place of anything else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


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
    """The first name with the first of `endings` that any name has."""
    return next((name for ending in endings for name in sorted(names) if name.endswith(ending)), None)
