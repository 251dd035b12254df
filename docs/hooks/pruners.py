"""Write an entry for each pruning method where a page says `<!-- pruners -->`: the docstrings of its file and of its class."""

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

FOLDER = Path(__file__).parents[2] / "stage2_prune" / "pruners"
ENTRY = """## {name}

::: stage2_prune.pruners.{name}
    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}

::: stage2_prune.pruners.{name}.{method}
    options:
      show_root_heading: false
      show_root_toc_entry: false
      show_signature: false
      heading_level: 4
      show_symbol_type_heading: false
      filters: ["!^_", "!^({functions})$"]
"""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the comment of a page by the entries of all methods."""
    return markdown.replace("<!-- pruners -->", "\n".join(map(_entry, sorted(FOLDER.glob("[!_]*.py")))))


def _entry(file: Path) -> str:
    """Return the entry of a method: of its class the docstring and the parameters, without the functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (method,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and _is_named(node, file.stem)]
    functions = "|".join(node.name for node in method.body if isinstance(node, ast.FunctionDef))
    return ENTRY.format(name=file.stem, method=method.name, functions=functions)


def _is_named(node: ast.ClassDef, method: str) -> bool:
    """Return whether a class has the name of a method, whatever its capitals: `fastv` is the class FastV."""
    return node.name.lower() == method.replace("_", "")
