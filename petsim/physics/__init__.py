"""Factors of the acquisition model, one module each."""
