"""Fixtures for all tests."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_MANY = 1000
"""Tests from which on a run is one of all."""

_DEFAULT = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """`real_data(name)`: a file or folder below PETSIM_REAL_DATA; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = Path(os.environ.get("PETSIM_REAL_DATA") or _DEFAULT) / name
        if not path.exists():
            pytest.skip(f"real data '{name}' is absent; PETSIM_REAL_DATA names the folder that holds it")
        return path

    return find


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The default run of all tests is spread over the cores by file, where pytest-xdist is there.

    A machine with a GPU may lack it, and tests of one GPU are not to run side by side.
    """
    whole = all(Path(name).is_dir() for name in config.args) and "not gpu" in config.option.markexpr
    if whole and "PYTEST_XDIST_WORKER" not in os.environ and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses, config.option.dist = os.cpu_count() or 1, "loadfile"


@pytest.fixture(scope="session", autouse=True)
def one_thread_a_process() -> None:
    """Processes side by side would wait for each other's threads at every kernel."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import numba

        numba.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def compiled_ahead(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernels are compiled on another core while a run of all tests begins, see `tests.warm_up`."""
    if len(request.session.items) < _MANY or os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        yield
        return
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([sys.executable, "-m", "tests.warm_up"], cwd=root, stdout=subprocess.DEVNULL)
    yield
    process.kill()
    process.wait()
