# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (YAML may hold anything)
"""The problems of a config as sentences: where a problem is, what was expected, what was given, and what was likely meant."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from configs.parsing.nearest import did_you_mean
from configs.parsing.redact import without_credentials

Path = tuple[str | int, ...]
"""Keys and list indices that lead to a value, such as `("prune", "methods", 0, "name")`."""
MAX_PROBLEMS = 20
"""Largest number of problems that a message lists; the message counts the remaining problems."""
_SHOWN = 80
"""Largest number of characters of a wrong value or key in a message."""
_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
_PLAINER = {
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
    "a valid integer": "an integer",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid tuple": "a list",
    "a valid dictionary": "a mapping",
}
"""Words of pydantic, and plainer words for them."""
_MISSING = {"missing", "missing_argument", "missing_keyword_only_argument"}


@dataclass(frozen=True)
class Problem:
    """One problem of a config."""

    path: Path
    """The value or the key that is wrong."""
    message: str
    """What was expected, what was given, what to do."""

    def __str__(self) -> str:
        """Write the message behind the dotted path."""
        return f"{dotted(self.path)}: {self.message}"


def dotted(path: Path) -> str:
    """Write a path with dots; very long keys are shortened."""
    return ".".join(_cut(str(part)) for part in path)


def problems_of(
    error: ValidationError, given: Any, known: Mapping[str, type[BaseModel] | None], below: Path = ()
) -> list[Problem]:
    """Turn the errors of pydantic into problems, one for each value.

    Args:
        error: The exception that pydantic raised.
        given: The values that pydantic validated; they tell the config's own keys in an error's location from the words that
            pydantic adds.
        known: The keys that `given` may have, each with the model of the section under it, or None.
        below: The path of `given` in the config.

    """
    messages: dict[Path, list[str]] = {}
    received: dict[Path, str] = {}
    for detail in error.errors(include_url=False, include_context=False):
        kind, path = detail["type"], _path(detail["loc"], given)
        if kind in _UNKNOWN:
            path = tuple(detail["loc"])
            messages[path] = ["unknown key" + _meant(path, known)]
        elif kind in _MISSING:
            problem = _missing((*path, detail["loc"][-1]), detail["input"], known)
            messages[problem.path] = [problem.message]
        else:
            message = _message(path, detail)
            messages.setdefault(path, []).append(message)
            meant = did_you_mean(detail["input"], re.findall(r"'([^']*)'", message)) if kind == "literal_error" else ""
            received[path] = _received(detail["input"], _has_default(path, known)) + (
                meant if meant.startswith(": did") else ""
            )
    return [
        Problem(
            (*below, *path), " or ".join(dict.fromkeys(each)).replace(" or expected", " or") + received.get(path, "")
        )
        for path, each in messages.items()
    ]


def short(value: Any) -> str:
    """Write a value as the user gave it, shortened and without credentials."""
    return _cut(without_credentials(repr(value)))


def listed(problems: Iterable[str]) -> str:
    """List the first MAX_PROBLEMS problems, one per line, and count the remaining problems."""
    rest = iter(problems)
    first = "".join(f"\n  {problem}" for problem in islice(rest, MAX_PROBLEMS))
    left = sum(1 for _ in rest)
    return first + (f"\n  and {left:,} more" if left else "")


def _missing(path: Path, given: Any, known: Mapping[str, type[BaseModel] | None]) -> Problem:
    """Blame a key beside the missing key that is nearly the same word, or else the missing key itself."""
    *parents, leaf = path
    others = _known_beside(path, known)
    unknown = [str(key) for key in given if key not in others] if isinstance(given, dict) else []
    near = get_close_matches(str(leaf), unknown, n=1)
    if near:
        return Problem((*parents, near[0]), f"unknown key: did you mean {leaf}?")
    return Problem(path, "expected a value, there is none: add the key")


def _message(path: Path, detail: Mapping[str, Any]) -> str:
    """Write pydantic's message about a value as what was expected."""
    if detail["type"] in ("bool_parsing", "bool_type"):
        return "expected true or false"
    if detail["type"] == "model_type":
        below = path[-1] if path and isinstance(path[-1], str) else "this item"
        return f"expected keys below {below}" + (", there is nothing" if detail["input"] is None else "")
    message = detail["msg"].removeprefix("Value error, ")
    for words, plainer in _PLAINER.items():
        message = message.replace(words, plainer)
    return re.sub("Input should be( (?=greater|less))?", _expected, message)


def _received(value: Any, has_default: bool) -> str:
    """Write the end of a message: the wrong value; for null, where only the key is there, also what to do."""
    if value is None:
        return " (got null)" + ": leave it out for the default" * has_default
    return f" (got {short(value)})"


def _has_default(path: Path, known: Mapping[str, type[BaseModel] | None]) -> bool:
    """Say whether the key at a path may be left out; an item of a list has no default of its own."""
    *parents, leaf = map(str, path or ("",))
    if not parents:
        section = known.get(leaf)
        return leaf in known and (section is None or not any(map(FieldInfo.is_required, section.model_fields.values())))
    model = _known_beside(path[:-1], known).get(parents[-1])
    return model is not None and leaf in model.model_fields and not model.model_fields[leaf].is_required()


def _expected(match: re.Match[str]) -> str:
    return "expected" if match[1] is None else "expected a number "


def _path(location: tuple[str | int, ...], given: Any) -> Path:
    """Return the config's keys in the location of an error; pydantic also puts the union member that it tried there."""
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
    """Suggest the nearest key beside an unknown key, or the same key in another section."""
    leaf = str(path[-1])
    meant = did_you_mean(leaf, _known_beside(path, known))
    if meant.startswith(": did"):
        return meant
    elsewhere = [name for name, model in known.items() if model is not None and leaf in model.model_fields]
    return f": did you mean {elsewhere[0]}.{leaf}?" if elsewhere else meant


def _known_beside(path: Path, known: Mapping[str, type[BaseModel] | None]) -> Mapping[str, type[BaseModel] | None]:
    """Return the keys that the section around a path may have; none where `known` does not tell."""
    for key in map(str, path[:-1]):
        model = known.get(key)
        known = {} if model is None else fields_of(model)
    return known


def fields_of(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """Return the keys of a model, each with the model of its value, or None for a plain value."""
    models: dict[str, type[BaseModel] | None] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        models[name] = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return models


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
