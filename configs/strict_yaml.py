# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (PyYAML is typed in part)
"""YAML as a config may be: plain data, of bounded size, no key given twice, and the line of every value known."""

from collections.abc import Hashable
from typing import Any

import yaml

MAX_DEPTH = 50
"""Lists and mappings inside each other."""
MAX_VALUES = 50_000
"""Values after every alias is written out."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error instead of a silent last-one-wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As the base class, refusing duplicates; `<<` takes over what it names, and may be overridden."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                name = repr(self.construct_object(key, deep=True))
                if name in seen:
                    raise _wrong(key.start_mark, f"the key {name} is given twice")
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As the base class, naming the line of a number or a date that cannot be one."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise _wrong(node.start_mark, str(error)) from None


def parse(text: str) -> tuple[Any, dict[str, int]]:
    """The one document in `text`, and the line of each value by dotted path.

    Raises ValueError, with the line where there is one, for what is not YAML, for tags that would build objects, and for
    text that is deeper or, its aliases written out, larger than a config can be.
    """
    try:
        loader = _Loader(text)
        _require_bounded(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        said = " ".join(str(error.problem or error.context).split())
        raise ValueError(where + said + ("; indent with spaces" if "\\t" in said else "")) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return value, {} if node is None else _lines(node)


def _wrong(mark: yaml.Mark, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _require_bounded(text: str) -> None:
    """Count values as they would be with every alias written out, before any of them is built."""
    values, anchors = [0], [None]
    of_anchor: dict[str, int] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in of_anchor:
                raise _wrong(event.start_mark, f"*{event.anchor} stands before the end of what it names")
            values[-1] += of_anchor[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            values.append(1)
            anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent | yaml.ScalarEvent):
            is_scalar = isinstance(event, yaml.ScalarEvent)
            size, anchor = (1, event.anchor) if is_scalar else (values.pop(), anchors.pop())
            values[-1] += size
            if anchor is not None:
                of_anchor[anchor] = size
        if len(values) > MAX_DEPTH:
            raise _wrong(event.start_mark, f"more than {MAX_DEPTH} lists and mappings inside each other")
        if values[-1] > MAX_VALUES:
            raise _wrong(event.start_mark, f"more than {MAX_VALUES:,} values, counting what aliases (*name) stand for")


def _lines(node: yaml.Node, path: str = "") -> dict[str, int]:
    found: dict[str, int] = {}
    inner: list[tuple[Any, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        inner = [(key.value, key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inner = [(place, value, value) for place, value in enumerate(node.value)]
    for name, where, value in inner:
        dotted = f"{path}.{name}" if path else str(name)
        found[dotted] = where.start_mark.line + 1
        found |= _lines(value, dotted)
    return found
