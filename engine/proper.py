"""Proper subtraction (ZOGY) as a second way to a difference: from the two PSFs, with nothing fitted but the flux scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nightstream.engine.config import DifferenceConfig
from nightstream.engine.memory import to_host
from nightstream.engine.values import DifferenceResult, Exposure, MaskedImage, WarpedTemplate
from nightstream.errors import UnprocessableError
from nightstream.kernels.convolution import choose_tile
from nightstream.kernels.decorrelation import tile_medians
from nightstream.kernels.difference_background import fit_difference_background
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.photometry import psf_flux
from nightstream.kernels.psf_transform import convolve_psf
from nightstream.kernels.target import array_module
from nightstream.kernels.zogy import subtract_proper, zogy_kernels

SCALE_FLOOR = 0.01  # relative error of a star's flux ratio besides noise


def subtract_properly(science: Exposure, warped: WarpedTemplate, x, y, config: DifferenceConfig) -> DifferenceResult:
    """Return the proper difference of ``science`` and a template on the same grid; see `kernels.zogy`.

    ``x, y`` are static point sources that both images share: they give the flux scale. ``matched_template`` is the
    template's part of the difference. Raises UnprocessableError when no star gives the scale.
    """
    tile = config.tile_pix or choose_tile(science.pixels.shape)
    scale, used = flux_ratio(science, warped, x, y)
    pair = science.pixels, warped.pixels
    variances = [tile_medians(p.variance, p.mask, tile, planes=MaskPlane.not_sky()) for p in pair]
    kernels = zogy_kernels(
        science.psf, warped.psf, *variances, science.pixels.shape, tile,
        flux_scale=scale, template_correlation=warped.noise_correlation,
    )  # fmt: skip
    planes = [(p.image, p.mask, p.variance) for p in pair]
    proper = subtract_proper(*planes, kernels, tile, planes=MaskPlane.spreading())
    pixels = MaskedImage(proper.image, proper.mask, proper.variance)
    _subtract_sky(pixels, config)
    psf = convolve_psf(science.psf, kernels.science[0], science.pixels.shape, tile)
    matched = MaskedImage(proper.subtracted, proper.mask, proper.variance)
    return DifferenceResult(
        difference=replace(science, pixels=pixels, psf=psf),
        matched_template=replace(science, pixels=matched, psf=psf),
        kernel=None,
        diagnostics={
            "kernel_sum": scale, "n_stamps_used": used, "coverage": warped.coverage,
            "decorrelation_truncation": kernels.truncation, "star_residue": kernels.star_residue,
        },
    )  # fmt: skip


def _subtract_sky(pixels: MaskedImage, config: DifferenceConfig) -> None:
    """Take the sky that is left from the image, in place."""
    if config.subtract_background:
        fit_difference_background(
            pixels.image, pixels.mask, pixels.variance, bin_pix=config.difference_background_bin_pix,
            knot_pix=config.difference_background_knot_pix, planes=MaskPlane.not_sky(),
        ).subtract_from(pixels.image)  # fmt: skip


def flux_ratio(science: Exposure, warped: WarpedTemplate, x, y) -> tuple[float, int]:
    """Return the flux of stars on the science image over that on the template, and how many stars say so.

    The weighted mean of PSF flux ratios, clipped at 3 robust sigma: stars that changed, and what is no star, do not count.
    """
    xp = array_module(science.pixels.image)
    x, y = xp.asarray(x), xp.asarray(y)
    ours, theirs = (
        {k: to_host(v) for k, v in psf_flux(p.image, p.mask, p.variance, x, y, psf).items()}
        for p, psf in ((science.pixels, science.psf), (warped.pixels, warped.psf))
    )
    good = ~(ours["flag"] | theirs["flag"]) & (ours["flux"] > 0) & (theirs["flux"] > 10 * theirs["flux_err"])
    if not good.any():
        raise UnprocessableError(f"none of {len(good)} stars has S/N 10 on both images, wanted at least 1 for the flux scale")
    ratio = ours["flux"][good] / theirs["flux"][good]
    error = ratio * np.hypot(ours["flux_err"][good] / ours["flux"][good], theirs["flux_err"][good] / theirs["flux"][good])
    kept = np.ones(len(ratio), bool)
    for _ in range(5):
        weight = kept / (error**2 + (SCALE_FLOOR * ratio) ** 2)
        mean = float(np.average(ratio, weights=weight)) if kept.sum() > 10 else float(np.median(ratio))
        pull = np.abs(ratio - mean) / np.sqrt(error**2 + (SCALE_FLOOR * mean) ** 2)
        kept = pull <= 3 * max(1.0, 1.4826 * float(np.median(pull)))
    return mean, int(kept.sum())
