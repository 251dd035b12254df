"""Define the commands that share a trained pruner: they write its card, push it to a hub, and pull one."""

from pathlib import Path

import click

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("folder", type=_FOLDER)
@click.option(
    "--results",
    multiple=True,
    type=_FOLDER,
    help="Run folder whose results of these weights the card shows; repeatable. Default: the run that FOLDER lies in.",
)
@click.option("--licence", help="Licence of the weights, such as apache-2.0; default: train.licence of the training.")
@click.option("--data-licence", help="Licence of images and questions; default: data.licence of the training.")
def card(folder: Path, results: tuple[Path, ...], licence: str | None, data_licence: str | None) -> None:
    """Write the card of a trained pruner.

    FOLDER is what `train` wrote. README.md is written there: data, features, budgets, results with intervals, the command.
    `train` writes it too; write it again to show what `eval` and `sweep` have found since.
    """
    from stage2_prune.sharing.card import write_card

    click.echo(write_card(folder, results, licence, data_licence))


@click.command()
@click.argument("folder", type=_FOLDER)
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private, if it has to be made.")
def push(folder: Path, repository: str, private: bool) -> None:
    """Push a trained pruner to a hub repository.

    FOLDER is what `train` wrote; weights, record, card, config and log become one commit. HF_ENDPOINT names another hub.
    """
    from stage2_prune.sharing.hub import push

    click.echo(push(folder, repository, private))


@click.command()
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--revision", help="Branch, tag or commit; default: the main branch.")
@click.option("--out", type=_FOLDER, help="Folder to write; default: NAME, in the current folder.")
def pull(repository: str, revision: str | None, out: Path | None) -> None:
    """Pull a trained pruner from a hub repository.

    The folder appears when all files are there and whole; name it with `weights` beside the method's name in a config. A pull
    that was interrupted goes on when the same command is run again.
    """
    from stage2_prune.sharing.hub import pull

    folder = out or Path(repository.rpartition("/")[2])
    commit = pull(repository, folder, revision)
    click.echo(f"{repository} at {commit} is in {folder}", err=True)
