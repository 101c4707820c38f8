"""Pairs of reduced images of Gaussian stars with known truth, and what is claimed of their differences."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gaussian_fields import render

from nightstream.engine.config import AlignConfig, DifferenceConfig, SubtractConfig
from nightstream.engine.subtraction import subtract_images
from nightstream.engine.values import ReducedImage, Subtraction
from nightstream.kernels.detection import detect
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.photometry import psf_flux

SHAPE = (384, 384)
UNUSABLE = MaskPlane.unusable() | MaskPlane.SAT_TEMPLATE
SOURCES = MaskPlane.DETECTED | MaskPlane.DETECTED_NEGATIVE
WHITE = DifferenceConfig()  # decorrelated, so that the score is as significant as it says


class Stars(NamedTuple):
    """Places, pixels, and fluxes, electrons."""

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray


def field(n=90, *, shape=SHAPE, seed=1, low=2e3, high=2e5, border=6.0) -> Stars:
    """``n`` stars anywhere, their fluxes log-uniform."""
    rng = np.random.default_rng(seed)
    x, y = (rng.uniform(border, side - border, n) for side in (shape[1], shape[0]))
    return Stars(x, y, np.exp(rng.uniform(np.log(low), np.log(high), n)))


def crowded(n, *, shape=SHAPE, seed=1, low=300.0, high=3e5) -> Stars:
    """Stars whose numbers fall with flux as in the Galaxy's disc, N(> F) ~ F^-0.6."""
    rng = np.random.default_rng(seed)
    x, y = (rng.uniform(0, side - 1, n) for side in (shape[1], shape[0]))
    return Stars(x, y, np.minimum(low * rng.uniform(0, 1, n) ** (-1 / 0.6), high))


def lattice(shape=SHAPE, spacing=75, flux=4e3) -> Stars:
    """Transients on a grid that no star knows of, of both signs."""
    y, x = (c.ravel() + 0.37 for c in np.mgrid[spacing // 2 : shape[0] - 20 : spacing, spacing // 2 : shape[1] - 20 : spacing])
    return Stars(x, y, flux * np.where(np.arange(x.size) % 3 == 2, -1.0, 1.0))


def expose(
    stars: Stars, *, fwhm=4.0, shape=SHAPE, sky=400.0, scale=1.0, depth=1.0, seed=2, gradient=0.0, shift=(0.0, 0.0),
    extra: Stars | None = None, saturation=None, gain=None, wcs=None,
) -> ReducedImage:  # fmt: skip
    """A reduced image with its sky: ``scale`` units an electron, as deep as ``depth`` exposures, ``shift`` in x and y.

    ``gradient`` is the relative change of the PSF's width from left to right. Without ``gain`` the file knows the true one.
    """
    light = sky + render(shape, stars.x + shift[0], stars.y + shift[1], stars.flux, fwhm, gradient)
    if extra is not None:
        light = light + render(shape, *extra, fwhm, gradient)
    noise = np.sqrt(np.maximum(light, 1) / depth) * np.random.default_rng(seed).normal(0, 1, shape)
    image = (light + noise) * scale
    if saturation is not None:
        image = np.minimum(image, saturation)
    return ReducedImage(
        image=image.astype(np.float32), gain=gain or depth / scale, saturation=saturation and float(saturation), wcs=wcs
    )


def subtract(science: ReducedImage, template: ReducedImage, *, score=False, align="none", **difference) -> Subtraction:
    """The difference of two images on one grid, white unless asked otherwise."""
    config = SubtractConfig(align=AlignConfig(mode=align), difference=DifferenceConfig(**difference), score=score)
    return subtract_images(science, template, config)


def pulls(done: Subtraction) -> np.ndarray:
    """Pixels over what the variance plane says; NaN where flagged."""
    pixels = done.difference.pixels
    with np.errstate(invalid="ignore"):
        return np.where((pixels.mask & UNUSABLE) == 0, pixels.image / np.sqrt(pixels.variance), np.nan)


def away(shape, changes: Stars | None, radius=16.0) -> np.ndarray:
    """Which pixels are further than ``radius`` from all ``changes``."""
    far = np.ones(shape, bool)
    for x, y in zip(*changes[:2], strict=True) if changes is not None else ():
        yy, xx = np.ogrid[: shape[0], : shape[1]]
        far &= (xx - x) ** 2 + (yy - y) ** 2 > radius**2
    return far


class Widths(NamedTuple):
    """Mean and width of the pull on sky and on stars; pixels of the sky, and of stars."""

    sky_mean: float
    sky: float
    star: float
    n_sky: int
    n_star: int


def widths(done: Subtraction, changes: Stars | None = None, *, star_snr=3.0) -> Widths:
    """Pulls of sky, and of pixels where the subtracted light is above ``star_snr`` sigma."""
    pull = pulls(done)
    good = np.isfinite(pull) & away(pull.shape, changes)
    signal = np.abs(done.result.matched_template.pixels.image) / np.sqrt(done.difference.pixels.variance)
    sky, star = pull[good & (done.difference.pixels.mask & SOURCES == 0)], pull[good & (signal > star_snr)]
    return Widths(float(sky.mean()), float(sky.std()), float(star.std()), sky.size, star.size)


def false_detections(done: Subtraction, changes: Stars | None = None, *, threshold=5.5):
    """S/N, x and y of what is found above ``threshold`` where nothing changed; the PSF is that of the image's middle."""
    pixels, (ny, nx) = done.difference.pixels, done.difference.pixels.shape
    stamp = done.difference.psf.centred((nx - 1) / 2, (ny - 1) / 2)[0]
    found = detect(pixels.image, pixels.mask, pixels.variance, stamp, threshold=threshold, planes=UNUSABLE)
    far = away(pixels.shape, changes)[found.y.astype(int), found.x.astype(int)]
    return list(zip(found.snr[far].round(1), found.x[far], found.y[far], strict=True))


def flux_pulls(done: Subtraction, changes: Stars) -> np.ndarray:
    """(measured - true) / error of the PSF fluxes of ``changes``, by the difference's own PSF and variance."""
    pixels = done.difference.pixels
    got = psf_flux(pixels.image, pixels.mask, pixels.variance, changes.x, changes.y, done.difference.psf, planes=UNUSABLE)
    return ((got["flux"] - changes.flux) / got["flux_err"])[~got["flag"]]
