"""The live cache: each volume is made once, under its own key, within the budget, whatever is killed."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_recipes.errors import DataError, UsageError
from petsim.cache.live import DoseCache, Made, listed, read_note, read_volume

SHAPE = (20, 24, 40)
BYTES = 2 * 20 * 24 * 64
"""What the voxels of a volume take: chunks of 20 x 24 x 32, two along z."""

RECIPES = {"a": {"scanner": "x"}, "b": {"scanner": "x"}}


def volume(subject, drf, realization):
    rng = np.random.default_rng([ord(subject), int(1000 * drf), realization])
    return rng.normal(100, 30, SHAPE).astype(np.float32)


class Simulator:
    """Counts what it is asked for."""

    def __init__(self, wait_s=0.0):
        self.calls, self.wait_s = [], wait_s

    def __call__(self, subject, drfs, realization):
        self.calls += [(subject, drf, realization) for drf in drfs]
        time.sleep(self.wait_s)
        return [Made(volume(subject, drf, realization), {"prompts": realization}) for drf in drfs]


def test_a_volume_is_made_once_and_is_the_one_asked_for(tmp_path):
    make = Simulator()
    cache = DoseCache(tmp_path, 1e9, RECIPES, make)
    for _ in range(2):
        for subject, drf, realization in (("a", 4.0, 0), ("a", 4.0, 1), ("a", 17.3, 0), ("b", 4.0, 0)):
            kept = cache.get(subject, drf, realization)
            np.testing.assert_allclose(kept.image.volume(), volume(subject, drf, realization), atol=0.2)
            assert kept.counts == {"prompts": realization}
            assert cache.holds(subject, drf, realization)
    assert len(make.calls) == 4
    again = DoseCache(tmp_path, 1e9, RECIPES, make)
    assert again.get("a", 17.3, 0) is not None and len(make.calls) == 4


def test_volumes_of_a_realization_are_made_together(tmp_path):
    calls = []

    def simulate(subject, drfs, realization):
        calls.append(drfs)
        return Simulator()(subject, drfs, realization)

    cache = DoseCache(tmp_path, 1e9, RECIPES, simulate)
    cache.get("a", 4.0, 0)
    for _ in range(2):
        got = cache.get_all("a", (1.0, 4.0, 20.0), 0)
        for drf, kept in zip((1.0, 4.0, 20.0), got, strict=True):
            np.testing.assert_allclose(kept.image.volume(), volume("a", drf, 0), atol=0.2)
    # What is there is not made again.
    assert calls == [(4.0,), (1.0, 20.0)]
    cache.get("a", 20.0, 0)
    assert (tmp_path / "asked").read_text() == "mh"


def test_volumes_of_a_realization_do_not_evict_each_other(tmp_path):
    cache = DoseCache(tmp_path, 2.5 * (BYTES + 10_000), RECIPES, Simulator())
    cache.get("b", 4.0, 0)
    assert len(cache.get_all("a", (1.0, 4.0), 0)) == 2
    assert not cache.holds("b", 4.0, 0) and cache.holds("a", 1.0, 0) and cache.holds("a", 4.0, 0)
    with pytest.raises(UsageError, match="one realization take more"):
        cache.get_all("a", (1.0, 4.0, 20.0), 1)


def test_volumes_are_found_by_those_that_did_not_ask(tmp_path):
    cache = DoseCache(tmp_path, 1e9, RECIPES, Simulator())
    for drf, realization in ((20.0, 3), (4.25, 3), (4.0, 1)):
        cache.get("a", drf, realization)
    found = listed(cache.folder("a"))
    assert [(r, d) for r, d, _ in found] == [(1, 4.0), (3, 4.25), (3, 20.0)]
    kept = read_volume(found[1][2], 2.0)
    np.testing.assert_allclose(kept.image.volume(), 2 * volume("a", 4.25, 3), atol=0.4)
    # Whatever was put in a wrong place is not taken for what its name says.
    shutil.copy(found[0][2], cache.path("a", 5.0, 1))
    shutil.copytree(cache.folder("a"), tmp_path / "b-0123456789abcdef")
    assert read_volume(cache.path("a", 5.0, 1)) is None
    assert read_volume(tmp_path / "b-0123456789abcdef" / found[0][2].name) is None
    assert read_volume(cache.path("a", 6.0, 1)) is None


def test_notes_are_whole(tmp_path):
    cache = DoseCache(tmp_path, 1e9, RECIPES, Simulator())
    assert read_note(tmp_path, "state.json") is None
    cache.note("state.json", {"made": 1})
    assert read_note(tmp_path, "state.json") == {"made": 1}
    (tmp_path / "state.json").write_text("{")
    assert read_note(tmp_path, "state.json") is None


def test_numbers_of_realizations_never_repeat(tmp_path):
    caches = [DoseCache(tmp_path, 1e9, RECIPES, Simulator()) for _ in range(4)]
    given = []
    threads = [threading.Thread(target=lambda c=c: given.extend(c.new_realization("a") for _ in range(10))) for c in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given) == list(range(40))
    assert (caches[0].started("a"), caches[0].started("b")) == (40, 0)


def test_a_changed_recipe_never_finds_the_old_volume(tmp_path):
    make = Simulator()
    DoseCache(tmp_path, 1e9, RECIPES, make).get("a", 4.0, 0)
    other = DoseCache(tmp_path, 1e9, {"a": {"scanner": "y"}}, make)
    assert not other.holds("a", 4.0, 0)
    other.get("a", 4.0, 0)
    assert len(make.calls) == 2


def test_a_file_in_a_wrong_place_or_damaged_is_made_again(tmp_path):
    make = Simulator()
    cache = DoseCache(tmp_path, 1e9, RECIPES, make)
    cache.get("a", 4.0, 0)
    cache.path("a", 4.0, 0).rename(cache.path("a", 20.0, 0))
    np.testing.assert_allclose(cache.get("a", 20.0, 0).image.volume(), volume("a", 20.0, 0), atol=0.2)
    cache.path("a", 20.0, 0).write_bytes(b"damaged")
    np.testing.assert_allclose(cache.get("a", 20.0, 0).image.volume(), volume("a", 20.0, 0), atol=0.2)
    cache.path("a", 20.0, 0).unlink()
    assert cache.get("a", 20.0, 0) is not None and len(make.calls) == 4


def test_the_least_recently_used_volumes_go(tmp_path):
    make = Simulator()
    cache = DoseCache(tmp_path, 3.5 * (BYTES + 10_000), RECIPES, make)
    for k in range(3):
        cache.get("a", 4.0, k)
        time.sleep(0.02)
    first = cache.get("a", 4.0, 0)
    time.sleep(0.02)
    cache.get("a", 4.0, 3)
    assert [cache.holds("a", 4.0, k) for k in range(4)] == [True, False, True, True]
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.h5")) <= cache.budget_bytes
    for k in range(4, 8):
        cache.get("b", 4.0, k)
    # Evicted by now, and still what it was for the one that reads it.
    assert not cache.holds("a", 4.0, 0)
    np.testing.assert_allclose(first.image.volume(), volume("a", 4.0, 0), atol=0.2)


def test_a_budget_below_one_volume_is_refused(tmp_path):
    with pytest.raises(UsageError, match="give it more"):
        DoseCache(tmp_path, BYTES / 2, RECIPES, Simulator()).get("a", 4.0, 0)
    with pytest.raises(UsageError, match="at least 1"):
        DoseCache(tmp_path, 1e9, RECIPES, Simulator()).get("a", 0.5, 0)


def test_what_the_simulation_raises_leaves_nothing(tmp_path):
    def fails(subject, drfs, realization):
        raise DataError("no counts")

    cache = DoseCache(tmp_path, 1e9, RECIPES, fails)
    with pytest.raises(DataError, match="no counts"):
        cache.get("a", 4.0, 0)
    assert not list(tmp_path.rglob("*.h5"))
    assert DoseCache(tmp_path, 1e9, RECIPES, Simulator()).get("a", 4.0, 0) is not None


def test_two_that_ask_for_the_same_get_it_from_one_simulation(tmp_path):
    make = Simulator(wait_s=0.3)
    caches = [DoseCache(tmp_path, 1e9, RECIPES, make) for _ in range(4)]
    got = []
    threads = [threading.Thread(target=lambda c=c: got.append(c.get("a", 4.0, 0))) for c in caches]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    # While it is being made, one that does not wait is told so, and may take another.
    assert caches[0].get("a", 4.0, 0, wait=False) is None
    assert caches[0].get("a", 4.0, 1, wait=False) is not None
    for thread in threads:
        thread.join()
    assert len(got) == 4 and make.calls.count(("a", 4.0, 0)) == 1


ASKS = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from petsim.cache.live import DoseCache
from test_live_cache import RECIPES, Simulator

class Slow(Simulator):
    def __call__(self, *asked):
        os.write(1, b"made ")
        return super().__call__(*asked)

cache = DoseCache(Path(sys.argv[1]), 1e9, RECIPES, Slow(wait_s=0.5))
os.write(1, b"ready ")
sys.stdin.readline()
assert cache.get("a", 4.0, 0).counts == {"prompts": 0}
"""


