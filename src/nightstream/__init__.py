"""Nightstream: raw telescope images to difference-image sources, on GPUs."""

__version__ = "0.1.0"
