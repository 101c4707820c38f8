"""From a visit image and a template to a difference image that knows its noise and its PSF.

Warp the template to the science grid, choose stars, fit the matching kernel, convolve, subtract, decorrelate.
The image with the smaller PSF is convolved, normally the template.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nightstream.engine.config import DifferenceConfig
from nightstream.engine.memory import to_host
from nightstream.engine.proper import subtract_properly
from nightstream.engine.values import DifferenceResult, Exposure, MaskedImage, Template, WarpedTemplate
from nightstream.errors import UnprocessableError
from nightstream.kernels.coadd import flag_high_variance
from nightstream.kernels.convolution import choose_tile, convolve_parts, convolve_plane
from nightstream.kernels.decorrelation import decorrelate, decorrelation_kernels, tile_medians
from nightstream.kernels.difference_background import fit_difference_background
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.mask_spreading import spread_mask
from nightstream.kernels.psf_matching import MatchingKernel, fit_matching_kernel
from nightstream.kernels.psf_transform import convolve_psf, warp_psf
from nightstream.kernels.sky_correlation import sky_correlation
from nightstream.kernels.target import array_module, chunks, for_each
from nightstream.kernels.warp import map_phases, noise_correlation, warp, warp_grid

FROM_TEMPLATE = MaskPlane.NO_DATA | MaskPlane.BAD | MaskPlane.EDGE | MaskPlane.HIGH_VARIANCE
ROWS_PER_CHUNK = 64  # that a thread works on at a time
NOISE_SAMPLE_PIX = 250_000  # on whose scatter the noise ratio is measured, to 0.2 %
MAX_PHASES = 4096  # pairs of sub-pixel phases that the noise correlation is averaged over


def subtract(science: Exposure, template: Template, config: DifferenceConfig) -> DifferenceResult:
    """Return ``science`` minus ``template``, white and with the variance that its pixels scatter with.

    The science image is background-subtracted; its pixels without data, and those without template, are NaN
    with NO_DATA. Raises UnprocessableError when the template covers too little, or no star is fit for the
    kernel.
    """
    warped = warp_template(science, template, config)
    return subtract_aligned(science, warped, *choose_stars(science, template, config), config)


def subtract_aligned(
    science: Exposure, warped: WarpedTemplate, x, y, config: DifferenceConfig, science_correlation=None
) -> DifferenceResult:
    """Return ``science`` minus a template on the same grid; see `subtract`.

    ``x, y`` are pixel positions of static sources to fit the kernel on, best ones first. ``science_correlation`` is the
    autocorrelation of the science image's noise, centre 1; None for white. Proper subtraction takes it as white.
    """
    if config.method == "zogy":
        return with_noise_correlation(subtract_properly(science, warped, x, y, config))
    fwhm = central_fwhm(science), central_fwhm(warped)
    convolves_science = _convolves_science(config, *fwhm)
    pair, sizes = ((science.pixels, warped.pixels), fwhm) if convolves_science else ((warped.pixels, science.pixels), fwhm[::-1])
    kernel = fit_kernel(pair, sizes, x, y, config)
    raw = _subtract_pair(pair, kernel, config)
    if convolves_science:
        raw = raw.mirrored(warped.pixels, 1 / kernel.kernel_sum)
    correlations = (science_correlation, warped.noise_correlation)  # of the fixed image and of the convolved one
    if convolves_science:
        correlations = correlations[::-1]
    return with_noise_correlation(_finish(science, warped, raw, kernel, correlations, config))


def with_noise_correlation(result: DifferenceResult) -> DifferenceResult:
    """Measure what neighbours of the difference still have in common, which its variance plane cannot say."""
    pixels = result.difference.pixels
    planes = MaskPlane.not_sky()
    stamp = sky_correlation(pixels.image, pixels.mask, pixels.variance, planes=planes)
    middle = stamp.shape[0] // 2
    lags = {"noise_correlation_x": float(stamp[middle, middle + 1]), "noise_correlation_y": float(stamp[middle + 1, middle])}
    return replace(result, noise_correlation=stamp, diagnostics=result.diagnostics | lags)


def warp_template(science: Exposure, template: Template, config: DifferenceConfig) -> WarpedTemplate:
    """Resample the template to the science grid, in science units; see `kernels.warp`.

    HIGH_VARIANCE is set where the template has it, and where its warped variance is that of few visits.
    """
    pixels, shape, step = template.pixels, science.pixels.shape, config.warp_step_pix
    xp = array_module(pixels.image)
    map_x, map_y = warp_grid(science.wcs, template.wcs, shape, step, xp=xp)
    image, mask, variance = warp(
        pixels.image, pixels.mask, pixels.variance, map_x, map_y, step, shape,
        order=config.warp_order, noise_correlation=_known(template.noise_correlation),
    )  # fmt: skip
    coverage = float(xp.isfinite(image).mean())
    if coverage < config.min_coverage:
        raise UnprocessableError(
            f"template {template.id} covers {coverage:.1%} of the science image, wanted {config.min_coverage:.0%}"
        )
    unit = xp.float32(1 / science.njy_per_unit)
    phases = [p[:: 1 + p.size // MAX_PHASES] for p in map_phases(map_x, map_y)]
    correlation = noise_correlation(
        config.warp_order, phase_x=phases[0], phase_y=phases[1], correlation=template.noise_correlation
    )
    mask = flag_high_variance(
        template_mask(mask), variance, factor=config.high_variance_factor, bin_pix=config.high_variance_bin_pix
    )
    psf = warp_psf(template.psf, map_x, map_y, step, shape, order=config.warp_order)
    return WarpedTemplate(
        pixels=MaskedImage(image * unit, mask, variance * unit * unit),
        noise_correlation=xp.asarray(correlation),
        psf=psf,
        coverage=coverage,
    )


def choose_stars(science: Exposure, template: Template, config: DifferenceConfig) -> tuple:
    """Return positions ``x, y`` on the science image of the template's stars to fit the kernel on.

    Bright enough, and spread evenly: from every cell of ``kernel_cell_pix`` the brightest, then the second,
    and so on.
    """
    stars = {name: to_host(template.stars[name]) for name in ("ra", "dec", "psf_flux")}
    x, y = science.wcs.pixel_from_sky(stars["ra"], stars["dec"])
    ny, nx = science.pixels.shape
    noise = np.sqrt(float(_sky_variance(science.pixels)) * np.pi * central_fwhm(science) ** 2 / (2 * np.log(2)))
    bright = stars["psf_flux"] / science.njy_per_unit > config.kernel_min_snr * noise
    index = np.flatnonzero(bright & (x > 0) & (x < nx - 1) & (y > 0) & (y < ny - 1))
    if index.size == 0:
        raise UnprocessableError(f"none of the template's {len(x)} stars has S/N {config.kernel_min_snr:g} on the science image")
    chosen = index[evenly(x[index], y[index], stars["psf_flux"][index], config)]
    return x[chosen], y[chosen]


def evenly(x, y, brightness, config: DifferenceConfig) -> np.ndarray:
    """Return indices of at most ``kernel_max_stars`` of the positions (host): the brightest of every cell, then every
    cell's second, and so on."""
    order = np.argsort(-brightness, kind="stable")
    cell = (y[order] // config.kernel_cell_pix).astype(int) * 100_000 + (x[order] // config.kernel_cell_pix).astype(int)
    return order[np.argsort(_rank_within(cell), kind="stable")[: config.kernel_max_stars]]


@dataclass(frozen=True, slots=True)
class _RawDifference:
    """A difference before decorrelation; variances of both inputs before any convolution, in its units."""

    image: Any
    mask: Any
    matched: MaskedImage  # what was subtracted
    fixed_variance: Any
    convolved_variance: Any
    kernels: Any  # of the tiles
    tile_pix: int
    mirror: bool = False  # the science image was convolved

    def mirrored(self, template: MaskedImage, scale: float) -> _RawDifference:
        """The same difference with its sign turned and brought to other units: science minus ``template``
        again. The kernels still act on the convolved image in its old units."""
        xp = array_module(self.image)
        unit, square = xp.float32(scale), xp.float32(scale**2)
        subtracted = MaskedImage(template.image * unit, template.mask, template.variance * square)
        return replace(
            self, image=self.image * -unit, matched=subtracted, fixed_variance=self.fixed_variance * square,
            convolved_variance=self.convolved_variance * square, mirror=True,
        )  # fmt: skip


def fit_kernel(pair, sizes, x, y, config: DifferenceConfig) -> MatchingKernel:
    """Fit the kernel from the first to the second of a ``pair`` of `MaskedImage`, whose PSFs have FWHMs ``sizes``."""
    source, target = ((p.image, p.mask, p.variance) for p in pair)
    return fit_matching_kernel(
        source, target, x, y, source_fwhm_pix=sizes[0], target_fwhm_pix=sizes[1], basis=config.kernel_basis,
        size=config.kernel_size_pix, degrees=config.kernel_degrees, spatial_order=config.spatial_order,
        background_order=config.background_order, constant_scale=config.constant_scale,
        planes=MaskPlane.unusable() | MaskPlane.SAT_TEMPLATE,
    )  # fmt: skip


def convolve_image(source: MaskedImage, kernel: MatchingKernel, tile_pix: int) -> MaskedImage:
    """Return ``source`` convolved with ``kernel``: pixels without data stay NaN, those next to them are EDGE."""
    kernels = kernel.tile_kernels(source.shape, tile_pix)
    image = convolve_parts(kernel.convolution_parts(source.image, tile_pix), tile_pix, missing=source.image)
    variance = convolve_plane(source.variance, kernels**2, tile_pix, missing=source.image)
    return MaskedImage(image, spread_mask(source.mask, kernels, tile_pix, planes=MaskPlane.spreading()), variance)


def _subtract_pair(pair, kernel: MatchingKernel, config: DifferenceConfig) -> _RawDifference:
    """target - K * source - background, on the usable pixels of both."""
    source, target = pair
    tile = config.tile_pix or choose_tile(target.shape)
    matched = convolve_image(source, kernel, tile)
    difference = subtract_planes(target, matched)
    _subtract_background(difference, kernel, config)
    kernels = kernel.tile_kernels(target.shape, tile)
    return _RawDifference(difference.image, difference.mask, matched, target.variance, source.variance, kernels, tile)


def subtract_planes(target: MaskedImage, matched: MaskedImage) -> MaskedImage:
    """Return ``target`` minus ``matched``, masks united and variances added."""
    xp = array_module(target.image)
    image, mask, variance = (xp.empty(p.shape, p.dtype) for p in (target.image, target.mask, target.variance))

    def subtract_rows(rows: slice) -> None:
        xp.subtract(target.image[rows], matched.image[rows], out=image[rows])
        xp.bitwise_or(target.mask[rows], matched.mask[rows], out=mask[rows])
        xp.add(target.variance[rows], matched.variance[rows], out=variance[rows])

    for_each(subtract_rows, chunks(len(image), ROWS_PER_CHUNK, xp), xp)
    return MaskedImage(image, mask, variance)


def _subtract_background(difference: MaskedImage, kernel: MatchingKernel, config: DifferenceConfig) -> None:
    """Take the sky that is left from the image, in place: the kernel fit's, from the stars' stamps, or a far better one
    from all empty pixels."""
    image, mask, variance = difference.image, difference.mask, difference.variance
    if not config.subtract_background:
        image -= kernel.background_image(image.shape)
        return
    fit_difference_background(
        image, mask, variance, bin_pix=config.difference_background_bin_pix, start=kernel.background_at,
        knot_pix=config.difference_background_knot_pix, planes=MaskPlane.not_sky(),
    ).subtract_from(image)  # fmt: skip


def _finish(science, warped, raw, kernel, correlations, config) -> DifferenceResult:
    """Decorrelate, attach the PSF, and report."""
    matched_psf = convolve_psf(science.psf, raw.kernels, raw.image.shape, raw.tile_pix) if raw.mirror else science.psf
    psf = matched_psf
    diagnostics = dict(kernel.diagnostics, coverage=warped.coverage, template_fwhm_pix=central_fwhm(warped))
    image, mask = raw.image, raw.mask
    if config.decorrelate:
        stamps = _decorrelation(raw, correlations)
        image, mask, variance = decorrelate(
            image, mask, raw.fixed_variance, raw.convolved_variance, stamps, raw.tile_pix,
            planes=MaskPlane.spreading(), lost=MaskPlane.SAT_TEMPLATE if raw.mirror else MaskPlane.SAT,
        )  # fmt: skip
        psf = convolve_psf(psf, stamps.psi, image.shape, raw.tile_pix)
        diagnostics["decorrelation_truncation"] = stamps.truncation
    else:
        xp = array_module(image)
        variance = xp.where(xp.isnan(image), xp.float32(xp.nan), raw.fixed_variance + _convolved_variance(raw))
    pixels = MaskedImage(image, mask, variance)
    diagnostics["noise_ratio"] = _noise_ratio(pixels)
    diagnostics["convolved_science"] = float(raw.mirror)
    return DifferenceResult(
        difference=replace(science, pixels=pixels, psf=psf),
        matched_template=replace(science, pixels=raw.matched, psf=matched_psf),
        kernel=kernel,
        diagnostics=diagnostics,
    )


def _convolved_variance(raw: _RawDifference):
    """Variance that the convolved image brings into the difference before decorrelation."""
    if not raw.mirror:
        return raw.matched.variance
    return convolve_plane(raw.convolved_variance, raw.kernels**2, raw.tile_pix)


def _decorrelation(raw: _RawDifference, correlations):
    planes = MaskPlane.not_sky()
    fixed, convolved = (
        tile_medians(plane, raw.mask, raw.tile_pix, planes=planes) for plane in (raw.fixed_variance, raw.convolved_variance)
    )
    return decorrelation_kernels(
        raw.kernels, fixed, convolved, fixed_correlation=correlations[0], convolved_correlation=correlations[1]
    )


def template_mask(mask):
    """Template planes as the difference carries them: saturation under its own name, temporary planes
    dropped."""
    xp = array_module(mask)
    saturated = (mask & np.int32(MaskPlane.SAT)) != 0
    return (mask & np.int32(FROM_TEMPLATE)) | xp.where(saturated, np.int32(MaskPlane.SAT_TEMPLATE), np.int32(0))


def _convolves_science(config: DifferenceConfig, science_fwhm: float, template_fwhm: float) -> bool:
    if config.convolve == "auto":
        return science_fwhm < config.sharper_factor * template_fwhm
    return config.convolve == "science"


def central_fwhm(exposure: Exposure | WarpedTemplate) -> float:
    """Return the FWHM of the PSF in the middle of the image, pixels."""
    ny, nx = exposure.pixels.shape
    return float(exposure.psf.fwhm_pix(nx / 2, ny / 2)[0])


def _known(correlation):
    """None for white noise: a stamp of one pixel, or of nothing but its centre."""
    stamp = to_host(correlation)
    return None if stamp.size == 1 or np.count_nonzero(stamp) == 1 else correlation


def _sky_variance(pixels: MaskedImage):
    return tile_medians(pixels.variance, pixels.mask, max(pixels.shape), planes=MaskPlane.not_sky())[0, 0]


def _noise_ratio(pixels: MaskedImage) -> float:
    """Robust scatter of empty sky over what the variance plane says; 1 when the noise is understood."""
    xp = array_module(pixels.image)
    step = max(1, math.isqrt(pixels.image.size // NOISE_SAMPLE_PIX))
    sample = (slice(None, None, step),) * 2
    sky = (pixels.mask[sample] & np.int32(MaskPlane.not_sky())) == 0
    pull = (pixels.image[sample] / xp.sqrt(pixels.variance[sample]))[sky]
    return float(1.4826 * xp.median(xp.abs(pull - xp.median(pull)))) if pull.size else float("nan")


def _rank_within(cell) -> np.ndarray:
    """For every element its position among the elements of the same cell, in the order given."""
    order = np.argsort(cell, kind="stable")
    start = np.r_[True, cell[order][1:] != cell[order][:-1]]
    first = np.maximum.accumulate(np.where(start, np.arange(len(cell)), 0))
    rank = np.empty(len(cell), int)
    rank[order] = np.arange(len(cell)) - first
    return rank
