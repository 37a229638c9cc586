"""`verify` names what a dataset says of its counts and corrections and does not hold to; an honest one has no problem."""

import copy

import numpy as np
import pytest

from petsim.cache.schema import SubjectRecord
from petsim.cache.store import sha256_of, write_index, write_subject
from petsim.verify import verify

SHAPE = (6, 5, 4)
DRFS = (1.0, 4.0, 20.0)
ASKED = {"scanner": "made up", "corrections": "estimated", "randoms": "simulated", "scatter": "simulated", "drift": 0.01,
         "mu_shift": 1.0}  # fmt: skip
FITTED = {"scale": 1.1, "how": "fitted", "counts": 900.0}
FOUND = {
    "scatter_scales": [FITTED] * 4,
    "estimated_minus_true": {"mu_per_cm": 0.002, "normalization": 0.01, "singles": [0.02, 0.04, 0.08, 1e-5]},
}


def doses(trues, scatter, randoms, drawn=None):
    """Dose table of expected counts by dose, drawn without noise unless `drawn` prompts are given."""
    trues, scatter, randoms = (np.array(v)[:, None] for v in (trues, scatter, randoms))
    total = trues + scatter + randoms
    prompts = total if drawn is None else np.array(drawn)[:, None]
    nothing = np.full(total.shape, np.nan)
    return {"prompts": prompts, "trues": prompts - scatter - randoms, "scatter": scatter, "randoms": randoms,
            "nec": trues**2 / total, "mbq_s_per_kg": nothing, "liver_cov": nothing}  # fmt: skip


THIN = doses([600_000, 150_000, 30_000], [300_000, 75_000, 15_000], [100_000, 25_000, 5000])
DOSE = doses([600_000, 160_000, 33_000], [300_000, 80_000, 16_500], [100_000, 6000, 500])
# Dead time so long that a lower injection records more.
REGAINED = doses([600_000, 700_000, 180_000], [300_000, 350_000, 90_000], [100_000, 30_000, 2000])


