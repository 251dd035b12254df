"""The text side of a checkpoint is tried before the first image and before the first question, and means what stock means."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoProcessor

from configs.experiment import ModelSection
from configs.load import load
from stage1_extract.extract import extract
from store.checkpoint.open_text import check_text_side
from store.checkpoint.opening import load_config
from store.errors import DamagedCheckpoint
from tests.faults.runs import config_file, invoke
from tests.helpers.checkpoints import CHAT_TEMPLATE, WORDS, edit_config, tiny_llava
from tests.helpers.data import tiny_questions
from tests.helpers.kinds import Change, all_of, edited, edited_in, part, without, wrote

KEEP_ALL = ("--prune.methods", "[{name: keep_all}]")
TEMPLATE = "chat_template.jinja"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A good checkpoint, questions, the store that was made of them, and its config."""
    folder = tmp_path_factory.mktemp("texts")
    tiny_llava(folder / "checkpoint")
    tiny_questions(folder / "data", images=6)
    extract(load(config_file(folder, folder / "checkpoint"), {}), overwrite=False)
    return folder


@pytest.fixture
def checkpoint(home, tmp_path):
    """A copy of the checkpoint to change."""
    return Path(shutil.copytree(home / "checkpoint", tmp_path / "checkpoint"))


def refused(home: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], code: int) -> str:
    """What `extract` says of a checkpoint before its first image, and `eval` and `train` before their first question."""
    run = checkpoint.parent / "run"
    config = ("--config", home / "trial.yaml", "--model.checkpoint", checkpoint, "--run-dir", run)
    said = invoke(capsys, "extract", *config, expect=code)
    assert not run.exists()
    for command, flags in (("eval", KEEP_ALL), ("train", ())):
        found = invoke(capsys, command, *config, "--store.path", home / "run" / "store", *flags, expect=code)
        assert not list(run.rglob("*.jsonl"))
        for sentence in (said, found):
            assert sentence.count("\n") == 1 and len(sentence) < 900 and "expected" in sentence
    return said


def cut(name: str) -> Change:
    """Leave a third of a file."""
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 3]
    )


