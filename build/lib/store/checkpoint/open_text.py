"""Opening the text side of a checkpoint, so that whatever is wrong with it is said before the first image or question.

What a checkpoint's small files mean is decided by stock code: `AutoTokenizer`, `GenerationConfig`, and the dict that a
stock processor is built from.
"""

from collections.abc import Mapping
from typing import Any

from configs.experiment import ModelSection
from store.checkpoint.files import optional_checkpoint_file
from store.checkpoint.generation import generation_settings
from store.checkpoint.opening import stock_reading
from store.checkpoint.text import Text
from store.errors import CheckpointMissing, DamagedCheckpoint, InvalidQuestions

PLACEHOLDER = "<image>"
"""What stock processors put for an image where neither their config nor the tokenizer names a token."""
_TRIED = "what is in the picture"


def check_text_side(config: Any, model: ModelSection) -> Text:
    """Open all that asking and answering will need of a checkpoint beside its weights, and try one prompt.

    The place for every refusal that concerns the text side: `extract` calls it before the first image where questions are
    configured, and each command of stage 2 before the first question.

    Raises DamagedCheckpoint (exit 4) for what cannot be read or does not fit together, CheckpointMissing (exit 5) for what
    is not there, GenerationRefused (exit 2) for a generation config that answers here cannot follow.
    """
    source = model.checkpoint
    generation = generation_settings(model)
    with stock_reading(source, "a tokenizer"):
        tokenizer = _open_tokenizer(model)
    processor = _processor_settings(model)
    eos = _end_tokens(source, _open_generation_config(model), config, tokenizer)
    pad = tokenizer.pad_token_id
    text = Text(
        tokenizer=tokenizer,
        template=_template(source, processor, tokenizer),
        image_token_id=config.image_token_id,
        eos_token_ids=eos,
        pad_token_id=eos[0] if pad is None else pad,
        vocabulary=config.text_config.vocab_size,
        generation=generation,
    )
    _check_embedded(source, text)
    _check_image_token(source, text, processor)
    return text


def _open_tokenizer(model: ModelSection) -> Any:
    from transformers import AutoTokenizer

    stock: Any = AutoTokenizer
    return stock.from_pretrained(model.checkpoint, revision=model.revision, trust_remote_code=model.trust_remote_code)


def _processor_settings(model: ModelSection) -> Mapping[str, Any]:
    """What a stock processor would be built from, the chat template among it: stock code knows all its places."""
    from transformers.processing_utils import ProcessorMixin

    with stock_reading(model.checkpoint, "a chat template and a processor_config.json"):
        stock: Any = ProcessorMixin
        return stock.get_processor_dict(model.checkpoint, revision=model.revision)[0]


def _open_generation_config(model: ModelSection) -> Any | None:
    """The checkpoint's stock GenerationConfig, None where it has no file of that name."""
    from transformers import GenerationConfig

    if optional_checkpoint_file(model.checkpoint, "generation_config.json", model.revision) is None:
        return None
    with stock_reading(model.checkpoint, "a generation_config.json"):
        stock: Any = GenerationConfig
        return stock.from_pretrained(model.checkpoint, revision=model.revision)


def _end_tokens(source: str, generation: Any | None, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Where generation ends: the first that says so of generation config, text config and tokenizer."""
    said = (
        None if generation is None else generation.eos_token_id,
        config.text_config.eos_token_id,
        tokenizer.eos_token_id,
    )
    eos = next((one for one in said if one is not None), None)
    if eos is None:
        raise CheckpointMissing(
            f"expected an eos_token_id in the configs or the tokenizer of {source}, found none: add the one that ends the "
            "model's answers"
        )
    ids: list[Any] = list(eos) if hasattr(eos, "__iter__") and not isinstance(eos, str) else [eos]
    if not ids or not all(type(one) is int for one in ids):
        raise DamagedCheckpoint(
            f"expected a token id or a list of them as eos_token_id in the configs of {source}, got {eos!r:.80}: correct it"
        )
    return tuple(ids)


def _template(source: str, processor: Mapping[str, Any], tokenizer: Any) -> str:
    """The chat template that a stock processor would take, or else the tokenizer's."""
    template: Any = processor.get("chat_template") or tokenizer.chat_template
    if hasattr(template, "keys") and "default" in template:  # several templates, by name
        template = template["default"]
    if not template:
        raise CheckpointMissing(
            f"expected a chat template in {source} (chat_template.jinja or chat_template.json), found none: add the one "
            "that the model was trained with"
        )
    if not isinstance(template, str):
        raise DamagedCheckpoint(f"expected text as the chat template of {source}, got {template!r:.80}: correct it")
    return template


def _check_embedded(source: str, text: Text) -> None:
    """Refuse ids that batches are made with and that the embeddings have no row for."""
    for what, name, number in (
        ("image_token_index", "config.json", text.image_token_id),
        ("pad_token_id", "the tokenizer", text.pad_token_id),
    ):
        if text.vocabulary is not None and not 0 <= number < text.vocabulary:
            raise DamagedCheckpoint(
                f"expected {what} of {name} in {source} from 0 to {text.vocabulary - 1}, as the text embeddings have "
                f"{text.vocabulary} rows (text_config.vocab_size), got {number}: correct it, or take the weights that it "
                "belongs to"
            )


def _check_image_token(source: str, text: Text, processor: Mapping[str, Any]) -> None:
    """Demand that the processor's image token is the model's, and that the template puts it once for an image.

    A stock processor repeats its image token, found by its text, and the stock model puts features where the id of
    config.json stands: where these two are not one token, stock refuses every picture.
    """
    token: Any = getattr(text.tokenizer, "image_token", None) or processor.get("image_token", PLACEHOLDER)
    if not isinstance(token, str):
        raise DamagedCheckpoint(f"expected text as image_token in processor_config.json of {source}, got {token!r:.80}")
    number = text.tokenizer.convert_tokens_to_ids(token)
    if number != text.image_token_id:
        other = text.tokenizer.convert_ids_to_tokens(text.image_token_id)
        raise DamagedCheckpoint(
            f"expected image_token_index in config.json of {source} to be the id of {token!r}, {number}, got "
            f"{text.image_token_id}, the id of {other!r}: are config and tokenizer of one checkpoint?"
        )
    filled = text.text(_TRIED)
    if filled.count(token) != 1:
        raise DamagedCheckpoint(
            f"expected a chat template in {source} that puts {token!r} once for an image, it makes {filled!r:.200}: "
            "take the template that the model was trained with"
        )
    try:
        text.prompt(_TRIED)
    except InvalidQuestions as error:
        raise DamagedCheckpoint(f"the tokenizer of {source} does not keep {token!r} whole: {error}") from None
