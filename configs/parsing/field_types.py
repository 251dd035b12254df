"""What a config's field takes, read from its type: in a help text, and in the text of a flag."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from configs.parsing.strict_yaml import parse

NULLS = ("", "null", "~")
"""Texts of a flag that stand for no value, where a field may have none."""
_WORDS = {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH", Any: "VALUE"}


def alternatives(kind: Any) -> Iterator[Any]:
    """The members of a union, or the one type, without what pydantic is told beside a type."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from alternatives(get_args(kind)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(kind):
            yield from alternatives(member)
    else:
        yield kind


def as_list(given: Any, kind: Any) -> Any:
    """Split a text at its commas, and wrap a number, where `kind` takes a list and no such word.

    >>> as_list("64,32", tuple[int, ...]), as_list(64, tuple[int, ...]), as_list("a,b", str)
    (['64', '32'], [64], 'a,b')
    """
    members = list(alternatives(kind))
    words = {word for member in members if get_origin(member) is Literal for word in get_args(member)}
    if not any(_is_list(member) for member in members) or (isinstance(given, str) and given in words):
        return given
    if isinstance(given, str):
        return [part.strip() for part in given.split(",")] if given else []
    return [given] if type(given) in (int, float) else given


def flag_value(text: str, kind: Any) -> Any:
    """Read the text of a flag: lists and mappings are YAML, null is no value; all else is what was typed.

    So a path keeps what YAML would take for a comment, and a revision of digits its zeros. Raises ValueError for what is
    not YAML.
    """
    members = list(alternatives(kind))
    if text in NULLS and type(None) in members:
        return None
    begins = text.lstrip()[:1]
    if any(_is_list(member) for member in members):
        if begins == "[":
            return parse(text)[0]
        return parse(f"[{text}]")[0] if "{" in text or "[" in text else text
    if any(_is_mapping(member) for member in members):
        return parse(text)[0]
    return text


def in_words(kind: Any) -> str:
    """Write a type as the placeholder of a flag.

    >>> in_words(Literal["a", "b"] | None), in_words(tuple[int, ...]), in_words(dict[str, Any])
    ('a|b', 'INTEGER,...', '{NAME: VALUE, ...}')
    """
    return "|".join(
        dict.fromkeys(_member_in_words(member) for member in alternatives(kind) if member is not type(None))
    )


def bounds(kind: Any, told: tuple[Any, ...] = ()) -> str:
    """Write the smallest and the largest number that a type takes, such as `> 0`.

    >>> bounds(tuple[Annotated[int, Gt(0)], ...])
    '> 0'
    """
    found = [
        f"{sign} {getattr(one, key)}"
        for one in told
        for constraint, sign, key in ((Gt, ">", "gt"), (Ge, ">=", "ge"), (Lt, "<", "lt"), (Le, "<=", "le"))
        if isinstance(one, constraint)
    ]
    if get_origin(kind) is Annotated:
        inner, *beside = get_args(kind)
        return bounds(inner, (*told, *beside))
    inside = [bounds(member) for member in get_args(kind) if get_origin(kind) is not Literal]
    return ", ".join(dict.fromkeys([*found, *filter(None, inside)]))


def value_in_words(value: Any) -> str:
    """Write a default as it could be typed; nothing where there is none.

    >>> value_in_words((64, 32)), value_in_words(True), value_in_words(None)
    ('64,32', 'true', '')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(value_in_words, cast("list[object]", value)))
    if isinstance(value, BaseModel):
        return ",".join(map(value_in_words, value.model_dump(exclude_defaults=True).values()))
    return "" if value is None or value == {} else str(value)


def _member_in_words(member: Any) -> str:
    if get_origin(member) is Literal:
        return "|".join(map(str, get_args(member)))
    if _is_list(member):
        return in_words(next(iter(get_args(member)), Any)) + ",..."
    if _is_mapping(member):
        return "{NAME: VALUE, ...}"
    return _WORDS.get(member) or str(member.__name__).upper()


def _is_list(member: Any) -> bool:
    return (get_origin(member) or member) in (tuple, list)


def _is_mapping(member: Any) -> bool:
    return (get_origin(member) or member) is dict
