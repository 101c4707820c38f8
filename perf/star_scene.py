"""Stars for the benchmarks of the kernels: Gaussians on a jittered lattice."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

REACH = 6  # standard deviations to which a star's light is added


class Stars(NamedTuple):
    """Their light (side, side) float32, and which pixels have any."""

    light: np.ndarray
    touched: np.ndarray


def add_stars(rng, side: int, spacing: int, sigma: float, peaks: tuple[float, float]) -> Stars:
    """One star in every square of ``spacing`` pixels, log-uniform in ``peaks``."""
    light = np.zeros((side, side), np.float32)
    half = int(np.ceil(REACH * sigma))
    offset = np.arange(-half, half + 1)
    places = np.arange(half + 1, side - half - 1, spacing)
    for y, x in np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2):
        dy, dx = rng.uniform(-0.5, 0.5, 2)
        down, along = (np.exp(-0.5 * ((offset - d) / sigma) ** 2) for d in (dy, dx))
        peak = np.exp(rng.uniform(*np.log(peaks)))
        light[y - half : y + half + 1, x - half : x + half + 1] += (peak * down[:, None] * along).astype(np.float32)
    return Stars(light, light > 0)
