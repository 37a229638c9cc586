"""Fixtures for all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

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
