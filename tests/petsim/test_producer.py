"""The producer: new realizations of every subject in turn, at the doses asked for."""

import numpy as np
import pytest

from data_recipes.errors import UsageError
from petsim.cache.live import DoseCache, Made, listed, read_note
from petsim.producer import STATE, Doses, produce

SHAPE = (8, 8, 8)


def simulate(subject, drfs, realization):
    return [Made(np.full(SHAPE, drf, np.float32), {}) for drf in drfs]


def rounds(count):
    left = iter([True] * count)
    return lambda: next(left, False)


def test_subjects_are_served_in_turn_with_numbers_that_never_repeat(tmp_path):
    cache = DoseCache(tmp_path, 1e9, {"a": 1, "b": 2, "c": 3}, simulate)
    told = []
    state = produce(cache, ["a", "b", "c"], Doses((4.0, 20.0)), 0, 1000, rounds(7), told.append)
    assert (state["made"], state["volumes"]) == (7, 21) and len(told) == 7 and state["per_minute"] > 0
    assert {r for r, _, _ in listed(cache.folder("a"))} == {1000, 1001, 1002}
    assert {r for r, _, _ in listed(cache.folder("c"))} == {1000, 1001}
    assert [d for _, d, _ in listed(cache.folder("b"))] == [1.0, 4.0, 20.0] * 2
    assert read_note(tmp_path, STATE) == state
    # Another start, after all volumes went.
    for path in tmp_path.rglob("*.h5"):
        path.unlink()
    produce(cache, ["a", "b", "c"], Doses((4.0,)), 0, 1000, rounds(2))
    assert {r for r, _, _ in listed(cache.folder("b"))} == {1002} and {r for r, _, _ in listed(cache.folder("c"))} == {1002}


def test_drawn_doses_cover_the_range_evenly():
    doses = Doses(low=2.0, high=200.0, draws=4)
    drawn = np.array([doses.of(0, "a", n) for n in range(500)])
    assert (drawn[:, 0] == 1).all() and (np.diff(drawn) > 0).all()
    assert drawn[:, 1:].min() >= 2 and drawn[:, 1:].max() <= 200
    # Uniform on the logarithm: mean and variance of all draws.
    u = np.log(drawn[:, 1:] / 2) / np.log(100)
    assert u.mean() == pytest.approx(0.5, abs=0.01) and u.var() == pytest.approx(1 / 12, rel=0.05)
    assert doses.of(0, "a", 7) == doses.of(0, "a", 7) != doses.of(0, "b", 7)
    assert doses.of(1, "a", 7) != doses.of(0, "a", 7)


@pytest.mark.parametrize("bad", [{}, {"low": 4.0, "high": 2.0, "draws": 1}, {"low": 0.5, "high": 2.0, "draws": 1},
                                 {"low": 2.0, "high": float("inf"), "draws": 1},
                                 {"low": 2.0, "high": 4.0, "draws": 0}, {"drfs": (0.5,)}])  # fmt: skip
def test_doses_that_are_none_are_refused(bad):
    with pytest.raises(UsageError, match="--dr"):
        Doses(**bad)
