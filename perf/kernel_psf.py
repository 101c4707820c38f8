"""The PSF fitted to stars and evaluated at many positions, beside photutils and Fourier shifts as plain array expressions.

    python perf/kernel_psf.py [--device auto|cpu|gpu] [--runs 3] [--name kernel-psf-cpu]

EPSFBuilder knows one PSF for the whole image and is slow, so it gets 30 stars and three iterations, and ours order 0; it fits
no sub-pixels here. Writes perf/records/<name>.json.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import contest
import numpy as np
from contest import Case, installed
from known_stars import PSF_SIDE, SKY_NOISE, StarScene, make_scene

from nightstream.kernels.psf import LANCZOS_ORDER, PsfModel, polynomial_exponents, shift_stamps
from nightstream.kernels.psf_fit import SOFTENING, fit_psf
from nightstream.kernels.target import scipy_module

STARS, PEERS_STARS = 100, 30
BRIGHT = (20.0, 500.0)  # S/N
ORDER = 2
TAPS = 2 * LANCZOS_ORDER + 1  # that move a row of pixels
PIXELS_PER_POSITION = 1600  # of the detector
INTERPOLATION = 3e-3  # of the peak: what `PsfModel` states of its sub-pixel shifts


def cases(side: int) -> Iterator[Case]:
    """Stars of a detector of ``side`` pixels, and one position in every 40 x 40."""
    scene = make_scene(side, snr=BRIGHT)
    yield fit(scene, STARS, ORDER, {})
    yield fit(scene, PEERS_STARS, 0, {"photutils": lambda: by_photutils(scene, spread(scene, PEERS_STARS))})
    positions = np.random.default_rng(2).uniform(0, side - 1, (2, side**2 // PIXELS_PER_POSITION))
    yield evaluation(scene, *positions)
    yield shifts(scene, *positions)


def spread(scene: StarScene, count: int) -> np.ndarray:
    """Indices of ``count`` stars from all over the image, or of all."""
    return np.unique(np.linspace(0, len(scene.x) - 1, count).astype(int))


def fit(scene: StarScene, count: int, order: int, peers) -> Case:
    """Pixels of a PSF that varies with ``order``, from ``count`` stars."""
    stars, terms = spread(scene, count), len(polynomial_exponents(order))
    middle = (scene.image.shape[0] - 1) / 2
    stamp = scene.psf.coefficients[0]

    def check(results) -> None:
        """A pixel is known as well as its stars tell as many numbers as it has terms, each star's to `SOFTENING` at best."""
        one_star = (SKY_NOISE / scene.flux[stars]) ** 2 + (SOFTENING * stamp.max()) ** 2
        limit = 5 * np.sqrt(terms / np.sum(1 / one_star)) + INTERPOLATION * stamp.max()
        for name, found in results.items():
            psf = found[0].centred(middle, middle)[0] if isinstance(found, tuple) else found
            np.testing.assert_allclose(psf, stamp, rtol=0, atol=limit, err_msg=name)

    return Case(
        name="fit_psf",
        size=f"{len(stars)} of {PSF_SIDE}x{PSF_SIDE} order {order}",
        arrays=scene.planes | {"x": scene.x[stars], "y": scene.y[stars]},
        ours=lambda image, mask, variance, x, y: fit_psf(image, mask, variance, x, y, size=PSF_SIDE, order=order),
        moved_bytes=12 * len(stars) * PSF_SIDE**2 + 8 * terms * PSF_SIDE**2,
        peers=installed(peers),
        check=check,
        tolerance=1e-6,  # float64 iterations that end near a minimum, whose sums a card adds in another order
    )


