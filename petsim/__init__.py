"""petsim: what a PET scanner would have recorded at each dose, and the images it would have shown."""

__version__ = "0.1.0"
