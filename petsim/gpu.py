"""A GPU through CuPy, which is imported when one is asked for, never before."""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.errors import DataError


def cuda_problem() -> str | None:
    """Why CUDA cannot be used here; None where it can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install 'petsim[gpu]')"
    import cupy  # pyright: ignore[reportMissingImports]

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA does not start ({error})"
    return None if count else "no CUDA device was found"


class Gpu:
    """What kernels need of CuPy. The tests put NumPy and kernels compiled as C++ in its place.

    Parameters
    ----------
    source : Path
        CUDA source of the kernels.
    *options : str
        Of the compiler.

    Raises
    ------
    DataError
        There is no CuPy or no CUDA device; with what to do about it.
    """

    def __init__(self, source: Path, *options: str) -> None:
        problem = cuda_problem()
        if problem is not None:
            raise DataError(f"cannot compute on a GPU: {problem}; mend that or use the numba backend")
        self.xp: Any = importlib.import_module("cupy")
        module = self.xp.RawModule(code=source.read_text(), options=("-std=c++17", *options))
        self._kernel = functools.cache(module.get_function)

    def launch(self, name: str, parameters: np.ndarray, blocks: int, threads: int, shared_floats: int = 0) -> None:
        """Run a kernel on the current device and stream."""
        if blocks:
            self._kernel(name)((blocks,), (threads,), (parameters,), shared_mem=4 * shared_floats)

    def pointer(self, array: Any) -> int:
        """Address of an array on the device."""
        return array.data.ptr

    def to_host(self, array: Any) -> np.ndarray:
        """NumPy copy of an array on the device."""
        return self.xp.asnumpy(array)


def fill(gpu: Any, parameters: np.ndarray, **values: Any) -> np.ndarray:
    """Set fields of a kernel's parameters; arrays on the device become pointers."""
    for name, value in values.items():
        parameters[name] = gpu.pointer(value) if isinstance(value, gpu.xp.ndarray) else value
    return parameters
