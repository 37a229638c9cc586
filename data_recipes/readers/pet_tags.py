"""What the tags of a PET series say about tracer, times and decay, checked against each other."""

import math
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

import pydicom
from pydicom.valuerep import DA, DT, TM

from data_recipes.errors import DataError
from data_recipes.isotopes import Isotope
from data_recipes.readers.series import Slice, number, text
from data_recipes.readers.tracers import is_single_photon, resolve_isotope, tracer_name
from data_recipes.units import body_surface_m2, james_lean_body_mass_kg, lean_body_mass_kg

# Relative agreement asked of every slice's DecayFactor.
DECAY_TOLERANCE = 1e-4
# Acquisition times are often written in whole seconds.
CLOCK_S = 1.0
# After this many half-lives nobody scans: the injection time then lies after the scan.
LONGEST_UPTAKE_HALF_LIVES = 6
SMALLEST_DOSE_BQ = 1e5


@dataclass(frozen=True)
class Timing:
    """When a series was measured.

    Parameters
    ----------
    scan_start : datetime, optional
        To which DecayCorrection START refers.
    uptake_s : float, optional
        Seconds from injection to `scan_start`.
    notes : tuple of str
        Which tags were used.
    """

    scan_start: datetime | None
    uptake_s: float | None
    notes: tuple[str, ...]


def injected_item(item: Slice) -> pydicom.Dataset | None:
    """The one item of RadiopharmaceuticalInformationSequence, or None."""
    sequence = item.tags.get("RadiopharmaceuticalInformationSequence")
    if not sequence:
        return None
    if len(sequence) > 1:
        raise DataError(
            f"{item.file}: RadiopharmaceuticalInformationSequence has {len(sequence)} tracers; give a series with one"
        )
    return sequence[0]


def find_isotope(item: Slice, info: pydicom.Dataset | None) -> Isotope | None:
    """Isotope by RadionuclideCodeSequence and RadionuclideHalfLife; None when the tags say nothing."""
    if info is None:
        return None
    codes = info.get("RadionuclideCodeSequence")
    name = text(item, "CodeMeaning", codes[0]) if codes else ""
    try:
        if is_single_photon(text(item, "Radiopharmaceutical", info)):
            raise DataError("Radiopharmaceutical names a single-photon emitter: this is SPECT, not PET")
        return resolve_isotope(name, number(item, "RadionuclideHalfLife", info))
    except DataError as error:
        raise DataError(f"{item.file}: RadionuclideCodeSequence, RadionuclideHalfLife: {error}") from error


def find_tracer(item: Slice, info: pydicom.Dataset | None) -> str:
    """A known tracer's short name, or "unknown"."""
    if info is None:
        return "unknown"
    codes = info.get("RadiopharmaceuticalCodeSequence")
    meaning = text(item, "CodeMeaning", codes[0]) if codes else ""
    return tracer_name(f"{text(item, 'Radiopharmaceutical', info)} {meaning}")


def find_dose_mbq(item: Slice, info: pydicom.Dataset | None) -> float | None:
    """RadionuclideTotalDose in MBq; a value that is plainly in MBq already is refused."""
    dose = None if info is None else number(item, "RadionuclideTotalDose", info)
    if dose is None or dose == 0:
        return None
    if dose < SMALLEST_DOSE_BQ:
        raise DataError(f"{item.file}: RadionuclideTotalDose is {dose:g} Bq, plainly not in Bq (MBq?); give --activity-mbq")
    return dose * 1e-6


def find_weight_kg(item: Slice) -> float | None:
    """PatientWeight in kg; None when absent or zero."""
    weight = number(item, "PatientWeight")
    if weight is None or weight == 0:
        return None
    if not 0 < weight < 700:
        raise DataError(f"{item.file}: PatientWeight is {weight:g} kg; give --weight-kg")
    return weight


