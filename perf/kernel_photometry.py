"""Fluxes, positions and moments of the stars of a detector, beside SEP, photutils, GalSim and plain array expressions.

    python perf/kernel_photometry.py [--device auto|cpu|gpu] [--runs 3] [--name kernel-photometry-cpu]

What takes photutils or GalSim a millisecond a star is measured on fewer stars, by ours too: the size says how many.
PSFPhotometry fits the true profile in closed form and starts from the true fluxes; ours works with the pixels of that
profile. Writes perf/records/<name>.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import contest
import numpy as np
from contest import OURS, Case, installed
from known_stars import PSF_SIDE, StarScene, make_scene

from nightstream.kernels.centroid import fit_centroids
from nightstream.kernels.forced import forced_psf_flux
from nightstream.kernels.moments import gaussian_moments
from nightstream.kernels.photometry import aperture_flux, psf_flux
from nightstream.kernels.psf import FWHM_PER_SIGMA, LANCZOS_ORDER

BRIGHT = (20.0, 500.0)  # S/N
FITTED, FITTED_WITH_SHAPE, MOMENTS = 300, 100, 2000  # stars that slow peers measure
RADIUS_PIX = 8.5  # of the aperture: 5 sigma of the PSF, 4e-6 of the light beyond
HALF = PSF_SIDE // 2
STAMP_BYTES = 12 * PSF_SIDE**2  # image, mask and variance
SHIFT_OPERATIONS = 4 * (2 * LANCZOS_ORDER + 1) * PSF_SIDE**2  # of the PSF, moved along both axes
PSF_ACCURACY = 3e-3  # what `PsfModel` states of its sub-pixel shifts
SUMS = 1e-12  # float64 sums of some hundred pixels


def cases(side: int) -> Iterator[Case]:
    """All stars of a detector of ``side`` pixels, and some."""
    scene = make_scene(side, snr=BRIGHT)
    every, fitted, shaped = (first(scene, n) for n in (len(scene.x), FITTED, FITTED_WITH_SHAPE))
    yield psf_fluxes(psf_flux, scene, every, {}, direct=summed_stamps)
    yield psf_fluxes(psf_flux, scene, fitted, {"photutils": lambda: fluxes_by_photutils(scene, fitted)})
    yield psf_fluxes(forced_psf_flux, scene, every, {}, direct=summed_stamps)
    yield apertures(scene)
    yield centroids(scene, every, {"sep": lambda: positions_by_sep(scene, every)})
    yield centroids(scene, shaped, {"photutils": lambda: positions_by_photutils(scene, shaped)})
    yield moments(scene, first(scene, MOMENTS))


def first(scene: StarScene, count: int) -> slice:
    """The first ``count`` stars or, where there are no more, all."""
    return slice(min(count, len(scene.x)))


def peak_pixels(scene: StarScene, stars: slice):
    """Where a detection puts the stars."""
    return np.rint(scene.x[stars]), np.rint(scene.y[stars])


def psf_fluxes(function: Callable, scene: StarScene, stars: slice, peers, direct=None) -> Case:
    """Fluxes at the true positions."""

    def check(results) -> None:
        """Five sigma: exceeded once in two million; ours may also be wrong by what it states of the PSF."""
        error, truth = scene.flux[stars] / scene.snr[stars], scene.flux[stars]
        for name, found in results.items():
            flux = found["flux"] if isinstance(found, dict) else found
            assert (np.abs(flux - truth) < 5 * error + PSF_ACCURACY * truth).all(), name

    return Case(
        name=function.__name__,
        size=f"{stars.stop} of {PSF_SIDE}x{PSF_SIDE}",
        arrays=scene.planes | {"x": scene.x[stars], "y": scene.y[stars], "psf": scene.psf},
        ours=function,
        moved_bytes=stars.stop * (STAMP_BYTES + 16 + 38),  # a position in, six columns out
        operations=float(stars.stop * SHIFT_OPERATIONS),
        direct=direct,
        peers=installed(peers),
        check=check,
        tolerance=1e-6,  # of float32 PSFs
    )


def summed_stamps(xp, image, mask, variance, x, y, psf):
    """sum(P D / V) / sum(P^2 / V) over gathered stamps."""
    offset = xp.arange(-HALF, HALF + 1)
    column, row = (xp.rint(c).astype(np.int64)[:, None, None] for c in (x, y))
    at = row + offset[:, None], column + offset
    profile = psf.stamps(x, y)
    weight = xp.where(mask[at] == 0, profile / variance[at], np.float32(0))
    return (weight * image[at]).sum(axis=(1, 2)) / (weight * profile).sum(axis=(1, 2))


def fluxes_by_photutils(scene: StarScene, stars: slice) -> np.ndarray:
    """PSFPhotometry with a Gaussian at fixed places, each star alone, started from its true flux."""
    from astropy.table import QTable
    from photutils.psf import CircularGaussianPSF, PSFPhotometry

    model = CircularGaussianPSF(fwhm=FWHM_PER_SIGMA * scene.sigma_pix)
    model.x_0.fixed = model.y_0.fixed = True
    places = QTable({"x": scene.x[stars], "y": scene.y[stars], "flux": scene.flux[stars]})
    fit = PSFPhotometry(model, (PSF_SIDE, PSF_SIDE))
    return np.asarray(fit(scene.image, error=np.sqrt(scene.variance), init_params=places)["flux_fit"])


def apertures(scene: StarScene) -> Case:
    """Everyone says exact; SEP and photutils give errors too."""

    def by_sep():
        import sep

        return sep.sum_circle(scene.image, scene.x, scene.y, RADIUS_PIX, var=scene.variance, subpix=0)[0]

    def by_photutils():
        from photutils.aperture import CircularAperture, aperture_photometry

        aperture = CircularAperture(np.stack([scene.x, scene.y], axis=1), RADIUS_PIX)
        return np.asarray(aperture_photometry(scene.image, aperture, error=np.sqrt(scene.variance))["aperture_sum"])

    def check(results) -> None:
        """All are float64 sums over the same areas; the truth lies within five sigma of the noise in the circle."""
        ours = results[OURS]
        assert (np.abs(ours["flux"] - scene.flux) < 5 * ours["flux_err"]).all(), "more than 5 sigma off"
        for name in results.keys() - {OURS}:
            np.testing.assert_allclose(results[name], ours["flux"], rtol=0, atol=SUMS * scene.flux.max(), err_msg=name)

    return Case(
        name="aperture_flux",
        size=f"{len(scene.x)} of radius {RADIUS_PIX}",
        arrays=scene.planes | {"x": scene.x, "y": scene.y},
        ours=lambda image, mask, variance, x, y: aperture_flux(image, mask, variance, x, y, radius_pix=RADIUS_PIX),
        moved_bytes=len(scene.x) * (12 * np.pi * RADIUS_PIX**2 + 16 + 17),
        peers=installed({"sep": by_sep, "photutils": by_photutils}),
        check=check,
        tolerance=SUMS,
    )


def centroids(scene: StarScene, stars: slice, peers) -> Case:
    """Positions from the peaks."""
    x, y = peak_pixels(scene, stars)

    def check(results) -> None:
        """Five sigma along each axis, and what `PsfModel` states, in units of the PSF's width."""
        limit = 5 * scene.position_error(stars) + PSF_ACCURACY * scene.sigma_pix
        for name, found in results.items():
            near = (found["x"], found["y"]) if isinstance(found, dict) else found
            for got, truth in zip(near, (scene.x[stars], scene.y[stars]), strict=True):
                assert (np.abs(got - truth) < limit).all(), name

    return Case(
        name="fit_centroids",
        size=f"{stars.stop} of {PSF_SIDE}x{PSF_SIDE}",
        arrays=scene.planes | {"x": x, "y": y, "psf": scene.psf},
        ours=fit_centroids,
        moved_bytes=stars.stop * (STAMP_BYTES + 16 + 49),  # a position in, seven columns out
        operations=float(stars.stop * SHIFT_OPERATIONS),
        peers=installed(peers),
        check=check,
        tolerance=1e-6,
    )


