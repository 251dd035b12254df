"""Write the commands and the fields of the config where a page asks for them by a comment.

`<!-- commands: PROGRAM = MODULE:GROUP -->` stands for the help of a group's commands. Their own flags are listed one by one; the
flags that stand for fields of the config are named by their sections. `<!-- fields: SECTION -->` stands for a section's fields.
No command is run, and no module that a command runs is imported.
"""

import inspect
import re
from importlib import import_module

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from configs.flags import FieldOption, experiment_options

COMMANDS = re.compile(r"^<!-- commands: (?P<program>.+?) = (?P<module>[\w.]+):(?P<group>\w+) -->$", re.MULTILINE)
FIELDS = re.compile(r"^<!-- fields: (?P<section>\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace each comment of a page by what it stands for."""
    return FIELDS.sub(_of_section, COMMANDS.sub(_of_group, markdown))


def _of_group(mark: re.Match[str]) -> str:
    group = getattr(import_module(mark["module"]), mark["group"])
    return "\n".join(_of_command(mark["program"], name, command) for name, command in group.commands.items())


def _of_command(program: str, name: str, command: click.Command) -> str:
    """Return a command's heading, its help, its usage, a table of its own flags, and the sections of its other flags."""
    context = click.Context(command)
    options = [option for option in command.params if isinstance(option, click.Option)]
    own = [option.get_help_record(context) for option in options if not isinstance(option, FieldOption)]
    sections = dict.fromkeys(option.section for option in options if isinstance(option, FieldOption))
    parts = [
        f"### {name}",
        inspect.cleandoc(command.help or ""),
        f"```text\n{program} {name} {' '.join(command.collect_usage_pieces(context))}\n```",
        _table(("flag", "meaning"), [(f"`{flag}`", text) for flag, text in filter(None, own)]),
        _fields_of(list(sections)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _fields_of(sections: list[str]) -> str:
    if not sections:
        return ""
    links = [f"[{section}](config.md#{section})" for section in sections]
    several = f"{', '.join(links[:-1])} and {links[-1]}" if links[1:] else links[0]
    return f"Every field of {several} is a flag, too; `--{sections[0]}.` may be left out before a field's name."


def _of_section(mark: re.Match[str]) -> str:
    """Return a table of the fields of a section: its flags, under the names that they have in a file."""

    @click.command()
    @experiment_options(mark["section"])
    def reads_it() -> None: ...

    options = [option for option in reads_it.params if isinstance(option, FieldOption)]
    rows = [
        (f"`{(option.name or '').partition('__')[2]}`", f"`{option.metavar}`", option.help or "") for option in options
    ]
    return _table(("field", "value", "meaning"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table, or nothing where there are no rows; what would be markup outside code is written as it is."""
    lines = [head, ("---",) * len(head), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _cell(text: str) -> str:
    code_and_prose = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _literal(part) for part in code_and_prose)


def _literal(prose: str) -> str:
    return re.sub(r"([|\[*_])", r"\\\1", prose).replace("<", "&lt;")
