"""Write the help of the commands where a page says `<!-- commands: PROGRAM = MODULE:GROUP -->`.

A command's own flags are listed one by one. The flags that stand for fields of the config are named by their sections, whose
fields are on the page about the config. No command is run, and no module that a command runs is imported.
"""

import re
from importlib import import_module

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from configs.flags import FieldOption

MARK = re.compile(r"^<!-- commands: (?P<program>.+?) = (?P<module>[\w.]+):(?P<group>\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace each mark of a page by the help of the group's commands."""
    return MARK.sub(_of_group, markdown)


def _of_group(mark: re.Match[str]) -> str:
    group = getattr(import_module(mark["module"]), mark["group"])
    return "\n".join(_of_command(mark["program"], name, command) for name, command in group.commands.items())


def _of_command(program: str, name: str, command: click.Command) -> str:
    """Return a command's heading, its sentence, its usage, a table of its own flags, and the sections of its other flags."""
    context = click.Context(command, info_name=f"{program} {name}")
    own = [option for option in command.get_params(context) if not isinstance(option, FieldOption)]
    sections = dict.fromkeys(option.section for option in command.params if isinstance(option, FieldOption))
    records = [record for option in own if (record := option.get_help_record(context))]
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [
        f"### {name}",
        command.help or "",
        f"```text\n{program} {name} {usage}\n```",
        "| flag | |\n|---|---|\n" + "\n".join(_row(flag, text) for flag, text in records),
        _fields_of(list(sections)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _fields_of(sections: list[str]) -> str:
    if not sections:
        return ""
    links = ", ".join(f"[{section}](config.md#{section})" for section in sections)
    return (
        f"Every field of these sections is a flag too: {links}. `--{sections[0]}.` may be left out before its fields."
    )


def _row(flag: str, text: str) -> str:
    """Return a row of a Markdown table; what Markdown would read in the help as its own stands there as it is."""
    code = flag.replace("|", r"\|")
    prose = re.sub(r"([|\[*_])", r"\\\1", text).replace("<", "&lt;")
    return f"| `{code}` | {prose} |"
