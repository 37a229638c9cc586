"""Small DICOM series for the readers' tests."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

PET_SOP = "1.2.840.10008.5.1.4.1.1.128"
CT_SOP = "1.2.840.10008.5.1.4.1.1.2"
HALF_LIFE_S = 6588.0
FRAME_S = 240.0
LAMBDA = math.log(2) / HALF_LIFE_S


def factor(start_s: float, lasts_s: float = FRAME_S) -> float:
    """Decay correction of a frame: 1 over the mean of exp(-lambda t), by a fine midpoint sum."""
    t = start_s + (np.arange(20000) + 0.5) * lasts_s / 20000
    return float(1 / np.exp(-LAMBDA * t).mean())


def pet_slice(k: int, stored: np.ndarray, z_mm: float) -> Dataset:
    """One slice of a GE-like FDG series with every tag that matters; `stored` is (row, column)."""
    ds = _image_slice(k, stored, z_mm, "PT", PET_SOP)
    ds.RescaleSlope = str(1.0 + k)
    ds.Units, ds.DecayCorrection = "BQML", "START"
    ds.CorrectedImage = ["DECY", "ATTN"]
    ds.SeriesType = ["STATIC", "IMAGE"]
    ds.SeriesDate = ds.AcquisitionDate = "20200907"
    ds.SeriesTime = ds.AcquisitionTime = "112011.00"
    ds.FrameReferenceTime, ds.ActualFrameDuration = "0", str(int(FRAME_S * 1000))
    ds.DecayFactor = f"{factor(0.0):.6g}"
    ds.PatientWeight = "70"
    info, code = Dataset(), Dataset()
    info.Radiopharmaceutical = "FDG -- fluorodeoxyglucose"
    info.RadiopharmaceuticalStartTime = "102011.00"
    info.RadionuclideTotalDose = "370000000"
    info.RadionuclideHalfLife = str(HALF_LIFE_S)
    code.CodeMeaning = "18F"
    info.RadionuclideCodeSequence = Sequence([code])
    ds.RadiopharmaceuticalInformationSequence = Sequence([info])
    return ds


def ct_slice(k: int, stored: np.ndarray, z_mm: float) -> Dataset:
    """One CT slice at 120 kV; HU = stored - 1024."""
    ds = _image_slice(k, stored, z_mm, "CT", CT_SOP)
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType, ds.KVP = "1", "-1024", "HU", "120"
    return ds


def _image_slice(k: int, stored: np.ndarray, z_mm: float, modality: str, sop: str) -> Dataset:
    ds = Dataset()
    ds.Modality, ds.SOPClassUID = modality, sop
    ds.SOPInstanceUID, ds.SeriesInstanceUID = f"1.2.3.{k + 1}", "1.2.3"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Secret^Person", "ID-4711", "19610203"
    ds.InstitutionName, ds.StudyDescription = "Hidden Hospital", "Secret^Study"
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [-10.0, -20.0, z_mm]
    ds.PixelSpacing = [5.0, 4.0]
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleIntercept = "0"
    ds.PixelData = stored.astype("<u2").tobytes()
    return ds


def write_series(folder: Path, slices: list[Dataset], name: Callable[[int], str] = "slice{:02d}.dcm".format) -> Path:
    """Write slices as Explicit VR Little Endian files, `name(k)` each."""
    folder.mkdir(exist_ok=True)
    for k, ds in enumerate(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = FileDataset(str(folder / name(k)), ds, preamble=b"\0" * 128, file_meta=meta)
        file.save_as(folder / name(k), enforce_file_format=True)
    return folder
