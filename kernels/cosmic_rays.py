"""Cosmic rays in a single exposure, by their edges: Laplacian edge detection after van Dokkum (2001)."""

from __future__ import annotations

import functools

import numba
import numpy as np

from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, device_function, hot_loop

IGNORED_PLANES = MaskPlane.BAD | MaskPlane.NO_DATA | MaskPlane.VIGNETTED | MaskPlane.INTRP
GROWTH = 0.5  # neighbours of a cosmic ray need this fraction of the threshold and of the contrast
GROWTH_ROUNDS = 2  # pixels a cosmic ray may grow by in each iteration
CONTRAST_MARGIN = 1.3  # above the sharpest star, for noise and tracking
MIN_CONTRAST = 2.0  # however wide the stars are


def find_cosmic_rays(
    image,
    mask,
    variance,
    *,
    psf_fwhm_pix: float,
    threshold: float = 5.0,
    contrast: float | None = None,
    iterations: int = 4,
):
    """Return a bool (ny, nx) array that is True on cosmic rays.

    ``image``, ``variance`` float32 and ``mask`` int32 are (ny, nx), sky left in or not. A pixel is a cosmic
    ray if the Laplacian of the image sampled twice as finely stands ``threshold`` sigma above zero and
    above its surroundings, and exceeds ``contrast`` times the structure on the scale of a PSF: the 3 x 3
    median minus its 7 x 7 median, or a quarter of its interquartile range in 7 x 7, whichever is more (the
    second is ours, for the flanks of very bright stars). Neighbours are added at half of both. What was
    found is replaced by the median around it, and all is repeated, at most ``iterations`` times.
    ``contrast=None`` takes 1.3 times what the sharpest star of ``psf_fwhm_pix`` reaches at its worst sub-
    pixel phase, at least 2.

    Sigma is the smallest of the pixel's and its four neighbours', so that the cosmic ray's own light does
    not count as noise. Masked (BAD, NO_DATA, VIGNETTED, INTRP) or non-finite pixels are never flagged and
    say nothing about others; nor are saturated pixels and those that touch them flagged. A pixel at the
    image's border reaches only half of its significance.
    """
    xp = array_module(image)
    if image.shape != mask.shape or image.shape != variance.shape:
        raise InputError(f"planes differ in shape: {image.shape}, {mask.shape}, {variance.shape}")
    image, variance = (xp.asarray(plane, xp.float32) for plane in (image, variance))
    if contrast is None:
        contrast = max(MIN_CONTRAST, CONTRAST_MARGIN * star_contrast(round(float(psf_fwhm_pix), 2)))
    ignored = ((mask & int(IGNORED_PLANES)) != 0) | ~xp.isfinite(image)
    work = xp.pad(xp.where(ignored, np.float32(np.nan), image), 1, constant_values=np.float32(np.nan))
    noise = xp.pad(xp.where(ignored, np.float32(np.inf), variance), 1, constant_values=np.float32(np.inf))
    barred = (ignored | touches((mask & int(MaskPlane.SAT)) != 0)).astype(xp.uint8)
    rays = xp.zeros(image.shape, dtype=xp.uint8)
    for _ in range(iterations):
        found = one_pass(work, noise, barred, rays, threshold, contrast)
        if not bool((found != rays).any()):
            break
        rays = found
        replace_flagged(Launch.over(image.shape), work, rays, *(np.int32(n) for n in image.shape))
    return rays.astype(bool)


def one_pass(work, noise, barred, rays, threshold, contrast):
    """Return ``rays`` with what one Laplacian test, and growth from it, adds."""
    xp = array_module(work)
    ny, nx = barred.shape
    launch, sizes = Launch.over((ny, nx)), (np.int32(ny), np.int32(nx))
    snr = xp.empty((ny, nx), dtype=xp.float32)
    laplacian_snr(launch, work, noise, snr, *sizes)
    limits = np.float32(threshold), np.float32(contrast)
    found = rays.copy()
    flag_edges(launch, work, noise, snr, barred, rays, found, *sizes, *limits, np.int32(0))
    limits = np.float32(GROWTH * threshold), np.float32(GROWTH * contrast)
    for _ in range(GROWTH_ROUNDS):
        before = found.copy()
        flag_edges(launch, work, noise, snr, barred, before, found, *sizes, *limits, np.int32(1))
    return found


