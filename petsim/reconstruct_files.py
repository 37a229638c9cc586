"""`petsim reconstruct`: list-mode files and sinograms to NIfTI images at full dose."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_recipes.errors import DataError, UsageError
from data_recipes.subject import Injection
from petsim.cache.store import make_folder, whole_or_nothing
from petsim.nifti_file import write_nifti
from petsim.output_grid import check_output, on_grid
from petsim.rawdata.formats import is_listmode, open_listmode
from petsim.recorded import plan_recorded, reconstruct_recorded
from petsim.settings import ReadOptions, SimulationSettings
from petsim.workers import Report


def reconstruct_files(
    sources: Sequence[str], out: Path, settings: SimulationSettings, options: ReadOptions, budget_bytes: float,
    report: Report = lambda subject, what, fraction: None,
) -> dict[str, Any]:  # fmt: skip
    """Reconstruct every source.

    Parameters
    ----------
    sources : sequence of str
        List-mode files or sinograms, see `petsim.rawdata.formats`.
    out : Path
        Folder for `<subject>.nii.gz` in Bq/mL at scan start and `<subject>.json` with PET-BIDS names and all settings, so
        that the image can go on into make-dataset.
    settings : SimulationSettings
        Their doses are not looked at.
    options : ReadOptions
    budget_bytes : float
    report : callable

    Returns
    -------
    dict
        images: name, file, prompts, warnings.

    Raises
    ------
    UsageError, DataError
        Before anything is reconstructed where a source is no raw data or is not there.
    """
    if not sources:
        raise UsageError("SOURCE: name list-mode files or sinograms, see petsim thin; --list-presets lists presets")
    images = [path for path in sources if not is_listmode(Path(path))]
    if images:
        raise UsageError(f"SOURCE: {Path(images[0]).name} is no list-mode file or sinogram; see petsim thin")
    if settings.grid is not None:
        check_output(settings.grid, 1, budget_bytes)
    make_folder(out)
    made: list[dict[str, Any]] = []
    for k, path in enumerate(sources):
        job = f"source-{k + 1}"
        report(job, "reading", 0.0)
        source = open_listmode(Path(path), settings.scanner)
        plan = plan_recorded(source, settings, options)
        if plan.subject.name in [one["name"] for one in made]:
            raise DataError(f"{Path(path).name}: holds the same events as a source before it; give each once")
        subject, result = reconstruct_recorded(
            source, plan, settings, options, budget_bytes, False,
            lambda what, fraction, job=job: report(job, what, fraction),
        )  # fmt: skip
        if settings.grid is not None:
            result = on_grid(result, subject, settings.grid)
        file = write_nifti(out, subject.name, result.images[0, 0], result.grid.affine)
        with whole_or_nothing(out / f"{subject.name}.json") as temporary:
            sidecar = {**_bids(subject.injection), "petsim": {"preset": settings.preset, **result.provenance}}
            temporary.write_text(json.dumps(sidecar, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        made.append({"name": subject.name, "file": file, "prompts": result.counts[0]["prompts"],
                     "from_events": bool(result.provenance["reconstruction"]["from_events_drf"]),
                     "warnings": result.provenance["warnings"]})  # fmt: skip
    return {"images": made}


def _bids(injection: Injection) -> dict[str, Any]:
    """What is known of the injection, by the names that `data_recipes.readers.sidecar` reads."""
    known = {
        "Units": "Bq/mL", "TracerRadionuclide": injection.isotope, "TracerName": injection.tracer,
        "ImageDecayCorrected": True, "FrameDuration": None if injection.duration_s is None else [injection.duration_s],
        "BodyWeight": injection.weight_kg, "InjectedRadioactivity": injection.injected_mbq,
        "InjectedRadioactivityUnits": None if injection.injected_mbq is None else "MBq",
    }  # fmt: skip
    if injection.uptake_s is not None:
        known |= {"InjectionStart": -injection.uptake_s, "ScanStart": 0.0, "ImageDecayCorrectionTime": 0.0}
    return {key: value for key, value in known.items() if value is not None}