def latin(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes('{"é": "ü"}'.encode("latin-1"))


JSON = (
    "generation_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "chat_template.json",
)
HOW: dict[str, str] = {"empty": "", "a list": "[]", "a number": "7", "null": "null", "deep": "[" * 100_000}
BROKEN = {
    **{f"{name}: {how}": wrote(name, text) for name in JSON for how, text in HOW.items()},
    **{f"{name}: cut": cut(name) for name in JSON if name != "chat_template.json"},
    **{f"{name}: not utf-8": latin(name) for name in (*JSON, TEMPLATE)},
    "chat_template.json: cut": wrote("chat_template.json", '{"chat_temp'),
    "chat_template.json: no template": wrote("chat_template.json", {"template": CHAT_TEMPLATE}),
    "chat_template.json: a number for a template": wrote("chat_template.json", {"chat_template": 7}),
    "processor_config.json: a number for a template": edited_in("processor_config.json", chat_template=7),
    "processor_config.json: a number for the image token": edited_in("processor_config.json", image_token=7),
    "generation_config.json: a word for the end": wrote("generation_config.json", {"eos_token_id": "</s>"}),
    "generation_config.json: a list of words for the end": wrote("generation_config.json", {"eos_token_id": [2, "x"]}),
    "generation_config.json: an empty list for the end": wrote("generation_config.json", {"eos_token_id": []}),
    "a template cut inside a tag": cut(TEMPLATE),
    "a template with a syntax error": wrote(TEMPLATE, "{% for m in messages %}<image>{{ m['content'] }}"),
    "a template that raises": wrote(TEMPLATE, "{{ raise_exception('only text is allowed') }}"),
    "a template that divides by zero": wrote(TEMPLATE, "<image>{{ 1 / 0 }}"),
    "a template that reads what is not there": wrote(TEMPLATE, "<image>{{ messages[3]['content'].x }}"),
    "a template that adds text to a list": wrote(TEMPLATE, "<image>{{ messages[0]['content'] + 'x' }}"),
    "a template that leaves its sandbox": wrote(TEMPLATE, "<image>{{ messages.__class__.__mro__ }}"),
    "a template without an image": wrote(TEMPLATE, "USER: {{ messages[0]['content'][1]['text'] }}"),
    "a template with two images": wrote(TEMPLATE, "<image> <image>"),
    "a template of text alone": wrote(TEMPLATE, "{{ messages[0]['content'][0]['type'] }}"),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_small_file_is_said_in_a_sentence_before_the_first_image_and_the_first_question(
    home, checkpoint, capsys, change
):
    change(checkpoint)
    refused(home, checkpoint, capsys, code=4)


@pytest.mark.parametrize("lacking", [("tokenizer.json",), ("tokenizer.json", "tokenizer_config.json")])
def test_a_tokenizer_that_is_not_there_is_something_to_fetch(home, checkpoint, capsys, lacking):
    without(*lacking)(checkpoint)
    said = refused(home, checkpoint, capsys, code=5)
    assert said.startswith(f"error: expected tokenizer.json, or the files of another tokenizer, in {checkpoint}")


def test_an_empty_template_counts_as_none(home, checkpoint, capsys):
    (checkpoint / TEMPLATE).write_text("")
    assert "expected a chat template" in refused(home, checkpoint, capsys, code=5)


def test_without_questions_the_text_side_is_not_asked_for(home, checkpoint, tmp_path, capsys):
    (checkpoint / TEMPLATE).write_text("{% for")
    config = ("--config", home / "trial.yaml", "--model.checkpoint", checkpoint, "--run-dir", tmp_path / "run")
    invoke(capsys, "extract", *config, "--data.questions", "null")


def test_a_dry_run_says_the_same_before_any_price(home, checkpoint, tmp_path, capsys):
    (checkpoint / TEMPLATE).write_text("{% for")
    config = ("--config", home / "trial.yaml", "--model.checkpoint", checkpoint, "--run-dir", tmp_path / "run")
    assert "chat template" in invoke(capsys, "extract", *config, "--dry-run", expect=4)


def image_token(number: object) -> Change:
    return edited(image_token_index=number)


IMAGE_TOKENS = {
    "another word's id": (image_token(WORDS.index("is")), "the id of 'is'"),
    "the id of padding": (image_token(0), "the id of '<pad>'"),
    "the other spelling": (edited_in("config.json", image_token_index=None, image_token_id=10), "image_token"),
    "beyond the embeddings": (image_token(len(WORDS)), f"from 0 to {len(WORDS) - 1}"),
    "far beyond them": (image_token(32000), "got 32000"),
    "the original repository's": (image_token(-200), "got -200"),
    "a word for a number": (image_token("<image>"), "config.json"),
    "nothing": (image_token(None), "config.json"),
    "a processor that puts another word": (
        edited_in("processor_config.json", image_token="red"),
        "the id of 'red', 12, got 4",
    ),
    "a tokenizer that names another word": (
        edited_in("tokenizer_config.json", extra_special_tokens={"image_token": "red"}),
        "the id of 'red', 12, got 4",
    ),
    "a tokenizer that does not know it": (
        edited_in("processor_config.json", image_token="<picture>"),
        "the id of '<picture>'",
    ),
    "a template with another placeholder": (
        wrote(TEMPLATE, CHAT_TEMPLATE.replace("<image>", "<picture>")),
        "puts '<image>' once for an image",
    ),
    "embeddings too few for it": (part("text_config", vocab_size=4), "from 0 to 3"),
    "padding beyond the embeddings": (
        all_of(
            edited_in("tokenizer_config.json", pad_token="<new>"),
            edited(pad_token_id=None),
        ),
        "expected pad_token_id of the tokenizer",
    ),
}


@pytest.mark.parametrize(("change", "said"), IMAGE_TOKENS.values(), ids=IMAGE_TOKENS.keys())
def test_an_image_token_that_stock_would_not_fill_is_refused_before_the_first_image(
    home, checkpoint, capsys, change, said
):
    change(checkpoint)
    assert said in refused(home, checkpoint, capsys, code=4)


@pytest.mark.parametrize("spelling", ["image_token_index", "image_token_id"])
def test_both_spellings_of_the_image_token_are_read(home, checkpoint, tmp_path, capsys, spelling):
    path = checkpoint / "config.json"
    content = json.loads(path.read_text())
    number = content.pop("image_token_index")
    path.write_text(json.dumps(content | {spelling: number}))
    config = ("--config", home / "trial.yaml", "--model.checkpoint", checkpoint, "--run-dir", tmp_path / "run")
    invoke(capsys, "extract", *config)
    invoke(capsys, "eval", *config, *KEEP_ALL)


def test_an_image_token_of_another_name_is_read_as_stock_reads_it(checkpoint):
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", TEMPLATE):
        path = checkpoint / name
        path.write_text(path.read_text().replace("<image>", "<picture>"))
    text = opened(checkpoint)
    assert text.tokenizer.convert_ids_to_tokens(text.image_token_id) == "<picture>"
    assert text.text("what is it ?") == stock_prompt(checkpoint, "what is it ?")


def opened(checkpoint: Path):
    return check_text_side(load_config(str(checkpoint)), ModelSection(checkpoint=str(checkpoint)))


def stock_prompt(checkpoint: Path, question: str) -> str:
    processor = AutoProcessor.from_pretrained(checkpoint, backend="pil")
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def other(word: str) -> str:
    return CHAT_TEMPLATE.replace("ASSISTANT:", word)


TEMPLATES = {
    "one file": wrote(TEMPLATE, other("one")),
    "a legacy file beside it": wrote("chat_template.json", {"chat_template": other("two")}),
    "the processor's config beside both": all_of(
        wrote("chat_template.json", {"chat_template": other("two")}),
        edited_in("processor_config.json", chat_template=other("three")),
    ),
    "the tokenizer's beside it": edited_in("tokenizer_config.json", chat_template=other("left")),
    "several by name": lambda folder: (
        (folder / "additional_chat_templates").mkdir(),
        (folder / "additional_chat_templates" / "tools.jinja").write_text("<image>"),
    ),
}


# Stock code leaves files of named templates to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("change", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_of_several_chat_templates_the_one_is_taken_that_stock_takes(checkpoint, change):
    change(checkpoint)
    assert opened(checkpoint).text("what is it ?") == stock_prompt(checkpoint, "what is it ?")


def test_a_word_without_an_embedding_is_named_with_its_question(checkpoint):
    edit_config(checkpoint, image_token_index=WORDS.index("<image>"))
    part("text_config", vocab_size=WORDS.index("left"))(checkpoint)
    text = opened(checkpoint)
    text.prompt("is it red ?")
    with pytest.raises(DamagedCheckpoint, match=r"below 20, .* gives 20 \('left'\)"):
        text.prompt("is it left ?")