def touches(flags):
    """Return which pixels are flagged or have a flagged one among their eight neighbours."""
    xp = array_module(flags)
    padded = xp.pad(flags, 1)
    wide = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return wide[:-2] | wide[1:-1] | wide[2:]


@functools.cache
def star_contrast(psf_fwhm_pix: float) -> float:
    """Return the largest Laplacian-to-structure ratio of a Moffat star (beta 3) over its phases."""
    radius = psf_fwhm_pix / (2 * np.sqrt(2 ** (1 / 3) - 1))
    offset = np.arange(31) - 15.0
    largest = 0.0
    for dx, dy in ((i / 8, j / 8) for i in range(5) for j in range(i + 1)):
        star = (1 + ((offset - dx)[None, :] ** 2 + (offset - dy)[:, None] ** 2) / radius**2) ** -3
        edge, structure = laplacian_reference(star) / 2, structure_reference(star)
        core = edge > 0.1 * edge.max()
        largest = max(largest, float((edge[core] / np.maximum(structure[core], 1e-6)).max()))
    return largest


def laplacian_reference(image):
    """Return the positive Laplacian of ``image`` sampled twice as finely, averaged back: van Dokkum's L+."""
    padded = np.pad(image, 1, constant_values=np.nan)
    up, down, left, right = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    corners = [2 * image - vertical - side for vertical in (up, down) for side in (left, right)]
    return sum(np.where(corner > 0, corner, 0) for corner in corners) / 4


def structure_reference(image):
    """Return the 3 x 3 median minus its 7 x 7 median: van Dokkum's fine structure image F."""
    from scipy.ndimage import median_filter

    fine = median_filter(image, 3)
    return fine - median_filter(fine, 7)


@hot_loop("cosmic_rays")
def laplacian_snr(work, noise, snr, ny, nx):
    """Write L+ / (2 sigma). ``work`` and ``noise`` (variance) carry a border of NaN and infinity."""
    for row in numba.prange(ny):
        for column in range(nx):
            twice = np.float32(2) * work[row + 1, column + 1]
            up, down = work[row, column + 1], work[row + 2, column + 1]
            left, right = work[row + 1, column], work[row + 1, column + 2]
            total = np.float32(0)
            corner = twice - up - left
            total += corner if corner > np.float32(0) else np.float32(0)
            corner = twice - up - right
            total += corner if corner > np.float32(0) else np.float32(0)
            corner = twice - down - left
            total += corner if corner > np.float32(0) else np.float32(0)
            corner = twice - down - right
            total += corner if corner > np.float32(0) else np.float32(0)
            least = noise[row + 1, column + 1]
            value = noise[row, column + 1]
            least = value if value < least else least
            value = noise[row + 2, column + 1]
            least = value if value < least else least
            value = noise[row + 1, column]
            least = value if value < least else least
            value = noise[row + 1, column + 2]
            least = value if value < least else least
            usable = least > np.float32(0)
            snr[row, column] = total / (np.float32(8) * np.sqrt(least)) if usable else np.float32(0)


@hot_loop("cosmic_rays")
def flag_edges(work, noise, snr, barred, before, found, ny, nx, threshold, contrast, needs_neighbour):
    """Set ``found`` where both tests pass; with ``needs_neighbour`` only beside ``before``."""
    for y in numba.prange(ny):
        window = np.empty(49, dtype=np.float32)
        small = np.empty(9, dtype=np.float32)
        for x in range(nx):
            row, column = np.int64(y), np.int64(x)  # one integer type, else every helper is compiled for each
            if snr[row, column] <= threshold or barred[row, column] != 0 or before[row, column] != 0:
                continue
            if needs_neighbour != 0 and not _beside(before, row, column, ny, nx):
                continue
            if snr[row, column] - _median_snr(snr, row, column, ny, nx, window) <= threshold:
                continue
            edge = snr[row, column] * np.sqrt(_least_variance(noise, row, column))
            if edge > contrast * _structure(work, row, column, ny, nx, window, small):
                found[row, column] = 1