def body_for_suv(item: Slice, kind: str, weight_kg: float | None) -> float:
    """SUV by body weight over the SUV of a kind (DICOM SUVType), for this patient.

    SUV = concentration / activity x M, with M the weight, the lean body mass or the surface (in cm2; g and cm2 are taken for
    mL), so that the ratio is weight / M. Plain "LBM" does not tell which formula was used.

    Parameters
    ----------
    item : Slice
        Its tags PatientWeight, PatientSize and PatientSex are used.
    kind : str
        "BW", "LBMJANMA", "LBMJAMES128" or "BSA".
    weight_kg : float, optional
        What the user states.

    Raises
    ------
    DataError
        Another kind, or a tag that is missing or cannot be.
    """
    if kind == "BW":
        return 1.0
    if kind not in ("LBMJANMA", "LBMJAMES128", "BSA"):
        raise DataError(
            f"{item.file}: SUVType is {kind}; only BW, LBMJANMA, LBMJAMES128 and BSA can become Bq/mL: export the series in "
            "BQML"
        )
    weight = find_weight_kg(item) if weight_kg is None else weight_kg
    height, sex = number(item, "PatientSize"), text(item, "PatientSex")
    tags = (("PatientWeight", weight), ("PatientSize", height), ("PatientSex", kind == "BSA" or sex in ("M", "F")))
    missing = [tag for tag, value in tags if not value]
    if missing or weight is None or height is None:
        raise DataError(f"{item.file}: {missing[0]} is missing, which SUVType {kind} needs; export the series in BQML")
    try:
        if kind == "BSA":
            return weight * 1e3 / (body_surface_m2(weight, height) * 1e4)
        lean = lean_body_mass_kg if kind == "LBMJANMA" else james_lean_body_mass_kg
        return weight / lean(weight, height, sex)
    except ValueError as error:
        raise DataError(f"{item.file}: SUVType {kind}: {error}; export the series in BQML") from error


def philips_factor(slices: tuple[Slice, ...]) -> tuple[str, float]:
    """Unit and factor of a Philips series in counts: to Bq/mL by (7053,1009), else to SUV by body weight by (7053,1000).

    Both multiply values that were rescaled by slope and intercept; they are the same in all slices.

    Raises
    ------
    DataError
        Neither is there, or slices disagree.
    """
    for element, unit in ((0x09, "bqml"), (0x00, "suv")):
        factors = {_philips(item, element) for item in slices}
        if len(factors) > 1:
            raise DataError(f"{slices[0].file}: (7053,10{element:02X}) differs between slices; give one series only")
        factor = factors.pop()
        if factor is not None:
            return unit, factor
    raise DataError(
        f"{slices[0].file}: Units is CNTS and the scale factors of Philips, (7053,1009) and (7053,1000), are missing or 0; "
        "export the series in BQML (Bq/mL)"
    )


def _philips(item: Slice, element: int) -> float | None:
    try:
        value = item.tags.private_block(0x7053, "Philips PET Private Group")[element].value
    except KeyError:
        return None
    written = value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else str(value)
    try:
        factor = float(written)
    except ValueError:
        raise DataError(f"{item.file}: (7053,10{element:02X}) is not a number; repair the file") from None
    return factor if math.isfinite(factor) and factor > 0 else None


def decay_corrections(slices: tuple[Slice, ...], iso: Isotope | None, start: datetime | None) -> list[float]:
    """What values of every slice are multiplied with to be corrected for decay to scan start, see `check_decay_factors`.

    Raises
    ------
    DataError
        The isotope, a time or a duration is unknown.
    """
    factors = []
    for item in slices:
        moment, duration = _moment(item, "Acquisition"), duration_s(item)
        if iso is None or start is None or moment is None or duration is None:
            raise DataError(
                f"{item.file}: DecayCorrection is NONE, and the half-life, AcquisitionTime or ActualFrameDuration is "
                "missing; export the series decay-corrected to scan start"
            )
        told = number(item, "DecayFactor")
        if told is not None and abs(told - 1) > DECAY_TOLERANCE:
            raise DataError(f"{item.file}: DecayCorrection is NONE but DecayFactor is {told:g}; repair the tags")
        factors.append(math.exp(iso.decay_per_s * (moment - start).total_seconds()) * _mean_stretch(iso, duration))
    return factors


