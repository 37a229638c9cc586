"""A derived PET DICOM series: the tags of a source series around new values."""

import copy
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from data_recipes.errors import DataError, UsageError
from data_recipes.readers.pet_tags import find_timing
from data_recipes.readers.series import Slice, number, text

FILE_NAME = "denoised-{:04d}.dcm"
FILE_PATTERN = r"denoised-\d{4,}\.dcm"
# Largest stored value: it fits signed and unsigned 16 bits.
LEVELS = 32767
SERIES_OFFSET = 1000
# The most that a DICOM long string (LO) and short text (ST) may hold.
LONGEST_SERIES_DESCRIPTION = 64
LONGEST_DERIVATION_DESCRIPTION = 1024

# Wrong once the values are new: what describes the source's stored integers, its making, its look or its signature.
_STALE = (
    "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "SmallestImagePixelValue", "LargestImagePixelValue",
    "SmallestPixelValueInSeries", "LargestPixelValueInSeries", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RealWorldValueMappingSequence", "IconImageSequence", "InstanceCreationDate", "InstanceCreationTime",
    "InstanceCreatorUID", "DigitalSignaturesSequence", "MACParametersSequence",
)  # fmt: skip


def strip_source(slices: list[Slice]) -> tuple[Slice, ...]:
    """Reduce the tags of a series, in place, to what a derived series keeps.

    Private tags go. Where one of them told the scan start, to which values are decay-corrected, SeriesDate and
    SeriesTime take it over.

    Parameters
    ----------
    slices : list of Slice
        Of one series, with pixel data.

    Returns
    -------
    tuple of Slice
        The same, without pixel data.

    Raises
    ------
    DataError
        When a UID that a derived series has to refer to is missing or repeated, or dates cannot be read.
    """
    seen: dict[str, str] = {}
    for item in slices:
        for tag in ("SOPClassUID", "SeriesInstanceUID", "SOPInstanceUID"):
            if not text(item, tag):
                raise DataError(f"{item.file}: {tag} is missing, so that no series can refer to it; export the series again")
        uid = str(item.tags.SOPInstanceUID)
        if uid in seen:
            raise DataError(f"{item.file}: SOPInstanceUID is that of {seen[uid]} too; export the series again")
        seen[uid] = item.file
    stripped = tuple(slices)
    start = find_timing(stripped, None, None).scan_start
    for item in stripped:
        item.tags.remove_private_tags()
        for tag in _STALE:
            if tag in item.tags:
                del item.tags[tag]
    if start is not None and find_timing(stripped, None, None).scan_start != start:
        for item in stripped:
            item.tags.SeriesDate, item.tags.SeriesTime = start.strftime("%Y%m%d"), start.strftime("%H%M%S.%f")
    return stripped


def write_derived(folder: Path, slices: tuple[Slice, ...], values: np.ndarray, *, series_description: str,
                  derivation_description: str, uid_key: str) -> None:  # fmt: skip
    """Write a file per slice.

    Every slice has its own slope, its largest absolute value over 32767, and no intercept, as PET has it: values come
    back to half a slope.

    Parameters
    ----------
    folder : Path
        Exists and is empty.
    slices : tuple of Slice
        As `strip_source` gives them.
    values : ndarray
        float32 (i, j, slice), finite, in the source's unit; i runs along columns, j along rows, slices as in `slices`.
    series_description, derivation_description : str
        What a reader of the series sees.
    uid_key : str
        With the source's UIDs it decides the new ones: the same series and key give the same UIDs.

    Raises
    ------
    UsageError
        For a description that its tag cannot hold.
    """
    _check_text("SeriesDescription", series_description, LONGEST_SERIES_DESCRIPTION)
    _check_text("DerivationDescription", derivation_description, LONGEST_DERIVATION_DESCRIPTION)
    first = slices[0]
    sources = [str(item.tags.SOPInstanceUID) for item in slices]
    series_uid = generate_uid(entropy_srcs=["\n".join([uid_key, str(first.tags.SeriesInstanceUID), *sources])])
    series_number = SERIES_OFFSET + int(number(first, "SeriesNumber") or 0)
    signed = bool(values.min() < 0)
    for k, (item, source) in enumerate(zip(slices, sources, strict=True)):
        tags = Dataset()
        # Elements that the next write, or the caller, finds in the source must not change with those of the result.
        tags.update(copy.deepcopy(item.tags))
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = tags.SOPClassUID, source
        tags.SourceImageSequence = Sequence([reference])
        tags.SOPInstanceUID = generate_uid(entropy_srcs=[f"{series_uid}\n{source}"])
        tags.SeriesInstanceUID, tags.SeriesNumber = series_uid, series_number
        tags.ImageType = ["DERIVED", "SECONDARY"]
        tags.SeriesDescription, tags.DerivationDescription = series_description, derivation_description
        stored, tags.RescaleSlope = _quantize(values[:, :, k].T)
        tags.RescaleIntercept = "0"
        tags.BitsAllocated, tags.BitsStored, tags.HighBit, tags.PixelRepresentation = 16, 16, 15, int(signed)
        tags.add_new("PixelData", "OW", stored.tobytes())
        tags.file_meta = FileMetaDataset()
        tags.file_meta.MediaStorageSOPClassUID = tags.SOPClassUID
        tags.file_meta.MediaStorageSOPInstanceUID = tags.SOPInstanceUID
        tags.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        tags.save_as(folder / FILE_NAME.format(k + 1), enforce_file_format=True)


def _quantize(plane: np.ndarray) -> tuple[np.ndarray, str]:
    peak = float(np.abs(plane).max())
    # The text, not the exact quotient, is what a reader multiplies by.
    slope = format_number_as_ds(peak / LEVELS) if peak > 0 else "1"
    return np.rint(plane.astype(np.float64) / float(slope)).astype("<i2"), slope


def _check_text(tag: str, written: str, longest: int) -> None:
    if len(written) > longest or not written.isascii() or not written.isprintable() or "\\" in written:
        raise UsageError(f"{tag} '{written}' does not fit its tag; give at most {longest} ASCII characters, no backslash")
