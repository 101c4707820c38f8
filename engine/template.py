"""A template from visit images: warped to one grid, scaled to nJy, averaged, with the PSF and the stars of
the result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from nightstream.engine.blas import use_one_blas_thread
from nightstream.engine.config import TemplateConfig
from nightstream.engine.memory import to_host
from nightstream.engine.sources import measure_sources
from nightstream.engine.values import Exposure, MaskedImage, Table, Template
from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.coadd import Coadd, coadd, flag_high_variance, mean_correlation
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.psf import PsfModel
from nightstream.kernels.psf_fit import fit_psf
from nightstream.kernels.psf_stars import select_psf_stars
from nightstream.kernels.target import array_module
from nightstream.kernels.warp import map_phases, noise_correlation, warp, warp_grid
from nightstream.kernels.wcs import Wcs

MAX_PHASES = 4096  # pairs of sub-pixel phases that a noise correlation is averaged over
ISOLATION_PIX = 10.0  # distance within which a star of the table has no brighter neighbour


def build_template(
    exposures: Iterable[Exposure], config: TemplateConfig, *, wcs: Wcs | None = None, shape=None, template_id: str = ""
) -> Template:
    """Return the coadd of background-subtracted ``exposures`` of one band, in nJy.

    Each exposure needs WCS and PSF; its ``njy_per_unit`` brings the fluxes to one scale. The grid is a TAN
    projection at the first exposure's centre, scale and orientation, ``padding_pix`` larger on every side,
    unless ``wcs`` and ``shape`` say otherwise. ``template_id`` defaults to a hash of band and visits. Raises
    InputError without exposures or when bands differ, UnprocessableError when the coadd has no star for its
    PSF.
    """
    use_one_blas_thread()
    exposures = list(exposures)
    _check(exposures)
    if wcs is None or shape is None:
        wcs, shape = padded_grid(exposures[0], config.padding_pix)
    warped, correlations = zip(*(_warp_to(e, wcs, shape, config) for e in exposures), strict=True)
    xp = array_module(warped[0].image)
    stacks = (xp.stack([getattr(w, plane) for w in warped]) for plane in ("image", "mask", "variance"))
    mean = coadd(*stacks, clip_sigma=config.clip_sigma, clip_tolerance=config.clip_tolerance)
    weights = to_host(mean.weights)
    correlation = mean_correlation(correlations, weights, 1 / weights)
    pixels = MaskedImage(mean.image, _final_mask(mean, config), mean.variance)
    psf, stars = _psf_and_stars(pixels, wcs, _typical_fwhm(exposures, wcs), config)
    return Template(
        id=template_id or _identify(exposures), band=exposures[0].info.band, pixels=pixels, wcs=wcs, psf=psf,
        noise_correlation=xp.asarray(correlation), stars=stars,
        provenance={"visits": ",".join(str(e.info.visit) for e in exposures), "config": config.model_dump_json()},
    )  # fmt: skip


def padded_grid(exposure: Exposure, padding_pix: int) -> tuple[Wcs, tuple[int, int]]:
    """Return a TAN WCS and a shape that hold the exposure with a border of ``padding_pix`` on every side.

    Scale and orientation are those of the exposure's WCS at the centre of its image, distortion removed.
    """
    ny, nx = exposure.pixels.shape
    x0, y0 = (nx - 1) / 2, (ny - 1) / 2
    ra, dec = (float(c[0]) for c in _sky(exposure.wcs, [x0], [y0]))
    flat = Wcs(crval=(ra, dec), crpix=(0.0, 0.0), cd=((1.0, 0.0), (0.0, 1.0)), kind="TAN")
    xi, eta = flat.pixel_from_sky(*_sky(exposure.wcs, x0 + np.array([-1, 1, 0, 0]), y0 + np.array([0, 0, -1, 1])))
    cd = tuple((float(c[1] - c[0]) / 2, float(c[3] - c[2]) / 2) for c in (xi, eta))
    wcs = Wcs(crval=(ra, dec), crpix=(x0 + padding_pix, y0 + padding_pix), cd=cd, kind="TAN")
    return wcs, (ny + 2 * padding_pix, nx + 2 * padding_pix)


def _check(exposures) -> None:
    if not exposures:
        raise InputError("a template needs at least one exposure, got none")
    bands = sorted({e.info.band for e in exposures})
    if len(bands) > 1:
        raise InputError(f"a template needs exposures of one band, got {', '.join(bands)}")
    for e in exposures:
        if e.wcs is None or e.psf is None:
            raise InputError(f"exposure of visit {e.info.visit} has no {'WCS' if e.wcs is None else 'PSF'}")


def _warp_to(exposure: Exposure, wcs: Wcs, shape, config: TemplateConfig):
    """Return the exposure on the template's grid in nJy and the correlation of its noise there."""
    pixels, step = exposure.pixels, config.warp_step_pix
    xp = array_module(pixels.image)
    map_x, map_y = warp_grid(wcs, exposure.wcs, shape, step, xp=xp)
    planes = pixels.image, pixels.mask, pixels.variance
    image, mask, variance = warp(*planes, map_x, map_y, step, shape, order=config.warp_order)
    phase_x, phase_y = (p[:: 1 + p.size // MAX_PHASES] for p in map_phases(map_x, map_y))
    unit = xp.float32(exposure.njy_per_unit)
    correlation = noise_correlation(config.warp_order, phase_x=phase_x, phase_y=phase_y)
    detected = np.int32(MaskPlane.DETECTED | MaskPlane.DETECTED_NEGATIVE)
    return MaskedImage(image * unit, mask & ~detected, variance * unit * unit), correlation


def _final_mask(mean: Coadd, config: TemplateConfig):
    return flag_high_variance(mean.mask, mean.variance, factor=config.high_variance_factor, bin_pix=config.high_variance_bin_pix)


def _typical_fwhm(exposures, wcs: Wcs) -> float:
    """Median FWHM of the exposures in pixels of the template."""
    sizes = []
    for e in exposures:
        ny, nx = e.pixels.shape
        scale = e.wcs.pixel_scale_arcsec / wcs.pixel_scale_arcsec
        sizes.append(float(e.psf.fwhm_pix(nx / 2, ny / 2)[0]) * scale)
    return float(np.median(sizes))


def _psf_and_stars(pixels: MaskedImage, wcs: Wcs, fwhm_pix: float, config: TemplateConfig) -> tuple[PsfModel, Table]:
    xp = array_module(pixels.image)
    guess = PsfModel.gaussian(fwhm_pix / 2.3548, config.psf_size_pix)
    guess = PsfModel(xp.asarray(guess.coefficients))
    first = measure_sources(pixels, guess, threshold=config.star_threshold)
    if first["x"].size == 0:
        raise UnprocessableError(f"no star above {config.star_threshold:g} sigma in the coadd")
    planes = pixels.image, pixels.mask, pixels.variance
    x, y = xp.asarray(first["x"]), xp.asarray(first["y"])
    chosen = select_psf_stars(*planes, x, y)
    psf, _ = fit_psf(*planes, x[chosen], y[chosen], size=config.psf_size_pix, order=config.psf_order)
    return psf, _star_table(measure_sources(pixels, psf, threshold=config.star_threshold), wcs, config)


def _star_table(found: Table, wcs: Wcs, config: TemplateConfig) -> Table:
    """Good, isolated sources, brightest first: x, y, ra, dec, psf_flux, psf_flux_err."""
    from scipy.spatial import cKDTree

    good = ~(found["centroid_flag"] | found["psf_flux_flag"] | found["psf_flux_flag_edge"])
    good &= found["psf_flux"] > 0
    index = np.flatnonzero(good)
    xy = np.c_[found["x"], found["y"]][index]
    lone = np.ones(len(index), bool)
    for a, b in cKDTree(xy).query_pairs(ISOLATION_PIX) if len(index) else ():
        lone[max(a, b)] = False  # sorted by flux: the later one is the fainter
    index = index[lone][: config.max_stars]
    ra, dec = _sky(wcs, found["x"][index], found["y"][index])
    table = {name: found[name][index] for name in ("x", "y", "psf_flux", "psf_flux_err")}
    return table | {"ra": ra, "dec": dec}


def _sky(wcs: Wcs, x, y) -> tuple[np.ndarray, np.ndarray]:
    return wcs.sky_from_pixel(np.asarray(x, np.float64), np.asarray(y, np.float64))


def _identify(exposures) -> str:
    names = ",".join(sorted(f"{e.info.visit}/{e.info.detector}" for e in exposures))
    return f"{exposures[0].info.band}-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
