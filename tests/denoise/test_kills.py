"""Producer, loaders and trainer on one cache, killed in turn at any moment: nothing breaks, nothing finished is lost."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from denoise.denoiser import Denoiser
from petsim.cache.live import listed, read_note, read_volume
from petsim.cache.store import read_index
from petsim.producer import STATE
from petsim.serve import CONTENTS

ROLES = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
import denoise.live
from test_live import cache_of, ladders_of, middles, patches
from denoise.train import TrainSettings, train
from petsim.producer import Doses, produce

data, root = Path(sys.argv[1]), Path(sys.argv[2])
denoise.live.LOOK_S = 0.01
cache, names = cache_of(data, root)

def producer(seed):
    done = os.open(root / "finished", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def told(state):
        os.write(done, f"{state['subject']} {state['realization']}\\n".encode())
    produce(cache, names, Doses((4.0, 20.0)), 0, 0, lambda: True, told)

def loader(seed):
    samples = patches(ladders_of(data, root), seed=seed)
    step = 0
    while True:
        batch = samples.batch(step, range(4))
        fresh = batch.fresh
        assert (np.round(middles(batch)[fresh]) == batch.drf[fresh]).all()
        step += 1
        time.sleep(0.01)

def trainer(seed):
    settings = TrainSettings(channels=(2,), patch=8, batch=2, max_steps=100_000, validate_every=2, patience=100_000)
    train(data, root / "run", settings, "cpu", live=root)

roles = [producer, loader, loader, trainer]

def start(k, seed):
    child = os.fork()
    if child == 0:
        try:
            roles[k](seed)
        finally:
            os._exit(1)
    return child

def written(path):
    # A trainer takes a while to start; one that never writes would test nothing.
    old = path.stat().st_mtime_ns if path.exists() else 0
    until = time.monotonic() + 60
    while not (path.exists() and path.stat().st_mtime_ns > old):
        assert time.monotonic() < until, "the trainer writes nothing"
        time.sleep(0.01)

rng = np.random.default_rng(0)
children = [start(k, k) for k in range(4)]
for kill in range(50):
    k = (0, 1, 0, 2, 0, 1, 0, 2, 0, 3)[kill % 10]
    if k == 3:
        written(root / "run" / "state.pt")
    time.sleep(rng.uniform(0.0, 0.2))
    os.kill(children[k], signal.SIGKILL)
    _, status = os.waitpid(children[k], 0)
    assert os.WIFSIGNALED(status), f"{roles[k].__name__} failed by itself"
    children[k] = start(k, 100 + kill)
written(root / "run" / "state.pt")
for child in children:
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
"""


def test_fifty_kills_of_producer_loaders_and_trainer(dataset, tmp_path):
    root = tmp_path / "live"
    command = [sys.executable, "-c", ROLES, str(dataset), str(root), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    contents = read_note(root, CONTENTS)
    assert contents is not None and read_note(root, STATE) is not None
    assert contents["configuration_sha256"] == read_index(dataset)["configuration_sha256"]
    held = {}
    for name, folder in contents["subjects"].items():
        for realization, drf, path in listed(root / folder):
            kept = read_volume(path)
            assert kept is not None, path.name
            values = kept.image.volume()
            assert np.median(values) * 0.001 == pytest.approx(drf + realization / 1000, rel=1e-3)
            with h5py.File(path) as f:
                assert json.loads(str(f.attrs["counts"])) == {"nec": 1e8 / drf}
            held.setdefault((name, realization), []).append(drf)
    finished = [tuple(line.split()) for line in (root / "finished").read_text().splitlines()]
    assert len(finished) > 20 and len(set(finished)) == len(finished)
    assert {(name, int(number)) for name, number in finished} <= {k for k, drfs in held.items() if len(drfs) == 3}
    # The run can be used and goes on.
    assert Denoiser.load(root / "run", "cpu", "last").models
