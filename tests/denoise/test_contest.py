"""The contest of `benchmarks.cross_dose` at its smallest size, from patients to the result; parts of that of UniPET."""

import json
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest

from benchmarks import unipet

PRIMARY = {"residual r0", "conditioned on noise", "dose-specific"}
OTHERS = {"residual r1", "residual r2", "conditioned on drf", "dose-specific, equal total"}


@pytest.mark.slow
def test_the_contest_runs_and_goes_on(tmp_path):
    def run():
        command = [sys.executable, "-m", "benchmarks.cross_dose", str(tmp_path), "--size", "smoke", "--device", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1], done.stderr

    line, told = run()
    result = json.loads(line)
    assert {line["method"] for line in result["primary"]} == PRIMARY
    assert {line["method"] for line in result["others"]} == OTHERS
    assert {line["method"] for line in result["against_gaussian"]} == PRIMARY | OTHERS | {"direct"}
    trained_at = {(line["method"], line["drf"]) for line in result["summary"] if line["method"].startswith("trained at")}
    assert len(trained_at) == 3 * 8
    assert all(line["fraction_of_ceiling"] <= 1 for line in result["summary"] if line["fraction_of_ceiling"] is not None)
    # Two patients, below the number for a test of significance.
    assert not any("p" in line for line in result["primary"])
    assert told.count("evaluated") == 2
    next((tmp_path / "rows").glob("phantom-900001-*.json")).unlink()
    again, told = run()
    assert again == line and told.count("evaluated") == 1


def test_interval_over_seeds():
    """Of 1, 2, 3: 2 -+ 4.3027 / sqrt(3), with Student's quantile for two degrees of freedom."""
    line = unipet.interval([1.0, 2.0, 3.0])
    assert line["mean"] == 2
    assert line["interval"] == pytest.approx([2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5], abs=1e-4)
    assert "interval" not in unipet.interval([1.0])


def test_second_stages_of_the_ablation_differ_by_one_switch_from_a_neighbor():
    own = unipet.GPU.own
    stages = unipet.second_stages(own)
    assert stages[unipet.FULL_METHOD] == own
    changes = {name: sum(a != b for a, b in zip(astuple(s), astuple(own), strict=True)) for name, s in stages.items()}
    assert changes == {
        "SAN, L1": 2, "SAN, aligned": 1, "SAN, aligned to the mean": 2, unipet.FULL_METHOD: 0, "UniPET, published mask": 1,
        "UniPET, no mask": 1, "UniPET, frozen base": 1,
    }  # fmt: skip
