"""Work in other processes: the same results, and those of a dead process made again."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import pytest

from data_recipes.errors import DataError
from petsim.dataset import make_dataset
from petsim.verify import verify
from petsim.workers import DEATHS, in_processes, on_dask
from tests import kill_driver

ROOT = Path(__file__).resolve().parents[2]


def square(piece, report):
    report(str(piece), "squaring", 0.5)
    return piece**2


def dies_once(folder, piece, report):
    """The process that works on piece 2 dies, once."""
    marker = Path(folder) / f"{piece}"
    with marker.open("a") as f:
        f.write("x")
    if piece == 2 and marker.read_text() == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    return piece


def dies(piece, report):
    os.kill(os.getpid(), signal.SIGKILL)


def fails(piece, report):
    raise DataError(f"piece {piece} cannot be")


def test_pieces_come_back_in_their_order_and_report():
    told = []
    done = in_processes({str(k): k for k in range(5)}, square, 2, lambda *message: told.append(message))
    assert list(done.items()) == [(str(k), k**2) for k in range(5)]
    assert {m[0] for m in told} == {str(k) for k in range(5)}


def test_a_dead_workers_piece_is_done_again(tmp_path):
    told = []
    work = partial(dies_once, str(tmp_path))
    assert in_processes({str(k): k for k in range(4)}, work, 2, lambda *m: told.append(m)) == {str(k): k for k in range(4)}
    assert (tmp_path / "2").read_text() == "xx" and any("died" in m[1] for m in told)


def test_workers_that_always_die_are_one_clear_line():
    with pytest.raises(DataError, match=f"{DEATHS + 1} times, often for want of memory"):
        in_processes({"a": 1}, dies, 1, lambda *m: None)


def test_an_error_of_the_work_ends_it():
    with pytest.raises(DataError, match="cannot be"):
        in_processes({"a": 1, "b": 2}, fails, 2, lambda *m: None)


DASK = """
import sys
from distributed import Client, LocalCluster
from petsim.dataset import make_dataset
from tests import kill_driver

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            client.wait_for_workers(2)
            client.run(kill_driver.coarse_patients)
            told = []
            result = make_dataset(kill_driver.request(sys.argv[1]), dask=cluster.scheduler_address,
                                  report=lambda *m: told.append(m))
    assert [s["made"] for s in result["subjects"]] == [True] * 3, result
    assert sum(m[1] == "done" for m in told) == 3, told
"""


def contents(folder):
    """Attributes, and hashes of all datasets; HDF5 may put the same things into a file in another order."""
    found = {}
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as f:
            found[path.name] = {name: str(value) for name, value in f.attrs.items()}
            names = []
            f.visit(names.append)
            found[path.name] |= {f"{n} {k}": str(v) for n in names for k, v in f[n].attrs.items()}
    return found


def test_a_dask_cluster_makes_the_same_dataset(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    script = tmp_path / "on_dask.py"
    script.write_text(DASK)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "dask")], capture_output=True, text=True,
                          env=environment, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr
    import data_recipes.phantoms.whole_body as module

    monkeypatch.setattr(module, "whole_body", module.whole_body)
    kill_driver.coarse_patients()
    make_dataset(kill_driver.request(str(tmp_path / "one")))
    assert verify(tmp_path / "dask")["problems"] == []
    assert contents(tmp_path / "dask") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "one")) == 3


def test_no_cluster_is_one_clear_line():
    pytest.importorskip("distributed")
    code = ("from petsim.workers import on_dask\n"
            "on_dask({'a': 1}, print, 'not an address', lambda *m: None)\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert "DataError: --dask not an address: no dask scheduler" in done.stderr


def test_dask_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DataError, match=r"petsim\[cluster\]"):
        on_dask({"a": 1}, square, "tcp://127.0.0.1:1", lambda *m: None)
