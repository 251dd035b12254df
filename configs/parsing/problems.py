# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (YAML may hold anything)
"""What is wrong with a config, in sentences: where, what was expected, what came, and what was likely meant."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError

from configs.parsing.nearest import did_you_mean
from configs.parsing.redact import without_credentials

Path = tuple[str | int, ...]
"""Keys and places in lists that lead to a value, such as `("prune", "methods", 0, "name")`."""
MAX_PROBLEMS = 20
"""Problems that a message lists; it counts those that are left out."""
_SHOWN = 80
"""Characters of a wrong value or key in a message."""
_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
_MISSING = {"missing", "missing_argument", "missing_keyword_only_argument"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a config."""

    path: Path
    """What it is about."""
    said: str
    """What was expected, what came, what to do."""

    def __str__(self) -> str:
        """The sentence after the dotted path."""
        return f"{dotted(self.path)}: {self.said}"


def dotted(path: Path) -> str:
    """Write a path with dots, shortened where somebody's key is very long."""
    return ".".join(_cut(str(part)) for part in path)


def problems_of(
    error: ValidationError, given: Any, known: Mapping[str, type[BaseModel] | None], below: Path = ()
) -> list[Problem]:
    """Turn what pydantic found into problems, one for each value.

    Args:
        error: What pydantic raised.
        given: What it validated; it tells the keys of the config in an error's place from pydantic's own words.
        known: The keys that `given` may have, each with the model of what stands under it.
        below: The path of `given` in the config.

    """
    said: dict[Path, list[str]] = {}
    came: dict[Path, str] = {}
    for found in error.errors(include_url=False, include_context=False):
        kind, path = found["type"], _path(found["loc"], given)
        if kind in _UNKNOWN:
            path = tuple(found["loc"])
            said[path] = ["unknown key" + _meant(path, known)]
        elif kind in _MISSING:
            said[(*path, found["loc"][-1])] = ["expected a value, there is none: add the key"]
        else:
            message = re.sub(
                "Input should be( (?=greater|less))?", _expected, found["msg"].removeprefix("Value error, ")
            )
            said.setdefault(path, []).append(message)
            meant = did_you_mean(found["input"], re.findall(r"'([^']*)'", message)) if kind == "literal_error" else ""
            came[path] = f" (got {short(found['input'])})" + (meant if meant.startswith(": did") else "")
    return [
        Problem((*below, *path), " or ".join(dict.fromkeys(messages)).replace(" or expected", " or") + came.get(path, ""))
        for path, messages in said.items()
    ]  # fmt: skip


def short(value: Any) -> str:
    """Write a value as it came, shortened."""
    return _cut(without_credentials(repr(value)))


def listed(problems: Iterable[str]) -> str:
    """List problems one to a line, the first ones and how many more there are."""
    rest = iter(problems)
    first = "".join(f"\n  {problem}" for problem in islice(rest, MAX_PROBLEMS))
    left = sum(1 for _ in rest)
    return first + (f"\n  and {left:,} more" if left else "")


def _expected(match: re.Match[str]) -> str:
    return "expected" if match[1] is None else "expected a number "


def _path(location: tuple[str | int, ...], given: Any) -> Path:
    """The keys of a config in pydantic's place of an error, which also names the member of a union that it tried."""
    path: list[str | int] = []
    for part in location:
        if isinstance(part, str) and not (isinstance(given, dict) and part in given):
            continue
        path.append(part)
        try:
            given = given[part]
        except (KeyError, IndexError, TypeError):
            given = None
    return tuple(path)


def _meant(path: Path, known: Mapping[str, type[BaseModel] | None]) -> str:
    """The nearest key beside an unknown one, or the same key in another section."""
    *parents, leaf = map(str, path)
    beside: Mapping[str, type[BaseModel] | None] = known
    for key in parents:
        model = beside.get(key)
        beside = {} if model is None else fields_of(model)
    meant = did_you_mean(leaf, beside)
    if meant.startswith(": did"):
        return meant
    elsewhere = [name for name, model in known.items() if model is not None and leaf in model.model_fields]
    return f": did you mean {elsewhere[0]}.{leaf}?" if elsewhere else meant


def fields_of(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """The keys of a model, each with the model of what stands under it, if that is one."""
    found: dict[str, type[BaseModel] | None] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        found[name] = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return found


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
