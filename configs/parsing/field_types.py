"""Field types of the config: how a help text shows them, and how the text of a flag is read by them."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from configs.parsing.strict_yaml import parse

NULLS = ("", "null", "~")
"""Texts of a flag that mean null, for a field that may be null."""
_WORDS = {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH", Any: "VALUE"}


def alternatives(kind: Any) -> Iterator[Any]:
    """Yield the members of a union, or the type itself, without the annotations that pydantic reads."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from alternatives(get_args(kind)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(kind):
            yield from alternatives(member)
    else:
        yield kind


def as_list(given: Any, kind: Any) -> Any:
    """Split a text at its commas, and put a number in a list, if `kind` takes a list.

    A text that `kind` takes as a word, such as `all`, stays a text; so does everything where `kind` takes no list.

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
    """Read the text of a flag: lists and mappings are YAML, null means no value, and any other text stays as it was typed.

    So a path keeps a part that YAML would read as a comment, and a revision of digits keeps its zeros. A field that takes
    texts, but not null, gets the text `null`. Raises ValueError for a list or a mapping that is not valid YAML.
    """
    members = list(alternatives(kind))
    if text in NULLS and (type(None) in members or (text and not {str, Path, Any} & {*members})):
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


def bounds(kind: Any, annotations: tuple[Any, ...] = ()) -> str:
    """Write the smallest and the largest number that a type takes, such as `> 0`; `annotations` stand outside the type.

    >>> bounds(tuple[Annotated[int, Gt(0)], ...])
    '> 0'
    """
    limits = [
        f"{sign} {getattr(annotation, key)}"
        for annotation in annotations
        for constraint, sign, key in ((Gt, ">", "gt"), (Ge, ">=", "ge"), (Lt, "<", "lt"), (Le, "<=", "le"))
        if isinstance(annotation, constraint)
    ]
    if get_origin(kind) is Annotated:
        inner, *beside = get_args(kind)
        return bounds(inner, (*annotations, *beside))
    inside = [bounds(member) for member in get_args(kind) if get_origin(kind) is not Literal]
    return ", ".join(dict.fromkeys([*limits, *filter(None, inside)]))


def value_in_words(value: Any) -> str:
    """Write a default as a user would type it; an empty text where the field has no default.

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
