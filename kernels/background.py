"""The sky under the stars: clipped statistics in a mesh of bins, cleaned, and a smooth surface through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numba
import numpy as np
from scipy.interpolate import CubicSpline

from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.psf import polynomial_exponents, polynomial_terms
from nightstream.kernels.target import Launch, array_module, hot_loop

DEFAULT_PLANES = MaskPlane.unusable() | MaskPlane.DETECTED | MaskPlane.DETECTED_NEGATIVE | MaskPlane.VIGNETTED
MAX_BIN_PIX = 1024  # one CUDA thread a column of a bin
MEDIAN_STEPS = 14  # halvings of the clipped range: the median is right to 6 sigma / 2^14
SKEWED = 0.3  # |mean - median| / sigma from which the median is taken instead of the mode (Bertin & Arnouts)
MEDIAN_WEIGHT = {"mode": 2.5, "mean": 0.0}  # w in level = w median + (1 - w) mean

Estimator = Literal["mode", "mean"]
Interpolation = Literal["spline", "linear", "polynomial"]


@dataclass(frozen=True, slots=True, eq=False)
class BackgroundMesh:
    """Sky level and noise (n_y, n_x) float64 at the bins' centres, of an image of ``shape``; int32 pixels used."""

    level: Any
    noise: Any
    count: Any
    shape: tuple[int, int]

    def image(self, interpolation: Interpolation = "spline", *, order: int = 2):
        """Return the float32 (ny, nx) sky through the bins' levels; ``order`` is that of "polynomial".

        "spline": natural cubic between the centres, straight beyond them. "linear": bilinear, likewise. Both follow
        every bin and carry its noise. "polynomial": one surface of total degree ``order``, least squares weighted by
        the pixels used, with a share of that noise; only for skies that are so smooth.
        """
        return _surface(self.level, self.count, self.shape, interpolation, order)

    def noise_image(self):
        """Return the float32 (ny, nx) standard deviation of sky pixels, interpolated by the spline."""
        return mesh_surface(self.noise, self.shape, spline_matrix)


def fit_background(
    image,
    mask,
    *,
    bin_pix: int = 128,
    planes: MaskPlane = DEFAULT_PLANES,
    sigma_clip: float = 3.0,
    iterations: int = 20,
    min_fraction: float = 0.1,
    estimator: Estimator = "mode",
    outlier_sigma: float = 0.0,
    interpolation: Interpolation = "spline",
    order: int = 2,
):
    """Return the float32 (ny, nx) sky background of ``image`` (float32).

    The levels are those of `background_mesh`; ``interpolation`` and ``order`` as in `BackgroundMesh.image`.
    """
    mesh = background_mesh(
        image,
        mask,
        bin_pix=bin_pix,
        planes=planes,
        sigma_clip=sigma_clip,
        iterations=iterations,
        min_fraction=min_fraction,
        estimator=estimator,
        outlier_sigma=outlier_sigma,
    )
    return mesh.image(interpolation, order=order)


