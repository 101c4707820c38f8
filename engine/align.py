"""Two reduced images that may lie on different grids: where the template's pixels are on the science image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nightstream.engine.config import AlignConfig, DifferenceConfig
from nightstream.engine.difference import template_mask, warp_template
from nightstream.engine.memory import to_host
from nightstream.engine.prepare import PreparedImage
from nightstream.engine.values import Exposure, MaskedImage, Template, WarpedTemplate
from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.centroid import fit_centroids
from nightstream.kernels.distortion import fit_distortion
from nightstream.kernels.registration import fit_affine, fit_similarity, match_stars
from nightstream.kernels.target import array_module
from nightstream.kernels.wcs import Wcs

MAX_STARS = 1000  # brightest of either image that are matched
OFFSET_WITH_WCS_PIX, ROTATION_WITH_WCS_DEG = 30.0, 0.5
PIXEL_ARCSEC = 0.2  # of the grid made up for images without WCS
CORNERS = np.array([0.0, 0.5, 1.0])  # of the image, where two WCSs are compared
ENOUGH_STARS = 6  # in both images: when these do not match, the WCS is wrong; of fewer, it may be the stars
MAX_CORNER_LEVERAGE = 1.0  # variance of an affine map at the image's corners, in units of one star's: no extrapolation


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """The template on the science grid, and how its pixels map there: None for as they are."""

    template: WarpedTemplate
    science_wcs: Wcs | None
    template_wcs: Wcs | None
    diagnostics: dict[str, float]

    def to_science(self, x, y):
        """Return where template pixels ``x, y`` (host) lie on the science image."""
        if self.science_wcs is None or self.template_wcs is None:
            return x, y
        return self.science_wcs.pixel_from_sky(*self.template_wcs.sky_from_pixel(x, y))


def align(science: PreparedImage, template: PreparedImage, config: AlignConfig, difference: DifferenceConfig) -> Aligned:
    """Bring ``template`` to the grid of ``science``; see `AlignConfig.mode`.

    Images that are not aligned are matched by their stars, from the WCSs where both have one, at any shift and rotation
    where not; the map is affine plus a distortion as far as the stars ask for it. Stars too few or too close together
    for that correct the WCS by a shift alone; where there are fewer than `ENOUGH_STARS` and they do not match, the WCS is
    taken as it is, and ``n_matched_stars`` is 0. Raises InputError for a mode that the images do not allow,
    UnprocessableError when the stars do not match.
    """
    mode = choose_mode(science.exposure, template.exposure, config)
    if mode == "none":
        return Aligned(template=_as_is(template), science_wcs=None, template_wcs=None, diagnostics={})
    wcs = (_flat_wcs(science.exposure), _flat_wcs(template.exposure))
    if mode == "wcs":
        wcs = science.exposure.wcs, template.exposure.wcs
    fitted, diagnostics = _register(science, template, *wcs, mode, config)
    exposure = replace(science.exposure, wcs=fitted)
    warped = warp_template(exposure, _as_template(template, wcs[1]), difference)
    return Aligned(template=warped, science_wcs=fitted, template_wcs=wcs[1], diagnostics=diagnostics)


def choose_mode(science: Exposure, template: Exposure, config: AlignConfig) -> str:
    """Return "none", "wcs" or "stars"."""
    same_shape = science.pixels.shape == template.pixels.shape
    both = science.wcs is not None and template.wcs is not None
    if config.mode == "none" and not same_shape:
        raise InputError(
            f"got a template of shape {template.pixels.shape}, wanted that of the science image, {science.pixels.shape}"
        )
    if config.mode == "wcs" and not both:
        raise InputError("got an image without WCS, wanted one in both; align by stars, or not at all")
    if config.mode != "auto":
        return config.mode
    if same_shape and (not both or _grids_agree(science, template, config.same_grid_pix)):
        return "none"
    return "wcs" if both else "stars"


def _grids_agree(science: Exposure, template: Exposure, limit_pix: float) -> bool:
    ny, nx = science.pixels.shape
    x, y = (a.ravel() for a in np.meshgrid(CORNERS * (nx - 1), CORNERS * (ny - 1)))
    there_x, there_y = science.wcs.pixel_from_sky(*template.wcs.sky_from_pixel(x, y))
    return bool(np.nanmax(np.hypot(there_x - x, there_y - y)) < limit_pix)


def _flat_wcs(exposure: Exposure) -> Wcs:
    ny, nx = exposure.pixels.shape
    return Wcs.tan(180.0, 0.0, (nx - 1) / 2, (ny - 1) / 2, PIXEL_ARCSEC)


def _as_is(template: PreparedImage) -> WarpedTemplate:
    exposure, pixels = template.exposure, template.exposure.pixels
    xp = array_module(pixels.image)
    return WarpedTemplate(
        pixels=MaskedImage(pixels.image, template_mask(pixels.mask), pixels.variance),
        noise_correlation=template.noise_correlation, psf=exposure.psf, coverage=float(xp.isfinite(pixels.image).mean()),
    )  # fmt: skip


def _as_template(template: PreparedImage, wcs: Wcs) -> Template:
    exposure, correlation = template.exposure, template.noise_correlation
    xp = array_module(exposure.pixels.image)
    return Template(
        id="given", band=exposure.info.band, pixels=exposure.pixels, wcs=wcs, psf=exposure.psf,
        noise_correlation=xp.ones((1, 1)) if correlation is None else xp.asarray(correlation), stars={},
    )  # fmt: skip


def _register(
    science: PreparedImage, template: PreparedImage, science_wcs: Wcs, template_wcs: Wcs, mode: str, config: AlignConfig
):
    """Return the science WCS corrected so that its stars lie on the template's, and how well they do."""
    ours, theirs = (_stars(image, config.min_snr) for image in (science, template))
    predicted = science_wcs.pixel_from_sky(*template_wcs.sky_from_pixel(theirs["x"], theirs["y"]))
    shape = science.exposure.pixels.shape
    try:
        first, second = _match(ours, theirs, predicted, shape, mode, config)
    except UnprocessableError:
        if mode == "stars" or min(len(ours["x"]), len(theirs["x"])) >= ENOUGH_STARS:
            raise
        return science_wcs, {"n_matched_stars": 0}
    x, y = ours["x"][first], ours["y"][first]
    free = _corner_leverage(x, y, shape) <= MAX_CORNER_LEVERAGE
    there = predicted[0][second], predicted[1][second]
    corrected = science_wcs
    if free:
        corrected = science_wcs.with_affine(fit_affine(x, y, *there)[0])
    elif mode == "stars":
        corrected = science_wcs.with_affine(fit_similarity(x, y, *there))
    ra, dec = template_wcs.sky_from_pixel(theirs["x"][second], theirs["y"][second])
    error = np.hypot(ours["error"][first], theirs["error"][second])
    distortion, used = fit_distortion(
        x, y, *corrected.offset_to_sky(x, y, ra, dec), error, bounds=(0, shape[1] - 1, 0, shape[0] - 1),
        max_order=config.distortion_order if free else 0,
    )  # fmt: skip
    fitted = corrected.with_distortion(distortion)
    offset = np.hypot(*fitted.offset_to_sky(x[used], y[used], ra[used], dec[used]))
    return fitted, {
        "n_matched_stars": int(used.sum()),
        "registration_scatter_pix": float(np.sqrt((offset**2).mean() / 2)),
        "distortion_order": distortion.order,
    }


