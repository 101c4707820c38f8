"""Whiten the noise of a difference image: the kernel that undoes the correlation that matching and warping
put in.

D = fixed - K * convolved has noise of power N(k) = s_f^2 rho_f(k) + s_c^2 rho_c(k) |K(k)|^2; the image
convolved with psi(k) = sqrt(N(0) / N(k)) is white, keeps its flux (psi(0) = 1) and has the PSF psi * P
(DMTN-021, DMTN-179). Everything varies over the detector: one psi per tile, from the local kernel and the
local noise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nightstream.kernels.convolution import Part, convolve_parts, convolve_plane, tile_counts
from nightstream.kernels.fourier_stamps import (
    SIZES,
    correlation_power,
    crop,
    enough,
    lost_power,
    mean_power,
    power,
    real_stamps,
    scaled_squares,
    transfer,
)
from nightstream.kernels.mask_spreading import SATURATED, spread_mask
from nightstream.kernels.target import array_module, chunks, for_each

LOST_SUM = 2e-3  # of psi's sum, which is 1, that may lie outside; spread evenly over the stamp
TILE_ROWS_PER_CHUNK = 2  # that a thread makes stamps for at a time
SAMPLE_STEP = 4  # every fourth row and column suffice for a median


class DecorrelationKernels(NamedTuple):
    """Stamps per tile, (tiles_y, tiles_x, m, m) float32, and how much of psi was cut off."""

    psi: Any  # for the image
    fixed_variance: Any  # for the variance plane of the image that was not convolved
    convolved_variance: Any  # and for that of the image that was
    truncation: float  # largest fraction of sum(psi^2) outside the stamp


def decorrelation_kernels(
    kernels, fixed_variance, convolved_variance, *, fixed_correlation=None, convolved_correlation=None, size=None
) -> DecorrelationKernels:
    """Make the stamps for every tile.

    ``kernels`` (tiles_y, tiles_x, k, k) are the matching kernels, the variances (tiles_y, tiles_x) those of
    empty sky, before convolution, in the units of the difference. The correlations are (odd, odd)
    autocorrelation stamps with centre 1; None means white. ``size`` fixes psi's side; by default it is the
    smallest that loses no more than 1e-4 of its power. A negative power, which a truncated correlation stamp
    can have, counts as a hundredth of the largest.
    """
    xp = array_module(kernels)
    spectra = tuple(correlation_power(c, xp) for c in (fixed_correlation, convolved_correlation))
    rows = chunks(len(kernels), TILE_ROWS_PER_CHUNK, xp)
    whitened = for_each(lambda r: _whiten(kernels[r], fixed_variance[r], convolved_variance[r], spectra), rows, xp)
    images = (xp.concatenate(part) for part in zip(*whitened, strict=True))
    psi, matched, fixed_through, convolved_through = images
    steps = (
        lambda: _stamps_of_sum_one(psi, size),
        lambda: scaled_squares(psi, fixed_through),
        lambda: scaled_squares(matched, convolved_through),
    )
    (stamps, truncation), fixed, convolved = for_each(lambda step: step(), steps, xp)
    return DecorrelationKernels(stamps, fixed, convolved, truncation)


def _whiten(kernels, fixed_variance, convolved_variance, spectra) -> tuple:
    """Return what whitens every tile, and what that makes of its matching kernel, both real on the whole grid, and the power
    that each lets through from the noise of its image."""
    xp = array_module(kernels)
    matching = transfer(kernels)
    total = power(matching) * spectra[1] * convolved_variance[..., None, None] + spectra[0] * fixed_variance[..., None, None]
    total = xp.maximum(total, 0.01 * total.max(axis=(2, 3), keepdims=True))
    psi = xp.sqrt(total[..., :1, :1] / total)
    matched = psi * matching
    through = mean_power(psi**2 * spectra[0]), mean_power(power(matched) * spectra[1])
    return real_stamps(psi), real_stamps(matched), *through


def _stamps_of_sum_one(image, size) -> tuple:
    """Return stamps (tiles_y, tiles_x, m, m) float32 of ``size`` or as large as they must be, and the power that they lack."""
    size = size or max(enough(image), _enough_sum(image))
    stamps = crop(image, size)
    stamps = stamps + (1 - stamps.sum(axis=(2, 3), keepdims=True)) / stamps.shape[-1] ** 2
    return stamps.astype(array_module(image).float32), lost_power(image, size)


def decorrelate(
    image, mask, fixed_variance, convolved_variance, stamps: DecorrelationKernels, tile_pix, *, planes, lost=SATURATED
) -> tuple:
    """Apply ``stamps``: return the white image, its mask and its variance, (ny, nx) each.

    ``fixed_variance`` and ``convolved_variance`` are the variance planes of the two inputs, pixel by pixel,
    in the units of the difference and before any convolution: sources and all. The result's variance is the
    sum of both, each spread with the square of all that was applied to it, so that it predicts the scatter of
    every pixel. Pixels that are NaN (and NO_DATA in ``mask``) stay so and count as 0 for their neighbours,
    which get EDGE; so do missing variances. The mask as in `spread_mask`, with ``planes`` and ``lost``.
    """
    white = convolve_plane(image, stamps.psi, tile_pix, missing=image)
    parts = [Part(fixed_variance, stamps.fixed_variance), Part(convolved_variance, stamps.convolved_variance)]
    variance = convolve_parts(parts, tile_pix, missing=image)
    return white, spread_mask(mask, stamps.psi, tile_pix, planes=planes, lost=lost), variance


def tile_medians(plane, mask, tile_pix, *, planes) -> Any:
    """Median of ``plane`` over the unmasked pixels of every tile, (tiles_y, tiles_x) float64, from every
    fourth row and column.

    A tile without such pixels gets the median of all tiles; 0 when there is none at all. ``planes`` are mask
    bits to leave out.
    """
    xp = array_module(plane)
    rows, columns = tile_counts(plane.shape, tile_pix)
    medians = xp.empty((rows, columns))

    def take_rows(chunk: slice) -> None:
        part = slice(chunk.start * tile_pix, chunk.stop * tile_pix)
        medians[chunk] = _medians_of_tiles(plane[part], mask[part], tile_pix, planes)

    for_each(take_rows, chunks(rows, 1, xp), xp)
    known = xp.isfinite(medians)
    usual = xp.median(medians[known]) if bool(known.any()) else 0.0
    return xp.where(known, medians, usual)


def _medians_of_tiles(plane, mask, tile_pix, planes):
    """Median of the samples of every tile, inf where there is none."""
    xp = array_module(plane)
    rows, columns = tile_counts(plane.shape, tile_pix)
    y, x = (_samples(n, tile_pix, xp) for n in (rows, columns))
    inside = (y < plane.shape[0])[:, None] & (x < plane.shape[1])
    pixel = xp.minimum(y, plane.shape[0] - 1)[:, None], xp.minimum(x, plane.shape[1] - 1)
    values = plane[pixel]
    values = xp.where(inside & ((mask[pixel] & np.int32(planes)) == 0) & xp.isfinite(values), values, xp.inf)
    tiles = values.reshape(rows, len(y) // rows, columns, len(x) // columns).transpose(0, 2, 1, 3)
    tiles = xp.sort(tiles.reshape(rows, columns, -1), axis=2)
    middle = xp.isfinite(tiles).sum(axis=2) // 2
    return xp.take_along_axis(tiles, middle[..., None].clip(0, tiles.shape[2] - 1), axis=2)[..., 0]


def _samples(tiles, tile_pix, xp):
    """Every fourth of the pixels of each of ``tiles`` tiles in a row."""
    return (xp.arange(tiles)[:, None] * tile_pix + xp.arange(0, tile_pix, SAMPLE_STEP)).ravel()


def _enough_sum(image) -> int:
    """Smallest side whose stamps all sum to 1 but for LOST_SUM."""
    for size in SIZES:
        if bool((abs(1 - crop(image, size).sum(axis=(-2, -1))) < LOST_SUM).all()):
            return size
    return SIZES[-1]
