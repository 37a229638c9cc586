"""One HTML page about a live cache in use: what it holds, how old that is, how often it had what was asked for."""

import time
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError
from petsim import page as html
from petsim.cache.live import begun, holdings, listed, made_s, read_note
from petsim.cache.store import whole_or_nothing
from petsim.producer import STATE
from petsim.serve import CONTENTS

STILL_S = 600.0
"""A producer that made nothing for so long is called still."""


def write_cache_report(root: Path, out: Path | None = None) -> Path:
    """Write the page.

    Parameters
    ----------
    root : Path
        Folder of a cache that `petsim serve-cache` fills.
    out : Path, optional
        The page; report.html in that folder when None.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    DataError
        No cache, or a place that cannot be written.
    """
    contents = read_note(root, CONTENTS)
    if contents is None:
        raise DataError(f"{root.name}: holds no cache; start petsim serve-cache")
    file = html.destination(root, out)
    now = time.time()
    held, state = holdings(root), read_note(root, STATE)
    asked = held["hits"] + held["misses"]
    rows = [_row(root / folder, name, now) for name, folder in sorted(contents["subjects"].items())]
    others = held["volumes"] - sum(int(row[1]) for row in rows)
    body = [
        "<header><p class=kicker>petsim report</p><h1>Cache of fresh realizations</h1>"
        f"<p class=lead>{escape(_producer(state, now))}</p></header>",
        html.facts([
            ("Holds", f"{held['volumes']:,} volumes in {held['bytes'] / 1e9:.2f} GB"
                      + (f", {others:,} of them of other settings" if others else "")),
            ("Asked for", f"{asked:,} volumes, {100 * held['hits'] / asked:.1f} % of which were there" if asked
                          else "no volume; training takes what there is, and its log says how much of that was fresh"),
            ("Doses", ", ".join(f"DRF {d:g}" for d in contents["drf"]) if contents["drf"] else "drawn for each realization"),
        ]),
        "<h2>Subjects</h2>",
        html.table(["Subject", "Volumes", "Realizations", "Begun in all", "Doses (DRF)", "Newest", "Median age", "Oldest"],
                   rows, left=(0, 4)),
        "<p class=note>Ages since a volume was made. Evicted realizations count among those begun; their numbers are not "
        "given again.</p>",
    ]  # fmt: skip
    with whole_or_nothing(file) as temporary:
        temporary.write_text(html.page("petsim: cache of fresh realizations", "\n".join(body)), encoding="utf-8")
    return file


def _row(folder: Path, name: str, now: float) -> list[str]:
    volumes = listed(folder)
    made = [at for at in (made_s(path) for _, _, path in volumes) if at is not None]
    ages = now - np.array(made) if made else np.array([np.nan])
    drfs = sorted({drf for _, drf, _ in volumes})
    doses = ", ".join(f"{d:g}" for d in drfs) if len(drfs) <= 8 else f"{len(drfs)} from {drfs[0]:g} to {drfs[-1]:g}"
    return [
        name, f"{len(volumes)}", f"{len({r for r, _, _ in volumes})}",
        f"{begun(folder)}", doses,
        *(_age(float(v)) for v in (ages.min(), np.median(ages), ages.max())),
    ]  # fmt: skip


def _producer(state: dict[str, Any] | None, now: float) -> str:
    if state is None:
        return "No realization was made yet."
    since = now - state["time_s"]
    doing = "at work" if since < STILL_S else "still"
    return (
        f"Producer {doing}: {state['made']:,} realizations made since its start, {state['per_minute']:.1f} a minute, "
        f"the latest {_age(since)} ago ({state['subject']})."
    )


def _age(seconds: float) -> str:
    if not np.isfinite(seconds):
        return ""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
