"""The parameters of a method: the fields of its dataclass, which pydantic validates."""

import dataclasses
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from configs.errors import ConfigError

NO_TYPE = (PydanticUserError, PydanticUndefinedAnnotation)


def adapter_of(kind: type[Any]) -> TypeAdapter[Any]:
    """Return what validates the parameters of a method; ConfigError (exit 2) for a field whose type no config can write."""
    if not dataclasses.is_dataclass(kind):
        raise ConfigError(f"expected a dataclass, {kind.__name__} is none: write @dataclass(frozen=True) above it")
    try:
        return TypeAdapter(kind)
    except NO_TYPE as error:
        raise ConfigError(
            f"expected fields whose types a config can write, such as int, {kind.__name__}{_field(kind)} has another one "
            f"({str(error).splitlines()[0]}): give it such a type, or make it no field"
        ) from error


def _field(kind: Any) -> str:
    """Name the first field whose type pydantic does not know, behind a dot; nothing where the types cannot be read."""
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError:
        return ""
    for field in dataclasses.fields(kind):
        try:
            TypeAdapter(hints[field.name])
        except NO_TYPE:
            return f".{field.name}"
    return ""
