"""Generated patients."""
