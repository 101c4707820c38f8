"""One reduced image minus another: prepare both, align, subtract. Arrays in, arrays out; files are `nightstream.io`'s.

>>> result = subtract_images(ReducedImage(image=science, gain=1.5), ReducedImage(image=template, gain=15.0))
>>> result.difference.pixels.image  # science units and PSF, positive where science is brighter
"""

from __future__ import annotations

import numpy as np

from nightstream.engine.align import Aligned, align
from nightstream.engine.blas import use_one_blas_thread
from nightstream.engine.config import SubtractConfig
from nightstream.engine.difference import evenly, subtract_aligned
from nightstream.engine.memory import to_host
from nightstream.engine.prepare import PreparedImage, prepare_image
from nightstream.engine.score_image import make_score_image
from nightstream.engine.values import Exposure, ReducedImage, Subtraction
from nightstream.errors import NightstreamError, UnprocessableError
from nightstream.kernels.photometry import psf_flux
from nightstream.kernels.target import array_module


def subtract_images(science: ReducedImage, template: ReducedImage, config: SubtractConfig | None = None) -> Subtraction:
    """Return ``science`` minus ``template``.

    Both images are NumPy arrays, or both CuPy arrays: the work is done where they are. They may lie on different grids
    (`engine.align`) and have their sky left in. Fluxes are in the units of the science image. Raises a `NightstreamError`
    that says which image it speaks of and what was wanted.
    """
    use_one_blas_thread()
    config = config or SubtractConfig()
    prepared = [_prepare(image, config, name) for image, name in ((science, "science image"), (template, "template"))]
    aligned = align(*prepared, config.align, config.difference)
    x, y = kernel_stars(*prepared, aligned, config)
    exposure = prepared[0].exposure
    result = subtract_aligned(exposure, aligned.template, x, y, config.difference, prepared[0].noise_correlation)
    score = make_score_image(exposure, aligned.template, x, y, config.difference) if config.score else None
    names = ("science", "template")
    summary = {f"{name}_{key}": v for name, image in zip(names, prepared, strict=True) for key, v in image.summary.items()}
    return Subtraction(
        result=result, science=exposure, template=aligned.template, score=score,
        diagnostics=summary | aligned.diagnostics | result.diagnostics | photometric_scale(result.diagnostics),
    )  # fmt: skip


def photometric_scale(diagnostics: dict[str, float]) -> dict[str, float]:
    """Return science flux over template flux and its error, whichever image the kernel was fitted to."""
    scale, error = diagnostics["kernel_sum"], diagnostics.get("kernel_sum_error", float("nan"))
    if diagnostics.get("convolved_science"):
        scale, error = 1 / scale, error / scale**2
    return {"photometric_scale": scale, "photometric_scale_error": error}


def _prepare(image: ReducedImage, config: SubtractConfig, name: str) -> PreparedImage:
    try:
        return prepare_image(image, config.prepare)
    except NightstreamError as error:
        raise error.locate(path=image.info.path or name) from None


def kernel_stars(science: PreparedImage, template: PreparedImage, aligned: Aligned, config: SubtractConfig) -> tuple:
    """Return x, y (host, science pixels) of the template's sources that are bright enough on the science image too, evenly
    spread, best ones first. Raises UnprocessableError when there is none.

    They stand out of what surrounds them, too: noise makes many peaks on the light of a large galaxy, which are no stars.
    """
    found, score = template.found, science.found.score
    xp = array_module(score)
    positive = xp.flatnonzero(found.snr > 0)
    x, y = aligned.to_science(*(to_host(c[positive]) for c in (found.x, found.y)))
    snr = to_host(found.snr[positive])
    ny, nx = score.shape
    inside = (x > -0.5) & (x < nx - 0.5) & (y > -0.5) & (y < ny - 0.5)
    x, y, snr = x[inside], y[inside], snr[inside]
    there = to_host(score)[y.round().astype(int), x.round().astype(int)]
    bright = there >= config.difference.kernel_min_snr
    if not bright.any():
        raise UnprocessableError(
            f"none of the template's {len(snr)} sources has S/N {config.difference.kernel_min_snr:g} on the science image"
        )
    x, y, snr = x[bright], y[bright], snr[bright]
    order = evenly(x, y, snr, config.difference)
    standing = _stands_out(science.exposure, x[order], y[order], config.difference.kernel_min_snr)
    order = order[standing] if standing.any() else order
    return x[order], y[order]


def _stands_out(exposure: Exposure, x, y, min_snr: float) -> np.ndarray:
    """Return (host bool) which places hold a point source of ``min_snr`` above a constant all around."""
    pixels = exposure.pixels
    xp = array_module(pixels.image)
    flux = psf_flux(pixels.image, pixels.mask, pixels.variance, xp.asarray(x), xp.asarray(y), exposure.psf, background=True)
    return to_host(flux["flux"] >= min_snr * flux["flux_err"])
