"""Turn a Jupyter notebook into a page: its text, its code, and the outputs that it was saved with."""

import base64
from typing import Any


def as_page(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Return the Markdown of a notebook, and its pictures by file names that begin with `name`."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = _text(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else _fenced("python", source))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{name}_{len(pictures) + 1}.png"
                pictures[picture] = base64.b64decode(data["image/png"])
                parts.append(f"![]({picture})")
            elif "text/markdown" in data:
                parts.append(_text(data["text/markdown"]))
            else:
                parts.append(_fenced("text", _text(output.get("text", data.get("text/plain", "")))))
    return "\n\n".join(parts) + "\n", pictures


def _text(lines: str | list[str]) -> str:
    return "".join(lines)


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"