def _match(ours, theirs, predicted, shape, mode: str, config: AlignConfig):
    """Return the indices of stars that are pairs; ``predicted`` is where the template's lie by the WCSs, if these hold."""
    reach = OFFSET_WITH_WCS_PIX if mode == "wcs" else float(max(shape))
    rotation = ROTATION_WITH_WCS_DEG if mode == "wcs" else 180.0
    return match_stars(
        ours["x"], ours["y"], ours["flux"], *predicted, theirs["flux"],
        max_offset_pix=config.max_offset_pix or reach, tolerance_pix=config.tolerance_pix,
        max_rotation_deg=rotation if config.max_rotation_deg is None else config.max_rotation_deg,
    )  # fmt: skip


def _corner_leverage(x, y, shape) -> float:
    """Return the variance of an affine fit to stars at ``x, y`` at the worst corner of the image; one star's is 1."""
    ny, nx = shape
    design = np.stack([np.ones_like(x), 2 * x / nx - 1, 2 * y / ny - 1], axis=1)
    corners = np.array([(1.0, u, v) for u in (-1, 1) for v in (-1, 1)])
    normal = design.T @ design
    if np.linalg.matrix_rank(normal) < 3:
        return np.inf
    return float(np.einsum("ki,ij,kj->k", corners, np.linalg.inv(normal), corners).max())


def _stars(image: PreparedImage, min_snr: float) -> dict[str, np.ndarray]:
    """Centroids, fluxes and errors (host) of the brightest sources that centre well; empty for none."""
    found, pixels, exposure = image.found, image.exposure.pixels, image.exposure
    xp = array_module(pixels.image)
    bright = xp.flatnonzero(found.snr >= min_snr)
    bright = bright[xp.argsort(-found.snr[bright], kind="stable")[:MAX_STARS]]
    if int(bright.size) == 0:
        return {name: np.zeros(0) for name in ("x", "y", "flux", "error")}
    fitted = fit_centroids(pixels.image, pixels.mask, pixels.variance, found.x[bright], found.y[bright], exposure.psf)
    fitted = {name: to_host(column) for name, column in fitted.items()}
    good = ~fitted["flag"] & (fitted["flux"] > 0)
    error = np.sqrt((fitted["x_err"] ** 2 + fitted["y_err"] ** 2) / 2)
    return {"x": fitted["x"][good], "y": fitted["y"][good], "flux": fitted["flux"][good], "error": error[good]}
