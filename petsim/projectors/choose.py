"""Which backend projects."""

from typing import Any

from data_recipes.errors import DataError, UsageError
from petsim.gpu import cuda_problem

BACKENDS = ("auto", "numba", "cuda", "parallelproj")


def choose_backend(backend: str = "auto", device: str = "auto") -> tuple[str, str]:
    """Resolve what the user asked for.

    Parameters
    ----------
    backend : str
        One of `BACKENDS`.
    device : str
        "auto", "cpu" or "cuda".

    Returns
    -------
    name, reason : str
        "numba", "cuda" or "parallelproj", and why.

    Raises
    ------
    UsageError
        A backend and a device that contradict each other, or an unknown name.
    DataError
        A backend that was asked for and cannot run here.
    """
    if backend not in BACKENDS:
        raise UsageError(f"--backend: '{backend}' is not known; known are {', '.join(BACKENDS)}")
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device: '{device}' is not known; known are auto, cpu, cuda")
    on = {"numba": "cpu", "parallelproj": "cpu", "cuda": "cuda"}.get(backend, device)
    if device not in ("auto", on):
        raise UsageError(f"--backend {backend} does not run on --device {device}; leave one of them out")
    if backend == "parallelproj":
        from petsim.projectors.parallelproj import load_library

        return backend, f"asked for; {load_library().how}"
    if on == "cpu":
        return "numba", "asked for"
    problem = cuda_problem()
    if problem is None:
        return "cuda", "asked for" if on == "cuda" else "a CUDA device is there"
    if on == "cuda":
        raise DataError(f"--device cuda: {problem}; mend that or use --device cpu")
    return "numba", problem


def projector_class(backend: str) -> Any:
    """The class, a `petsim.projectors.contract.SinogramOperator`, of a backend that may still be "auto"."""
    name, _ = choose_backend(backend)
    if name == "cuda":
        from petsim.projectors.cuda import CudaProjector

        return CudaProjector
    if name == "parallelproj":
        from petsim.projectors.parallelproj import ParallelprojProjector

        return ParallelprojProjector
    from petsim.projectors.sinogram import SinogramProjector

    return SinogramProjector
