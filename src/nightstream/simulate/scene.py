"""Light onto pixels: point sources, trails and galaxies seen through a point-spread function, in
electrons."""

from __future__ import annotations

import functools

import numpy as np

from nightstream.engine.values import Table
from nightstream.simulate.psf import MoffatPsf, moffat

HALF_LIGHT_OVER_SCALE = 1.6783469900166605  # of an exponential disc: (1 + x) exp(-x) = 1/2
TRAIL_STEP_PIX = 0.5
GALAXY_STAMPS_PIX = (
    64,
    128,
)  # sides; a galaxy takes the second if its half-light radius exceeds 1/16 of the first


def draw_points(image: np.ndarray, points: Table, psf: MoffatPsf, noise: float) -> None:
    """Add point sources to ``image`` (electron, changed in place).

    ``points`` has ``x, y`` (pixels, 0-based centres), ``electrons`` and ``trail_x, trail_y``, the way in
    pixels that the source moves during the exposure, centred on x, y. ``noise`` (electron a pixel) sets how
    far wings are drawn.
    """
    ny, nx = image.shape
    for x, y, electrons, trail_x, trail_y in zip(
        *(points[name] for name in ("x", "y", "electrons", "trail_x", "trail_y")), strict=True
    ):
        half = psf.half_size(electrons, noise) if electrons > 0 else 0
        if half == 0 or not (-half <= x < nx + half and -half <= y < ny + half):
            continue
        steps = trail_steps(trail_x, trail_y)
        for step in steps:
            ix, iy, stamp = psf.stamp(x + step * trail_x, y + step * trail_y, half)
            add_stamp(image, ix, iy, stamp * (electrons / len(steps)))


def trail_steps(trail_x: float, trail_y: float) -> np.ndarray:
    """Return positions along a trail, as fractions of it from -0.5 to 0.5, at most half a pixel apart."""
    count = 1 + int(np.ceil(np.hypot(trail_x, trail_y) / TRAIL_STEP_PIX))
    return (np.arange(count) + 0.5) / count - 0.5


def draw_galaxies(image: np.ndarray, galaxies: Table, psf: MoffatPsf) -> None:
    """Add exponential galaxies to ``image`` (electron, changed in place).

    ``galaxies`` has ``x, y, electrons, half_light_pix, e1, e2``; the ellipticity is a reduced shear on pixel
    axes.
    """
    ny, nx = image.shape
    columns = (galaxies[name] for name in ("x", "y", "electrons", "half_light_pix", "e1", "e2"))
    for x, y, electrons, half_light, e1, e2 in zip(*columns, strict=True):
        side = GALAXY_STAMPS_PIX[int(half_light > GALAXY_STAMPS_PIX[0] / 16)]
        half = side // 2
        if not (-half <= x < nx + half and -half <= y < ny + half):
            continue
        ix, iy = int(np.rint(x)), int(np.rint(y))
        stamp = galaxy_stamp(x, y, half_light, e1, e2, psf, side)
        add_stamp(image, ix, iy, stamp * electrons)


def galaxy_stamp(x: float, y: float, half_light: float, e1: float, e2: float, psf: MoffatPsf, side: int) -> np.ndarray:
    """Return a PSF-convolved exponential disc of unit flux; pixel [side // 2, side // 2] is (rint(y),
    rint(x)).

    The disc's transform is exact, (1 + k^2 h^2)^(-3/2) with scale length h; the PSF's is that of its stamp.
    """
    ky, kx = _wave_numbers(side)
    fwhm, p1, p2 = psf.parameters(x, y)
    offset = np.arange(side) - side // 2
    dx, dy = offset + (np.rint(x) - x), offset + (np.rint(y) - y)
    profile = moffat(dx[None, :], dy[:, None], fwhm, p1, p2, psf.beta)
    norm = half_light / HALF_LIGHT_OVER_SCALE / np.sqrt(1.0 - e1 * e1 - e2 * e2)
    qx, qy = norm * ((1.0 + e1) * kx + e2 * ky), norm * ((1.0 - e1) * ky + e2 * kx)
    disc = (1.0 + qx * qx + qy * qy) ** -1.5
    return np.fft.irfft2(np.fft.rfft2(profile) * disc, s=(side, side))


@functools.cache
def _wave_numbers(side: int) -> tuple[np.ndarray, np.ndarray]:
    return 2.0 * np.pi * np.fft.fftfreq(side)[:, None], 2.0 * np.pi * np.fft.rfftfreq(side)[None, :]


def add_stamp(image: np.ndarray, ix: int, iy: int, stamp: np.ndarray) -> None:
    """Add ``stamp`` to ``image`` in place, its pixel [n // 2, n // 2] at (iy, ix); what falls outside is
    lost."""
    ny, nx = image.shape
    height, width = stamp.shape
    x0, y0 = ix - width // 2, iy - height // 2
    left, right = max(x0, 0), min(x0 + width, nx)
    low, high = max(y0, 0), min(y0 + height, ny)
    if right > left and high > low:
        image[low:high, left:right] += stamp[low - y0 : high - y0, left - x0 : right - x0]
