"""How pixel values become grey: robust limits and the asinh stretch. Pure; knows no plotting library."""

from __future__ import annotations

import numpy as np

SIGMA_PER_MAD = 1.4826


def level_and_noise(image: np.ndarray) -> tuple[float, float]:
    """Return the median and the MAD-based standard deviation of the finite pixels; (0, 1) if there are none."""
    finite = image[np.isfinite(image)]
    if finite.size == 0:
        return 0.0, 1.0
    level = float(np.median(finite))
    noise = SIGMA_PER_MAD * float(np.median(np.abs(finite - level)))
    return level, noise if noise > 0 else 1.0


def asinh_stretch(image: np.ndarray, level: float, noise: float, top: float) -> np.ndarray:
    """Return ``image`` on 0 .. 1: linear near the noise, logarithmic above; ``top`` (same unit as image) becomes 1.

    1.5 noise below ``level`` is 0. NaN stays NaN. After Lupton et al. 2004, PASP 116, 133.
    """
    scaled = np.arcsinh((image - level + 1.5 * noise) / (3.0 * noise))
    highest = np.arcsinh(max(top - level + 1.5 * noise, 3.0 * noise) / (3.0 * noise))
    return np.clip(scaled / highest, 0.0, 1.0)
