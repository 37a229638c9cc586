"""Command lines of the toolkit's programs: one line for every mistake."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import tyro

from data_recipes.errors import DataError, UsageError


def fail(prog: str, error: Exception, status: int) -> NoReturn:
    """Print an error in one line and exit."""
    print(f"{prog}: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(status)


def run(
    prog: str, parse: Callable[[list[str]], Any], work: Callable[[Any], dict[str, Any]], interrupted: str, out_of_memory: str
) -> tuple[Any, dict[str, Any]]:
    """Parse the command line and do the work, with errors turned into one line and an exit status.

    Parameters
    ----------
    prog : str
    parse : callable
        Arguments -> command, which has a field `json`.
    work : callable
        Command -> result, JSON types.
    interrupted, out_of_memory : str
        What to do then.

    Returns
    -------
    tuple
        Command and result.
    """
    try:
        command = parse(sys.argv[1:])
        result = work(command)
        if command.json:
            print(json.dumps(result))
    except UsageError as error:
        fail(prog, error, 2)
    except DataError as error:
        fail(prog, error, 1)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; {interrupted}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except MemoryError:
        fail(prog, DataError(f"memory ran out; {out_of_memory}"), 1)
    return command, result


def parse(command: Any, prog: str, description: str | None, argv: list[str]) -> Any:
    """Command line to one of the command dataclasses; a wrong one raises `UsageError` with a single line."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(command, prog=prog, args=argv, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        # A box of lines: title, message, rule, hint. Without UTF-8 its border is blank and the title a line of its own.
        lines = captured.getvalue().splitlines()[1:]
        texts = [line.strip("│ ") for line in lines]
        lines = []
        for text in texts:
            if text.startswith(("For full helptext", "Argument helptext")):
                break
            if text.strip("─-╭╮╰╯ "):
                lines.append(text)
        raise UsageError((" ".join(lines) or "wrong command line") + f"; see {prog} --help") from None
