"""The score image: how significant a point source is at every pixel, without convolving the template to a sharper PSF."""

from __future__ import annotations

from nightstream.engine.config import DifferenceConfig
from nightstream.engine.difference import central_fwhm, convolve_image, fit_kernel, subtract_planes
from nightstream.engine.values import Exposure, MaskedImage, ScoreImage, WarpedTemplate
from nightstream.errors import UnprocessableError
from nightstream.kernels.convolution import choose_tile
from nightstream.kernels.decorrelation import tile_medians
from nightstream.kernels.difference_background import fit_difference_background
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.score import preconvolve, score_from_difference, score_kernels


def make_score_image(science: Exposure, warped: WarpedTemplate, x, y, config: DifferenceConfig) -> ScoreImage:
    """Preconvolve ``science`` with its own PSF, match the template to that, and filter their difference (`kernels.score`).

    ``x, y`` as in `subtract_aligned`. Raises UnprocessableError when the preconvolved science image is sharper than the
    template: then even this would have to deconvolve it.
    """
    pixels = science.pixels
    tile = config.tile_pix or choose_tile(pixels.shape)
    blurred = preconvolve(pixels.image, pixels.mask, pixels.variance, science.psf, tile, planes=MaskPlane.spreading())
    middle = (pixels.shape[1] - 1) / 2, (pixels.shape[0] - 1) / 2
    sizes = central_fwhm(warped), float(blurred.psf.fwhm_pix(*middle)[0])
    if sizes[1] < sizes[0]:
        raise UnprocessableError(
            f"no score image without deconvolution: the preconvolved science image has FWHM {sizes[1]:.2f} pix, "
            f"wanted at least the template's {sizes[0]:.2f}"
        )
    target = MaskedImage(blurred.image, blurred.mask, blurred.noise_power)
    kernel = fit_kernel((warped.pixels, target), sizes, x, y, config)
    matched = convolve_image(warped.pixels, kernel, tile)
    raw = subtract_planes(target, matched)
    fit_difference_background(
        raw.image, raw.mask, raw.variance, bin_pix=config.difference_background_bin_pix,
        knot_pix=config.difference_background_knot_pix, planes=MaskPlane.not_sky(), start=kernel.background_at,
    ).subtract_from(raw.image)  # fmt: skip
    skies = (tile_medians(p.variance, raw.mask, tile, planes=MaskPlane.not_sky()) for p in (pixels, warped.pixels))
    stamps = score_kernels(
        kernel.tile_kernels(pixels.shape, tile), science.psf, *skies, pixels.shape, tile,
        convolved_correlation=warped.noise_correlation,
    )  # fmt: skip
    score, flux, error, mask = score_from_difference(raw.image, raw.mask, pixels.variance, warped.pixels.variance, stamps, tile)
    diagnostics = dict(kernel.diagnostics, score_truncation=stamps.truncation)
    return ScoreImage(score=score, flux=flux, flux_err=error, mask=mask, diagnostics=diagnostics)
