"""Scanners, and which line of response lies in which sinogram bin."""