def find_timing(slices: tuple[Slice, ...], info: pydicom.Dataset | None, iso: Isotope | None,
                uptake_stated: bool = False) -> Timing:  # fmt: skip
    """Scan start and uptake time.

    Scan start is the series time if that is not later than the earliest acquisition, else a vendor's tag
    (GE (0009,100D), Siemens (0071,1022)), else the earliest acquisition: a series that was processed later has a late
    series time (QIBA FDG-PET profile, vendor-neutral SUV).

    Parameters
    ----------
    slices : tuple of Slice
        Of one series.
    info : Dataset, optional
        Item of RadiopharmaceuticalInformationSequence.
    iso : Isotope, optional
        Decides which uptake times are possible.
    uptake_stated : bool
        The user states the uptake time: the injection tags are not read.
    """
    first = slices[0]
    starts = [start for item in slices if (start := _moment(item, "Acquisition")) is not None]
    series = _moment(first, "Series")
    earliest = min(starts) if starts else None
    notes = []
    start = series
    if earliest is not None and (series is None or series > earliest):
        vendor = _vendor_start(first)
        start = earliest if vendor is None else vendor
        which = "the earliest AcquisitionTime" if vendor is None else "the vendor's scan start tag"
        notes.append(f"scan start is {which}: SeriesTime is missing or later")
    if start is None or info is None or uptake_stated:
        return Timing(start, None, tuple(notes))
    longest = math.inf if iso is None else LONGEST_UPTAKE_HALF_LIVES * iso.half_life_s
    exact = _datetime(first, text(first, "RadiopharmaceuticalStartDateTime", info), "RadiopharmaceuticalStartDateTime")
    clock = _time(first, text(first, "RadiopharmaceuticalStartTime", info), "RadiopharmaceuticalStartTime")
    if exact is not None:
        uptake = (start - exact).total_seconds()
        if 0 <= uptake <= longest:
            return Timing(start, uptake, tuple(notes))
        if clock is None:
            raise DataError(
                f"{first.file}: RadiopharmaceuticalStartDateTime lies {uptake:.0f} s before scan start, which cannot "
                "be for this isotope; repair the tag or give --uptake-s"
            )
        notes.append("RadiopharmaceuticalStartDateTime does not fit the scan: RadiopharmaceuticalStartTime is used")
    if clock is None:
        return Timing(start, None, tuple(notes))
    uptake = (start - datetime.combine(start.date(), clock)).total_seconds()
    if uptake < 0:
        uptake += 86400.0
        notes.append("injected before midnight, scanned after it")
    if uptake > longest:
        raise DataError(
            f"{first.file}: RadiopharmaceuticalStartTime lies after scan start, or {uptake:.0f} s before it, which "
            "cannot be for this isotope; repair the tag or give --uptake-s"
        )
    return Timing(start, uptake, tuple(notes))


def check_decay_factors(slices: tuple[Slice, ...], iso: Isotope, start: datetime | None, ahead_s: float) -> list[float]:
    """Check DecayFactor of every slice against half-life, frame start and duration.

    A frame that starts t after the reference and lasts T was corrected by exp(lambda t) lambda T /
    (1 - exp(-lambda T)), the inverse of the mean of exp(-lambda s) over the frame. Its start is AcquisitionTime where
    that explains all slices; else FrameReferenceTime, which some scanners (GE) fill with the start of the frame and
    others, as the standard has it (DICOM PS3.3 C.8.9.4.1.5), with the time at which activity equals its mean over the
    frame. One and the same reading has to explain every slice, and the earliest frame has to start with the earliest
    acquisition.

    Parameters
    ----------
    slices : tuple of Slice
        Of one series.
    iso : Isotope
        With the tag's half-life.
    start : datetime, optional
        Scan start.
    ahead_s : float
        Seconds from the time that the image is corrected to, until scan start: 0 for START, the uptake for ADMIN.

    Returns
    -------
    list of float
        DecayFactor by slice; empty when no slice has one.

    Raises
    ------
    DataError
        When a factor is missing or disagrees.
    """
    factors = [number(item, "DecayFactor") for item in slices]
    if all(f is None for f in factors):
        return []
    told: list[float] = []
    for item, factor in zip(slices, factors, strict=True):
        if factor is None or factor <= 0:
            raise DataError(f"{item.file}: DecayFactor is missing or not positive, unlike elsewhere; repair the file")
        told.append(factor)
    durations = [duration_s(item) for item in slices]
    for item, duration in zip(slices, durations, strict=True):
        if duration is None:
            raise DataError(f"{item.file}: ActualFrameDuration is missing, so that DecayFactor cannot be checked")
    lasts = [d for d in durations if d is not None]
    stretches = [_mean_stretch(iso, d) for d in lasts]
    worst: tuple[float, int, float] | None = None
    for starts in _frame_starts(slices, iso, start, lasts):
        wanted = [math.exp(iso.decay_per_s * (t + ahead_s)) * s for t, s in zip(starts, stretches, strict=True)]
        misses = [abs(f / w - 1) for f, w in zip(told, wanted, strict=True)]
        at = max(range(len(misses)), key=misses.__getitem__)
        if misses[at] <= DECAY_TOLERANCE:
            return told
        if worst is None or misses[at] < worst[0]:
            worst = (misses[at], at, wanted[at])
    if worst is None:
        raise DataError(
            f"{slices[0].file}: DecayFactor cannot be checked: AcquisitionTime and FrameReferenceTime are missing or "
            "do not fit scan start; repair the tags"
        )
    _, at, wanted_there = worst
    raise DataError(
        f"{slices[at].file}: DecayFactor is {told[at]:g}, but half-life, frame start and ActualFrameDuration give "
        f"{wanted_there:.5f}; repair the tags"
    )


