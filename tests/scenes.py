"""Small scenes of Gaussian stars with known truth, and PSF models on any target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nightstream.kernels.psf import PsfModel

SIGMA = 2.0  # pixels
SKY = 100.0  # electron: the variance of empty sky


def gaussian_psf(target=None, sigma_pix=SIGMA, size=25) -> PsfModel:
    """The Gaussian PSF, its coefficients on ``target``."""
    psf = PsfModel.gaussian(sigma_pix, size)
    return psf if target is None else replace(psf, coefficients=target.array(psf.coefficients))


def stars(shape, x, y, flux, psf=None) -> np.ndarray:
    """Noiseless float64 image of point sources."""
    psf = psf or gaussian_psf()
    half = psf.size // 2
    wide = np.zeros((shape[0] + 2 * half, shape[1] + 2 * half))
    for a, b, f, stamp in zip(x, y, flux, psf.stamps(np.asarray(x), np.asarray(y)), strict=True):
        column, row = int(np.rint(a)), int(np.rint(b))
        wide[row : row + psf.size, column : column + psf.size] += f * stamp
    return wide[half : half + shape[0], half : half + shape[1]]


def lattice(rng, n_side, spacing):
    """Positions (x, y) on a lattice of ``spacing``, each at a random place within its central pixel, and the
    shape."""
    x, y = (a.ravel() for a in np.meshgrid(*[(np.arange(n_side) + 0.5) * spacing] * 2))
    return x + rng.uniform(-0.5, 0.5, x.size), y + rng.uniform(-0.5, 0.5, x.size), (n_side * spacing,) * 2


def noisy(rng, light, sky=SKY):
    """(image, mask, variance) of ``light`` on a subtracted sky; the variance is made from the noisy image
    itself."""
    counts = rng.poisson(np.maximum(light + sky, 0.0))
    image = (counts - sky).astype(np.float32)
    return image, np.zeros(light.shape, np.int32), np.maximum(counts, 1).astype(np.float32)


def blank(rng, shape, variance=1.0):
    """(image, mask, variance) of empty sky with Gaussian noise."""
    image = rng.normal(0, np.sqrt(variance), shape).astype(np.float32)
    return image, np.zeros(shape, np.int32), np.full(shape, variance, np.float32)


def flux_of_snr(snr, sky=SKY, sigma=SIGMA):
    """Flux of a star with this S/N, sky and own photons counted, in an optimal fit (own photons
    approximately)."""
    area = 4 * np.pi * sigma**2
    return (snr**2 + np.sqrt(snr**4 + 4 * snr**2 * area * sky)) / 2
