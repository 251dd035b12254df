"""A method is one small file that knows no model: read as text, not run."""

import ast
import re
from pathlib import Path

import pytest

from stage2_prune import pruners

FOLDER = Path(next(iter(pruners.__path__)))
FILES = sorted(FOLDER.glob("*.py"))
METHODS = [path for path in FILES if not path.name.startswith("_")]
LINES = 85
OF_LLAVA = {24, 35, 576, 577, 1024, 4096}
"""Side of the grid, tokens before the image, patches, patches and CLS, widths: none may be written into a method."""
SCALES = {"pyramid_drop.py": {24}, "layer_pruner.py": {24}, "twig_vlm.py": {24}}
"""Layers on the published scale of 32, which are rescaled."""
MODEL_CLASS = re.compile(r"Llava|Llama|Vicuna|Qwen|Mistral|CLIP[A-Z]|\w+For(CausalLM|ConditionalGeneration)|AutoModel")
IDS = {"ids": lambda path: path.stem}


def docstrings(tree: ast.Module) -> set[ast.Constant]:
    """Strings that stand alone: what they say is for readers."""
    alone = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {value for value in alone if isinstance(value, ast.Constant)}


def words(tree: ast.Module) -> set[str]:
    """Names, attributes, imports and strings of the code."""
    said = docstrings(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(name) | ast.Attribute(attr=name) | ast.alias(name) | ast.ImportFrom(module=str(name)):
                found.add(name)
            case ast.Constant(str(text)) if node not in said:
                found.add(text)
            case _:
                pass
    return found


@pytest.mark.parametrize("path", FILES, **IDS)
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= LINES


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "_fit_prune_tables.py"], **IDS)
def test_no_geometry_is_written_into_a_method(path):
    numbers = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    assert not {number for number in numbers if type(number) is int} & OF_LLAVA - SCALES.get(path.name, set())


@pytest.mark.parametrize("path", FILES, **IDS)
def test_no_method_knows_a_models_class(path):
    found = words(ast.parse(path.read_text()))
    assert not {word for word in found if MODEL_CLASS.search(word)}
    assert not {word for word in found if word.split(".")[0] == "transformers"}


@pytest.mark.parametrize("path", METHODS, **IDS)
def test_every_method_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    said = ast.get_docstring(tree)
    assert said and said.splitlines()[0].endswith(".")
    if "arXiv" in said or "official" in said.lower():
        assert "Published" in said or "published" in said, "a published method names its published defaults"


def test_the_checks_find_what_they_look_for():
    tree = ast.parse(
        '"""LlavaForConditionalGeneration, 576."""\nimport transformers.models\nx = model.CLIPVisionModel\n'
    )
    assert words(tree) == {"transformers.models", "x", "model", "CLIPVisionModel"}
    assert not any(MODEL_CLASS.search(word) for word in ("ClipText", "clip_text", "CLIP", "Llm"))
