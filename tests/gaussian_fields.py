"""Fields of Gaussian stars whose width changes over the image, with known truth: pairs of exposures for subtraction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nightstream.kernels.psf import FWHM_PER_SIGMA, PsfModel, polynomial_terms

ORDER = 4  # of the PSF model: follows a width that changes by a quarter to 1e-4 of the peak
STAMP = 25


class Planes(NamedTuple):
    image: np.ndarray
    mask: np.ndarray
    variance: np.ndarray


def width(x, fwhm, gradient, n):
    """Sigma in pixels of a star at column ``x``: ``fwhm`` in the middle, changing by ``gradient`` of it from left to right."""
    return fwhm / FWHM_PER_SIGMA * (1 + gradient * (np.asarray(x) / (n - 1) - 0.5))


def render(shape, x, y, flux, fwhm, gradient=0.0) -> np.ndarray:
    """Noiseless float64 image of Gaussians sampled at pixel centres."""
    light = np.zeros(shape)
    for a, b, f in zip(x, y, flux, strict=True):
        s = width(a, fwhm, gradient, shape[1])
        rows, columns = (slice(max(int(c) - 24, 0), int(c) + 25) for c in (b, a))
        yy, xx = np.arange(shape[0])[rows, None], np.arange(shape[1])[None, columns]
        light[rows, columns] += f * np.exp(-0.5 * ((xx - a) ** 2 + (yy - b) ** 2) / s**2) / (2 * np.pi * s**2)
    return light


def expose(light, sky, seed, noise=None) -> Planes:
    """Planes of ``light`` on a subtracted ``sky``, with their true variance; ``noise`` replaces the white unit noise."""
    variance = light + sky
    unit = np.random.default_rng(seed).normal(0, 1, light.shape) if noise is None else noise
    image = light + np.sqrt(variance) * unit
    return Planes(image.astype(np.float32), np.zeros(light.shape, np.int32), variance.astype(np.float32))


def psf_model(fwhm, gradient, shape, size=STAMP) -> PsfModel:
    """The PSF of `render`, as a polynomial of the position where it changes."""
    if gradient == 0:
        return PsfModel.gaussian(fwhm / FWHM_PER_SIGMA, size)
    half_y, half_x = ((n - 1) / 2 for n in shape)
    y, x = (c.ravel() for c in np.meshgrid(*(np.linspace(0, 2 * h, 9) for h in (half_y, half_x)), indexing="ij"))
    offset = np.arange(size) - size // 2
    profile = np.exp(-0.5 * (offset[None] / width(x, fwhm, gradient, shape[1])[:, None]) ** 2)
    stamps = profile[:, :, None] * profile[:, None, :]
    stamps /= stamps.sum(axis=(1, 2), keepdims=True)
    terms = polynomial_terms(x / half_x - 1, y / half_y - 1, ORDER)
    coefficients = np.linalg.lstsq(terms, stamps.reshape(len(x), -1), rcond=None)[0]
    return PsfModel(coefficients.reshape(-1, size, size), ORDER, half_x, half_y, half_x, half_y)


def scattered(seed, n, shape, low, high, border=30):
    """``n`` positions x, y away from the border and fluxes, log-uniform from ``low`` to ``high``."""
    rng = np.random.default_rng(seed)
    x, y = (rng.uniform(border, side - border, n) for side in (shape[1], shape[0]))
    return x, y, np.exp(rng.uniform(np.log(low), np.log(high), n))


def on_lattice(shape, spacing):
    """Positions x, y of the pixels ``spacing`` apart, half of that from the border, float64."""
    y, x = np.meshgrid(*(np.arange(spacing // 2, side, spacing) for side in shape), indexing="ij")
    return x.ravel().astype(float), y.ravel().astype(float)


def coloured(seed, shape, taps=(0.2, 0.7, 0.3)):
    """Unit noise through a small separable kernel, and its autocorrelation stamp: what warping does."""
    a = np.array(taps) / np.linalg.norm(taps)
    white = np.random.default_rng(seed).normal(0, 1, (shape[0] + 2, shape[1] + 2))
    rows = sum(w * white[i : i + shape[0]] for i, w in enumerate(a))
    lags = np.convolve(a, a[::-1])
    return sum(w * rows[:, i : i + shape[1]] for i, w in enumerate(a)), np.outer(lags, lags)


def independent_values(score) -> float:
    """How many independent values a stationary image of unit scatter holds: N / sum of its squared autocorrelation."""
    spectrum = np.abs(np.fft.rfft2(score)) ** 2
    correlation = np.fft.irfft2(spectrum, s=score.shape)
    core = np.fft.fftshift(correlation / correlation[0, 0])[tuple(slice(n // 2 - 12, n // 2 + 13) for n in score.shape)]
    return float(score.size / np.sum(core**2))


def expected_peaks(score, threshold) -> float:
    """Maxima above ``threshold`` in a Gaussian random field like ``score`` (Euler characteristic), on pixels.

    With curvature c = -rho''(0), from neighbours' mean squared differences, the density is c u exp(-u^2 / 2) / (2 pi)^1.5; a
    maximum lies on average r^2 = 1/6 from the nearest pixel, where the field is lower by c r^2 / 2.
    """
    steps = np.mean(np.diff(score, axis=0) ** 2), np.mean(np.diff(score, axis=1) ** 2)
    c = np.mean(steps) / np.mean(score**2)
    u = threshold * (1 + c / 12)
    return float(score.size * c * u * np.exp(-(u**2) / 2) / (2 * np.pi) ** 1.5)
