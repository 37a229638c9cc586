"""Degradation matching, on images whose noise is known."""

import json
from dataclasses import replace
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from data_recipes.errors import DataError, UsageError
from denoise.data import read_split
from denoise.diffusion.anchors import digest_of, shares_of
from denoise.diffusion.calibration import (
    CalibrationRequest,
    anchors_of,
    calibrate,
    calibrate_folder,
    match_levels,
    noise_of_cases,
    read_calibration,
    times_without_pairs,
    write_calibration,
)
from denoise.diffusion.figure import anchors_figure
from denoise.diffusion.noise import draw_noise
from denoise.diffusion.schedule import NoiseSchedule
from denoise.diffusion.signature import Case, ratios_of_doses
from denoise.noise_level import noise_level
from denoise.scaling import Scaling
from petsim.noise import body_mask

SHAPE = (48, 44, 40)
LINEAR = NoiseSchedule("linear")
KNOWN = {2.0: 22.0, 4.0: 38.0, 10.0: 66.0}


def body(seed):
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    image = 1.0 * (x**2 / 0.6 + y**2 / 0.5 + z**2 / 0.9 < 1)
    cx, cy, cz = rng.uniform(-0.3, 0.3, 3)
    spot = (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < 0.06
    image = ndimage.gaussian_filter(image + 3.0 * spot, 0.8).astype(np.float32)
    return image, (image > 0.5).astype(np.uint8) + spot


def case(seed, noise, doses=KNOWN, schedule=LINEAR, scanner="toy"):
    """Images whose noise is that of known times; `noise` (x_0, generator) -> noise of unit variance in the body."""
    clean, labels = body(seed)
    rng = np.random.default_rng(1000 + seed)
    images = {d: clean + np.float32(schedule.ratio(t)) * noise(clean, rng) for d, t in doses.items()}
    return Case(
        f"toy-{seed}", scanner, lambda: clean, {d: partial(np.copy, v) for d, v in images.items()},
        lambda: (labels, {1: "liver", 2: "heart"}),
    )  # fmt: skip


def white(clean, rng):
    return rng.standard_normal(SHAPE).astype(np.float32)


def correlated(clean, rng, width=1.0, power=0.5):
    noise = ndimage.gaussian_filter(white(clean, rng), width, mode="wrap")
    scaled = np.maximum(ndimage.gaussian_filter(clean, 2), 0.02) ** power * noise
    return scaled / np.sqrt(np.square(scaled[body_mask(clean)]).mean())


def run(cases, by="both", schedule=LINEAR, colored=None, scaling=None):
    return calibrate(cases, schedule, scaling or Scaling(), colored, "noise-free", "simulated pairs", by)


@pytest.mark.parametrize("kind", ["linear", "cosine", "edm", "flow"])
def test_known_times_are_found_within_a_step(kind):
    """By NMAE, by SSIM and by both, on every schedule."""
    schedule = NoiseSchedule(kind)
    doses = {d: float(np.round(schedule.time_of(LINEAR.ratio(t)))) for d, t in KNOWN.items()}
    found = run([case(k, white, doses, schedule) for k in range(3)], schedule=schedule)
    for m in found.matches:
        for by in ("nmae", "ssim", "both"):
            assert m.times[by] == pytest.approx(doses[m.drf], abs=1.0), (m.drf, by)
        low, high = m.intervals["both"]
        assert low <= m.times["both"] <= high and high - low < 4
        assert m.organs["heart"] == pytest.approx(doses[m.drf], abs=4)
    assert not found.warnings


def test_known_times_with_intensities_scaled():
    """A scale only moves the times; what is matched is the same ratio of noise to image."""
    found = run([case(k, white) for k in range(3)], scaling=Scaling("linear", 4.0))
    for m in found.matches:
        assert LINEAR.ratio(m.times["both"]) == pytest.approx(LINEAR.ratio(KNOWN[m.drf]) / 4, rel=0.03)


@pytest.mark.parametrize(("width", "power"), [(2.0, 0.0), (0.6, 0.5)], ids=["correlated", "larger where activity is"])
def test_noise_that_is_not_white_is_reported(width, power):
    """SSIM sees less of correlated noise, and organs differ where noise goes with activity; the process with the measured
    covariance makes them agree again."""
    cases = [case(k, partial(correlated, width=width, power=power)) for k in range(4)]
    found = run(cases)
    assert sum("noise is not white: use the colored process" in w for w in found.warnings) >= 1
    again = run(cases, colored=noise_of_cases(cases, Scaling()))
    assert not any("noise" in w for w in again.warnings)
    for m in again.matches:
        assert m.times["ssim"] == pytest.approx(m.times["nmae"], rel=0.12)
        assert m.times["nmae"] == pytest.approx(KNOWN[m.drf], rel=0.08)


def test_two_runs_agree():
    cases = [case(k, white) for k in range(3)]
    assert run(cases).matches == run(cases).matches


def test_warnings():
    """Anchors that collapse, are out of order, or beyond the schedule."""
    close = run([case(k, white, {2.0: 30.0, 4.0: 31.0}) for k in range(2)], by="nmae")
    assert any("collapse" in w for w in close.warnings)
    swapped = run([case(k, white, {2.0: 60.0, 4.0: 30.0}) for k in range(2)])
    assert any("not ordered" in w for w in swapped.warnings)
    with pytest.raises(UsageError, match="--anchors"):
        anchors_of(swapped)
    # Half of the subjects twice as noisy as the others.
    mixed = [case(k, white, {2.0: 20.0 if k % 2 else 60.0}) for k in range(4)]
    assert any("over subjects" in w for w in run(mixed).warnings)


def test_scanners_apart():
    doses = {2.0: 40.0}
    cases = [case(0, white, doses), case(1, white, doses), case(2, white, {2.0: 80.0}, scanner="other")]
    found = run(cases)
    assert set(found.by_scanner) == {"toy", "other"}
    assert found.by_scanner["toy"][0].times["both"] == pytest.approx(40, abs=1)
    assert found.by_scanner["other"][0].times["both"] == pytest.approx(80, abs=1.5)


def test_ratios_by_noise_alone():
    for k in range(2):
        found = ratios_of_doses(case(k, white), Scaling(), None, 0)
        assert found == pytest.approx([float(LINEAR.ratio(t)) for t in KNOWN.values()], rel=0.02)


def test_file_round_trip_and_damage(tmp_path):
    found = run([case(k, white) for k in range(2)])
    path = tmp_path / "anchors.json"
    values = write_calibration(path, found)
    assert values["shares"] == pytest.approx(shares_of([m.times["both"] for m in found.matches], 1000))
    assert sum(values["shares"]) == pytest.approx(1)
    stored = read_calibration(path)
    assert stored.anchors == anchors_of(found) and stored.schedule == LINEAR and stored.reference == "noise-free"
    assert read_calibration(path, (2.0, 10.0)).anchors.drfs == (2.0, 10.0)
    assert stored.anchors.digest != digest_of(LINEAR, Scaling("linear", 2.0), None, "noise-free")
    assert stored.anchors.digest != digest_of(LINEAR, Scaling(), None, "full")
    with pytest.raises(UsageError, match="not 50"):
        read_calibration(path, (50.0,))
    with pytest.raises(DataError, match="no such file"):
        read_calibration(tmp_path / "absent.json")
    for change, says in (
        ({"schedule": {"kind": "cosine", "steps": 1000}}, "changed after the calibration"),
        ({"scaling": {"transform": "linear", "scale_suv": 3.0, "clip_suv": None}}, "changed after the calibration"),
        ({"format": "other"}, "format other"),
        ({"anchors": "none"}, "not a file of anchors"),
    ):
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(DataError, match=says):
            read_calibration(path)
    for text in ("", "[]", "{", "\x00"):
        path.write_text(text)
        with pytest.raises(DataError, match="not a file of anchors"):
            read_calibration(path)
    assert len(anchors_figure(found).axes) == 3


def request(**given):
    usual = dict.fromkeys(("data", "real", "target", "units"))
    return CalibrationRequest(**{**usual, "drf": (), "schedule": LINEAR, "scaling": Scaling(), "measured_noise": False,
                                 "by": "both", "seed": 0, **given})  # fmt: skip


def test_a_dataset(dataset):
    found = calibrate_folder(request(data=dataset))
    assert found.pairs == "simulated pairs" and [m.drf for m in found.matches] == [4.0, 20.0]
    ratio = LINEAR.ratio(np.array([m.times["nmae"] for m in found.matches]))
    # Noise goes as the root of the dose reduction against the truth, as the root of D - 1 against a nested full dose.
    assert ratio[1] / ratio[0] == pytest.approx(np.sqrt(20 / 4), rel=0.05)
    assert calibrate_folder(request(data=dataset, target="full")).reference == "full"


def write_challenge(folder, subjects=3):
    """As the challenge gives them out: a folder a subject, a file a dose; the full dose's counts are in the lower ones."""
    for k in range(subjects):
        clean, _ = body(k)
        rng = np.random.default_rng(k)
        full = clean + 0.03 * white(clean, rng)
        images = {"Full_dose": full} | {f"1-{d} dose": full + 0.03 * np.sqrt(d - 1) * white(clean, rng) for d in (2, 4, 10)}
        for name, image in images.items():
            path = folder / f"Surname-{k}" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(image.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0])), path)
    return folder


