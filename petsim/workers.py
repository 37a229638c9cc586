"""Many pieces of work in processes of this machine, or of a dask cluster; what a dead one left is done again."""

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from data_recipes.errors import DataError

Report = Callable[[str, str, float], None]
"""Told (piece, what is being done, fraction done)."""

Piece = TypeVar("Piece")
Result = TypeVar("Result")
Work = Callable[[Piece, Report], Result]
"""Must be picklable, and do nothing twice that it finds done."""

DEATHS = 3
"""Times that processes may die before it is taken for a fault of the work."""

_DIED = "often for want of memory; use fewer workers or a lower --memory-gb, and run the same command again"


def in_processes(pieces: Mapping[str, Piece], work: Work[Piece, Result], workers: int, report: Report) -> dict[str, Result]:
    """Work on pieces in a pool of spawned processes; the first error ends it.

    Parameters
    ----------
    pieces : mapping
        By name.
    work : callable
    workers : int
    report : callable
        Told what all processes do.

    Raises
    ------
    DataError
        Processes died again and again.
    """
    done: dict[str, Result] = {}
    for deaths in range(DEATHS + 1):
        try:
            _in_pool(pieces, work, workers, report, done)
            return {name: done[name] for name in pieces}
        except BrokenProcessPool:
            report("a worker", "died; what it did is done again", deaths / DEATHS)
    raise DataError(f"worker processes ended unexpectedly {DEATHS + 1} times, {_DIED}")


def _in_pool(
    pieces: Mapping[str, Piece], work: Work[Piece, Result], workers: int, report: Report, done: dict[str, Result]
) -> None:
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    messages = context.Queue()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(threads, messages))
    try:
        waiting = {pool.submit(_in_worker, work, piece): name for name, piece in pieces.items() if name not in done}
        while waiting:
            finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            _pass_on(messages, report)
            for future in finished:
                done[waiting[future]] = future.result()
                del waiting[future]
    except BrokenProcessPool:
        raise
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        # What ended processes still had to say.
        _pass_on(messages, report)


def _pass_on(messages: Any, report: Report) -> None:
    while True:
        try:
            report(*messages.get_nowait())
        except queue.Empty:
            return


_messages: Any = None


def _start_worker(threads: int, messages: Any) -> None:
    import signal

    import numba

    from petsim.memory import keep_freed_memory

    keep_freed_memory()
    # Ctrl-C reaches every process of the terminal; the parent alone decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    numba.set_num_threads(min(threads, numba.get_num_threads()))
    global _messages
    _messages = messages


def _in_worker(work: Work[Piece, Result], piece: Piece) -> Result:
    return work(piece, lambda *message: _messages.put(message))


def on_dask(pieces: Mapping[str, Piece], work: Work[Piece, Result], address: str, report: Report) -> dict[str, Result]:
    """Work on pieces on a running dask cluster, whose workers see the same files; the first error ends it.

    A worker does one piece at a time, whatever its number of threads.

    Parameters
    ----------
    pieces : mapping
        By name.
    work : callable
    address : str
        Of the scheduler.
    report : callable
        Told what was started and finished.

    Raises
    ------
    DataError
        No cluster there, or workers that died again and again.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
        from distributed.comm.core import CommClosedError
    except ModuleNotFoundError:
        raise DataError("--dask: dask is not installed; run pip install 'petsim[cluster]'") from None
    try:
        client = Client(address, timeout="5s", set_as_default=False)
    except (OSError, ValueError):
        raise DataError(f"--dask {address}: no dask scheduler answers there; start one, or give its address") from None
    with client:
        names = {}
        for name, piece in pieces.items():
            names[client.submit(_on_dask_worker, work, piece, pure=False)] = name
            report(name, "waiting for a worker", 0.0)
        done: dict[str, Result] = {}
        try:
            for future in as_completed(list(names)):
                done[names[future]] = future.result()
                report(names[future], "done", 1.0)
        except KilledWorker:
            raise DataError(f"--dask {address}: workers died again and again, {_DIED}") from None
        except (CancelledError, CommClosedError):
            raise DataError(f"--dask {address}: the scheduler went away; run the same command again") from None
        finally:
            client.cancel([f for f in names if names[f] not in done])
    return {name: done[name] for name in pieces}


_one_at_a_time = threading.Lock()


def _on_dask_worker(work: Work[Piece, Result], piece: Piece) -> Result:
    from petsim.memory import keep_freed_memory

    # numba's own threads are not to be used by two pieces at once.
    with _one_at_a_time:
        keep_freed_memory()
        return work(piece, lambda *message: None)
