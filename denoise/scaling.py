"""Between SUV and the numbers that a network sees."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from data_recipes.errors import UsageError

Transform = Literal["linear", "log", "anscombe"]


@dataclass(frozen=True)
class Scaling:
    """Odd, monotonic and invertible; a network's number of about 1 is `scale_suv`.

    Parameters
    ----------
    transform : str
        With s = SUV / scale_suv: "linear" s; "log" sign(s) log(1 + |s|); "anscombe" sign(s) 2 (sqrt(|s| + 3/8) -
        sqrt(3/8)), which brings the spread of Poisson-like noise nearer to a constant (Anscombe 1948, doi
        10.1093/biomet/35.3-4.246).
    scale_suv : float
    clip_suv : float, optional
        SUV are cut at plus and minus this before the transform, which alone is not invertible; None keeps all.
    """

    transform: Transform = "linear"
    scale_suv: float = 1.0
    clip_suv: float | None = None

    def __post_init__(self) -> None:
        if not self.scale_suv > 0 or (self.clip_suv is not None and not self.clip_suv > 0):
            raise UsageError("--scale-suv and --clip-suv must be positive")

    def to_network(self, suv: torch.Tensor) -> torch.Tensor:
        """Network numbers of SUV."""
        if self.clip_suv is not None:
            suv = suv.clamp(-self.clip_suv, self.clip_suv)
        s = suv / self.scale_suv
        if self.transform == "log":
            return s.sign() * s.abs().log1p()
        if self.transform == "anscombe":
            return s.sign() * 2 * ((s.abs() + _BESIDE).sqrt() - math.sqrt(_BESIDE))
        return s

    def to_suv(self, numbers: torch.Tensor) -> torch.Tensor:
        """Inverse of `to_network`."""
        if self.transform == "log":
            return numbers.sign() * numbers.abs().expm1() * self.scale_suv
        if self.transform == "anscombe":
            return numbers.sign() * ((numbers.abs() / 2 + math.sqrt(_BESIDE)) ** 2 - _BESIDE) * self.scale_suv
        return numbers * self.scale_suv

    def numbers_of(self, suv: np.ndarray) -> np.ndarray:
        """`to_network` of an array, float32."""
        return self.to_network(torch.from_numpy(np.ascontiguousarray(suv, np.float32))).numpy()

    def suv_of(self, numbers: np.ndarray) -> np.ndarray:
        """`to_suv` of an array, float32."""
        return self.to_suv(torch.from_numpy(np.ascontiguousarray(numbers, np.float32))).numpy()


_BESIDE = 3 / 8
