"""Define the commands that list pruners and check a pruner against the contract; neither needs a store or a model."""

import json

import click

from configs.flags import flag_mapping

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.command("pruners")
@json_option
def list_pruners(as_json: bool) -> None:
    """List the pruning methods and their parameters.

    The list shows the parameters' defaults, the arrays that a method needs, where the method drops tokens, and what a budget
    means for it.
    """
    from stage2_prune.evaluation import report

    rows = report.describe_pruners()
    click.echo(json.dumps(rows) if as_json else report.pruner_table(rows), nl=as_json)


@click.command("check-pruner")
@click.argument("name", metavar="FILE_OR_NAME")
@click.option("--parameters", default="{}", metavar="{NAME: VALUE, ...}", help="Parameters of the method, as YAML.")
@json_option
def check_pruner(name: str, parameters: str, as_json: bool) -> int:
    """Check a pruner against the contract.

    FILE_OR_NAME is the path of a .py file, or the name of a method. The rules are checked on generated features. The command
    prints one line for each rule, and exits with 4 if a rule is broken.
    """
    given = flag_mapping("--parameters", parameters)
    from stage2_prune.contract import check

    checked = check.check(name, given)
    click.echo(json.dumps(checked.as_json()) if as_json else checked.as_text())
    return 0 if checked.holds else check.EXIT_BROKEN
