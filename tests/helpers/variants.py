"""Files with a variant, and configs that name them."""

import yaml

SHORT = """
from dataclasses import dataclass
from stage2_prune.pruners.first_last import FirstLast

@dataclass(frozen=True)
class Mine(FirstLast):
    size: int = 1
"""
MINIMAL = {"model": {"checkpoint": "x"}, "data": {"images": "images"}}


def write(path, text=SHORT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def config(folder, **changes):
    return write(folder / "exp.yaml", yaml.safe_dump(MINIMAL | changes))
