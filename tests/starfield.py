"""Star fields of known truth for tests: Moffat stars of varying width on a flat sky, with Poisson noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BETA = 3.2
SKY = 200.0  # electron


class StarField(NamedTuple):
    image: np.ndarray  # float32, sky subtracted
    mask: np.ndarray
    variance: np.ndarray
    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray


def moffat(dx, dy, fwhm, g1=0.03, g2=-0.02):
    """Unit-flux sheared Moffat profile at offsets dx, dy."""
    radius = fwhm / (2 * np.sqrt(2 ** (1 / BETA) - 1))
    k = 1 / np.sqrt(1 - g1 * g1 - g2 * g2)
    xs, ys = k * ((1 - g1) * dx - g2 * dy), k * (-g2 * dx + (1 + g1) * dy)
    return (BETA - 1) / (np.pi * radius**2) * (1 + (xs * xs + ys * ys) / radius**2) ** -BETA


def fwhm_at(x, y, n, fwhm):
    """The width of a star at x, y: up to 14 % above ``fwhm`` in one corner."""
    u, v = 2 * x / n - 1, 2 * y / n - 1
    return fwhm * (1 + 0.05 * u + 0.035 * v + 0.03 * (u * u + v * v))


def flux_of_snr(snr, fwhm, sky=SKY):
    """Flux of a star with this S/N in an optimal fit, sky and its own noise counted."""
    area = 4 * np.pi * (fwhm / 2.355) ** 2 * 1.25
    return (snr**2 + np.sqrt(snr**4 + 4 * snr**2 * area * sky)) / 2


def true_stamps(x, y, n, fwhm, size=25):
    """Unit-sum PSF stamps around the nearest pixel."""
    offset = np.arange(size) - size // 2
    stamps = [
        moffat(offset[None] - (a - np.rint(a)), offset[:, None] - (b - np.rint(b)), fwhm_at(a, b, n, fwhm))
        for a, b in zip(x, y, strict=True)
    ]
    return np.array([s / s.sum() for s in stamps])


def star_field(rng, *, n=256, fwhm=3.5, per_side=6, snr=(200.0, 1000.0), sky=SKY) -> StarField:
    """``per_side`` squared stars on a jittered lattice, log-uniform in S/N."""
    step = n / per_side
    x, y = (a.ravel() for a in np.meshgrid(*[(np.arange(per_side) + 0.5) * step] * 2))
    x, y = (a + rng.uniform(-step / 6, step / 6, a.size) for a in (x, y))
    flux = flux_of_snr(np.exp(rng.uniform(*np.log(snr), x.size)), fwhm, sky)
    rows, columns = np.indices((n, n))
    light = np.zeros((n, n))
    for a, b, f in zip(x, y, flux, strict=True):
        box = np.s_[max(int(b) - 40, 0) : int(b) + 41, max(int(a) - 40, 0) : int(a) + 41]
        light[box] += f * moffat(columns[box] - a, rows[box] - b, fwhm_at(a, b, n, fwhm))
    counts = rng.poisson(light + sky).astype(np.float32)
    mask = np.zeros((n, n), dtype=np.int32)
    return StarField(counts - np.float32(sky), mask, np.maximum(counts, 1).astype(np.float32), x, y, flux)
