"""The command line: one command a task, each a thin face of the function of the same name."""

import sys
import warnings
from importlib.metadata import version
from typing import Annotated

import typer

from unitscope.cli.attribution import attribute
from unitscope.cli.demonstration import demo
from unitscope.cli.drawing import figure, sheet
from unitscope.cli.experiments import colour_or_shape, evolve, invariance, occlude, probe
from unitscope.cli.explorer import export, serve
from unitscope.cli.output import stop
from unitscope.cli.parsing import gathered
from unitscope.cli.scanning import check, layers, scan
from unitscope.errors import ImagesWarning, UnitscopeError

COMMANDS = (
    layers, scan, sheet, figure, attribute, evolve, probe, invariance, colour_or_shape, occlude, check, serve, export, demo,
)  # fmt: skip

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A microscope for the units of trained networks.",
)


def _show_version(asked: bool | None) -> None:
    if asked:
        print(f"unitscope {version('unitscope')}")
        raise typer.Exit


@app.callback()
def with_version(
    asked: Annotated[
        bool | None, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = None,
) -> None:
    """A microscope for the units of trained networks."""


for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run a command; a `UnitscopeError` becomes one line and exit status 1, a warning one line on the way."""
    warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
    warnings.simplefilter("always", ImagesWarning)
    try:
        app(args=gathered(app, sys.argv[1:]))
    except UnitscopeError as error:
        stop(f"{type(error).__name__}: {error}", 1)
    except (OSError, UnicodeError, MemoryError) as error:  # a file, or memory, that the system doesn't give
        stop(f"{type(error).__name__}: {error}", 1)
