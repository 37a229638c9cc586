"""Progress bar with the time left; quiet when not on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(subjects: int) -> Iterator[Callable[[str, str, float], None]]:
    """Give a function to be told (subject, what is being done, fraction done) while the block runs."""
    if not sys.stderr.isatty():
        yield lambda subject, what, fraction: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=float(subjects))
        fractions: dict[str, float] = {}

        def report(subject: str, what: str, fraction: float) -> None:
            fractions[subject] = fraction
            bar.update(task, completed=sum(fractions.values()), description=f"{subject}: {what}")

        yield report
        bar.update(task, completed=float(subjects))
