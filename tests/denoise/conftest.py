"""Fixtures of the tests of denoise."""

import pytest
import torch
from denoise_data import make_dataset


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two torch threads on two busy cores run many times slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Nine subjects with two realizations."""
    return make_dataset(tmp_path_factory.mktemp("data") / "toy", 9)