def test_a_folder_in_the_challenge_s_layout(tmp_path):
    """Against a full dose of noise s, DRF D has noise s sqrt(D - 1)."""
    folder = write_challenge(tmp_path / "scans")
    found = calibrate_folder(request(real=folder, units="suv"))
    assert found.reference == "full" and found.pairs == "pairs of a folder" and found.subjects == 3
    for m in found.matches:
        assert LINEAR.ratio(m.times["nmae"]) == pytest.approx(0.03 * np.sqrt(m.drf - 1), rel=0.02)
    text = json.dumps(write_calibration(tmp_path / "anchors.json", found))
    assert "Surname" not in text and "Surname" not in " ".join(found.warnings)


def test_refusals(tmp_path, dataset):
    folder = write_challenge(tmp_path / "scans", 1)
    with pytest.raises(UsageError, match="--target noise-free: scans have no noise-free image"):
        calibrate_folder(request(real=folder, target="noise-free", units="suv"))
    for given in ({}, {"data": dataset, "real": folder}):
        with pytest.raises(UsageError, match="--data"):
            calibrate_folder(request(**given))
    with pytest.raises(DataError, match="no image at DRF 50"):
        calibrate_folder(request(real=folder, drf=(50.0,), units="suv"))
    with pytest.raises(UsageError, match="--drf"):
        calibrate_folder(request(data=dataset, drf=(1.0,)))
    with pytest.raises(UsageError, match="--drf"):
        calibrate_folder(request(data=dataset, drf=(3.0,)))
    other = body(0)[0][:-4]
    odd = replace(case(0, white), images={2.0: lambda: other})
    with pytest.raises(DataError, match="voxels"):
        run([odd])


