"""The basis of a matching kernel: Gaussians times polynomials (Alard & Lupton 1998), and stamps convolved
with it.

One function sums to 1 and all others to 0, so that one coefficient is the photometric scale. Functions come
in the order of their degree and are orthonormal, so that the first n of them are a smaller basis of the same
kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nightstream.kernels.psf import FWHM_PER_SIGMA
from nightstream.kernels.target import array_module

COMPARABLE_SIGMAS = (0.7, 1.5, 3.0)  # pixels, for PSFs of nearly equal size
SMALLEST_SIGMA = 0.7
SIZE_LIMITS = (21, 35)  # pixels, odd


@dataclass(frozen=True, slots=True, eq=False)
class GaussianBasis:
    """``images`` (n, size, size) float64; ``profiles`` (m, size) and the pairs of them whose products, mixed
    by
    ``mixing`` (n, n), are the images: what `convolve_stamps` needs to stay separable."""

    images: Any
    profiles: Any
    pairs: tuple[tuple[int, int], ...]  # (row profile, column profile)
    mixing: Any
    degrees: tuple[int, ...]  # of each function

    @property
    def size(self) -> int:
        return self.images.shape[1]

    def count_to_degree(self, degree: int) -> int:
        """Number of leading functions with no more than ``degree``."""
        return sum(d <= degree for d in self.degrees)


def choose_sigmas(source_fwhm_pix: float, target_fwhm_pix: float, n: int = 3) -> tuple[float, ...]:
    """Return the widths of the Gaussians, pixels, each twice the one before, from the two PSF sizes.

    The core of the kernel has sigma^2 = |target^2 - source^2|; where that is small, a fixed list.
    """
    core = np.sqrt(abs(target_fwhm_pix**2 - source_fwhm_pix**2)) / FWHM_PER_SIGMA
    if core < SMALLEST_SIGMA:
        return COMPARABLE_SIGMAS[:n]
    first = max(SMALLEST_SIGMA, core / 2)
    return tuple(float(first * 2**i) for i in range(n))


def choose_size(sigmas: tuple[float, ...]) -> int:
    """Return the odd side of the kernel, 6 times the widest sigma within the limits."""
    low, high = SIZE_LIMITS
    return int(np.clip(2 * int(np.ceil(3 * max(sigmas))) + 1, low, high))


def gaussian_basis(sigmas, degrees, size, *, xp=np) -> GaussianBasis:
    """Return the basis of ``sigmas`` with polynomials up to ``degrees`` each, on ``size`` x ``size``
    pixels."""
    offset = (np.arange(size) - size // 2).astype(np.float64)
    profiles, index = [], {}
    for g, (sigma, degree) in enumerate(zip(sigmas, degrees, strict=True)):
        for power in range(degree + 1):
            index[g, power] = len(profiles)
            profiles.append((offset / sigma) ** power * np.exp(-0.5 * (offset / sigma) ** 2))
    functions = sorted((px + py, g, px, py) for g, d in enumerate(degrees) for px in range(d + 1) for py in range(d + 1 - px))
    profiles = np.stack(profiles)
    pairs = tuple((index[g, py], index[g, px]) for _, g, px, py in functions)
    raw = np.stack([np.outer(profiles[row], profiles[column]) for row, column in pairs])
    mixing = _sum_one_then_orthonormal(raw)
    images = np.tensordot(mixing, raw, 1)
    degree_of = tuple(f[0] for f in functions)
    return GaussianBasis(xp.asarray(images), xp.asarray(profiles), pairs, xp.asarray(mixing), degree_of)


def _sum_one_then_orthonormal(raw) -> np.ndarray:
    """Return the lower triangular matrix that makes function 0 sum to 1 and the rest sum to 0,
    orthonormal."""
    sums = raw.sum(axis=(1, 2))
    mixing = np.diag(np.r_[1 / sums[0], np.ones(len(raw) - 1)])
    mixing[1:, 0] = -sums[1:] / sums[0]
    flat = (mixing @ raw.reshape(len(raw), -1))[1:]
    _, r = np.linalg.qr(flat.T)
    mixing[1:] = np.linalg.solve(r.T, mixing[1:])
    return mixing


def convolve_stamps(stamps, basis: GaussianBasis):
    """Convolve ``stamps`` (n, w, w) with every function; return (n, n_basis, s, s) float64, s = w - size +
    1.

    All stamps lie side by side in a few large matrix products: one small product a stamp costs several times more.
    """
    xp = array_module(stamps)
    n, width = stamps.shape[:2]
    inner = width - basis.size + 1
    bands = xp.stack([_band(profile, width, inner) for profile in basis.profiles])  # (m, w, s)
    along = xp.tensordot(bands, stamps, ((1,), (2,)))  # (m, s, n, w)
    along = xp.ascontiguousarray(along.transpose(0, 3, 2, 1)).reshape(len(bands), width, n * inner)
    products = xp.stack([bands[row].T @ along[column] for row, column in basis.pairs])
    mixed = (basis.mixing @ products.reshape(len(products), -1)).reshape(len(products), inner, n, inner)
    return xp.ascontiguousarray(mixed.transpose(2, 0, 1, 3))


def _band(profile, width, inner):
    """(w, s) matrix B with (a @ B)[x] = sum_q profile[q] a[x + size - 1 - q]: a convolution as a product."""
    xp = array_module(profile)
    tap = xp.arange(inner)[None, :] + len(profile) - 1 - xp.arange(width)[:, None]
    inside = (tap >= 0) & (tap < len(profile))
    return xp.where(inside, profile[xp.clip(tap, 0, len(profile) - 1)], 0.0)
