"""The contest of `benchmarks.cross_dose` at its smallest size, from patients to the result."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
