"""Rounding of pixels to a fraction of their noise, which makes them compress well."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from nightstream.engine.memory import to_host
from nightstream.engine.values import MaskedImage
from nightstream.errors import InputError


def round_to_noise(pixels: MaskedImage, steps_per_sigma: int) -> tuple[MaskedImage, float]:
    """Return ``pixels`` with the image rounded to a multiple of a step, and the step.

    The step is the largest power of two not above sigma / ``steps_per_sigma``, sigma^2 the median of the variance
    plane; values stay plain float32, need no decoder, and are wrong by half a step at most. The noise variance grows
    by step^2 / 12. An image without a finite variance is left alone, with step 0.
    """
    if steps_per_sigma < 1:
        raise InputError(f"steps_per_sigma must be at least 1, got {steps_per_sigma}")
    image, variance = to_host(pixels.image), to_host(pixels.variance)
    known = variance[np.isfinite(variance) & (variance > 0)]
    if not known.size:
        return pixels, 0.0
    step = 2.0 ** math.floor(math.log2(math.sqrt(float(np.median(known))) / steps_per_sigma))
    rounded = np.rint(image / np.float32(step)) * np.float32(step)
    return dataclasses.replace(pixels, image=rounded), step
