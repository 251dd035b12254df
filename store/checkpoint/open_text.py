"""Opening the text side of a checkpoint: everything that is wrong with it is found before the first image or question.

Stock code decides what a checkpoint's small files mean: `AutoTokenizer`, `GenerationConfig`, and the dict that a stock
processor is built from.
"""

from collections.abc import Mapping
from typing import Any

from configs.experiment import ModelSection
from store.checkpoint.files import names_of, optional_checkpoint_file
from store.checkpoint.generation import generation_settings
from store.checkpoint.opening import stock_reading
from store.checkpoint.text import TextSide
from store.errors import CheckpointMissing, DamagedCheckpoint, InvalidQuestions

PLACEHOLDER = "<image>"
"""The image token of a stock processor whose config and tokenizer name none."""
VOCABULARIES, SENTENCE_PIECES = ("tokenizer.json", "vocab", "tekken.json"), (".model", ".tiktoken", ".spm")
"""How the names of a tokenizer's own files begin or end; a tokenizer_config.json alone is no tokenizer."""
_TRIED = "what is in the picture"


def check_text_side(config: Any, model: ModelSection) -> TextSide:
    """Open everything but the weights that asking and answering need of a checkpoint, and try one prompt.

    All refusals that concern the text side are made here: `extract` calls this function before the first image if questions
    are configured, and each command of stage 2 calls it before the first question.

    Args:
        config: The checkpoint's transformers config.
        model: The section of the experiment that names the checkpoint.

    Raises:
        DamagedCheckpoint: (exit 4) A file cannot be read, or two files do not fit together.
        CheckpointMissing: (exit 5) A file or a setting is missing.
        GenerationRefused: (exit 2) Answers cannot follow a setting of the generation config.

    """
    source = model.checkpoint
    generation = generation_settings(model)
    tokenizer = _open_tokenizer(model)
    processor = _processor_settings(model)
    eos = _end_tokens(source, _open_generation_config(model), config, tokenizer)
    pad = tokenizer.pad_token_id
    text = TextSide(
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
    """Open the stock tokenizer.

    Raises CheckpointMissing (exit 5) where it cannot be read because the checkpoint has no file of a tokenizer.
    """
    from transformers import AutoTokenizer

    stock: Any = AutoTokenizer
    try:
        with stock_reading(model.checkpoint, "a tokenizer"):
            return stock.from_pretrained(
                model.checkpoint, revision=model.revision, trust_remote_code=model.trust_remote_code
            )
    except DamagedCheckpoint:
        names = names_of(model.checkpoint, model.revision)
        if any(name.startswith(VOCABULARIES) or name.endswith(SENTENCE_PIECES) for name in names):
            raise
        raise CheckpointMissing(
            f"expected tokenizer.json, or the files of another tokenizer, in {model.checkpoint} to ask the questions that are "
            "configured, found none: add the tokenizer that the model was trained with, or download the checkpoint again"
        ) from None


def _processor_settings(model: ModelSection) -> Mapping[str, Any]:
    """Read the settings of a stock processor with its chat template; stock code knows all files that may hold the template."""
    from transformers.processing_utils import ProcessorMixin

    with stock_reading(model.checkpoint, "a chat template and a processor_config.json"):
        stock: Any = ProcessorMixin
        return stock.get_processor_dict(model.checkpoint, revision=model.revision)[0]


def _open_generation_config(model: ModelSection) -> Any | None:
    """Open the checkpoint's stock GenerationConfig; None where the checkpoint has no generation_config.json."""
    from transformers import GenerationConfig

    if optional_checkpoint_file(model.checkpoint, "generation_config.json", model.revision) is None:
        return None
    with stock_reading(model.checkpoint, "a generation_config.json"):
        stock: Any = GenerationConfig
        return stock.from_pretrained(model.checkpoint, revision=model.revision)


def _end_tokens(source: str, generation: Any | None, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end an answer, from the first of generation config, text config and tokenizer that names any."""
    candidates = (
        None if generation is None else generation.eos_token_id,
        config.text_config.eos_token_id,
        tokenizer.eos_token_id,
    )
    eos = next((ids for ids in candidates if ids is not None), None)
    if eos is None:
        raise CheckpointMissing(
            f"expected an eos_token_id in the configs or the tokenizer of {source}, found none: add the one that ends the "
            "model's answers"
        )
    ids: list[Any] = list(eos) if hasattr(eos, "__iter__") and not isinstance(eos, str) else [eos]
    if not ids or not all(type(number) is int for number in ids):
        raise DamagedCheckpoint(
            f"expected a token id or a list of them as eos_token_id in the configs of {source}, got {eos!r:.80}: correct it"
        )
    return tuple(ids)


def _template(source: str, processor: Mapping[str, Any], tokenizer: Any) -> str:
    """Return the chat template of the stock processor, or else the tokenizer's."""
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


def _check_embedded(source: str, text: TextSide) -> None:
    """Refuse an image token or a padding token that the text embeddings have no row for."""
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


def _check_image_token(source: str, text: TextSide, processor: Mapping[str, Any]) -> None:
    """Require that the processor and the model have the same image token, and that the template writes it once per image.

    A stock processor finds its image token by its text and repeats it; the stock model puts features where the id of
    config.json stands. If these are two different tokens, the stock model refuses every picture.
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
