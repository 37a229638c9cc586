"""Reconstruction: counts to images."""
