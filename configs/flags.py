"""A flag for each field of the config; the field's model gives the type, the choices, the bounds and the default."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from configs.errors import ConfigError
from configs.experiment import Experiment
from configs.find_config import DEFAULT, read_experiment
from configs.parsing.field_types import bounds, flag_value, in_words, value_in_words
from configs.sections.section import Section

Command = TypeVar("Command", bound=Callable[..., Any])
SHORT = {"model.clip", "prune.match"}
"""Fields whose flag also works without the section, on every command that takes their section."""


class FieldOption(click.Option):
    """The flag of a config's field."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        """Make a click option that also knows the section of its field."""
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help groups the flags of the config's fields by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own flags, then the flags of each section under its name and its docstring."""
        sections: dict[str, list[tuple[str, str]]] = {"": []}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                sections.setdefault(option.section if isinstance(option, FieldOption) else "", []).append(record)
        for section, records in sections.items():
            with formatter.section(
                f"{section}: {(_model(section).__doc__ or '').strip().rstrip('.')}" if section else "Options"
            ):
                formatter.write_dl(records)
        if len(sections) > 1:
            formatter.write_paragraph()
            formatter.write_text(
                "A flag wins over the config; a default applies where the config has no value. Type a list as a,b or as YAML, "
                "a mapping as YAML; null takes a value away.",
            )


class Commands(click.Group):
    """A group of commands whose help groups the flags by section."""

    command_class = SectionedCommand

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make a click group whose help uses the width of the terminal, up to 110 columns."""
        super().__init__(*args, **kwargs)
        self.context_settings.setdefault("max_content_width", 110)


def experiment_options(own: str, *others: str) -> Callable[[Command], Command]:
    """Decorate a click command with `--config`, `--run-dir`, and one flag for each field of the named sections.

    The command receives the flags as keyword arguments; pass them to `experiment_from`.

    Args:
        own: The section whose flags also work without its name: `--max-pixels` as well as `--extract.max-pixels`.
        others: Further sections; of their flags, only those of SHORT also work without the section.

    """

    def decorate(command: Command) -> Command:
        for section in reversed((own, *others)):
            command = _section_flags(section, bare=section == own)(command)
        command = click.option(
            "--run-dir", "run_dir", default=None, metavar="PATH",
            help="Folder of everything the run writes; default: runs/<the config's name>.",
        )(command)  # fmt: skip
        return click.option(
            "--config", "config_path", type=click.Path(path_type=Path), default=DEFAULT, show_default=True,
            help="YAML file of the experiment, or the name of a packaged one, such as demo.",
        )(command)  # fmt: skip

    return decorate


def experiment_from(
    config_path: Path, flags: dict[str, Any], pruners: Mapping[str, type] | None = None
) -> Experiment:  # fmt: skip
    """Load the experiment of a config file; the flags that the user typed win over the file.

    Args:
        config_path: The YAML file.
        flags: The keyword arguments that a command decorated with `experiment_options` receives.
        pruners: Pruner classes by name, to validate the parameters of methods; see `configs.load.load`.

    Raises:
        ConfigError: (exit 2) It lists every problem by its flag or its line.

    """
    given: dict[str, Any] = {}
    for key, text in flags.items():
        if text is None:
            continue
        section, _, name = key.partition("__")
        kind = _model(section).model_fields[name].annotation if name else Path
        try:
            given[f"{section}.{name}" if name else section] = flag_value(text, kind)
        except ValueError as error:
            raise ConfigError(f"{_flag(section, name)}: not valid YAML: {error}") from None
    return read_experiment(config_path, given, pruners)


def flag_mapping(flag: str, text: str) -> dict[str, Any]:
    """Read the text of a flag as a mapping in YAML; ConfigError (exit 2) for anything else."""
    try:
        given = flag_value(text, dict[str, Any])
    except ValueError as error:
        raise ConfigError(f"{flag}: not valid YAML: {error}") from None
    if not isinstance(given, dict):
        raise ConfigError(f"{flag}: expected a mapping such as '{{name: value}}', got {text!r}")
    return cast("dict[str, Any]", given)


def _section_flags(section: str, bare: bool) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for name, field in reversed(_model(section).model_fields.items()):
            flags = [_flag(section, name)]
            if bare or f"{section}.{name}" in SHORT:
                flags.append("--" + name.replace("_", "-"))
            kind: Any = field.rebuild_annotation()
            default = "" if field.is_required() else value_in_words(field.get_default(call_default_factory=True))
            notes = [f"default: {default}"] * bool(default) + [bounds(kind)] * bool(bounds(kind))
            text = " ".join((field.description or "").split()) + (f"  [{'; '.join(notes)}]" if notes else "")
            command = click.option(
                *flags, f"{section}__{name}", cls=FieldOption, section=section, metavar=in_words(kind), help=text
            )(command)
        return command

    return decorate


def _flag(section: str, name: str) -> str:
    return f"--{section}.{name}".replace("_", "-")


def _model(section: str) -> type[Section]:
    model = Experiment.model_fields[section].annotation
    assert isinstance(model, type) and issubclass(model, Section)
    return model
