# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (PyYAML is typed in part)
"""Strict YAML for configs: plain data of bounded size, no key given twice, and the line of every value known.

`parse` reads both files and flags, so that both refuse the same text in the same words.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

MAX_DEPTH = 50
"""Largest depth of lists and mappings inside each other."""
MAX_VALUES = 50_000
"""Largest number of values after every alias is written out."""
MAX_CHARACTERS = 1_000_000
"""Largest number of characters of all keys and values after every alias is written out."""
MAX_NUMBER = 1_000
"""Largest number of characters of a number, a date or another value that is not text."""
_TEXT = "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice, where PyYAML silently keeps the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping as the base class does, but refuse duplicate keys; keys that `<<` merges in may be overridden."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                name = repr(self.construct_object(key, deep=True))
                if name in seen:
                    raise _wrong(key.start_mark, f"the key {name} is given twice")
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value as the base class does; name the line of a value that does not fit its form or its tag."""
        kind = node.tag.replace("tag:yaml.org,2002:", "!!")
        if isinstance(node, yaml.ScalarNode) and node.tag != _TEXT and len(node.value) > MAX_NUMBER:
            raise _wrong(node.start_mark, f"{kind} of more than {MAX_NUMBER:,} characters")
        if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
            raise _wrong(node.start_mark, "a null character, which no name or path may have")
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # PyYAML's constructors raise what int(), float(), datetime() … happen to raise
            value = repr(node.value)[:80] if isinstance(node, yaml.ScalarNode) else "this"
            raise _wrong(node.start_mark, f"{value} is not a {kind} ({error})") from None


@dataclass(frozen=True)
class Places:
    """The positions of a text's values, to name their lines in messages."""

    root: yaml.Node | None = None

    def line(self, path: Sequence[str | int]) -> int | None:
        """Return the line of the value at `path`, or of the nearest value around it; None for the whole text."""
        node, line = self.root, None
        for part in path:
            inner = _inner(node)
            if str(part) not in inner:
                break
            marked, node = inner[str(part)]
            line = marked.start_mark.line + 1
        return line


def parse(text: str) -> tuple[Any, Places]:
    """Read the only document in `text`.

    Returns:
        The document, and the positions of its values.

    Raises:
        ValueError: The text is not YAML, has tags that would build objects, or is deeper or (with its aliases written out)
            larger than a config can be; the message names the line where the line is known.

    """
    try:
        loader = _Loader(text)
        _require_bounded(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        problem = " ".join(str(error.problem or error.context).split())
        raise ValueError(position + problem + _advice(problem)) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return value, Places(node)


def _advice(problem: str) -> str:
    """Say what to do about a problem that wrong indentation causes, as the clause that ends a message."""
    if "\\t" in problem:
        return "; indent with spaces"
    if "mapping values are not allowed" in problem:
        return "; indent all keys of one section by as many spaces, and put a text that holds `: ` in quotes"
    if any(part in problem for part in ("<block end>", "<document start>", "expected ':'")):
        return "; indent all keys of one section by as many spaces, and put `: ` behind each key"
    return ""


def _wrong(mark: yaml.Mark, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


@dataclass
class _Size:
    """The number of values and characters of a part of a text, with its aliases written out."""

    values: int = 0
    characters: int = 0

    def add(self, other: "_Size") -> None:
        self.values += other.values
        self.characters += other.characters


def _require_bounded(text: str) -> None:
    """Refuse a text that is too large with every alias written out, before any value is built."""
    sizes, anchors = [_Size()], [None]
    of_anchor: dict[str, _Size] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in of_anchor:
                raise _wrong(event.start_mark, f"*{event.anchor} stands before the end of what it names")
            sizes[-1].add(of_anchor[event.anchor])
        elif isinstance(event, yaml.CollectionStartEvent):
            sizes.append(_Size(1))
            anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent | yaml.ScalarEvent):
            is_scalar = isinstance(event, yaml.ScalarEvent)
            size = _Size(1, len(event.value)) if is_scalar else sizes.pop()
            anchor = event.anchor if is_scalar else anchors.pop()
            sizes[-1].add(size)
            if anchor is not None:
                of_anchor[anchor] = size
        if len(sizes) > MAX_DEPTH:
            raise _wrong(event.start_mark, f"more than {MAX_DEPTH} lists and mappings inside each other")
        for count, limit, unit in (
            (sizes[-1].values, MAX_VALUES, "values"),
            (sizes[-1].characters, MAX_CHARACTERS, "characters"),
        ):
            if count > limit:
                message = f"more than {limit:,} {unit}, counting what aliases (*name) stand for"
                raise _wrong(event.start_mark, message)


def _inner(node: yaml.Node | None) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Return the values directly inside a node, by key or by index: the node whose line is named, and the value's node."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): (key, value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return {str(index): (value, value) for index, value in enumerate(node.value)}
    return {}
