"""The code of every page is run as it stands, what is typed there is read as the commands read it, and links lead somewhere."""

import ast
import contextlib
import json
import re
import shlex
import shutil

import click
import pytest
from PIL import Image

from configs.experiment import DataSection
from configs.parsing.strict_yaml import parse
from docs.hooks.notebook import as_page
from stage1_extract import run_extraction
from stage1_extract.demo.write import write_dataset
from stage2_prune import run_evaluation
from stage2_prune.cli import group
from store import read_questions
from tests.helpers.pages import ROOT, all_blocks, blocks, pages, quoted, typed
from tests.helpers.typed import check, experiment_of
from tests.stage2_prune.sharing.conftest import hub as hub

FEW = {"train": 12, "val": 6, "test": 6}
QUICK = ("--prune.methods", "[keep_all, learned_scorer]", "--prune.budgets", "[64]")
"""What makes the page about sharing short: two of the demo's methods, at one budget."""
MAKES_ITS_OWN_STORE = "docs/python.md"
"""The page whose blocks tests/test_readme.py runs in an empty folder."""
TRIED = {"python", "bash", "console", "yaml", "json"}
SHOWN = {"text", "toml", "mermaid"}
"""Languages of blocks that hold nothing to try: outputs, drawings, and the files of other projects."""


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A folder with the demo's data and its store, as `make data extract` leaves it, with few questions."""
    folder = tmp_path_factory.mktemp("demo")
    with contextlib.chdir(folder):
        write_dataset(folder / "data" / "demo", FEW, seed=0)
        run_extraction("demo", **{f"data__{split}": count for split, count in FEW.items()})
    return folder


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Where a reader types: the configs, and beside them the files that a page tells the reader to write."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for written in (ROOT / "docs" / "examples").glob("*.*"):
        shutil.copy(written, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in pages() if blocks(page, "python") and page != MAKES_ITS_OWN_STORE])
def test_the_blocks_of_a_page_run_one_after_the_other_beside_the_store_of_the_demo(page, demo, tmp_path, monkeypatch):
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for block in blocks(page, "python"):
        if block.not_run is None:
            exec(compile(block.code, str(block), "exec"), names)


@pytest.mark.parametrize("block", all_blocks("bash", "console"), ids=str)
def test_every_command_that_a_page_shows_is_one_that_can_be_typed(block, desk):
    for words in typed(block):
        check(words)


@pytest.mark.parametrize("page", [page for page in pages() if quoted(page)])
def test_every_whole_command_in_the_text_of_a_page_is_one_that_can_be_typed(page, desk):
    for command in quoted(page):
        with contextlib.suppress(click.MissingParameter):  # a sentence may name a command without its arguments
            check(shlex.split(command))


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_every_yaml_block_is_part_of_a_config(block, desk):
    part, _ = parse(block.code)
    whole, _ = parse((ROOT / "configs" / "demo.yaml").read_text())
    laid_over = {section: {**whole.get(section, {}), **part.get(section, {})} for section in whole | part}
    (desk / "page.yaml").write_text(json.dumps(laid_over))  # JSON is YAML
    assert experiment_of(desk / "page.yaml", {})


@pytest.mark.parametrize("block", all_blocks("json"), ids=str)
def test_every_json_block_is_a_question_that_is_read(block, tmp_path):
    (tmp_path / "questions.jsonl").write_text(block.code)
    (question,) = read_questions(DataSection(images=tmp_path, questions=tmp_path / "questions.jsonl"))
    assert question.can_be_scored


@pytest.mark.parametrize("page", pages())
def test_every_block_of_a_page_is_seen_and_its_language_is_tried_or_holds_nothing_to_try(page):
    assert {block.language for block in blocks(page)} <= TRIED | SHOWN
    assert re.findall("^ *```", (ROOT / page).read_text(), re.MULTILINE) == ["```"] * 2 * len(blocks(page))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client about itself
def test_the_page_about_sharing_goes_from_a_training_to_a_hub_and_back_to_the_same_answers(desk, demo, hub):
    shown, _ = blocks("docs/sharing.md", "yaml")
    assert shown.code == (desk / "shared.yaml").read_text()
    shutil.copytree(demo, desk, dirs_exist_ok=True)
    short = {"train": ("--epochs", "1", *QUICK), "eval": QUICK}
    for block in blocks("docs/sharing.md", "bash"):
        for words in typed(block):
            _, _, _, name, *rest = words
            quick = short.get(name, ()) if "configs/demo.yaml" in rest else ()
            group.main([name, *rest, *quick], standalone_mode=False)
    ours, pulled = (
        [json.loads(line)["prediction"] for line in (desk / "runs" / path).read_text().splitlines()]
        for path in (
            "demo/eval/predictions/learned_scorer-64-original.jsonl",
            "shared/eval/predictions/pulled-64-original.jsonl",
        )
    )
    assert ours == pulled and "| test " in (desk / "pulled" / "README.md").read_text()


def test_the_config_of_the_page_about_ones_own_images_is_the_example_file_and_goes_from_images_to_a_table(desk):
    (shown,) = blocks("docs/own-images.md", "yaml")
    assert shown.code == (desk / "mine.yaml").read_text()
    (question,) = blocks("docs/own-images.md", "json")
    (desk / "questions.jsonl").write_text(question.code)
    (desk / "photos").mkdir()
    Image.effect_noise((80, 60), 90).convert("RGB").save(desk / "photos" / "a.png")
    run_extraction("mine.yaml")
    summary = run_evaluation("mine.yaml", prune__budgets=[32], prune__seeds=1)
    assert summary["n_questions"] == 1 and (desk / "runs" / "mine" / "eval" / "table.md").is_file()


@pytest.mark.parametrize("page", pages())
def test_every_link_of_a_page_leads_to_a_file(page):
    for linked in re.findall(r"\]\(([^)#\s]+)[)#]", (ROOT / page).read_text()):
        assert "://" in linked or ((ROOT / page).parent / linked).exists(), linked


@pytest.mark.parametrize("package", ["configs", "store", "stage1_extract", "stage2_prune"])
def test_the_reference_of_a_package_describes_its_public_names_and_no_others(package):
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text())
    public = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    page = (ROOT / "docs" / "reference" / f"{package}.md").read_text()
    assert set(re.findall(rf"^::: {package}\.(\w+)$", page, re.MULTILINE)) == public


def test_a_notebook_becomes_a_page_of_its_text_its_code_and_what_the_code_showed():
    shown = [
        {"text": ["3\n"]},
        {"data": {"image/png": "AAEC", "text/plain": "<Figure>"}},
        {"data": {"text/markdown": "| a |"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
        {"cell_type": "code", "source": "print(3)", "outputs": shown},
    ]
    text, pictures = as_page({"cells": cells}, "tour")
    assert text == "# Title\nText.\n\n```python\nprint(3)\n```\n\n```text\n3\n```\n\n![](tour_1.png)\n\n| a |\n"
    assert pictures == {"tour_1.png": b"\0\1\2"}
