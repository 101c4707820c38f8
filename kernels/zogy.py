"""Proper image subtraction: the difference of two images that needs no fit and favours neither (Zackay, Ofek & Gal-Yam 2016).

D = P_r * N - F P_n * R, divided in Fourier space by the root of its noise power s_n^2 |P_r|^2 + F^2 s_r^2 |P_n|^2
(ApJ 830, 27, eq. 13), is white and sufficient for every later question; S = D correlated with D's PSF (eq. 17) is the most
powerful statistic for a point source, S_corr (eqs. 25-33) S in units of its scatter, sources' own noise included. Here
everything varies over the detector: PSFs linearly within each tile, noise from tile to tile.

Owns kernels, difference and score. The flux scale, the PSFs and the common grid are the caller's.
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
    power,
    real_stamps,
    transfer,
    variance_stamps,
)
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.mask_spreading import missing_pixels, spread_mask
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.psf_transform import convolve_same
from nightstream.kernels.target import array_module, scipy_module

SIZES = (21, 25, 31, 41)  # sides that the kernels may have
STAR_RESIDUE = 1e-4  # of a static star's flux that cut kernels may leave in a pixel
# PSF transforms below this are noise. There both PSFs get the same tiny delta function, so that D tends to N - F R and stays
# white and bounded; a static star leaves less than a third of this.
PSF_FLOOR = 3e-4
LEAST_POWER = 0.01  # of the largest of a noise spectrum: smaller and negative values, which cut stamps have, count as this


class ZogyKernels(NamedTuple):
    """Kernels per tile, (tiles_y, tiles_x, m, m) float32, and what cutting them to m pixels cost.

    ``science`` and ``template`` are as `convolution.linear_kernels` returns them: values, and gradients unless both PSFs are
    constant. ``convolve_psf(science_psf, kernels.science[0], shape, tile_pix)`` is the PSF of D.
    """

    science: tuple  # for N; the values sum to 1
    template: tuple  # for R; the values sum to F
    science_variance: Any  # squares, for the variance planes
    template_variance: Any
    matched_filter: Any  # P_D, flipped: makes S of D
    score_science_variance: Any  # squares of all that was applied to either image in S
    score_template_variance: Any
    truncation: float  # largest fraction of a kernel's power outside the stamp
    star_residue: float  # largest pixel that a static star of flux 1 at a tile's centre leaves in D


class ZogyDifference(NamedTuple):
    """Planes (ny, nx) in science units; NaN with NO_DATA where either image has no pixel."""

    image: Any  # float32, D, positive where science is brighter
    mask: Any  # int32
    variance: Any  # float32
    subtracted: Any  # float32, the template's part of D


def zogy_kernels(
    science_psf: PsfModel, template_psf: PsfModel, science_variance, template_variance, shape, tile_pix, *,
    flux_scale=1.0, science_correlation=None, template_correlation=None,
) -> ZogyKernels:  # fmt: skip
    """Make the kernels for every tile of an image of ``shape``.

    Both PSFs are those on the science grid. The variances (tiles_y, tiles_x) are those of empty sky, each in its own
    image's units squared; ``flux_scale`` is science / template of a constant star, a number or (tiles_y, tiles_x). The
    correlations are (odd, odd) autocorrelation stamps with centre 1 of either noise; None means white.
    """
    xp = array_module(science_variance)
    tiles = science_variance.shape
    scale = xp.zeros(tiles) + flux_scale
    powers = [
        _noise_power(correlation, xp) * variance.ravel()[:, None, None]
        for correlation, variance in ((science_correlation, science_variance), (template_correlation, template_variance))
    ]

    def pair_at(x, y):
        transforms = (transfer(psf.centred_float64(x, y)) for psf in (science_psf, template_psf))
        return _proper_pair(*transforms, *powers, scale.ravel())

    both = linear_kernels(pair_at, shape, tile_pix, xp=xp)
    centres = [c.ravel() for c in tile_centres(shape, tile_pix, xp=xp)]
    light = [psf.centred_float64(*centres) for psf in (science_psf, template_psf)]
    size, residue = _choose_size(both[0], [p.reshape(*tiles, *p.shape[1:]) for p in light], scale)
    science, template = (_cut(both, side, size, total) for side, total in ((0, 1.0), (1, scale)))
    response = convolve_same(light[0], science[0].reshape(-1, size, size)).reshape(*tiles, *light[0].shape[1:])
    passed = transfer(science[0]), transfer(template[0])
    matched = transfer(response).conj()
    spectra = _correlations(science_correlation, template_correlation, xp)
    squares = [variance_stamps(t, s) for t, s in zip(passed, spectra, strict=True)]
    squares += [variance_stamps(t * matched, s) for t, s in zip(passed, spectra, strict=True)]
    flipped = xp.ascontiguousarray(response[..., ::-1, ::-1]).astype(xp.float32)
    return ZogyKernels(
        science, template, science_variance=squares[0], template_variance=squares[1], matched_filter=flipped,
        score_science_variance=squares[2], score_template_variance=squares[3],
        truncation=lost_power(both[0], size), star_residue=residue,
    )  # fmt: skip


def subtract_proper(science, template, kernels: ZogyKernels, tile_pix, *, planes) -> ZogyDifference:
    """Return the proper difference of ``science`` and ``template``, each (image, mask, variance) of one shape and grid.

    White noise; a point source keeps the flux it has on the science image. The variance is that of both planes, pixel by
    pixel, each spread with the square of its kernel, so that it predicts the scatter of every pixel. Pixels that are NaN
    or NO_DATA in either image stay NaN with NO_DATA and count as 0 for their neighbours, which get EDGE; so do missing
    variances. The masks as in `spread_mask`, with ``planes``.
    """
    xp = array_module(science[0])
    missing = [missing_pixels(*planes[:2]) for planes in (science, template)]
    sides = ((science, kernels.science, missing[0]), (template, kernels.template, missing[1]))
    ours, theirs = (
        convolve_parts(linear_parts(xp.where(lost, xp.float32(0), image), stamps), tile_pix)
        for (image, _, _), stamps, lost in sides
    )
    variances = (science[2], kernels.science_variance), (template[2], kernels.template_variance)
    variance = convolve_parts([Part(xp.nan_to_num(plane, nan=0.0), squares) for plane, squares in variances], tile_pix)
    no_data, nan = np.int32(MaskPlane.NO_DATA), xp.float32(xp.nan)
    masks = [
        spread_mask(xp.where(lost, mask | no_data, mask), stamps[0], tile_pix, planes=planes)
        for (_, mask, _), stamps, lost in sides
    ]
    blank = missing[0] | missing[1]
    image, variance, subtracted = (xp.where(blank, nan, plane) for plane in (ours - theirs, variance, theirs))
    return ZogyDifference(image, masks[0] | masks[1], variance, subtracted)


def corrected_score(
    difference: ZogyDifference, science_variance, template_variance, kernels: ZogyKernels, tile_pix, *,
    astrometric_noise_pix: float = 0.0,
):  # fmt: skip
    """Return S_corr, (ny, nx) float32: the signal to noise of a point source at each pixel, 0 where none can be told.

    ``science_variance`` and ``template_variance`` are the input planes: sky and sources. ``astrometric_noise_pix`` is the
    scatter, an axis, of the template's registration; the gradient of the template's part of S turns it into noise (eq. 30), so
    that it holds static stars back but not what is new. Unusable pixels of D enter no sum, though their noise is still
    counted: next to them the score is too small rather than too large. `detection.detect_score` takes it from here.
    """
    xp = array_module(difference.image)
    usable = ((difference.mask & np.int32(MaskPlane.unusable())) == 0) & xp.isfinite(difference.image)
    statistic = convolve_plane(xp.where(usable, difference.image, xp.float32(0)), kernels.matched_filter, tile_pix)
    planes = (science_variance, kernels.score_science_variance), (template_variance, kernels.score_template_variance)
    variance = convolve_parts([Part(xp.nan_to_num(plane, nan=0.0), squares) for plane, squares in planes], tile_pix)
    if astrometric_noise_pix > 0:
        static = convolve_plane(xp.where(usable, difference.subtracted, xp.float32(0)), kernels.matched_filter, tile_pix)
        variance = variance + xp.float32(astrometric_noise_pix**2) * _squared_gradient(static)
    known = usable & (variance > 0)
    return xp.where(known, statistic / xp.sqrt(xp.where(known, variance, xp.float32(1))), xp.float32(0))


def _proper_pair(science, template, science_power, template_power, scale):
    """The kernels (n, 2, GRID, GRID) of both images from the transforms of their PSFs and the power of their noise."""
    xp = array_module(science)
    delta = PSF_FLOOR**3 / (PSF_FLOOR**2 + power(science) + power(template))
    science, template = science + delta, template + delta
    scale = scale[:, None, None]
    total = science_power * power(template) + scale**2 * template_power * power(science)
    gain = xp.sqrt(total[:, :1, :1] / total) / template[:, :1, :1]
    return xp.stack([real_stamps(template * gain), real_stamps(scale * science * gain)], axis=1)


def _noise_power(correlation, xp):
    spectrum = correlation_power(correlation, xp)
    return xp.maximum(spectrum, LEAST_POWER * spectrum.max())


def _correlations(science, template, xp):
    return correlation_power(science, xp), correlation_power(template, xp)


def _choose_size(pairs, psfs, scale) -> tuple[int, float]:
    """The smallest of SIZES whose kernels keep their power and cancel static stars, and what a star leaves."""
    fft = scipy_module(array_module(pairs), "fft")
    light = transfer(psfs[0]), transfer(psfs[1]) / scale[..., None, None]
    least = enough(pairs)
    for size in SIZES:
        cut = transfer(crop(pairs, size))
        residue = float(abs(fft.irfft2(cut[:, :, 0] * light[0] - cut[:, :, 1] * light[1])).max())
        if size >= least and residue < STAR_RESIDUE:
            break
    return size, residue


def _cut(both, side: int, size: int, total) -> tuple:
    """Stamps of one image; what the values lack to ``total`` is spread evenly over them."""
    xp = array_module(both[0])
    stamps = [crop(k[:, :, side], size) for k in both]
    lack = total - stamps[0].sum(axis=(2, 3))
    stamps[0] = stamps[0] + lack[..., None, None] / size**2
    return tuple(xp.ascontiguousarray(s).astype(xp.float32) for s in stamps)


def _squared_gradient(plane):
    """|grad|^2 per pixel from central differences; 0 along an axis at its ends."""
    xp = array_module(plane)
    out = xp.zeros_like(plane)
    out[1:-1] += ((plane[2:] - plane[:-2]) / 2) ** 2
    out[:, 1:-1] += ((plane[:, 2:] - plane[:, :-2]) / 2) ** 2
    return out