def test_noise_levels_alone():
    """White noise of a known level is found without pairs; correlated noise shows less of it, so times are too early."""
    clean = [body(k)[0] for k in range(2)]
    rng = np.random.default_rng(0)

    def levels(noise):
        return {
            d: [noise_level(c + np.float32(LINEAR.ratio(t)) * noise(c, rng), c).relative for c in clean]
            for d, t in KNOWN.items()
        }

    found = match_levels(levels(white), clean, LINEAR, Scaling())
    for drf, time in found.items():
        assert time == pytest.approx(KNOWN[drf], rel=0.08)
    early = match_levels(levels(correlated), clean, LINEAR, Scaling())
    assert all(early[d] < 0.7 * KNOWN[d] for d in KNOWN)
    with pytest.raises(UsageError, match="--transform log"):
        match_levels(levels(white), clean, LINEAR, Scaling("log"))
    with pytest.raises(DataError, match="check the unit"):
        match_levels({2.0: [1e-9]}, clean, LINEAR, Scaling())


def test_without_pairs(tmp_path, dataset):
    folder = write_challenge(tmp_path / "scans", 2)
    (folder / "Surname-0" / "Full_dose.nii.gz").unlink()
    values = times_without_pairs(request(data=dataset, real=folder, units="suv", drf=(10.0,)), tmp_path / "unpaired.json")
    assert [(line["drf"], line["images"]) for line in values["anchors"]] == [(10, 2)]
    assert read_calibration(tmp_path / "unpaired.json").anchors.drfs == (10.0,)
    with pytest.raises(UsageError, match="--unpaired"):
        times_without_pairs(request(real=folder), tmp_path / "unpaired.json")


def test_bodies_that_are_cut_off_are_no_reference_without_pairs(tmp_path, dataset, monkeypatch):
    folder = write_challenge(tmp_path / "scans", 2)
    cut = [replace(ladder, truncated=True) for ladder in read_split(dataset, "train", "full")]
    monkeypatch.setattr("denoise.diffusion.calibration.read_split", lambda *given: cut)
    with pytest.raises(DataError, match=r"cut off at the sides[^\n]+give whole images$"):
        times_without_pairs(request(data=dataset, real=folder, units="suv", drf=(10.0,)), tmp_path / "unpaired.json")
    assert not (tmp_path / "unpaired.json").exists()


def test_colored_process_matches_what_it_was_measured_on():
    """Noise drawn from the process itself is found at the times at which it was added."""
    cases = [case(k, correlated) for k in range(3)]
    colored = noise_of_cases(cases, Scaling())

    def own(clean, rng):
        return draw_noise(colored, torch.from_numpy(clean)[None, None], [int(rng.integers(1000))])[0, 0].numpy()

    for m in run([case(k, own) for k in range(3)], colored=colored).matches:
        for by in ("nmae", "ssim"):
            assert m.times[by] == pytest.approx(KNOWN[m.drf], rel=0.06)