def test_two_processes_that_ask_for_the_same_make_it_once(tmp_path):
    command = [sys.executable, "-c", ASKS, str(tmp_path / "cache"), str(Path(__file__).parent)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout.read(6) == "ready "
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(process.communicate()[0] for process in both) == ["", "made "]
    assert [process.returncode for process in both] == [0, 0]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch):
    cache = DoseCache(tmp_path, 1e9, RECIPES, Simulator())
    with monkeypatch.context() as full:

        def fails(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(h5py.Group, "create_dataset", fails)
        with pytest.raises(DataError, match="the disk is full; free some space"):
            cache.get("a", 4.0, 0)
    assert not [p for p in tmp_path.rglob("*") if "drf" in p.name]
    assert cache.get("a", 4.0, 0) is not None


def test_a_forked_child_does_not_keep_the_locks(tmp_path):
    """As when data loaders are started while a producer writes."""
    children = []

    def forks(subject, drfs, realization):
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
        children.append(child)
        return [Made(volume(subject, drf, realization), {}) for drf in drfs]

    try:
        DoseCache(tmp_path, 1e9, RECIPES, forks).get("a", 4.0, 0)
        path = DoseCache(tmp_path, 1e9, RECIPES, Simulator()).path("a", 4.0, 0)
        path.unlink()
        assert DoseCache(tmp_path, 1e9, RECIPES, Simulator()).get("a", 4.0, 0, wait=False) is not None
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_removed_folder_is_one_clear_line(tmp_path):
    cache = DoseCache(tmp_path / "cache", 1e9, RECIPES, Simulator())
    cache.get("a", 4.0, 0)
    shutil.rmtree(cache.folder("a"))
    assert cache.get("a", 4.0, 0) is not None
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match="must be there"):
        cache.get("a", 4.0, 0)


