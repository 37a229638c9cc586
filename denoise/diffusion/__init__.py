"""Diffusion and flow models: schedules, samplers, and anchors on their time axis."""
