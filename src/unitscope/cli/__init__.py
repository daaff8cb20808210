"""The command line: one command a task, each a thin face of the function of the same name.

Heavy packages are imported inside the commands: `unitscope --help` loads none, and what only draws loads no torch.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Annotated, Literal, TextIO

from cyclopts import App, CycloptsError, Group, Parameter

from unitscope.cli.attribution import attribute
from unitscope.cli.demonstration import demo
from unitscope.cli.drawing import figure, pack, sheet
from unitscope.cli.effects import circuits, effects, knock_out, why
from unitscope.cli.experiments import colour_or_shape, evolve, invariance, occlude, probe
from unitscope.cli.explorer import export, serve
from unitscope.cli.meaning import depth, name, score
from unitscope.cli.output import log_to_stderr, print_error
from unitscope.cli.scanning import check, layers, scan
from unitscope.errors import ImagesWarning, UnitscopeError

COMMANDS: tuple[Callable[..., int | None], ...] = (
    layers, scan, sheet, figure, name, score, depth, effects, knock_out, circuits, why, attribute, evolve, probe, invariance, colour_or_shape, occlude, check, pack, serve, export, demo,
)  # fmt: skip
"""In the order in which they are listed."""

app = App(
    name="unitscope",
    help="A microscope for the units of trained networks.",
    help_format="plaintext",
    version_flags=(),
    group_parameters=Group("Options"),
    default_parameter=Parameter(negative=(), allow_repeating=True),
    exit_on_error=False,
    print_error=False,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for order, command in enumerate(COMMANDS):
    app.command(command, sort_key=order)


@app.command(name="--version", sort_key=len(COMMANDS))
def print_version() -> None:
    """Print the version."""
    from importlib.metadata import version

    print(f"unitscope {version('unitscope')}")


@app.command(name="--install-completion", sort_key=len(COMMANDS))
def install_completion(
    *,
    shell: Annotated[
        Literal["bash", "zsh", "fish", "powershell"] | None, Parameter(help="The shell; the one that you use, if not given.")
    ] = None,
) -> None:
    """Have the shell complete commands and options, from its next start on."""
    from cyclopts.completion.detect import ShellDetectionError

    try:
        path = app.install_completion(shell=shell)
    except ShellDetectionError as error:
        raise UnitscopeError("it can't be told which shell this is; name it with --shell") from error
    print(f"completion is in {path}; start a new shell to use it")


@app.meta.default
def launch(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    verbose: Annotated[
        bool,
        Parameter(("--verbose", "-v"), help="Say on stderr what is done, with the tracebacks of errors.", show_default=False),
    ] = False,
) -> int:
    """Run the command that the words are, and give its exit status. `--verbose` may stand before or behind any of them."""
    with log_to_stderr() if verbose else nullcontext():
        try:
            status: int | None = app(words or ["--help"])
            return (status or 0) if words else 2
        except KeyboardInterrupt as interrupt:
            print_error(str(interrupt) or "stopped")
            return 130
        except (UnitscopeError, OSError, UnicodeError, MemoryError) as error:  # or a file or memory that the system doesn't give
            logging.getLogger(__name__).debug("the command failed", exc_info=True)
            print_error(f"{type(error).__name__}: {error}")
            return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, that of the process unless told otherwise, and give its exit status.

    0: done. 1: an error that the user can mend, in one line on stderr, or a check that failed. 2: wrong usage. 130: stopped by Ctrl+C.
    A warning is one line on stderr. Any other exception is a bug, and leaves with its traceback.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", ImagesWarning)
        warnings.showwarning = _print_warning
        try:
            status: int | None = app.meta(sys.argv[1:] if arguments is None else arguments)
            return status or 0
        except CycloptsError as error:
            _print_usage_error(error)
            return 2


def _print_usage_error(error: CycloptsError) -> None:
    """Print how the command is used and, in one line, what is wrong."""
    from cyclopts.help import format_usage

    command = error.command_chain or ()
    usage = format_usage(app, command).plain.strip()
    print_error(f"Usage: {usage} (more with {' '.join(['unitscope', *command, '--help'])})")
    print_error(str(error))


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, in place of `warnings.showwarning`."""
    print(message, file=sys.stderr)
