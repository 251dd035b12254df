"""What the sections of a config share: their base class, and the check of names that become files."""

import re
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, model_validator

from configs.parsing.field_types import as_list

MAX_NAME_BYTES = 100
"""Largest length of an experiment's name in bytes; other names are appended to it."""


class Section(BaseModel):
    """Base class of every section: immutable and strict about keys; the docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """Read `64,32` and 64 as lists where a field takes a list."""
        if not isinstance(given, dict):
            return given
        keys = cast("dict[Any, Any]", given)
        fields = cls.model_fields
        return {key: as_list(value, fields[key].annotation) if key in fields else value for key, value in keys.items()}


def path_component(name: str) -> str:
    """Return a name that becomes the name of a file or a folder.

    Raises ValueError for a name that would lead to another folder, or that is too long for a file.
    """
    if not re.fullmatch(r"[\w.-]+", name) or not name.strip("."):
        raise ValueError("expected letters, digits, _, - and ., with something beside dots: it becomes a folder's name")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"expected a name of at most {MAX_NAME_BYTES} bytes, got {len(name.encode())}")
    return name
