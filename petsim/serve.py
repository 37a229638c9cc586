"""serve-cache: fresh realizations of a dataset's subjects, made in the background. Wiring only."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from data_recipes.errors import DataError, UsageError

CACHE = "live"
"""Folder of the cache within that of its dataset, where none is named."""

CONTENTS = "contents.json"
"""Which dataset a cache belongs to, and the folder of every subject in it."""

NICENESS = 10
"""Of a producer beside a training."""

KEPT_SHARE = 0.5
"""Part of the byte budget that line integrals may take."""


@dataclass(frozen=True)
class ServeOptions:
    """How a cache is filled.

    Parameters
    ----------
    dataset : str
        Folder of the dataset whose training subjects are made anew.
    cache : str, optional
        Folder; None: `CACHE` in the dataset's.
    sources : tuple of str
        Images that the dataset was made from.
    sidecar, ct, mu, scanner : str, optional
        Files that it was made with.
    drf : tuple of float
        Doses; empty: those of the dataset.
    drf_range : tuple of float, optional
        Draw doses from this range instead.
    draws : int
        So many a realization.
    budget_gb : float
        Disk space for volumes and line integrals.
    memory_gb : float
    """

    dataset: str
    cache: str | None = None
    sources: tuple[str, ...] = ()
    sidecar: str | None = None
    ct: str | None = None
    mu: str | None = None
    scanner: str | None = None
    drf: tuple[float, ...] = ()
    drf_range: tuple[float, float] | None = None
    draws: int = 3
    budget_gb: float = 20.0
    memory_gb: float = 8.0

    @property
    def root(self) -> Path:
        """Folder of the cache."""
        return Path(self.dataset) / CACHE if self.cache is None else Path(self.cache)


def is_cache(folder: Path) -> bool:
    """Whether a folder is that of a cache."""
    return (folder / CONTENTS).exists()


def serve(
    options: ServeOptions, go_on: Callable[[], bool], told: Callable[[dict[str, Any]], None] = lambda state: None
) -> dict[str, Any]:
    """Fill and refresh a cache for as long as `go_on` says so.

    Parameters
    ----------
    options : ServeOptions
    go_on : callable
        Asked before each realization.
    told : callable
        Told the producer's state after each realization.

    Returns
    -------
    dict
        The last state, see `petsim.producer.produce`.

    Raises
    ------
    DataError, UsageError
    """
    _check(options)
    from petsim.cache.live import DoseCache
    from petsim.cache.store import read_index
    from petsim.fresh import FIRST, Simulator
    from petsim.memory import keep_freed_memory, memory_budget
    from petsim.producer import Doses, produce

    keep_freed_memory()
    folder, root = Path(options.dataset), options.root
    subjects = _origins(options)
    names = sorted(subjects)
    settings = subjects[names[0]].request.settings
    if options.drf_range is not None:
        doses = Doses(low=options.drf_range[0], high=options.drf_range[1], draws=options.draws)
    else:
        doses = Doses(options.drf or settings.ladder())
    budget = 1e9 * options.budget_gb
    simulate = Simulator(subjects, root / "forward", KEPT_SHARE * budget, memory_budget(options.memory_gb))
    recipes = {name: origin.recipe() for name, origin in subjects.items()}
    cache = DoseCache(root, (1 - KEPT_SHARE) * budget, recipes, simulate)
    cache.note(CONTENTS, {
        "configuration_sha256": read_index(folder)["configuration_sha256"], "drf": list(doses.drfs),
        "subjects": {name: cache.folder(name).name for name in names},
    })  # fmt: skip
    return produce(cache, names, doses, settings.seed, FIRST, go_on, told)


def _check(options: ServeOptions) -> None:
    if not (options.budget_gb > 0 and options.memory_gb > 0):
        raise UsageError("disk space and memory of the cache must be positive")
    if options.drf and options.drf_range is not None:
        raise UsageError("--drf and --drf-range: give one of them")


def _origins(options: ServeOptions) -> dict[str, Any]:
    from petsim.fresh import Paths, origins

    paths = Paths(options.sources, options.sidecar, options.ct, options.mu, options.scanner)
    return origins(Path(options.dataset), paths, options.memory_gb)


def give_way(cores: int = 0) -> None:
    """Let others go before this process, which keeps a tenth of a contended core, and leave them some cores altogether."""
    import numba

    os.nice(NICENESS)
    numba.set_num_threads(max(1, numba.get_num_threads() - cores))


def start(options: ServeOptions) -> BaseProcess:
    """Serve in a process of its own, which ends with this one, however that ends.

    Raises
    ------
    DataError, UsageError
        What can be seen beforehand to go wrong there.
    """
    _check(options)
    _origins(options)
    process = multiprocessing.get_context("spawn").Process(target=_serve_child, args=(options, os.getpid()), daemon=True)
    process.start()
    return process


def _serve_child(options: ServeOptions, parent: int) -> None:
    import signal

    from petsim.command_line import fail

    # Ctrl-C reaches every process of the terminal; the parent alone decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    give_way(cores=1)
    try:
        serve(options, lambda: os.getppid() == parent)
    except (DataError, UsageError) as error:
        fail("petsim serve-cache", error, 1)
