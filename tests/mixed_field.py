"""A field of stars, galaxies and blends of known truth, for the choice of PSF stars."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from starfield import flux_of_snr, fwhm_at, moffat

from nightstream.kernels.detection import detect
from nightstream.kernels.psf import FWHM_PER_SIGMA, PsfModel

FWHM = 3.5  # pixels
SKY = 200.0  # electron
BRIGHTER_FATTER = 0.003  # growth of ln(size) a unit of ln(flux)
SHEAR = 0.03, -0.02  # of the PSF


class MixedField(NamedTuple):
    """Planes, sky subtracted; every source's place, S/N, flux and whether it is a star; the peaks that detection finds."""

    image: np.ndarray
    mask: np.ndarray
    variance: np.ndarray
    x: np.ndarray
    y: np.ndarray
    snr: np.ndarray
    flux: np.ndarray
    is_star: np.ndarray
    peak_x: np.ndarray
    peak_y: np.ndarray

    def nearest(self, x, y):
        """Index of the source nearest to each x, y, and the distance to it."""
        distance = np.hypot(np.asarray(x)[:, None] - self.x, np.asarray(y)[:, None] - self.y)
        return distance.argmin(axis=1), distance.min(axis=1)

    def good_stars(self, min_snr, isolation_pix, margin_pix):
        """Which sources are stars above ``min_snr``, alone and not at the border."""
        ny, nx = self.image.shape
        inside = (np.minimum(self.x, nx - 1 - self.x) > margin_pix) & (np.minimum(self.y, ny - 1 - self.y) > margin_pix)
        return self.is_star & (self.snr > min_snr) & self.is_alone(isolation_pix) & inside

    def is_alone(self, radius_pix):
        """Which sources have no other within the radius that has 3 % of their flux."""
        near = np.hypot(self.x[:, None] - self.x, self.y[:, None] - self.y) < radius_pix
        return (near & (self.flux > 0.03 * self.flux[:, None])).sum(axis=1) == 1


def mixed_field(seed, *, n=1024, n_stars=250, n_galaxies=250, n_companions=60) -> MixedField:
    """Stars and as many galaxies, both log-uniform in S/N from 20 to 2000, and companions 2 to 7 pixels from some.

    Stars follow the PSF of `starfield` and grow by 0.3 % an e-fold of flux. Galaxies are that PSF widened in quadrature by
    a log-normal size about 2.5 pixels (half of them between 1.7 and 3.7) FWHM, sheared by 0.2 in any direction.
    """
    rng = np.random.default_rng(seed)
    n_single = n_stars + n_galaxies
    is_star = np.r_[np.ones(n_stars, bool), np.zeros(n_galaxies, bool), np.ones(n_companions, bool)]
    x, y = rng.uniform(5, n - 5, (2, is_star.size))
    host = rng.choice(n_single, n_companions, replace=False)
    distance, angle = rng.uniform(2, 7, n_companions), rng.uniform(0, 2 * np.pi, n_companions)
    x[n_single:], y[n_single:] = x[host] + distance * np.cos(angle), y[host] + distance * np.sin(angle)
    snr = np.exp(rng.uniform(np.log(20), np.log(2000), is_star.size))
    snr[n_single:] = snr[host] * rng.uniform(0.2, 0.9, n_companions)
    flux = flux_of_snr(snr, FWHM, SKY)
    width = fwhm_at(x, y, n, FWHM) * (1 + BRIGHTER_FATTER * np.log(flux / np.median(flux)))
    width = np.hypot(width, np.where(is_star, 0, 2.5 * np.exp(rng.normal(0, 0.6, x.size))))
    g1, g2 = (s + np.where(is_star, 0, rng.normal(0, 0.14, x.size)).clip(-0.35, 0.35) for s in SHEAR)
    light, (rows, columns) = np.zeros((n, n)), np.indices((n, n))
    for a, b, f, w, c, s in zip(x, y, flux, width, g1, g2, strict=True):
        box = np.s_[max(int(b) - 40, 0) : int(b) + 41, max(int(a) - 40, 0) : int(a) + 41]
        light[box] += f * moffat(columns[box] - a, rows[box] - b, w, c, s)
    counts = rng.poisson(light + SKY).astype(np.float32)
    planes = counts - np.float32(SKY), np.zeros((n, n), np.int32), np.maximum(counts, 1)
    peaks = detect(*planes, PsfModel.gaussian(4.0 / FWHM_PER_SIGMA).coefficients[0], polarity="positive")
    return MixedField(*planes, x, y, snr, flux, is_star, peaks.x, peaks.y)
