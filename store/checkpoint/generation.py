"""The settings in a checkpoint's generation config: each is followed as stock generation does, without effect, or refused.

Answers are greedy in both stages, with the arguments of `GREEDY`. Stock generation follows every other setting in
`generation_config.json`: stage 2 hands it the ids of the prompt beside the embeddings. Settings that cannot be followed this
way are refused by name, before an image is encoded and before a question is asked. A setting that is in none of the three
tables is refused if the installed transformers knows it, as a later version may; a setting that transformers does not know
changes nothing in stock generation, and nothing here.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from configs.experiment import ModelSection
from store.checkpoint.files import checkpoint_file, optional_checkpoint_file
from store.checkpoint.json_files import read_json
from store.checkpoint.opening import load_config, stock_reading
from store.errors import DamagedCheckpoint, GenerationRefused

FILE = "generation_config.json"
GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "use_cache": True,
    "max_length": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}
"""Arguments of `generate()` in both stages; they win over the checkpoint's own settings."""

FOLLOWED = frozenset(
    {
        "bad_words_ids",
        "begin_suppress_tokens",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "min_length",
        "min_new_tokens",
        "no_repeat_ngram_size",
        "remove_invalid_values",
        "renormalize_logits",
        "repetition_penalty",
        "sequence_bias",
        "stop_strings",
        "suppress_tokens",
        "watermarking_config",
    }
)
"""Settings with which stage 2 answers as the stock model does, to the token."""

WITHOUT_EFFECT: Mapping[str, str] = {
    **dict.fromkeys(GREEDY, "given as an argument"),
    **dict.fromkeys(("eos_token_id", "pad_token_id"), "read from the checkpoint and given as an argument"),
    "max_new_tokens": "eval.max_new_tokens is given as an argument",
    "bos_token_id": "a prompt begins as the tokenizer begins it",
    **dict.fromkeys(
        ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        "for sampling, answers are greedy",
    ),
    **dict.fromkeys(("early_stopping", "length_penalty"), "for beam search, answers are greedy"),
    **dict.fromkeys(("max_cache_len", "disable_compile"), "for static caches, the cache is dynamic"),
    "decoder_start_token_id": "for models with an encoder",
    **dict.fromkeys(
        (
            "num_assistant_tokens",
            "num_assistant_tokens_schedule",
            "assistant_confidence_threshold",
            "assistant_lookbehind",
            "target_lookbehind",
            "max_matching_ngram_size",
        ),
        "for an assistant model, there is none",
    ),
    **dict.fromkeys(("transformers_version", "_from_model_config", "_commit_hash"), "says where the file is from"),
}
"""Settings that change no token of a greedy answer, and why."""

_ASSISTED = "answers would come from another way of decoding, one question at a time"
_GONE = "transformers 5 no longer has this way of decoding"
REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "encoder_no_repeat_ngram_size": ((0,), "it reads the ids of an encoder, which a language model has none of"),
    "encoder_repetition_penalty": ((1,), "it reads the ids of an encoder, which a language model has none of"),
    "guidance_scale": ((1,), "it needs a second answer without the prompt at each step"),
    "num_return_sequences": ((1,), "a question has one answer here"),
    "token_healing": ((False,), "it changes the prompt"),
    "max_time": ((), "where it stops depends on the machine"),
    "cache_implementation": (("dynamic", "hybrid"), "the cache is dynamic here"),
    "cache_config": (({},), "the cache is dynamic here"),
    "compile_config": (({},), "nothing is compiled here"),
    "continuous_batching_config": (({},), "batches are those of eval.batch_size"),
    "prefill_chunk_size": ((), "a prompt is read at once"),
    "use_mtp": ((False,), _ASSISTED),
    "is_assistant": ((False,), _ASSISTED),
    "prompt_lookup_num_tokens": ((), _ASSISTED),
    "assistant_early_exit": ((), _ASSISTED),
    "assistant_ensemble_weight": ((), _ASSISTED),
    "speculation_type": ((), _ASSISTED),
    "low_memory": ((False,), _GONE),
    "penalty_alpha": ((0,), _GONE),
    "dola_layers": ((), _GONE),
    "diversity_penalty": ((0,), _GONE),
    "num_beam_groups": ((1,), _GONE),
    "constraints": ((), _GONE),
    "force_words_ids": ((), _GONE),
}
"""Settings that are refused: the values beside null that change nothing, and why every other value is refused."""

