"""Command lines of the toolkit's programs: one line for every mistake."""

import contextlib
import io
import sys
from typing import Any, NoReturn

import tyro

from data_recipes.errors import UsageError


def fail(prog: str, error: Exception, status: int) -> NoReturn:
    """Print an error in one line and exit."""
    print(f"{prog}: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(status)


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