def problems(folder, table=THIN, mode="thin", asked=ASKED, found=(FOUND,), live=(0.9, 0.97, 0.99), says="estimated"):
    """What `verify` finds in a dataset of one small subject."""
    image = np.ones(SHAPE, np.float32)
    provenance = {
        "truth_is_noisy": False, "realizations": "independent",
        "rates": [{"drf": d, "mean_live_fraction": v} for d, v in zip(DRFS, live, strict=True)],
        "reconstruction": {"corrections": says, "by_realization": list(found)},
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    write_subject(folder / "phantom-0000.h5", SubjectRecord(
        name="phantom-0000", shape=SHAPE, spacing_mm=(4.0, 4.0, 4.0), origin_mm=(0.0, 0.0, 0.0), suv_factor=None, drfs=DRFS,
        images=np.ones((3, 1, *SHAPE), np.float32), noise_free=image, activity=image, mu=0.096 * image, labels=None,
        sinogram=None, doses=table, label_names={}, mode=mode, seed=0, configuration=asked,
        configuration_sha256=sha256_of(asked), provenance=provenance, versions={}, license="CC0-1.0", origin="phantom",
    ))  # fmt: skip
    write_index(folder)
    return verify(folder)["problems"]


def only(found, *words):
    """There is one problem, and it says all words."""
    assert len(found) == 1, found
    for word in words:
        assert word in found[0]


def test_an_honest_dataset_has_no_problem(tmp_path):
    assert problems(tmp_path / "thin") == []
    assert problems(tmp_path / "dose", DOSE, "dose") == []
    assert problems(tmp_path / "window", DOSE, "window") == []


def test_thinned_counts_are_binomial_and_those_of_other_modes_are_not(tmp_path):
    only(problems(tmp_path, DOSE), "DRF 4, realization 0: 246000 counts, expected 250000 +- 433")
    off = THIN["prompts"][:, 0] + np.array([0, 7 * int(np.sqrt(250_000 * 0.75)), 0])
    table = doses(THIN["trues"][:, 0], THIN["scatter"][:, 0], THIN["randoms"][:, 0], off)
    assert any("DRF 4, realization 0" in p and "expected 250000 +- 433" in p for p in problems(tmp_path, table))


@pytest.mark.parametrize("mode", ["dose", "window"])
def test_counts_that_rise_with_drf_are_found(tmp_path, mode):
    rising = doses([600_000, 30_000, 30_100], [300_000, 15_000, 15_000], [100_000, 500, 500])
    only(problems(tmp_path, rising, mode), "DRF 20, realization 0: 45600 counts, more than the 45500 of DRF 4")


def test_regained_live_time_may_raise_counts(tmp_path):
    assert problems(tmp_path / "a", REGAINED, "dose", live=(0.4, 0.87, 0.97)) == []
    only(problems(tmp_path / "b", REGAINED, "dose", live=(0.4, 0.8, 0.97)), "DRF 4", "more than the 1000000 of DRF 1")
    assert any("more than" in p for p in problems(tmp_path / "c", REGAINED, "window", live=(0.4, 0.87, 0.97)))


@pytest.mark.parametrize("mode", ["thin", "window", "dose"])
def test_components_make_up_the_prompts(tmp_path, mode):
    table = copy.deepcopy(THIN)
    table["trues"][1, 0] += 1
    only(problems(tmp_path, table, mode), "DRF 4", "are 250001, not the 250000 prompts")


def test_nec_beyond_the_prompts_is_found(tmp_path):
    table = copy.deepcopy(THIN)
    table["nec"][2, 0] = 60_000.0
    found = problems(tmp_path, table)
    assert any("DRF 20, realization 0: NEC 60000 is more than the 50000 prompts" in p for p in found)
    # Without scatter and randoms NEC is the expected number of prompts, which fewer than that may be drawn.
    alone = doses([10_000, 2500, 500], [0, 0, 0], [0, 0, 0], [9900, 2475, 490])
    assert problems(tmp_path, alone) == []


@pytest.mark.parametrize("mode", ["window", "dose"])
def test_counts_follow_the_expectation_that_nec_and_the_rest_imply(tmp_path, mode):
    below = doses([600_000, 160_000, 33_000], [300_000, 80_000, 16_500], [100_000, 6000, 500], [1_000_000, 242_000, 50_000])
    only(problems(tmp_path, below, mode), "DRF 4", "242000 counts", "those of 246000")


def changed(**differences):
    return (FOUND | {"estimated_minus_true": FOUND["estimated_minus_true"] | differences},)


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (changed(singles=[0.0, 0.0, 0.0, 0.0]), "randoms"),
        (changed(singles=[0.02, 0.0, 0.08, 1e-5]), "randoms"),
        (changed(normalization=0.0), "normalization"),
        (changed(mu_per_cm=0.0), "the mu-map"),
        ((FOUND | {"scatter_scales": []},), "scatter"),
    ],
)
def test_estimated_corrections_that_are_the_oracles_are_found(tmp_path, found, name):
    only(problems(tmp_path, found=found), f"called estimated, but {name} equal the true ones")


def test_all_corrections_of_the_oracle_are_one_problem(tmp_path):
    found = (changed(singles=[0.0] * 4, normalization=0.0, mu_per_cm=0.0)[0] | {"scatter_scales": []},)
    only(problems(tmp_path, found=found), "randoms and scatter and normalization and the mu-map")


def test_only_what_was_asked_for_has_to_differ(tmp_path):
    found = (changed(singles=[0.0] * 4, normalization=0.0, mu_per_cm=0.0)[0] | {"scatter_scales": []},)
    nothing = ASKED | {"randoms": "none", "scatter": "none", "drift": 0.0, "mu_shift": 0.0}
    assert problems(tmp_path / "a", asked=nothing, found=found) == []
    assert problems(tmp_path / "b", asked=ASKED | {"corrections": "oracle"}, found=found, says="oracle") == []
    only(problems(tmp_path / "c", found=()), "how they were found is not recorded")