def positions_by_sep(scene: StarScene, stars: slice):
    """Windowed positions: with the PSF's own width as the window's they are as good as a fit."""
    import sep

    return sep.winpos(scene.image, *peak_pixels(scene, stars), scene.sigma_pix)[:2]


def positions_by_photutils(scene: StarScene, stars: slice):
    """A Gaussian, its shape and a constant free, fitted to each stamp."""
    from photutils.centroids import centroid_2dg, centroid_sources

    return centroid_sources(scene.image, *peak_pixels(scene, stars), box_size=PSF_SIDE, centroid_func=centroid_2dg)


def moments(scene: StarScene, stars: slice) -> Case:
    """Moments with a round weight that adapts itself."""
    x, y = peak_pixels(scene, stars)

    def check(results) -> None:
        """The width of a star is known to sigma / SNR; five times that."""
        limit = 5 * scene.sigma_pix / scene.snr[stars]
        for name, found in results.items():
            sigma = found["sigma_pix"] if isinstance(found, dict) else found
            assert (np.abs(sigma - scene.sigma_pix) < limit).all(), name

    return Case(
        name="gaussian_moments",
        size=f"{stars.stop} of {PSF_SIDE}x{PSF_SIDE}",
        arrays=scene.planes | {"x": x, "y": y},
        ours=lambda image, mask, variance, x, y: gaussian_moments(image, mask, variance, x, y, half_size=HALF),
        moved_bytes=stars.stop * (STAMP_BYTES + 16 + 64),  # a position in, eight columns out
        peers=installed({"galsim": lambda: widths_by_galsim(scene, stars)}),
        check=check,
        tolerance=1e-9,  # float64, but for exp() of either library, which thirty iterations may carry on
    )


def widths_by_galsim(scene: StarScene, stars: slice) -> np.ndarray:
    """HSM's adaptive moments of one stamp after the other, started as ours is."""
    import galsim

    widths = []
    for x, y in zip(*(c.astype(int) for c in peak_pixels(scene, stars)), strict=True):
        pixels = scene.image[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1]
        stamp = galsim.Image(pixels, xmin=-HALF, ymin=-HALF)
        middle = galsim.PositionD(0, 0)
        widths.append(galsim.hsm.FindAdaptiveMom(stamp, guess_sig=2.0, guess_centroid=middle).moments_sigma)
    return np.array(widths)


if __name__ == "__main__":
    contest.main("kernel-photometry", cases, __doc__)
