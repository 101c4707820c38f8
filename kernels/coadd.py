"""Coadd aligned visit images: clipped weighted mean, coverage, and the places where its noise is high."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nightstream.kernels.combine import combine_frames
from nightstream.kernels.decorrelation import tile_medians
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import array_module

CLIPPING_NEEDS = 3  # visits below which nothing is clipped


class Coadd(NamedTuple):
    """The mean, (ny, nx): image, mask, variance as always; ``n_used`` visits per pixel; the visits'
    ``weights`` (n,)."""

    image: Any
    mask: Any
    variance: Any
    n_used: Any
    weights: Any


def coadd(images, masks, variances, *, clip_sigma=5.0, clip_tolerance=1.0) -> Coadd:
    """Return the mean of ``n`` warped images (n, ny, nx), each weighted by the inverse of its median sky
    variance.

    One weight per image, not per pixel: the PSF of the mean then does not change with a star's brightness.
    From three images on, values further from the median than ``clip_sigma`` noise plus ``clip_tolerance`` of
    the median are left out. Unusable pixels do not enter where another image has a usable one; where none
    has, the flagged values are averaged and keep their flags. NaN with NO_DATA where no image has data.
    """
    xp = array_module(images)
    weights = 1 / xp.stack([_sky_variance(v, m) for v, m in zip(variances, masks, strict=True)])
    sigma = clip_sigma if len(images) >= CLIPPING_NEEDS else np.inf
    options = dict(weights=weights, clip_sigma=sigma, tolerance=clip_tolerance)
    mean = combine_frames(images, masks, variances, **options)
    image, mask, variance, n_used = mean
    hole = xp.flatnonzero(n_used == 0)
    if hole.size:
        stacks = (a.reshape(len(a), -1)[:, hole][:, None, :] for a in (images, masks, variances))
        flagged = combine_frames(*stacks, planes=MaskPlane.NO_DATA, **options)
        for plane, values in zip((image, mask, variance), flagged[:3], strict=True):
            plane.reshape(-1)[hole] = values[0]
    return Coadd(image, mask, variance, n_used, weights)


def flag_high_variance(mask, variance, *, factor=4.0, bin_pix=32):
    """Return ``mask`` with HIGH_VARIANCE in bins whose median variance exceeds ``factor`` times that of the
    image."""
    xp = array_module(mask)
    bins = tile_medians(variance, mask, bin_pix, planes=int(MaskPlane.NO_DATA))
    high = bins > factor * xp.median(bins)
    ny, nx = mask.shape
    high = xp.repeat(xp.repeat(high, bin_pix, axis=0), bin_pix, axis=1)[:ny, :nx]
    return mask | xp.where(high, np.int32(MaskPlane.HIGH_VARIANCE), np.int32(0))


def mean_correlation(stamps, weights, variances) -> np.ndarray:
    """Autocorrelation of the noise of a weighted mean, from its members' ``stamps`` and sky ``variances``;
    centre 1."""
    share = np.asarray(weights) ** 2 * np.asarray(variances)
    return sum(s * stamp for s, stamp in zip(share, stamps, strict=True)) / share.sum()


def _sky_variance(variance, mask):
    return tile_medians(variance, mask, max(variance.shape), planes=MaskPlane.not_sky())[0, 0]
