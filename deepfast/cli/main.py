"""`deepfast`: the group of commands, each loaded when it is named, and where errors become exit codes.

In: argv. Out: exit code 0 (done), 1 (the job failed), 2 (wrong usage), 130 (interrupted). An error is one
line on stderr; `deepfast --debug ...` shows the traceback too. Does not know: what any command does.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from .. import __version__
from ..types import DeepfastError, UsageError

COMMANDS = (
    "run",
    "chat",
    "serve",
    "pull",
    "list",
    "bench",
    "show",
    "quantize",
)  # each is a module of this folder with a command of the same name
INTERRUPTED = 130


class Commands(click.Group):
    """A group that imports a command's module only when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command object, or None when there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"{__package__}.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run one command and leave with its exit code; never a traceback unless --debug asks for it."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        arguments = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            code = super().main(arguments, *rest, **extra)
        except Exception as error:
            if arguments[:1] == ["--debug"]:
                traceback.print_exc()
            code = _report(error)
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception) -> int:
    """One line on stderr that says what went wrong, and the exit code that belongs to it."""
    if isinstance(error, click.Abort):
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        line, code = error.format_message(), error.exit_code
        if where:
            line = f"{line.rstrip('.')}. See '{where} --help'."
    elif isinstance(error, DeepfastError):
        line, code = str(error), 2 if isinstance(error, UsageError) else 1
    elif isinstance(error, MemoryError):
        line, code = "out of memory. Try --quantize q4, a smaller --context or a smaller model.", 1
    elif isinstance(error, OSError):
        line, code = str(error), 1
    else:
        line = f"unexpected {type(error).__name__}: {error}. This is a bug in Deepfast; --debug shows where."
        code = 1
    click.echo("deepfast: error: " + " ".join(line.split()), err=True)
    return code


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")
@click.version_option(__version__, prog_name="deepfast")
def cli(debug: bool) -> None:
    """Think deep, act fast: run hybrid-reasoning language models (the Qwen3 family) on this machine.

    Without --model, every command uses the small model that comes with Deepfast. Answers go to stdout;
    thoughts and progress go to stderr.
    """


def main() -> NoReturn:
    """The console script."""
    cli.main(prog_name="deepfast")


if __name__ == "__main__":
    main()