def by_photutils(scene: StarScene, stars) -> np.ndarray:
    """EPSFBuilder with a pixel a pixel: the (size, size) stamp, of sum 1."""
    from astropy.nddata import NDData
    from astropy.table import Table
    from photutils.psf import EPSFBuilder, extract_stars

    places = Table({"x": scene.x[stars], "y": scene.y[stars]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three iterations are too few, it says
        cut = extract_stars(NDData(scene.image.astype(float)), places, size=PSF_SIDE)
        found, _ = EPSFBuilder(oversampling=1, maxiters=3, progress_bar=False)(cut)
    y, x = np.mgrid[:PSF_SIDE, :PSF_SIDE] - float(PSF_SIDE // 2)
    stamp = found.evaluate(x, y, 1.0, 0.0, 0.0)
    return stamp / stamp.sum()


def evaluation(scene: StarScene, x, y) -> Case:
    """The PSF, varying with order 2, at every position."""
    coefficients = np.zeros((len(polynomial_exponents(ORDER)), PSF_SIDE, PSF_SIDE))
    coefficients[0] = scene.psf.coefficients[0]
    half = scene.image.shape[0] / 2
    psf = PsfModel(coefficients, ORDER, half, half, half, half)

    def direct(xp, psf, x, y):
        centred = (psf.terms(x, y) @ psf.coefficients.reshape(len(psf.coefficients), -1)).reshape(-1, PSF_SIDE, PSF_SIDE)
        return shift_by_transform(xp, centred, x - xp.rint(x), y - xp.rint(y))

    return Case(
        name="PsfModel.stamps",
        size=f"{len(x)} of {PSF_SIDE}x{PSF_SIDE} order {ORDER}",
        arrays={"psf": psf, "x": x, "y": y},
        ours=lambda psf, x, y: psf.stamps(x, y),
        moved_bytes=len(x) * (4 * PSF_SIDE**2 + 16) + coefficients.nbytes,
        operations=2.0 * len(x) * (len(coefficients) + 2 * TAPS) * PSF_SIDE**2,
        direct=direct,
        check=shifted_gaussians(scene, x, y),
        tolerance=1e-6,  # float32 stamps
    )


def shifts(scene: StarScene, x, y) -> Case:
    """Stamps moved by a fraction of a pixel."""
    dx, dy = x - np.rint(x), y - np.rint(y)
    stamps = np.repeat(scene.psf.coefficients, len(x), axis=0)
    return Case(
        name="shift_stamps",
        size=f"{len(x)} of {PSF_SIDE}x{PSF_SIDE} f64",
        arrays={"stamps": stamps, "shift_x": dx, "shift_y": dy},
        ours=shift_stamps,
        moved_bytes=2 * stamps.nbytes,
        operations=4.0 * len(x) * TAPS * PSF_SIDE**2,
        direct=shift_by_transform,
        check=shifted_gaussians(scene, x, y),
        tolerance=1e-12,  # float64 sums of 25 products, twice
    )


def shift_by_transform(xp, stamps, shift_x, shift_y):
    """``stamps`` (n, size, size) moved by a phase in Fourier space; what leaves on one side enters on the other."""
    fft, size = scipy_module(xp, "fft"), stamps.shape[-1]
    cycles = (xp.arange(size) + size // 2) % size - size // 2
    along_y = xp.exp(-2j * np.pi / size * shift_y[:, None] * cycles)
    along_x = xp.exp(-2j * np.pi / size * shift_x[:, None] * xp.arange(size // 2 + 1))
    return fft.irfft2(fft.rfft2(stamps) * along_y[:, :, None] * along_x[:, None, :], (size, size))


def shifted_gaussians(scene: StarScene, x, y):
    """Return a check of stamps against Gaussians drawn at the places of ``x, y`` within their pixels."""
    offset = np.arange(PSF_SIDE) - PSF_SIDE // 2

    def check(results) -> None:
        """Ours within what `PsfModel` states; the transform does better."""
        profiles = [np.exp(-0.5 * ((offset - (c - np.rint(c))[:, None]) / scene.sigma_pix) ** 2) for c in (y, x)]
        wanted = profiles[0][:, :, None] * profiles[1][:, None, :] / (2 * np.pi * scene.sigma_pix**2)
        for name, stamps in results.items():
            np.testing.assert_allclose(stamps, wanted, rtol=0, atol=INTERPOLATION * wanted.max(), err_msg=name)

    return check


if __name__ == "__main__":
    contest.main("kernel-psf", cases, __doc__)
