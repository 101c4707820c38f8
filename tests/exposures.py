"""A science exposure, its template and their difference on one grid, of Gaussian stars with known truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scenes import SKY, gaussian_psf, stars

from nightstream.engine.values import Exposure, ExposureInfo, MaskedImage
from nightstream.kernels.wcs import Wcs

NJY_PER_ELECTRON = 2.5
INFO = ExposureInfo(
    visit=2026112200123,
    detector=94,
    camera="simulator",
    kind="science",
    band="r",
    exposure_time_s=30.0,
    dark_time_s=30.0,
    midpoint_mjd_tai=61000.25,
)


class Epochs(NamedTuple):
    difference: Exposure
    science: Exposure
    template: Exposure


def exposure(target, planes, njy_per_unit=NJY_PER_ELECTRON) -> Exposure:
    """``planes`` with a TAN WCS, a Gaussian PSF and a photometric scale, on the target."""
    ny, nx = planes[0].shape
    wcs = Wcs.tan(150.0, -30.0, (nx - 1) / 2, (ny - 1) / 2, 0.2, angle_deg=20.0)
    pixels = MaskedImage(*(target.array(p) for p in planes))
    return Exposure(info=INFO, pixels=pixels, wcs=wcs, psf=gaussian_psf(target), njy_per_unit=njy_per_unit)


def epochs(target, rng, shape, now, then, mask=None) -> Epochs:
    """Two epochs of stars ``(x, y, flux)`` in electrons, with Poisson noise, and their difference."""
    images = [(rng.poisson(stars(shape, *s) + SKY)).astype(np.float32) for s in (now, then)]
    mask = np.zeros(shape, np.int32) if mask is None else mask
    planes = [(image - np.float32(SKY), mask, image) for image in images]
    subtracted = (planes[0][0] - planes[1][0], mask, planes[0][2] + planes[1][2])
    return Epochs(*(exposure(target, p) for p in (subtracted, *planes)))
