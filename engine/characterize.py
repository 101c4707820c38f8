"""From a signature-free image to a calibrated exposure: cosmic rays, background, PSF, WCS, zero point.

A reference is a host table of ra, dec (deg) and flux (nJy): an external catalogue, or the template's own stars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nightstream.engine.config import CharacterizeConfig
from nightstream.engine.sources import host_table, measure_sources
from nightstream.engine.values import Exposure, ExposureInfo, MaskedImage, Table
from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.background import fit_background
from nightstream.kernels.cosmic_rays import find_cosmic_rays
from nightstream.kernels.detection import detect, mark_detected
from nightstream.kernels.distortion import fit_distortion
from nightstream.kernels.interpolation import interpolate_masked
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.psf import FWHM_PER_SIGMA, PsfModel
from nightstream.kernels.psf_fit import fit_psf
from nightstream.kernels.psf_stars import select_psf_stars
from nightstream.kernels.psf_validation import PsfValidation, hold_out, validate_psf
from nightstream.kernels.registration import fit_affine, match_stars
from nightstream.kernels.target import array_module
from nightstream.kernels.wcs import Wcs

AB_ZERO_NJY = 31.4  # AB magnitude of 1 nJy
REPAIRED = MaskPlane.BAD | MaskPlane.SAT | MaskPlane.CR
DETECTED = MaskPlane.DETECTED | MaskPlane.DETECTED_NEGATIVE
SOURCES_MASKED = MaskPlane.unusable() | MaskPlane.VIGNETTED | DETECTED
HARMLESS_FLAGS = ("ap_flux_flag", "psf_flux_flag_edge")  # a PSF fit cut by the border is unbiased
MAG_PER_RELATIVE = 2.5 / np.log(10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Characterized:
    """A calibrated exposure, its stars (host table, brightest first) and what was learnt on the way."""

    exposure: Exposure
    stars: Table
    summary: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """How the measured stars lie on the reference: the corrected WCS, the flux scale, and how well both fit."""

    wcs: Wcs | None
    njy_per_electron: float
    n_matched: int = 0
    distortion_order: int = 0  # of the polynomial by which the WCS was corrected; 1 is affine
    scatter_pix: float = np.nan  # per axis, of the matched stars about the fit
    offset_mean_pix: float = np.nan  # distance of the matched stars from the fit, and its scatter
    offset_std_pix: float = np.nan
    scatter_mag: float = np.nan  # robust, of the matched stars about the zero point


def characterize(
    pixels: MaskedImage,
    info: ExposureInfo,
    wcs: Wcs | None,
    reference: Table | None,
    config: CharacterizeConfig,
) -> Characterized:
    """Calibrate one detector image.

    ``pixels`` is in electrons, as `remove_signature` leaves it; ``wcs`` is the approximate one of the raw header.
    Without a ``reference`` the WCS stays as it is and the zero point is the camera's nominal one. The image of the
    result is background subtracted; its defects, saturated pixels and cosmic rays are interpolated and flagged.

    Raises UnprocessableError when there is no usable PSF star, or too few stars match the reference.
    """
    pixels, background = flatten_sky(pixels, config)
    psf, n_psf_stars, validation = model_psf(pixels, config)
    stars = measure_sources(pixels, psf, threshold=config.star_threshold)
    registration = register(stars, wcs, reference, info, config)
    exposure = Exposure(info=info, pixels=pixels, wcs=registration.wcs, psf=psf, njy_per_unit=registration.njy_per_electron)
    summary = _summary(exposure, background, registration) | {
        "n_psf_stars": n_psf_stars,
        "n_stars": len(stars["x"]),
        "n_psf_validation_stars": validation.n_stars,
        "psf_validation_chi2": validation.chi2,
        "psf_validation_residual": validation.residual,
        "psf_validation_flux": validation.flux,
        "psf_validation_size": validation.size,
        "psf_validation_ellipticity": validation.ellipticity,
    }
    return Characterized(exposure=exposure, stars=_with_sky(stars, exposure), summary=summary)


def flatten_sky(pixels: MaskedImage, config: CharacterizeConfig):
    """Flag cosmic rays, repair bad pixels, subtract the sky; return the image and the sky that was subtracted.

    The sky is fitted twice: by modes, to find what stands above it, then without that by the configured estimator.
    """
    options = dict(
        bin_pix=config.background_bin_pix, sigma_clip=config.background_clip_sigma,
        iterations=config.background_clip_iterations, interpolation=config.background_interpolation,
        order=config.background_polynomial_order,
    )  # fmt: skip
    sky = fit_background(pixels.image, pixels.mask, **options)
    image = pixels.image - sky
    rays = find_cosmic_rays(
        image,
        pixels.mask,
        pixels.variance,
        psf_fwhm_pix=config.initial_fwhm_pix,
        threshold=config.cosmic_ray_threshold,
    )
    mask = pixels.mask | rays * np.int32(MaskPlane.CR)
    image, mask, variance = interpolate_masked(image, mask, pixels.variance, planes=REPAIRED)
    guess = PsfModel.gaussian(config.initial_fwhm_pix / FWHM_PER_SIGMA).coefficients[0]
    found = detect(image, mask, variance, array_module(image).asarray(guess), planes=MaskPlane.NO_DATA)
    mask = mark_detected(mask, found)
    rest = fit_background(
        image, mask, planes=SOURCES_MASKED, estimator=config.background_estimator,
        outlier_sigma=config.background_outlier_sigma, **options,
    )  # fmt: skip
    return MaskedImage(image - rest, mask, variance), sky + rest


def model_psf(pixels: MaskedImage, config: CharacterizeConfig) -> tuple[PsfModel, int, PsfValidation]:
    """Choose PSF stars among the peaks of a first detection and fit the PSF; return it, how many stars it used, and
    what the stars held back say of it.

    The model is not fitted again with those: its noise would fall by 5 %, but the statistics would no longer be those
    of the model in use, and nothing would be left that can tell an honest model from one that follows its stars.
    """
    xp = array_module(pixels.image)
    planes = (pixels.image, pixels.mask, pixels.variance)
    guess = PsfModel.gaussian(config.initial_fwhm_pix / FWHM_PER_SIGMA).coefficients[0]
    peaks = detect(*planes, xp.asarray(guess), polarity="positive")
    chosen = select_psf_stars(*planes, peaks.x, peaks.y, min_snr=config.psf_min_snr, max_stars=config.psf_max_stars)
    x, y = peaks.x[chosen], peaks.y[chosen]
    held = hold_out(x, y, pixels.shape)
    psf, used = fit_psf(*planes, x[~held], y[~held], size=config.psf_size_pix, order=config.psf_order)
    return psf, int(used.sum()), validate_psf(psf, *planes, x[held], y[held])


def register(
    stars: Table, wcs: Wcs | None, reference: Table | None, info: ExposureInfo, config: CharacterizeConfig
) -> Registration:
    """Correct the WCS by an affine map and a smooth distortion, and measure the flux scale, from stars matched to the reference.

    ``config`` says how far the WCS may be off, in shift and rotation, and how the correction may vary over the detector.
    Raises UnprocessableError with the counts when fewer than ``config.min_matches`` stars match, or without a WCS to start
    from, InputError without an exposure time.
    """
    if not info.exposure_time_s > 0:
        raise InputError(f"got an exposure time of {info.exposure_time_s:g} s, wanted more than 0")
    nominal = 10 ** (0.4 * (AB_ZERO_NJY - info.zero_point)) / info.exposure_time_s
    if reference is None:
        return Registration(wcs=wcs, njy_per_electron=nominal)
    if wcs is None:
        raise UnprocessableError("the raw header has no WCS, wanted an approximate one to find the reference stars with")
    good = is_calibration_star(stars, config.calibration_min_snr)
    stars_used, reference_used = _match({name: column[good] for name, column in stars.items()}, reference, wcs, config)
    fitted, used, order = _fit_wcs(wcs, stars_used, reference_used, _bounds(stars), config)
    stars_used, reference_used = ({name: column[used] for name, column in t.items()} for t in (stars_used, reference_used))
    flux = stars_used["psf_flux"]
    scale, scatter = flux_scale(reference_used["flux"] / flux, stars_used["psf_flux_err"] / flux)
    offset = np.hypot(*fitted.offset_to_sky(stars_used["x"], stars_used["y"], reference_used["ra"], reference_used["dec"]))
    return Registration(
        wcs=fitted,
        njy_per_electron=scale,
        n_matched=len(offset),
        distortion_order=order,
        scatter_pix=float(np.sqrt((offset**2).mean() / 2)),
        offset_mean_pix=float(offset.mean()),
        offset_std_pix=float(offset.std()),
        scatter_mag=MAG_PER_RELATIVE * scatter,
    )


def is_calibration_star(stars: Table, min_snr: float) -> np.ndarray:
    """Return which stars may calibrate: bright enough and no flag raised, apertures and stamps over the edge aside."""
    clean = np.ones(len(stars["x"]), bool)
    for name, column in stars.items():
        if column.dtype == bool and name not in HARMLESS_FLAGS:
            clean &= ~column
    return clean & (stars["psf_flux"] > min_snr * stars["psf_flux_err"])


def flux_scale(ratio: np.ndarray, relative_err: np.ndarray, floor: float = 0.01) -> tuple[float, float]:
    """Return the weighted mean of ``ratio``, clipped at 3 robust sigma, and its robust relative scatter.

    ``floor`` is added in quadrature to ``relative_err``: real photometry of bright stars is not better than that, and
    one of them must not set the scale alone.
    """
    centre = float(np.median(ratio))
    for _ in range(3):
        deviation = ratio / centre - 1
        scatter = 1.4826 * float(np.median(np.abs(deviation)))
        keep = np.abs(deviation) <= max(3 * scatter, 3 * floor)
        weight = 1 / (relative_err[keep] ** 2 + floor**2)
        centre = float(np.average(ratio[keep], weights=weight))
    return centre, scatter


def reference_from_stars(stars: Table, njy_per_unit: float = 1.0) -> Table:
    """Return the reference made of a table of stars with ra, dec and psf_flux; flagged ones are left out."""
    stars = host_table(stars)
    good = is_calibration_star(stars, 0.0)
    return {
        "ra": stars["ra"][good],
        "dec": stars["dec"][good],
        "flux": stars["psf_flux"][good] * njy_per_unit,
    }


def _match(stars: Table, reference: Table, wcs: Wcs, config: CharacterizeConfig) -> tuple[Table, Table]:
    """Return the rows of stars and reference that are pairs."""
    near, x, y = _predict(reference, wcs, stars, config)
    first, second = match_stars(
        stars["x"], stars["y"], stars["psf_flux"], x, y, near["flux"],
        max_offset_pix=config.registration_radius_pix, tolerance_pix=config.match_tolerance_pix,
        max_rotation_deg=config.max_rotation_deg,
    )  # fmt: skip
    if len(first) < config.min_matches:
        raise UnprocessableError(
            f"{len(first)} of {len(stars['x'])} stars match the {len(x)} reference stars, wanted {config.min_matches}"
        )
    return {name: column[first] for name, column in stars.items()}, {name: column[second] for name, column in near.items()}


def _predict(reference: Table, wcs: Wcs, stars: Table, config: CharacterizeConfig) -> tuple[Table, np.ndarray, np.ndarray]:
    """Return the reference stars that may be on the image, and their pixels x, y.

    A catalogue goes beyond the detector, and only its brightest stars vote in `match_stars`. A detector that is turned
    about its middle sweeps the circle through its corners.
    """
    x, y = wcs.pixel_from_sky(reference["ra"], reference["dec"])
    usable = np.isfinite(x) & np.isfinite(y) & (reference["flux"] > 0)
    low_x, high_x, low_y, high_y = _bounds(stars)
    radius = np.hypot(high_x - low_x, high_y - low_y) / 2
    turned = 2 * radius * np.sin(np.radians(config.max_rotation_deg) / 2)
    for predicted, low, high in ((x, low_x, high_x), (y, low_y, high_y)):
        margin = config.registration_radius_pix + min(turned, radius - (high - low) / 2)
        usable &= (predicted >= low - margin) & (predicted <= high + margin)
    return {name: column[usable] for name, column in reference.items()}, x[usable], y[usable]


def _bounds(stars: Table) -> tuple[float, float, float, float]:
    """Return lowest and highest x, lowest and highest y of the stars; zeros without any."""
    x, y = (stars[name][np.isfinite(stars["x"] + stars["y"])] for name in ("x", "y"))
    return (x.min(), x.max(), y.min(), y.max()) if len(x) else (0.0, 0.0, 0.0, 0.0)


def _fit_wcs(wcs: Wcs, stars: Table, reference: Table, bounds, config: CharacterizeConfig) -> tuple[Wcs, np.ndarray, int]:
    """Return the WCS that puts the stars where the reference has them, which pairs it used, and the order of its correction.

    First an affine map of the pixels, so that distortion the WCS already has stays with the sky it was measured on when the
    detector is turned; then the polynomial, by least squares in the tangent plane.
    """
    x, y, sky = stars["x"], stars["y"], (reference["ra"], reference["dec"])
    moved = wcs.with_affine(fit_affine(x, y, *wcs.pixel_from_sky(*sky))[0])
    error = np.sqrt((stars["x_err"] ** 2 + stars["y_err"] ** 2) / 2)
    distortion, used = fit_distortion(
        x, y, *moved.offset_to_sky(x, y, *sky), error, bounds=bounds, max_order=config.distortion_order
    )  # fmt: skip
    return moved.with_distortion(distortion), used, max(distortion.order, 1)


def _with_sky(stars: Table, exposure: Exposure) -> Table:
    """Sort by flux, brightest first, and add ra, dec (deg)."""
    order = np.argsort(-stars["psf_flux"], kind="stable")
    stars = {name: column[order] for name, column in stars.items()}
    if exposure.wcs is not None:
        stars["ra"], stars["dec"] = exposure.wcs.sky_from_pixel(stars["x"], stars["y"])
    return stars


def _summary(exposure: Exposure, background, registration: Registration) -> dict[str, float]:
    xp = array_module(background)
    ny, nx = exposure.pixels.shape
    zero_point = AB_ZERO_NJY - 2.5 * np.log10(exposure.njy_per_unit * exposure.info.exposure_time_s)
    scale = exposure.wcs.pixel_scale_arcsec if exposure.wcs is not None else np.nan
    return {
        "psf_fwhm_pix": float(exposure.psf.fwhm_pix(nx / 2, ny / 2)[0]),
        "sky_background_electron": float(xp.nanmedian(background)),
        "sky_noise_electron": float(xp.sqrt(xp.nanmedian(exposure.pixels.variance))),
        "zero_point_mag": float(zero_point),
        "n_matched_stars": registration.n_matched,
        "astrometric_distortion_order": registration.distortion_order,
        "astrometric_scatter_pix": registration.scatter_pix,
        "astrometric_offset_mean_arcsec": registration.offset_mean_pix * scale,
        "astrometric_offset_std_arcsec": registration.offset_std_pix * scale,
        "photometric_scatter_mag": registration.scatter_mag,
    }