@hot_loop("cosmic_rays")
def replace_flagged(work, rays, ny, nx):
    """Put the median of the usable, unflagged neighbours in 5 x 5 into the flagged pixels of ``work``."""
    for row in numba.prange(ny):
        window = np.empty(25, dtype=np.float32)
        for column in range(nx):
            if rays[row, column] == 0:
                continue
            count = np.int64(0)
            for y in range(max(row - 2, 0), min(row + 3, ny)):
                for x in range(max(column - 2, 0), min(column + 3, nx)):
                    value = work[y + 1, x + 1]
                    if rays[y, x] == 0 and value == value:
                        count = _insert(window, count, value)
            if count > 0:
                work[row + 1, column + 1] = _middle(window, count)


@device_function
def _insert(window, count, value):
    """Insert ``value`` into the sorted first ``count`` entries of ``window``; return the new count."""
    place = count
    while place > 0 and window[place - 1] > value:
        window[place] = window[place - 1]
        place -= 1
    window[place] = value
    return count + 1


@device_function
def _middle(window, count):
    """Return the median of a sorted window: of an even number, the mean of the middle two."""
    if count % 2 == 1:
        return window[count // 2]
    return np.float32(0.5) * (window[count // 2 - 1] + window[count // 2])


@device_function
def _beside(flags, row, column, ny, nx):
    """Return whether one of the eight neighbours is flagged."""
    for y in range(max(row - 1, 0), min(row + 2, ny)):
        for x in range(max(column - 1, 0), min(column + 2, nx)):
            if flags[y, x] != 0:
                return True
    return False


@device_function
def _median_snr(snr, row, column, ny, nx, window):
    """Return the median significance in the 5 x 5 pixels around."""
    count = np.int64(0)
    for y in range(max(row - 2, 0), min(row + 3, ny)):
        for x in range(max(column - 2, 0), min(column + 3, nx)):
            count = _insert(window, count, snr[y, x])
    return _middle(window, count)


@device_function
def _least_variance(noise, row, column):
    """Return the smallest variance of a pixel and its four neighbours."""
    least = noise[row + 1, column + 1]
    least = min(least, noise[row, column + 1], noise[row + 2, column + 1])
    return min(least, noise[row + 1, column], noise[row + 1, column + 2])


@device_function
def _median_3x3(work, row, column, ny, nx, small):
    """Return the median of the usable pixels among 3 x 3; NaN if there is none."""
    count = np.int64(0)
    for y in range(max(row - 1, 0), min(row + 2, ny)):
        for x in range(max(column - 1, 0), min(column + 2, nx)):
            value = work[y + 1, x + 1]
            if value == value:
                count = _insert(small, count, value)
    return _middle(small, count) if count > 0 else np.float32(np.nan)


@device_function
def _structure(work, row, column, ny, nx, window, small):
    """Return what a star leaves of the 3 x 3 median and a thin track does not.

    The larger of its excess over its 7 x 7 median (cores) and a quarter of its interquartile range (flanks).
    """
    count = np.int64(0)
    for y in range(max(row - 3, 0), min(row + 4, ny)):
        for x in range(max(column - 3, 0), min(column + 4, nx)):
            value = _median_3x3(work, y, x, ny, nx, small)
            if value == value:
                count = _insert(window, count, value)
    fine = _median_3x3(work, row, column, ny, nx, small)
    spread = np.float32(0.25) * (window[(3 * count) // 4] - window[count // 4])
    return max(fine - _middle(window, count), spread)
