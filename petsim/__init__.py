"""petsim: what a PET scanner would have recorded at each dose, and the images it would have shown."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petsim.api import simulate
    from petsim.projectors.projector import Projector

__all__ = ["Projector", "simulate"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `petsim --help` does not wait for numba.
    if name == "simulate":
        from petsim.api import simulate

        return simulate
    if name == "Projector":
        from petsim.projectors.projector import Projector

        return Projector
    raise AttributeError(f"module 'petsim' has no attribute '{name}'")
