"""The README's code is run as it stands."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from PIL import Image

from configs.experiment import Experiment
from stage1_extract.extract import extract
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions
from tests.stage2_prune.tokens import visual_tokens

ROOT = Path(__file__).parents[1]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


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
    (rule,) = blocks("docs/exactness.md")
    exec(compile(rule, "docs/exactness.md", "exec"), {})
    _, look_inside, _ = blocks("README.md")
    inside: dict = {}
    exec(compile(look_inside, "README.md", "exec"), inside)
    assert inside["image"].dtype == "float32" and inside["image"].shape == (16, 32)


def test_the_first_example_of_the_readme_prints_what_stands_below_it(tmp_path, monkeypatch, capsys):
    from configs import load_experiment
    from stage1_extract import run_extraction
    from stage1_extract.demo.write import write_dataset

    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data" / "demo", {"train": 5, "val": 5, "test": 5}, seed=0)
    run_extraction(load_experiment("demo", data__train=5, data__val=5, data__test=5))
    capsys.readouterr()
    exec(compile(blocks("README.md")[0], "README.md", "exec"), {})
    printed = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert capsys.readouterr().out == printed


def test_the_pictures_of_the_readme_show_the_numbers_of_its_table():
    drawn = module_from_spec(spec := spec_from_file_location("pipeline", ROOT / "docs" / "pictures" / "pipeline.py"))
    spec.loader.exec_module(drawn)
    rows = str(drawn.table_rows((ROOT / "README.md").read_text()))
    for name in drawn.PALETTES:
        with Image.open(ROOT / "docs" / "pictures" / name) as picture:
            assert picture.text[drawn.ROWS] == rows, "run python docs/pictures/pipeline.py"


def test_the_blocks_of_the_page_about_python_run_one_after_the_other(tmp_path, monkeypatch):
    from stage1_extract.demo.write import write_dataset

    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "data" / "demo", {"train": 12, "val": 6, "test": 6}, seed=0)
    names: dict = {"__name__": "page"}
    for number, block in enumerate(blocks("docs/python.md")):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
    assert names["summary"]["n_questions"] == 6 and names["compared"]["pairs"]


def test_the_pruner_that_the_readme_shows_is_complete_and_keeps_what_it_says():
    defined: dict = {"__name__": "top_rows"}
    exec(compile(blocks("README.md")[-1], "README.md", "exec"), defined)
    kept = defined["TopRows"](skip=4).select(visual_tokens((4, 4)), 8)
    assert torch.equal(kept, torch.arange(4, 12).expand(3, -1))


def test_the_pruners_that_the_page_about_pruners_shows_are_the_example_files():
    examples = [(ROOT / "docs" / "examples" / name).read_text() for name in ("my_pruner.py", "my_scorer.py")]
    assert blocks("docs/adding-a-pruner.md") == examples


def test_every_link_between_the_pages_leads_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "tests" / "README.md"]:
        for linked in re.findall(r"""(?:\]\(|src="|srcset=")([^)#"]+)[)#"]""", page.read_text()):
            assert "://" in linked or (page.parent / linked).exists(), f"{page.name}: {linked}"


def test_every_make_target_and_path_that_the_readme_names_exists():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", readme))
    known = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "extract", "parity"} <= targets <= known
    for linked in re.findall(r"\]\(([^)]+)\)", readme):
        assert (ROOT / linked).exists(), linked
