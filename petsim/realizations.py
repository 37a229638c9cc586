"""Noise realizations of a planned subject: counts drawn from expected ones, and their reconstruction.

What realizations share (expected counts, sensitivities) is kept from one to the next.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from petsim.acquisition import COMPONENTS, AcquisitionModel
from petsim.corrections import Estimator, differences, drawn_delayeds, first_iteration, oracle
from petsim.counts import CountStream, Storage, draw_by_component, draw_thinned
from petsim.dose import DoseLadder
from petsim.event_updates import cheapest
from petsim.physics.randoms import DelayedWindow
from petsim.plan import Plan
from petsim.reconstruct import Corrections, Reconstructor, Surroundings
from petsim.settings import SimulationSettings
from petsim.simulated_events import EventWriter


@dataclass(frozen=True)
class Realization:
    """One draw of the noise at all doses.

    Parameters
    ----------
    images : ndarray
        float32 (dose, x, y, z) in Bq/mL at scan start.
    noise_free : ndarray, optional
        float32 (x, y, z): the same reconstruction of the expected counts.
    prompts : ndarray
        int64 (dose,), as drawn.
    expected : ndarray
        float64 (dose, component), by `petsim.acquisition.COMPONENTS`.
    sinogram : ndarray, optional
        uint16 (dose, view, radial, tof, plane).
    corrections : dict
        How the estimated ones came out; JSON types.
    """

    images: np.ndarray
    noise_free: np.ndarray | None
    prompts: np.ndarray
    expected: np.ndarray
    sinogram: np.ndarray | None
    corrections: dict[str, Any]

    def nec(self, dose: int) -> float:
        """Noise-equivalent counts T^2 / (T + S + R) as expected, randoms from a smooth estimate (NEMA NU 2-2018, k = 1)."""
        trues, total = float(self.expected[dose, 0]), sum(self.expected[dose].tolist())
        return trues**2 / total if total > 0 else 0.0


class Realizations:
    """Makes realizations of a subject, each a function of the seed and its number.

    Parameters
    ----------
    plan : Plan
    settings : SimulationSettings
    model : AcquisitionModel
        Of both.
    storage : Storage
        Where counts and expected counts are held.
    around : callable, optional
        Number of a realization -> what other bed positions tell, by image.
    """

    def __init__(
        self, plan: Plan, settings: SimulationSettings, model: AcquisitionModel, storage: Storage,
        around: Callable[[int], Surroundings] | None = None,
    ) -> None:  # fmt: skip
        self._plan, self._settings, self._model, self._storage = plan, settings, model, storage
        self._around = around
        self._recording = _Recording(model, settings.mode, hold=bool(storage.expected_bytes))
        self.estimator = Estimator.of(plan, settings, model) if settings.corrections == "estimated" else None
        self._window = DelayedWindow.of(plan.layout) if settings.randoms == "simulated" else None
        self._reconstructors: dict[int, tuple[Corrections, Reconstructor]] = {}

    @property
    def updates(self) -> int:
        """Updates of the images that a realization takes."""
        # Scatter is found in the first iteration; where that is the only one, it is done again with it.
        iterations = self._plan.preset.iterations
        return self._plan.preset.subsets * (max(2, iterations) if self._settings.finds_scatter else iterations)

    def reconstructor(self, images: int) -> tuple[Corrections, Reconstructor]:
        """True corrections of so many images, and a reconstructor that starts with what the scanner would know."""
        if images not in self._reconstructors:
            true = oracle(self._plan, self._model, images)
            if self._reconstructors and max(self._reconstructors) > images:
                # Sensitivities of every dose and subset are the most that a reconstruction holds.
                recon = self._reconstructors[max(self._reconstructors)][1].of_first(images)
            else:
                start = true if self.estimator is None else self.estimator.start(true)
                recon = Reconstructor(self._plan, self._model.operator, start, self._settings.models_psf)
            self._reconstructors[images] = true, recon
        return self._reconstructors[images]

    def make(
        self, number: int, noise_free: bool = False, sinogram: bool = False, step: Callable[[], None] = lambda: None,
        listmode: Path | None = None,
    ) -> Realization:  # fmt: skip
        """A realization.

        Parameters
        ----------
        number : int
        noise_free : bool
            Reconstruct the expected counts too.
        sinogram : bool
            Return the counts too.
        step : callable
            Called after each of the `updates`.
        listmode : Path, optional
            Folder for list-mode files of all doses.
        """
        plan, estimator = self._plan, self.estimator
        drfs = self._settings.ladder()
        ladder = DoseLadder(drfs, self._settings.seed, plan.noise_name, number)
        wanted = len(drfs) + noise_free
        true, recon = self.reconstructor(wanted)
        order = list(range(plan.preset.subsets))
        with CountStream(partial(self._recording.draw, ladder), self._storage.counts, plan.images_at_once) as stream:

            def data(views: np.ndarray, images: Sequence[int] = range(wanted)) -> Iterator[np.ndarray]:
                yield from stream.read(views, [k for k in images if k < len(drfs)])
                if noise_free:
                    yield self._recording.expected(views)[None]

            if estimator is not None and self._window is not None:
                rates = estimator.randoms(self._window, ladder, wanted)
                recon = recon.believing(replace(recon.corrections, rates=rates))
            if estimator is not None and self._around is not None:
                seen = estimator.seen(self._around(number))
                recon = recon.believing(replace(recon.corrections, surroundings=seen))
            raw, left = None, plan.preset.iterations
            if self._settings.finds_scatter:
                recon, first = first_iteration(recon, data, step)
                if left > 1:
                    raw, left = first, left - 1
            with cheapest(recon, data, stream, self._storage) as em_back:
                raw = recon.finish(recon.run(em_back, order * left, step, raw, 0 if raw is None else len(order)))
            if listmode is not None:
                self._write_events(listmode, number, recon, stream, ladder)
            return Realization(
                images=raw[: len(drfs)],
                noise_free=raw[-1] if noise_free else None,
                prompts=stream.totals(),
                expected=self._recording.sums(),
                sinogram=_sinogram(plan, recon, stream, len(drfs)) if sinogram else None,
                corrections={
                    "scatter_scales": list(recon.corrections.scatter_scales),
                    "estimated_minus_true": differences(recon.corrections, true),
                },
            )

    def _write_events(
        self, folder: Path, number: int, recon: Reconstructor, stream: CountStream, ladder: DoseLadder
    ) -> None:
        with EventWriter(folder, self._plan, self._settings, self._model, number) as writer:
            for subset in range(self._plan.preset.subsets):
                for views in recon.groups(subset):
                    writer.add(views, np.concatenate([stack.astype(np.uint16) for stack in stream.read(views)]))
            if self._window is not None:
                writer.add_delayeds(self._window, drawn_delayeds(self._window, self._model.rates, ladder))
            writer.finish()


def _sinogram(plan: Plan, recon: Reconstructor, stream: CountStream, doses: int) -> np.ndarray:
    counts = np.empty((doses, *plan.layout.shape), np.uint16)
    for subset in range(plan.preset.subsets):
        for views in recon.groups(subset):
            first = 0
            for stack in stream.read(views):
                counts[first : first + len(stack), views] = stack
                first += len(stack)
    return counts


class _Recording:
    """Expected counts at full dose, held where memory allows, and the counts drawn from them.

    Parameters
    ----------
    model : AcquisitionModel
    mode : str
        Of the dose ladder.
    hold : bool
        Keep expected counts.
    """

    def __init__(self, model: AcquisitionModel, mode: str, hold: bool) -> None:
        self._model, self._mode, self._hold = model, mode, hold
        self._held: dict[bytes, np.ndarray] = {}
        self._sums: dict[bytes, np.ndarray] = {}
        self._buffer: np.ndarray | None = None

    def expected(self, views: np.ndarray) -> np.ndarray:
        """Expected prompts at full dose, float32 (views, radial, tof, plane)."""
        group = views.tobytes()
        if group in self._held:
            return self._held[group]
        counts, sums = self._model.expected_and_totals(views)
        if self._mode == "thin":
            self._sums[group] = np.stack([sums.sum(axis=0) / r.drf for r in self._model.rates])
        if self._hold:
            self._held[group] = counts
        return counts

    def draw(self, ladder: DoseLadder, views: np.ndarray) -> np.ndarray:
        """Counts at all doses, uint16 (dose, views, radial, tof, plane); the next call may overwrite them."""
        if self._mode == "thin":
            expected = self.expected(views)
            shape = (len(ladder.drfs), *expected.shape)
            if self._buffer is None or self._buffer.shape != shape:
                self._buffer = np.empty(shape, np.uint16)
            return draw_thinned(ladder, expected, views, self._buffer)
        components = self._model.components(views)
        kept = {name: [self._model.kept(views, name, d) for d in range(len(ladder.drfs))] for name in COMPONENTS}
        over_tof = {name: c.sum(axis=2, dtype=np.float64) for name, c in components.items()}
        self._sums[views.tobytes()] = np.array(
            [[(over_tof[name] * kept[name][d]).sum() for name in COMPONENTS] for d in range(len(ladder.drfs))]
        )
        return draw_by_component(ladder, components, kept, views)

    def sums(self) -> np.ndarray:
        """Expected counts by dose and component, float64 (dose, 3), in all views that were drawn."""
        return np.sum(list(self._sums.values()), axis=0)