def background_mesh(
    image,
    mask,
    *,
    bin_pix: int = 128,
    planes: MaskPlane = DEFAULT_PLANES,
    sigma_clip: float = 3.0,
    iterations: int = 20,
    min_fraction: float = 0.1,
    estimator: Estimator = "mode",
    outlier_sigma: float = 0.0,
) -> BackgroundMesh:
    """Measure sky level and noise in bins of about ``bin_pix`` pixels (the image is divided evenly).

    ``image`` float32 and ``mask`` int32 are (ny, nx); pixels with ``planes`` or not finite are ignored. In each bin
    mean and standard deviation are repeated with bounds of ``sigma_clip`` until nothing changes, at most
    ``iterations`` times. ``estimator`` makes the level of what is left:

    - "mode": 2.5 median - 1.5 mean (the median if that is skewed; Bertin & Arnouts 1996, section 3), which sources
      hardly raise; its error is 2.14 sigma / sqrt(N), and Poisson noise lowers it by 0.42 electrons.
    - "mean": error sigma / sqrt(N), 0.04 electrons low, but raised by all light that is neither masked nor clipped.
      For an image whose sources are masked; the light of the undetected ones, which lies under every measured
      source too, is then part of the sky.

    The noise is corrected for the clipped tails. Bins with fewer than ``min_fraction`` good pixels take the mean of
    their neighbours. Then bins further than ``outlier_sigma`` of their errors from the median of their 3 x 3
    neighbourhood, ruled by a large object, take that; with 0 all do. Raises `UnprocessableError` when no bin has
    enough pixels.
    """
    xp = array_module(image)
    if image.shape != mask.shape:
        raise InputError(f"image and mask differ in shape: {image.shape}, {mask.shape}")
    if not 4 <= bin_pix <= MAX_BIN_PIX:
        raise InputError(f"bin_pix must be 4 to {MAX_BIN_PIX}, got {bin_pix}")
    if estimator not in MEDIAN_WEIGHT:
        raise InputError(f"estimator must be one of {', '.join(MEDIAN_WEIGHT)}, got {estimator!r}")
    ny, nx = image.shape
    n_y, n_x = (max(1, round(n / bin_pix), -(-n // MAX_BIN_PIX)) for n in (ny, nx))
    level, noise = xp.zeros((n_y, n_x)), xp.zeros((n_y, n_x))
    count = xp.zeros((n_y, n_x), dtype=xp.int32)
    width = -(-nx // n_x)
    clip_bins(
        Launch((n_x, n_y), (-(-width // 32) * 32,)),
        xp.ascontiguousarray(image, xp.float32),
        xp.ascontiguousarray(mask, xp.int32),
        level,
        noise,
        count,
        *(np.int32(value) for value in (ny, nx, n_y, n_x, int(planes), iterations)),
        np.float64(sigma_clip),
        np.float64(MEDIAN_WEIGHT[estimator]),
    )
    enough = count >= min_fraction * (ny / n_y) * (nx / n_x)
    if not bool(enough.any()):
        raise UnprocessableError(f"no background: fewer than {min_fraction:.0%} of the pixels of every bin are usable")
    level, noise = (fill_from_neighbours(plane, enough) for plane in (level, noise))
    error = level_error(estimator) * noise / xp.sqrt(xp.maximum(count, 1))
    noise = median_3x3(noise) / clipped_sigma(sigma_clip)
    return BackgroundMesh(replace_outliers(level, outlier_sigma * error), noise, xp.where(enough, count, 0), (ny, nx))


def level_error(estimator: Estimator) -> float:
    """Return the standard error of a bin's level in units of sigma / sqrt(N), for a normal distribution.

    The median's variance is pi / 2 times that of the mean, with which it covaries by just that of the mean.
    """
    weight = MEDIAN_WEIGHT[estimator]
    return float(np.sqrt(weight**2 * np.pi / 2 + 2 * weight * (1 - weight) + (1 - weight) ** 2))


def clip_bin_reference(values, sigma_clip: float, iterations: int, median_weight: float):
    """Return level, noise and count of one bin's good ``values``: what `clip_bins` does, with an exact median."""
    values = np.asarray(values, dtype=np.float64)
    kept = values
    for _ in range(iterations):
        mean, sigma = kept.mean(), kept.std()
        again = values[np.abs(values - mean) <= sigma_clip * sigma]
        if again.size == kept.size:
            break
        kept = again
    mean, sigma, median = kept.mean(), kept.std(), np.median(kept)
    if median_weight == 0:
        return mean, sigma, kept.size
    level = median_weight * median + (1 - median_weight) * mean if abs(mean - median) < SKEWED * sigma else median
    return level, sigma, kept.size


@hot_loop("background")
def clip_bins(image, mask, level, noise, count, ny, nx, n_y, n_x, planes, iterations, sigma_clip, median_weight):
    """One bin a block: clipped mean, deviation and median. Sums run down columns, then across: one fixed order.

    Without weight the median is not sought.
    """
    for index in numba.prange(n_y * n_x):
        bin_y, bin_x = index // n_x, index % n_x
        y0, y1 = bin_y * ny // n_y, (bin_y + 1) * ny // n_y
        x0, x1 = bin_x * nx // n_x, (bin_x + 1) * nx // n_x
        values = np.empty((y1 - y0, x1 - x0), dtype=np.float32)
        for row in range(y1 - y0):
            for column in range(x1 - x0):
                value = image[y0 + row, x0 + column]
                usable = (mask[y0 + row, x0 + column] & planes) == 0 and np.abs(value) < np.float32(3e38)
                values[row, column] = value if usable else np.float32(np.nan)
        low, high = -np.inf, np.inf
        mean = sigma = 0.0
        kept = -1
        for _ in range(iterations):
            number, total, square = _bin_sums(values, low, high)
            if number == kept or number == 0:
                break
            kept = number
            mean = total / number
            sigma = np.sqrt(max(square / number - mean * mean, 0.0))
            low, high = mean - sigma_clip * sigma, mean + sigma_clip * sigma
        kept, total, square = _bin_sums(values, low, high)
        count[bin_y, bin_x] = kept
        if kept == 0:
            continue
        noise[bin_y, bin_x] = sigma
        level[bin_y, bin_x] = mean
        if median_weight == 0.0:
            continue
        below, above = low, high
        for _ in range(MEDIAN_STEPS):
            middle = 0.5 * (below + above)
            number, total, square = _bin_sums(values, low, middle)
            if 2 * number < kept:
                below = middle
            else:
                above = middle
        median = 0.5 * (below + above)
        skewed = abs(mean - median) >= SKEWED * sigma
        level[bin_y, bin_x] = median if skewed else median_weight * median + (1.0 - median_weight) * mean


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bin_sums(values, low, high):
    """Count, sum and sum of squares of the values within [low, high]; NaN is never within."""
    width = values.shape[1]
    totals, squares, numbers = np.zeros(width), np.zeros(width), np.zeros(width, dtype=np.int32)
    for row in range(values.shape[0]):
        for column in range(width):
            value = np.float64(values[row, column])
            inside = value >= low and value <= high
            used = value if inside else 0.0
            totals[column] += used
            squares[column] += used * used
            numbers[column] += 1 if inside else 0
    total = square = 0.0
    number = 0
    for column in range(width):
        total += totals[column]
        square += squares[column]
        number += numbers[column]
    return number, total, square


def clipped_sigma(sigma_clip: float) -> float:
    """Return the standard deviation that is left of a unit normal clipped at ``sigma_clip`` times itself."""
    from scipy.special import erf

    left = 1.0
    for _ in range(100):
        bound = sigma_clip * left
        tails = np.sqrt(2 / np.pi) * bound * np.exp(-(bound**2) / 2) / erf(bound / np.sqrt(2))
        left = np.sqrt(1 - tails)
    return float(left)


def fill_from_neighbours(plane, good):
    """Return ``plane`` with bins that are not ``good`` set to the mean of good neighbours, ring after ring.

    At least one bin must be good.
    """
    xp = array_module(plane)
    plane = xp.where(good, plane, 0.0)
    while not bool(good.all()):
        weight = sum(_shifts(xp.pad(good.astype(xp.float64), 1)))
        mean = sum(_shifts(xp.pad(plane, 1))) / xp.maximum(weight, 1)
        plane = xp.where(good, plane, mean)
        good = good | (weight > 0)
    return plane


def replace_outliers(level, tolerance):
    """Return ``level`` with bins further than ``tolerance`` from their `median_3x3` set to that.

    A median everywhere (tolerance 0) ties the noise of neighbours together: a second fit to an image from which such
    a sky was subtracted takes that noise out again only where it keeps its own bins apart.
    """
    xp = array_module(level)
    usual = median_3x3(level)
    return xp.where(xp.abs(level - usual) > tolerance, usual, level)


def median_3x3(plane):
    """Return the median of each bin and its eight neighbours; beyond the border the mesh goes on straight."""
    xp = array_module(plane)
    for axis in range(2):
        plane = xp.moveaxis(plane, axis, 0)
        first, last = 2 * plane[:1] - plane[1:2], 2 * plane[-1:] - plane[-2:-1]
        ends = (first, last) if len(plane) > 1 else (plane, plane)
        plane = xp.moveaxis(xp.concatenate([ends[0], plane, ends[1]]), 0, axis)
    return xp.median(xp.stack(_shifts(plane)), axis=0)


def _shifts(padded):
    ny, nx = padded.shape[0] - 2, padded.shape[1] - 2
    return [padded[dy : dy + ny, dx : dx + nx] for dy in range(3) for dx in range(3)]


def _surface(level, count, shape, interpolation: Interpolation, order: int):
    if interpolation == "polynomial":
        return polynomial_surface(level, count, shape, order)
    if interpolation not in MATRICES:
        raise InputError(f"interpolation must be one of {', '.join(MATRICES)}, polynomial, got {interpolation!r}")
    return mesh_surface(level, shape, MATRICES[interpolation])


def mesh_surface(mesh, shape: tuple[int, int], matrix):
    """Return the float32 image of ``shape`` whose bins' centres carry ``mesh``: two products with ``matrix(n, bins)``."""
    xp = array_module(mesh)
    down, along = (xp.asarray(matrix(n, bins)) for n, bins in zip(shape, mesh.shape, strict=True))
    return (down @ mesh.astype(xp.float32)) @ along.T


def spline_matrix(n: int, bins: int) -> np.ndarray:
    """Return the (n, bins) float32 weights of a natural cubic spline through ``bins`` even bins of ``n`` pixels."""
    if bins == 1:
        return np.ones((n, 1), dtype=np.float32)
    centres, pixel = bin_centres(n, bins), np.arange(n)
    nearest = np.clip(pixel, centres[0], centres[-1])
    spline = CubicSpline(centres, np.eye(bins), bc_type="natural")
    return (spline(nearest) + spline(nearest, 1) * (pixel - nearest)[:, None]).astype(np.float32)


def linear_matrix(n: int, bins: int) -> np.ndarray:
    """Return the (n, bins) float32 weights of straight lines between the centres of ``bins`` even bins of ``n`` pixels.

    Beyond the outer centres the outer lines go on.
    """
    if bins == 1:
        return np.ones((n, 1), dtype=np.float32)
    centres, pixel = bin_centres(n, bins), np.arange(n)
    left = np.clip(np.searchsorted(centres, pixel, side="right") - 1, 0, bins - 2)
    share = (pixel - centres[left]) / (centres[left + 1] - centres[left])
    weights = np.zeros((n, bins), dtype=np.float32)
    weights[pixel, left], weights[pixel, left + 1] = 1 - share, share
    return weights


MATRICES = {"spline": spline_matrix, "linear": linear_matrix}


def polynomial_surface(mesh, count, shape: tuple[int, int], order: int):
    """Return the float32 image of ``shape`` of the polynomial of total degree ``order`` that fits ``mesh`` best.

    Weighted by ``count``. The order comes down when there are few bins along an axis, or fewer with pixels than terms.
    """
    xp = array_module(mesh)
    order = min(order, *(bins - 1 for bins in mesh.shape))
    while order > 0 and int((count > 0).sum()) < len(polynomial_exponents(order)):
        order -= 1
    v, u = (xp.asarray(2 * bin_centres(n, bins) / n - 1) for n, bins in zip(shape, mesh.shape, strict=True))
    v, u = (c.ravel() for c in xp.meshgrid(v, u, indexing="ij"))
    weight = xp.sqrt(count.astype(xp.float64)).ravel()
    terms = polynomial_terms(u, v, order) * weight[:, None]
    solution = xp.linalg.lstsq(terms, mesh.ravel() * weight, rcond=None)[0]
    square = xp.zeros((order + 1, order + 1))
    for k, (i, j) in enumerate(polynomial_exponents(order)):
        square[j, i] = solution[k]
    powers = ((xp.arange(n) * (2 / n) - 1)[:, None] ** xp.arange(order + 1) for n in shape)
    down, along = (p.astype(xp.float32) for p in powers)
    return (down @ square.astype(xp.float32)) @ along.T


def bin_centres(n: int, bins: int) -> np.ndarray:
    """Return the (bins,) centres, pixels, of ``bins`` even bins of ``n`` pixels."""
    edges = np.arange(bins + 1) * n // bins
    return (edges[:-1] + edges[1:] - 1) / 2
