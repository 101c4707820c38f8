"""The likelihood of a point source at every pixel where the science image is the sharper one, without deconvolving anything.

S' = S correlated with its own PSF P is broader than the template; a matching kernel K brings the template to it, and
D' = S' - K * T has a source's light as f |P|^2 over noise s_s^2 |P|^2 + s_t^2 |K|^2 (transforms). D' filtered with
1 / (s_s^2 + s_t^2 |K|^2 / |P|^2) is the optimal statistic: flux and its error at every pixel, their ratio the score
(DMTN-179; `AlardLuptonPreconvolve` of the LSST pipelines). Everything varies from tile to tile; the variance is that of
both planes, pixel by pixel. The kernel's fit is `psf_matching`, thresholding `detection.detect_score`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nightstream.kernels.convolution import Part, convolve_parts, convolve_plane, linear_kernels, linear_parts, tile_centres
from nightstream.kernels.fourier_stamps import (
    correlation_power,
    crop,
    enough,
    lost_power,
    mean_power,
    power,
    real_stamps,
    transfer,
    variance_stamps,
)
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.mask_spreading import missing_pixels, spread_mask
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.psf_transform import convolve_psf
from nightstream.kernels.target import array_module

PSF_FLOOR = 3e-4  # PSF transforms below this are noise; the filter leaves out what they would say


class Preconvolved(NamedTuple):
    """The science image correlated with its PSF: planes (ny, nx) and the PSF they have."""

    image: Any  # float32
    mask: Any  # int32
    noise_power: Any  # float32, variance of white noise as strong as this image's on scales above its PSF; pixels scatter less
    psf: PsfModel


class ScoreKernels(NamedTuple):
    """Stamps per tile, (tiles_y, tiles_x, m, m) float32, and how much of the filter was cut off."""

    matched_filter: Any  # makes the flux of a point source of D'
    fixed_variance: Any  # squares of all that was applied to the science image before preconvolution
    convolved_variance: Any  # and to the template before its convolution
    truncation: float  # largest fraction of the filter's power outside the stamp


def preconvolve(image, mask, variance, psf: PsfModel, tile_pix, *, planes) -> Preconvolved:
    """Correlate an image, (ny, nx) planes, with its own ``psf``, which follows the source within each tile.

    Fluxes stay. The pixels' noise is smooth now: a fit of many pixels that takes it for white, as that of the matching
    kernel does, wants ``noise_power`` for variance, since with the scatter of single pixels it would find significant what
    is not. Pixels that are NaN or NO_DATA stay NaN with NO_DATA and count as 0 for their neighbours, which get EDGE; the
    mask as in `spread_mask`, with ``planes``.
    """
    xp = array_module(image)
    kernels = linear_kernels(lambda x, y: psf.centred_float64(x, y)[:, ::-1, ::-1], image.shape, tile_pix, xp=xp)
    kernels = tuple(xp.ascontiguousarray(k).astype(xp.float32) for k in kernels)
    missing = missing_pixels(image, mask)
    blurred = convolve_parts(linear_parts(xp.where(missing, xp.float32(0), image), kernels), tile_pix)
    squares = kernels[0] ** 2
    squares = squares / squares.sum(axis=(2, 3), keepdims=True)
    noise = convolve_plane(xp.nan_to_num(variance, nan=0.0), squares, tile_pix)
    flags = spread_mask(xp.where(missing, mask | np.int32(MaskPlane.NO_DATA), mask), kernels[0], tile_pix, planes=planes)
    nan = xp.float32(xp.nan)
    broader = convolve_psf(psf, kernels[0], image.shape, tile_pix)
    return Preconvolved(xp.where(missing, nan, blurred), flags, xp.where(missing, nan, noise), broader)


def score_kernels(
    matching_kernels, psf: PsfModel, fixed_variance, convolved_variance, shape, tile_pix, *,
    fixed_correlation=None, convolved_correlation=None,
) -> ScoreKernels:  # fmt: skip
    """Make the filter of every tile of an image of ``shape``.

    ``matching_kernels`` (tiles_y, tiles_x, k, k) bring the template to the preconvolved science image, whose PSF before
    that was ``psf``. The variances (tiles_y, tiles_x) are those of empty sky before any convolution: of the science
    image, in its units, and of the template, in its own. The correlations are autocorrelation stamps with centre 1 of
    either noise; None means white.
    """
    xp = array_module(matching_kernels)
    x, y = (c.ravel() for c in tile_centres(shape, tile_pix, xp=xp))
    tiles = matching_kernels.shape[:2]
    own = transfer(psf.centred_float64(x, y).reshape(*tiles, psf.size, psf.size))
    matching, signal = transfer(matching_kernels), power(own)
    spectra = [correlation_power(c, xp) for c in (fixed_correlation, convolved_correlation)]
    noise = spectra[0] * fixed_variance[..., None, None] * signal
    noise = noise + spectra[1] * convolved_variance[..., None, None] * power(matching)
    image = real_stamps(signal / (noise + PSF_FLOOR**2 * noise.max(axis=(2, 3), keepdims=True)) + 0j)
    size = enough(image)
    stamps = crop(image, size)
    response = mean_power(transfer(stamps).real * signal)
    stamps = stamps / response[..., None, None]
    passed = transfer(stamps)
    fixed, convolved = (variance_stamps(passed * t, s) for t, s in ((own.conj(), spectra[0]), (matching, spectra[1])))
    return ScoreKernels(xp.ascontiguousarray(stamps).astype(xp.float32), fixed, convolved, lost_power(image, size))


def score_from_difference(difference, mask, fixed_variance, convolved_variance, kernels: ScoreKernels, tile_pix) -> tuple:
    """Return (score, flux, flux_err, mask), each (ny, nx), float32 and int32, of D' = ``difference`` with ``mask``.

    ``fixed_variance`` and ``convolved_variance`` are the planes of the science image before preconvolution and of the
    template before its convolution: sources and all. At the place of a point source ``flux`` is the maximum-likelihood PSF
    flux in science units and ``flux_err`` its error; ``score`` is their ratio, 0 where there is none. Unusable pixels of D'
    enter no sum: flux and score are 0 there, and next to them too small. NaN and NO_DATA are NaN in flux and flux_err.
    """
    xp = array_module(difference)
    missing = missing_pixels(difference, mask)
    usable = ((mask & np.int32(MaskPlane.unusable())) == 0) & ~missing
    flux = convolve_plane(xp.where(usable, difference, xp.float32(0)), kernels.matched_filter, tile_pix)
    planes = (fixed_variance, kernels.fixed_variance), (convolved_variance, kernels.convolved_variance)
    variance = convolve_parts([Part(xp.nan_to_num(plane, nan=0.0), squares) for plane, squares in planes], tile_pix)
    error = xp.sqrt(xp.maximum(variance, xp.float32(0)))
    known = usable & (error > 0)
    score = xp.where(known, flux / xp.where(known, error, xp.float32(1)), xp.float32(0))
    flags = xp.where(missing, mask | np.int32(MaskPlane.NO_DATA), mask)
    nan, zero = xp.float32(xp.nan), xp.float32(0)
    return score, xp.where(missing, nan, xp.where(usable, flux, zero)), xp.where(missing, nan, error), flags
