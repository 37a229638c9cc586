"""Linear operators, image to sinogram, with exact adjoints."""
