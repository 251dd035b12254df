"""The code of the README and of every other page is run as it stands, and what is typed there is read as the commands read it."""

import ast
import contextlib
import json
import re
import shlex
import shutil

import pytest
import torch

from configs import plugin
from configs.experiment import DataSection, Experiment
from configs.load import load
from configs.parsing.strict_yaml import parse
from stage1_extract import run_extraction
from stage1_extract.demo.write import write_dataset
from stage1_extract.extract import extract
from stage2_prune import pruners
from stage2_prune.pruning.pruner import Pruner
from store import read_questions
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions
from tests.helpers.pages import ROOT, all_blocks, blocks, pages, quoted, typed
from tests.helpers.typed import check
from tests.stage2_prune.tokens import visual_tokens

FEW = {"train": 12, "val": 6, "test": 6}
PAGE_THAT_MAKES_ITS_OWN_STORE = "docs/python.md"
TRIED = {"python", "bash", "console", "yaml", "json"}
SHOWN = {"", "text", "mermaid"}
"""Languages of blocks that hold nothing to try: outputs and drawings."""


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A folder with the demo's data and its store, as `make data extract` leaves it, with few questions."""
    folder = tmp_path_factory.mktemp("demo")
    with contextlib.chdir(folder):
        write_dataset(folder / "data" / "demo", FEW, seed=0)
        run_extraction("demo", **{f"data__{split}": count for split, count in FEW.items()})
    return folder


def python_of(page: str) -> list[str]:
    return [block.code for block in blocks(page, "python")]


def run(page: str) -> dict:
    """The names that the blocks of a page leave behind, run one after the other."""
    names: dict = {"__name__": "page"}
    for block in blocks(page, "python"):
        if block.not_run is None:
            exec(compile(block.code, str(block), "exec"), names)
    return names


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_examples_of_the_readme_run_on_a_store_at_the_place_where_the_demo_writes_it(tmp_path, monkeypatch, dtype):
    tiny_llava(tmp_path / "checkpoint")
    tiny_questions(tmp_path / "data", images=2)
    content = {
        "name": "demo",
        "run_dir": tmp_path / "runs" / "demo",
        "model": {"checkpoint": str(tmp_path / "checkpoint"), "device": "cpu", "dtype": dtype},
        "data": {"images": tmp_path / "data/images", "questions": tmp_path / "data/questions.jsonl"},
    }
    extract(Experiment.model_validate(content), overwrite=False)
    monkeypatch.chdir(tmp_path)
    example, look_inside, _ = python_of("README.md")
    exec(compile(example, "README.md", "exec"), {})
    inside: dict = {}
    exec(compile(look_inside, "README.md", "exec"), inside)
    assert inside["image"].dtype == "float32" and inside["image"].shape == (16, 32)


def test_the_blocks_of_the_page_about_python_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data" / "demo", FEW, seed=0)
    names = run(PAGE_THAT_MAKES_ITS_OWN_STORE)
    assert names["summary"]["n_questions"] == 6 and names["compared"]["pairs"]


@pytest.mark.parametrize("page", ["README.md", "docs/adding-a-pruner.md"])
def test_the_pruner_that_the_pages_show_is_complete_and_keeps_what_it_says(page):
    defined: dict = {"__name__": "top_rows"}
    exec(compile(python_of(page)[-1], page, "exec"), defined)
    kept = defined["TopRows"](skip=4).select(visual_tokens((4, 4)), 8)
    assert torch.equal(kept, torch.arange(4, 12).expand(3, -1))


@pytest.mark.parametrize(
    "page", [page for page in pages() if blocks(page, "python") and page != PAGE_THAT_MAKES_ITS_OWN_STORE]
)
def test_the_blocks_of_every_page_run_one_after_the_other_beside_the_store_of_the_demo(
    page, demo, tmp_path, monkeypatch
):
    shutil.copytree(demo, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert run(page)


@pytest.mark.parametrize("block", all_blocks("bash", "console"), ids=str)
def test_every_command_that_a_page_shows_is_one_that_can_be_typed(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in typed(block):
        check(words)


@pytest.mark.parametrize("page", [page for page in pages() if quoted(page)])
def test_every_whole_command_in_the_text_of_a_page_can_be_typed(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in quoted(page):
        check(shlex.split(command))


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_every_yaml_block_is_part_of_a_config(block, tmp_path):
    part, _ = parse(block.code)
    whole, _ = parse((ROOT / "configs" / "demo.yaml").read_text())
    laid_over = {section: {**whole.get(section, {}), **part.get(section, {})} for section in whole | part}
    (tmp_path / "page.json").write_text(json.dumps(laid_over))  # JSON is YAML
    assert load(tmp_path / "page.json", {}, plugin.find_all(pruners, Pruner))


@pytest.mark.parametrize("block", all_blocks("json"), ids=str)
def test_every_json_block_is_a_question_that_is_read(block, tmp_path):
    (tmp_path / "questions.jsonl").write_text(block.code)
    (question,) = read_questions(DataSection(images=tmp_path, questions=tmp_path / "questions.jsonl"))
    assert question.can_be_scored


def test_a_block_is_in_a_language_that_is_tried_or_holds_nothing_to_try():
    for page in pages():
        assert {block.language for block in blocks(page)} <= TRIED | SHOWN, page
        assert (ROOT / page).read_text().count("\n```") == 2 * len(blocks(page)), f"{page}: a fence is not seen"


@pytest.mark.parametrize("package", ["configs", "store", "stage1_extract", "stage2_prune"])
def test_the_reference_of_a_package_describes_its_public_names_and_no_others(package):
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text())
    public = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    page = (ROOT / "docs" / "reference" / f"{package}.md").read_text()
    assert set(re.findall(rf"^::: {package}\.(\w+)$", page, re.MULTILINE)) == public


def test_every_link_between_the_pages_leads_somewhere():
    for page in map(ROOT.joinpath, pages()):
        for linked in re.findall(r"\]\(([^)#]+)[)#]", page.read_text()):
            assert "://" in linked or (page.parent / linked).exists(), f"{page.name}: {linked}"


def test_every_make_target_and_path_that_the_readme_names_exists():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", readme))
    known = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "extract", "parity"} <= targets <= known
    for linked in re.findall(r"\]\(([^)]+)\)", readme):
        assert (ROOT / linked).exists(), linked
