"""The street door: text in, exit code out. Each command imports its rooms only when it runs.

Exit codes: 0 all done, 2 the request cannot be carried out (two lines say why), 3 some inputs failed and the
others are done. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from restorekit.cli import (
    adapt,
    bench,
    degrade,
    describe,
    doctor,
    evaluate,
    faig,
    inspect,
    new_plugin,
    refine,
    restore,
    train,
    weights,
)
from restorekit.cli.output import complain, say
from restorekit.errors import RestoreKitError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Degraded image in, restored image out.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(version("restorekit"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Degraded image in, restored image out."""


app.command("restore")(restore.restore)
app.command("inspect")(inspect.inspect)
app.command("list")(describe.list_components)
app.command("info")(describe.info)
app.command("plan")(describe.plan)
app.command("schema")(describe.schema)
app.command("doctor")(doctor.doctor)
app.command("degrade")(degrade.degrade)
app.command("eval")(evaluate.evaluate)
app.command("average")(evaluate.average)
app.command("protocols")(evaluate.protocols)
app.command("train")(train.train)
app.command("adapt")(adapt.adapt)
app.command("refine")(refine.refine)
app.command("new-plugin")(new_plugin.new_plugin)
app.add_typer(weights.app, name="weights")
app.add_typer(bench.app, name="bench")
app.add_typer(faig.app, name="faig")


def main() -> None:
    """Run the command line; errors a user can act on become two lines and exit code 2."""
    try:
        app()
    except RestoreKitError as error:
        complain(error)
        sys.exit(2)