def test_a_volume_is_not_sent_to_other_processes(tmp_path):
    with pytest.raises(TypeError, match="ask the cache"):
        pickle.dumps(DoseCache(tmp_path, 1e9, RECIPES, Simulator()).get("a", 4.0, 0))


KILLED = """
import os, signal, sys, time
import numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_live_cache import BYTES, RECIPES, Simulator, volume
from petsim.cache.live import DoseCache

rng = np.random.default_rng(0)
cache = DoseCache(Path(sys.argv[1]), 8.5 * (BYTES + 10_000), RECIPES, Simulator())

def work(seed):
    own = np.random.default_rng(seed)
    while True:
        subject, realization = "ab"[own.integers(2)], int(own.integers(8))
        kept = cache.get(subject, 4.0, realization)
        assert np.abs(kept.image.volume() - volume(subject, 4.0, realization)).max() < 0.2

def start(seed):
    child = os.fork()
    if child == 0:
        try:
            work(seed)
        finally:
            os._exit(1)
    return child

children = [start(k) for k in range(3)]
for kill in range(50):
    time.sleep(rng.uniform(0.0, 0.06))
    k = int(rng.integers(3))
    os.kill(children[k], signal.SIGKILL)
    _, status = os.waitpid(children[k], 0)
    assert os.WIFSIGNALED(status), "a worker failed by itself"
    children[k] = start(100 + kill)
for child in children:
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
"""


def test_fifty_kills_lose_nothing_and_break_nothing(tmp_path):
    """Three processes read, make and evict over a small budget, and are killed in turn at any moment."""
    root = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    files = list(root.rglob("*.h5"))
    assert len(files) >= 5
    for path in files:
        with h5py.File(path) as f:
            subject, realization = path.parent.name[0], int(path.stem.split("_r")[1])
            assert f.attrs["key"].endswith(path.stem) and json.loads(f.attrs["counts"]) == {"prompts": realization}
            found = f["recon"][()].astype(np.float32) * np.float32(f["recon"].attrs["scale"])
        np.testing.assert_allclose(found, volume(subject, 4.0, realization), atol=0.2)
    assert sum(p.stat().st_size for p in files) <= 8.5 * (BYTES + 10_000)
    make = Simulator()
    cache = DoseCache(root, 1e9, RECIPES, make)
    for subject in "ab":
        for k in range(8):
            np.testing.assert_allclose(cache.get(subject, 4.0, k).image.volume(), volume(subject, 4.0, k), atol=0.2)
    assert not list(root.rglob("*.tmp"))
