"""The basis of a matching kernel: Gaussians times polynomials (Alard & Lupton 1998) or single pixels (Bramich 2008), and
stamps convolved with it.

One function sums to 1 and all others to 0, so that one coefficient is the photometric scale. Each basis names the groups
of functions whose size a prior may hold down; how far is for the data to say (`matching_prior`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nightstream.kernels.psf import FWHM_PER_SIGMA
from nightstream.kernels.target import array_module, chunks, for_each

COMPARABLE_SIGMAS = (0.7, 1.5, 3.0, 6.0)  # pixels, for PSFs of nearly equal size
SMALLEST_SIGMA = 0.7
REACH_FWHM = 3.5  # half side of a kernel in FWHMs: a PSF with wings r^-6 leaves no more than 1e-3 of its light beyond
SIZE_LIMITS = (21, 61)  # pixels, odd
DELTA_SIZE_LIMITS = (13, 19)
STAMPS_PER_CHUNK = 32  # that are worked on at a time
STAMPS_PER_LARGE_CHUNK = 128  # the same where little is done with every pixel
NEGLIGIBLE_TAP = 1e-12  # of profiles of size 1: products of smaller ones are denormal in single precision, which is slow


@dataclass(frozen=True, slots=True, eq=False)
class KernelBasis:
    """``images`` (n, size, size) float64. ``penalties``: (n, n) host float64 matrices, symmetric and not negative, each a
    squared size of coefficients that a prior may hold down; no two concern the same coefficient.

    A separable basis also has ``profiles`` (m, size) and the ``pairs`` of them whose products, mixed by ``mixing`` (n, n),
    are the images; for others ``pairs`` is empty and the rest None.
    """

    images: Any
    penalties: tuple[np.ndarray, ...]
    degrees: tuple[int, ...]  # of each function's polynomial; 0 for all of a basis of pixels
    profiles: Any = None
    pairs: tuple[tuple[int, int], ...] = ()  # (row profile, column profile)
    mixing: Any = None

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def size(self) -> int:
        return self.images.shape[1]

    def count_to_degree(self, degree: int) -> int:
        """Number of leading functions with no more than ``degree``."""
        return sum(d <= degree for d in self.degrees)


def choose_sigmas(source_fwhm_pix: float, target_fwhm_pix: float, n: int = 4) -> tuple[float, ...]:
    """Return the widths of the Gaussians, pixels, each twice the one before, from the two PSF sizes.

    The core of the kernel has sigma^2 = |target^2 - source^2|; where that is small, a fixed list. The first is half the
    core's, the last is there for the wings, which two PSFs hardly ever share.
    """
    core = np.sqrt(abs(target_fwhm_pix**2 - source_fwhm_pix**2)) / FWHM_PER_SIGMA
    if core < SMALLEST_SIGMA:
        return COMPARABLE_SIGMAS[:n]
    first = max(SMALLEST_SIGMA, core / 2)
    return tuple(float(first * 2**i) for i in range(n))


def choose_size(fwhm_pix: float) -> int:
    """Return the odd side of the kernel for a wider PSF of ``fwhm_pix``: 3.5 FWHMs each way, within the limits."""
    return int(np.clip(2 * int(np.ceil(REACH_FWHM * fwhm_pix)) + 1, *SIZE_LIMITS))


def choose_delta_size(sigmas: tuple[float, ...]) -> int:
    """Return the odd side of a kernel of pixels: 7 times the second of the sigmas that a Gaussian basis would have."""
    return int(np.clip(2 * int(np.ceil(3.5 * sigmas[1])) + 1, *DELTA_SIZE_LIMITS))


def gaussian_basis(sigmas, degrees, size, *, xp=np) -> KernelBasis:
    """Return the basis of ``sigmas`` with polynomials up to ``degrees`` each, on ``size`` x ``size`` pixels.

    Functions come in the order of their degree and are orthonormal but for the first, so that the first n of them are a
    smaller basis of the same kind. A penalty is the summed square of the coefficients of one degree of one Gaussian.
    """
    offset = (np.arange(size) - size // 2).astype(np.float64)
    profiles, index = [], {}
    for g, (sigma, degree) in enumerate(zip(sigmas, degrees, strict=True)):
        for power in range(degree + 1):
            index[g, power] = len(profiles)
            profiles.append((offset / sigma) ** power * np.exp(-0.5 * (offset / sigma) ** 2))
    functions = sorted((px + py, g, px, py) for g, d in enumerate(degrees) for px in range(d + 1) for py in range(d + 1 - px))
    profiles = np.stack(profiles)
    profiles[np.abs(profiles) < NEGLIGIBLE_TAP] = 0.0
    pairs = tuple((index[g, py], index[g, px]) for _, g, px, py in functions)
    raw = np.stack([np.outer(profiles[row], profiles[column]) for row, column in pairs])
    mixing = _sum_one_then_orthonormal(raw)
    images = np.tensordot(mixing, raw, 1)
    kinds = [f[:2] for f in functions[1:]]
    penalties = tuple(np.diag([0.0] + [float(k == kind) for k in kinds]) for kind in sorted(set(kinds)))
    degree_of = tuple(f[0] for f in functions)
    return KernelBasis(xp.asarray(images), penalties, degree_of, xp.asarray(profiles), pairs, xp.asarray(mixing))


def delta_basis(size, *, xp=np) -> KernelBasis:
    """Return the basis of single pixels on ``size`` x ``size``: any kernel at all, held smooth by its penalties.

    Function 0 is the central pixel, the others a pixel minus the central one. The penalty is the summed square of the
    kernel's second differences (Becker et al. 2012, MNRAS 425, 1341), zero outside, and of its pixels weighted by their
    distance from the centre, which keeps the noise out of the border.
    """
    n, centre = size * size, (size * size) // 2
    order = np.r_[centre, np.delete(np.arange(n), centre)]
    pixels = np.eye(n)[order]
    pixels[1:] -= pixels[0]
    y, x = np.mgrid[:size, :size] - size // 2
    rough = _second_differences(size) @ pixels.T
    far = np.sqrt((x * x + y * y).ravel() / (size // 2) ** 2)[:, None] * pixels.T
    return KernelBasis(xp.asarray(pixels.reshape(n, size, size)), (rough.T @ rough + far.T @ far,), (0,) * n)


def _second_differences(size) -> np.ndarray:
    """(size^2, size^2) matrix of the five-point Laplacian, zero outside the kernel."""
    line = 2 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1)
    return np.kron(line, np.eye(size)) + np.kron(np.eye(size), line)


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


def convolve_stamps(stamps, basis: KernelBasis, *, out=None):
    """Convolve ``stamps`` (n, w, w) with every function; return (n, n_basis, s, s), s = w - size + 1, in the stamps'
    precision: single suffices, for a design that is off by 1e-7 only describes a kernel that is. ``out`` takes the result.
    """
    xp = array_module(stamps)
    n, width = stamps.shape[:2]
    inner = width - basis.size + 1
    if out is None:
        out = xp.empty((n, len(basis), inner, inner), stamps.dtype)
    convolve = _separable_convolver(basis, width, stamps.dtype, xp) if basis.pairs else _pixel_convolver(basis.size, inner)
    for_each(lambda chunk: convolve(stamps[chunk], out[chunk]), chunks(n, STAMPS_PER_CHUNK, xp), xp)
    return out


def _pixel_convolver(size, inner):
    """How `delta_basis` convolves: shifted copies, all but the first less the central one."""
    reach = range(size - 1, -1, -1)
    shifts = [(slice(j, j + inner), slice(i, i + inner)) for j in reach for i in reach]
    centre = shifts.pop(len(shifts) // 2)

    def convolve(stamps, out):
        central = stamps[:, *centre]
        out[:, 0] = central
        for k, shift in enumerate(shifts, 1):
            out[:, k] = stamps[:, *shift] - central

    return convolve


def _separable_convolver(basis, width, dtype, xp):
    """How a separable basis convolves: along x with all profiles at once, along y with those that meet each of them, then
    mixed. Every product leaves its result where the next one reads it."""
    bands = [_band(profile, width, width - basis.size + 1).astype(dtype) for profile in basis.profiles]  # (w, s) each
    inner = bands[0].shape[1]
    columns = sorted({column for _, column in basis.pairs})
    partners = [[k for k, pair in enumerate(basis.pairs) if pair[1] == column] for column in columns]
    along_x = xp.concatenate([bands[column] for column in columns], axis=1)
    along_y = [xp.ascontiguousarray(xp.concatenate([bands[basis.pairs[k][0]] for k in ks], axis=1).T) for ks in partners]
    mixing = basis.mixing[:, [k for ks in partners for k in ks]].astype(dtype)

    def convolve(stamps, out):
        n, first = len(stamps), 0
        smeared = xp.matmul(stamps, along_x)  # (n, w, columns * s)
        products = xp.empty((n, len(basis), inner * inner), dtype)
        for i, (band, ks) in enumerate(zip(along_y, partners, strict=True)):
            part = products[:, first : first + len(ks)].reshape(n, len(ks) * inner, inner)
            xp.matmul(band, smeared[:, :, i * inner : (i + 1) * inner], out=part)
            first += len(ks)
        xp.matmul(mixing, products, out=out.reshape(n, len(basis), inner * inner))

    return convolve


def _band(profile, width, inner):
    """(w, s) matrix B with (a @ B)[x] = sum_q profile[q] a[x + size - 1 - q]: a convolution as a product."""
    xp = array_module(profile)
    tap = xp.arange(inner)[None, :] + len(profile) - 1 - xp.arange(width)[:, None]
    inside = (tap >= 0) & (tap < len(profile))
    return xp.where(inside, profile[xp.clip(tap, 0, len(profile) - 1)], 0.0)