def duration_s(item: Slice) -> float | None:
    """ActualFrameDuration in seconds; None when absent or zero."""
    milliseconds = number(item, "ActualFrameDuration")
    if milliseconds is None or milliseconds <= 0:
        return None
    return milliseconds * 1e-3


def _mean_stretch(iso: Isotope, duration: float) -> float:
    x = iso.decay_per_s * duration
    return -x / math.expm1(-x)


def _frame_starts(slices: tuple[Slice, ...], iso: Isotope, start: datetime | None, lasts: list[float]) -> list[list[float]]:
    readings: list[list[float]] = []
    moments = [_moment(item, "Acquisition") for item in slices]
    first: float | None = None
    if start is not None and all(m is not None for m in moments):
        by_clock = [(m - start).total_seconds() for m in moments if m is not None]
        readings.append(by_clock)
        first = min(by_clock)
    offsets = [number(item, "FrameReferenceTime") for item in slices]
    if all(o is not None for o in offsets):
        begins = [o * 1e-3 for o in offsets if o is not None]
        means = [t - math.log(_mean_stretch(iso, d)) / iso.decay_per_s for t, d in zip(begins, lasts, strict=True)]
        readings += [r for r in (begins, means) if first is None or abs(min(r) - first) <= CLOCK_S]
    return readings


def _moment(item: Slice, which: str) -> datetime | None:
    clock = _time(item, text(item, f"{which}Time"), f"{which}Time")
    if clock is None:
        return None
    written = text(item, f"{which}Date")
    try:
        day = DA(written) if written else None
    except ValueError as error:
        raise DataError(f"{item.file}: {which}Date is not a date; repair the file") from error
    return datetime.combine(date(1900, 1, 1) if day is None else day, clock)


def _time(item: Slice, written: str, tag: str) -> time | None:
    if not written:
        return None
    try:
        clock = TM(written)
    except ValueError as error:
        raise DataError(f"{item.file}: {tag} is not a time; repair the file") from error
    return None if clock is None else clock.replace(tzinfo=None)


def _datetime(item: Slice, written: str, tag: str) -> datetime | None:
    if not written:
        return None
    try:
        moment = DT(written)
    except ValueError as error:
        raise DataError(f"{item.file}: {tag} is not a date and time; repair the file") from error
    if moment is None:
        return None
    offset = moment.utcoffset()
    local = text(item, "TimezoneOffsetFromUTC")
    shift = timedelta(0)
    if offset is not None and local:
        try:
            zone = datetime.strptime(local, "%z").utcoffset()
        except ValueError as error:
            raise DataError(f"{item.file}: TimezoneOffsetFromUTC is not an offset; repair the file") from error
        shift = (zone or timedelta(0)) - offset
    return datetime.combine(moment.date(), moment.time()) + shift


def _vendor_start(item: Slice) -> datetime | None:
    for group, creator, element, name in (
        (0x0009, "GEMS_PETD_01", 0x0D, "GE (0009,100D)"),
        (0x0071, "SIEMENS MED PT", 0x22, "Siemens (0071,1022)"),
    ):
        try:
            value = item.tags.private_block(group, creator)[element].value
        except KeyError:
            continue
        written = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
        moment = _datetime(item, written.strip().strip("\0"), name)
        if moment is not None:
            return moment
    return None
