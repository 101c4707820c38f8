"""From a reduced image with its sky to what a difference needs: sky, variance, PSF and sources, with nothing tuned by hand.

For images that other pipelines reduced. Raw frames go through `engine.isr` and `engine.characterize`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nightstream.engine.config import PrepareConfig
from nightstream.engine.values import Array, Exposure, MaskedImage, ReducedImage
from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.background import BackgroundMesh, background_mesh
from nightstream.kernels.detection import Detections, detect, mark_detected
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.moments import gaussian_moments
from nightstream.kernels.psf import FWHM_PER_SIGMA, PsfModel
from nightstream.kernels.psf_fit import fit_psf
from nightstream.kernels.psf_stars import densest_point, select_psf_stars
from nightstream.kernels.sky_correlation import sky_correlation
from nightstream.kernels.target import array_module

MIN_BINS, SMALLEST_BIN_PIX = 4, 16  # along each axis of the mesh of the sky
OUTLIER_SIGMA = 3.0  # errors by which a bin of the sky may differ from its neighbours
SIZE_WINDOW = 0.05  # in ln(size): the seeing is where most sources lie this close together
SIZING_STARS = 300  # most sources whose sizes say what the FWHM is
FAINT_SIGMA = 2.0  # of the sky: below it a pixel's excess is noise, and adds none to its variance
PSF_WIDTH_FWHM = 6.0  # side of the PSF image in FWHMs
PSF_SIZE_LIMITS = (25, 61)  # pixels, odd
MAX_CORRELATION = 0.05  # of neighbours' noise that counts as none
CORRELATION_REACH = 6  # pixels; resampling and stacking tie pixels together over fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """``exposure`` is sky subtracted and has a PSF; its unit is that of the image."""

    exposure: Exposure
    sky: Array  # (ny, nx) float32 that was subtracted
    found: Detections  # sources above ``PrepareConfig.threshold``
    fwhm_pix: float
    noise_correlation: np.ndarray | None  # autocorrelation of its noise, centre 1, host; None for white noise
    summary: dict[str, float]


def prepare_image(reduced: ReducedImage, config: PrepareConfig) -> PreparedImage:
    """Find the sky, the noise, the sources and the PSF of one image.

    The sky is a polynomial of low order through the levels of a mesh: whatever is left is smooth, and a difference fits
    and removes it with far less noise than a mesh has. The variance is the sky's, plus the photons of pixels that stand
    clearly above it, so that on empty sky it carries no noise, and scaled to the scatter of the sky (LSST's scaleVariance).
    A given variance is kept but for such a factor, which it gets where the sky's pixels are independent. Raises InputError
    for an image of the wrong shape, UnprocessableError when there is no usable star for the PSF.
    """
    image, mask = _checked(reduced)
    guess = estimate_fwhm(image, mask, config)
    mesh = background_mesh(image, mask, bin_pix=_bin_pix(image, config))
    light = image - mesh.image()
    noise = mesh.noise_image() ** 2
    mask = mark_detected(mask, detect(light, mask, noise, _gaussian(guess, image)))
    mesh = background_mesh(image, mask, bin_pix=_bin_pix(image, config), estimator="mean", outlier_sigma=OUTLIER_SIGMA)
    sky = mesh.image("polynomial", order=config.sky_order)
    light = image - sky
    correlation = noise_correlation(light, mask, noise)
    if reduced.variance is None:
        variance, scale = expected_variance(reduced, light, sky, mesh)
    else:
        variance, scale = given_variance(reduced.variance, light, mask, config)
    pixels = MaskedImage(light, mask, variance)
    psf, used = _model_psf(pixels, guess, config)
    ny, nx = image.shape
    found = detect(light, mask, variance, psf.centred((nx - 1) / 2, (ny - 1) / 2)[0], threshold=config.threshold)
    fwhm = float(psf.fwhm_pix((nx - 1) / 2, (ny - 1) / 2)[0])
    return PreparedImage(
        exposure=Exposure(info=reduced.info, pixels=pixels, wcs=reduced.wcs, psf=psf, njy_per_unit=1.0),
        sky=sky, found=found, fwhm_pix=fwhm, noise_correlation=correlation, summary=_summary(sky, mesh, fwhm, used, found, scale),
    )  # fmt: skip


def _summary(sky, mesh, fwhm, used, found, scale) -> dict[str, float]:
    xp = array_module(sky)
    return {
        "psf_fwhm_pix": fwhm,
        "sky_background": float(xp.median(sky)),
        "sky_noise": float(xp.median(mesh.noise)),
        "n_psf_stars": used,
        "n_sources": len(found),
        "variance_scale": scale,
    }


def _checked(reduced: ReducedImage):
    """Return image and mask, float32 and int32, with NO_DATA and SAT set."""
    xp = array_module(reduced.image)
    image = xp.ascontiguousarray(reduced.image, dtype=xp.float32)
    if image.ndim != 2 or 0 in image.shape:
        raise InputError(f"got an image of shape {image.shape}, wanted (ny, nx)")
    for name in ("mask", "variance"):
        plane = getattr(reduced, name)
        if plane is not None and plane.shape != image.shape:
            raise InputError(f"got a {name} of shape {plane.shape}, wanted that of the image, {image.shape}")
    mask = xp.zeros(image.shape, xp.int32) if reduced.mask is None else reduced.mask.astype(xp.int32)
    missing = ~xp.isfinite(image)
    if reduced.variance is not None:
        missing = missing | ~(xp.isfinite(reduced.variance) & (reduced.variance > 0))
    mask = xp.where(missing, mask | np.int32(MaskPlane.NO_DATA), mask)
    if reduced.saturation is not None:
        mask = xp.where(image >= xp.float32(reduced.saturation), mask | np.int32(MaskPlane.SAT), mask)
    if bool((mask & np.int32(MaskPlane.NO_DATA) != 0).all()):
        raise UnprocessableError("no pixel of the image has a value")
    return xp.where(missing, xp.float32(xp.nan), image), mask


def estimate_fwhm(image, mask, config: PrepareConfig) -> float:
    """Return the FWHM, pixels, that most compact bright sources share: the mode of their adaptive moments."""
    xp = array_module(image)
    mesh = background_mesh(image, mask, bin_pix=_bin_pix(image, config))
    light, variance = image - mesh.image(), mesh.noise_image() ** 2
    fwhm = config.initial_fwhm_pix
    for _ in range(2):
        found = detect(light, mask, variance, _gaussian(fwhm, image), threshold=config.sizing_snr, polarity="positive")
        order = xp.argsort(-found.snr, kind="stable")[:SIZING_STARS]
        half = int(np.clip(np.ceil(2 * fwhm), 8, 30))
        moments = gaussian_moments(light, mask, variance, found.x[order], found.y[order], half_size=half)
        good = (moments["masked_fraction"] < 0.05) & (moments["flux"] > 10 * moments["flux_err"])
        sigma = moments["sigma_pix"][good & xp.isfinite(moments["sigma_pix"])]
        if int(sigma.size) == 0:
            raise UnprocessableError(f"no source of S/N {config.sizing_snr:g} to measure the seeing on, among {len(found)} found")
        fwhm = float(xp.exp(densest_point(xp.log(sigma)[:, None], SIZE_WINDOW)[0])) * FWHM_PER_SIGMA
    return fwhm


def _bin_pix(image, config: PrepareConfig) -> int:
    """Bins of small images are smaller: a curved sky needs some along each axis."""
    return max(SMALLEST_BIN_PIX, min(config.background_bin_pix, min(image.shape) // MIN_BINS))


def _gaussian(fwhm_pix, image):
    size = _psf_size(fwhm_pix)
    return array_module(image).asarray(PsfModel.gaussian(fwhm_pix / FWHM_PER_SIGMA, size).coefficients[0])


def _psf_size(fwhm_pix) -> int:
    return int(np.clip(2 * int(np.ceil(PSF_WIDTH_FWHM * fwhm_pix / 2)) + 1, *PSF_SIZE_LIMITS))


def noise_correlation(light, mask, variance) -> np.ndarray | None:
    """Return the autocorrelation (host, centre 1) of the sky's noise where neighbours have more than `MAX_CORRELATION` in
    common, as in images that were resampled; else None.

    Light that is left on the sky correlates over far longer distances: what is common `CORRELATION_REACH` pixels away is
    taken for that, and out.
    """
    if not neighbours_correlate(light, mask, variance):
        return None
    stamp = sky_correlation(light, mask, variance, planes=MaskPlane.not_sky(), reach=CORRELATION_REACH)
    far = float(np.mean([stamp[0], stamp[-1], stamp[:, 0], stamp[:, -1]]))
    stamp = ((stamp - far) / (1 - far))[1:-1, 1:-1]
    middle = CORRELATION_REACH - 1
    neighbours = np.delete(stamp[middle - 1 : middle + 2, middle - 1 : middle + 2].ravel(), 4)
    return stamp if np.abs(neighbours).max() > MAX_CORRELATION else None


def neighbours_correlate(light, mask, variance) -> bool:
    """Return whether pixels next to each other on the sky have more than `MAX_CORRELATION` in common."""
    near = sky_correlation(light, mask, variance, planes=MaskPlane.not_sky(), reach=1)
    return bool(np.abs(np.delete(near.ravel(), 4)).max() > MAX_CORRELATION)


def expected_variance(reduced: ReducedImage, light, sky, mesh: BackgroundMesh):
    """Return the variance plane, float32, made of sky, gain and read noise, and the factor by which the sky's scatter
    scaled it.

    A sky that is lower than its own scatter was subtracted before, or is nothing to the read noise: its variance is what is
    measured, and the photons of the sources have the given gain. Without a gain nothing is known of them then.
    """
    xp = array_module(light)
    measured, level = float(xp.median(mesh.noise) ** 2), float(xp.median(sky))
    gain, has_sky = reduced.gain, level**2 > measured
    if gain is None and has_sky:
        gain = level / measured
    if gain is not None and has_sky:
        sky_variance = xp.maximum(sky, 0) / gain + (reduced.read_noise / gain) ** 2
        scale = measured / float(xp.median(sky_variance))
    else:
        sky_variance, scale = xp.full(light.shape, measured, xp.float32), 1.0
    sigma = xp.sqrt(sky_variance)
    photons = xp.where(light > FAINT_SIGMA * sigma, light, 0) / xp.float32(gain) if gain else xp.float32(0)
    return (xp.nan_to_num(sky_variance + photons, nan=measured) * xp.float32(scale)).astype(xp.float32), scale


def given_variance(variance, light, mask, config: PrepareConfig):
    """Return a given ``variance`` as float32, scaled to the scatter of the sky (``light``), and the factor.

    The factor is 1 where `PrepareConfig.scale_variance` says so, and where neighbours correlate: pixels of a resampled
    image scatter by less than the noise that they share, and so do those that lie in the light of a large object by more.
    """
    xp = array_module(light)
    variance = variance.astype(xp.float32)
    if not config.scale_variance or neighbours_correlate(light, mask, variance):
        return variance, 1.0
    pull = background_mesh(light / xp.sqrt(variance), mask, bin_pix=config.background_bin_pix, estimator="mean")
    scale = float(xp.median(pull.noise) ** 2)
    return variance * xp.float32(scale), scale


def _model_psf(pixels: MaskedImage, fwhm_pix: float, config: PrepareConfig) -> tuple[PsfModel, int]:
    planes = pixels.image, pixels.mask, pixels.variance
    size = _psf_size(fwhm_pix)
    peaks = detect(*planes, _gaussian(fwhm_pix, pixels.image), polarity="positive")
    chosen = select_psf_stars(
        *planes, peaks.x, peaks.y, min_snr=_psf_min_snr(peaks.snr, config), max_stars=config.psf_max_stars,
        isolation_pix=max(12.0, 3 * fwhm_pix), half_size=size // 2,
    )  # fmt: skip
    psf, used = fit_psf(*planes, peaks.x[chosen], peaks.y[chosen], size=size, order=config.psf_order)
    return psf, int(used.sum())


def _psf_min_snr(snr, config: PrepareConfig) -> float:
    """The S/N that PSF stars must have: what is wanted, or less where fewer than ten sources have that."""
    xp = array_module(snr)
    tenth = float(xp.sort(snr)[-min(10, len(snr))]) if len(snr) else 0.0
    return float(np.clip(tenth, min(config.sizing_snr, config.psf_min_snr), config.psf_min_snr))
