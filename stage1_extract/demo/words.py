"""The vocabulary of the demo, with one token per word, and the tokenizer that is made of a vocabulary."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stage1_extract.demo.questions import COUNTS, plural
from stage1_extract.demo.scenes import COLORS, SHAPES

PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
USER, ASSISTANT = "USER:", "ASSISTANT:"
SPECIAL = {word: number for number, word in enumerate((PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT))}
"""The words that every vocabulary begins with, and their token ids."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The chat template of llava-1.5-7b-hf: `USER: <image>\\n{question} ASSISTANT:`."""
_SENTENCES = "what color is the shape object on left or right how many are there a yes no ?"


def vocabulary() -> dict[str, int]:
    """Return the token id of each word."""
    return numbered([*_SENTENCES.split(), *COUNTS, *COLORS, *SHAPES, *map(plural, SHAPES)])


def numbered(words: list[str]) -> dict[str, int]:
    """Return the vocabulary of the special words and of `words`, which may hold a word twice."""
    return {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}


def tokenizer(words: dict[str, int]) -> PreTrainedTokenizerFast:
    """Make a tokenizer that splits at spaces and before `?`, and begins every text with the BOS token, as Llama's does."""
    core = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    split_question_mark = pre_tokenizers.Split("?", behavior="isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split_question_mark])
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, words[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE], padding_side="left",
    )  # fmt: skip