_NO_CHANGE: Mapping[str, Any] = {
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "repetition_penalty": 1,
}
"""Values, beside null, with which a followed setting changes nothing."""


def generation_settings(model: ModelSection) -> dict[str, Any]:
    """Read the generation settings of a checkpoint that its greedy answers follow; settings without effect are left out.

    Raises GenerationRefused (exit 2) naming every setting that cannot be followed, DamagedCheckpoint (exit 4) where the
    file cannot be read or stock generation refuses a setting.
    """
    named, path = _written(model.checkpoint, model.revision)
    undecided = _undecided() if named.keys() - FOLLOWED - WITHOUT_EFFECT.keys() - REFUSED.keys() else frozenset[str]()
    refused = [
        f"  {name}: {value!r} ({why})\n" for name, value in named.items() if (why := _refusal(name, value, undecided))
    ]
    if refused:
        raise GenerationRefused(
            f"expected generation settings in {path} that answers from cached features can follow, it has\n"
            f"{''.join(refused)}take them out of a copy of the checkpoint, and name the copy in model.checkpoint"
        )
    written = {name: named[name] for name in sorted(FOLLOWED & named.keys()) if named[name] is not None}
    followed = {name: value for name, value in written.items() if name not in _NO_CHANGE or value != _NO_CHANGE[name]}
    if followed:
        _try(model, followed)
    return followed


def _written(source: str, revision: str | None) -> tuple[dict[str, Any], Path]:
    """Read the generation settings of a checkpoint from the file that stock loading takes; return them and the file's path."""
    own = optional_checkpoint_file(source, FILE, revision)
    if own is not None:
        return _read(own), own
    path = checkpoint_file(source, "config.json", revision)
    written = _read(path)
    text_config: Any = written.get("text_config")
    parts: list[dict[str, Any]] = [text_config if isinstance(text_config, dict) else {}, written]
    known = FOLLOWED | WITHOUT_EFFECT.keys() | REFUSED.keys()
    settings = {name: value for part in parts for name, value in part.items() if name in known and value is not None}
    return settings, path


def _read(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; DamagedCheckpoint (exit 4) for anything else."""
    try:
        content: Any = read_json(path)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"expected JSON in {path}, it cannot be read ({error}): download it again, or correct it"
        ) from None
    if not isinstance(content, dict):
        raise DamagedCheckpoint(
            f"expected an object of settings in {path}, it holds a {type(content).__name__}: correct it"
        )
    return cast(dict[str, Any], content)


def _try(model: ModelSection, followed: Mapping[str, Any]) -> None:
    """Let stock generation follow the settings for one step, on a tiny language model of hidden size 2."""
    import torch
    import transformers

    library: Any = transformers  # typed in part
    random: Any = torch.random
    source = model.checkpoint
    words = load_config(source, model.revision, model.trust_remote_code).text_config.vocab_size
    size = {"hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1}
    arguments: dict[str, Any] = {"max_new_tokens": 1, "eos_token_id": 0, "pad_token_id": 0, **GREEDY}
    with random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        small = library.LlamaForCausalLM(library.LlamaConfig(vocab_size=words, **size))
        with stock_reading(source, f"generation settings ({', '.join(followed)})"):
            small.generation_config = library.GenerationConfig(**followed)
            if "stop_strings" in followed:
                arguments["tokenizer"] = library.AutoTokenizer.from_pretrained(
                    source, revision=model.revision, trust_remote_code=model.trust_remote_code
                )
            small.generate(input_ids=torch.zeros(1, 2, dtype=torch.long), **arguments)


def _undecided() -> frozenset[str]:
    """Return the settings of the installed transformers that are in none of the three tables."""
    import transformers

    library: Any = transformers  # typed in part
    known = cast("dict[str, Any]", vars(library.GenerationConfig()))
    decided = {*FOLLOWED, *WITHOUT_EFFECT, *REFUSED, "_original_object_hash"}
    return frozenset(name for name in known if name not in decided)


def _refusal(name: str, value: Any, undecided: frozenset[str]) -> str | None:
    """Say why a setting cannot be followed; None for a setting that can be, or that transformers does not know."""
    if value is None or name in FOLLOWED or name in WITHOUT_EFFECT:
        return None
    if name in undecided:
        return "unknown here, so what it would change is unknown"
    if name not in REFUSED:
        return None
    harmless, reason = REFUSED[name]
    return None if value in harmless else reason
