"""The virtual NEMA NU 2-2018 bench: what a scanner of the library should measure, beside what was published.

Every test is a module of this package with a function `run(scanner, decays, seed, out)` that returns a list of `Figure`.
"""

from petsim.nema.bench import SLOW, TESTS, Figure, as_json, run_tests, table

__all__ = ["SLOW", "TESTS", "Figure", "as_json", "run_tests", "table"]
