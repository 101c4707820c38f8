"""Cutouts: three stamps and PSFs for every DIASource, whatever lies around it."""

from dataclasses import replace

import numpy as np
import pytest
from exposures import NJY_PER_ELECTRON, epochs

from nightstream.engine.config import CutoutConfig
from nightstream.engine.cutouts import cut_stamps
from nightstream.engine.values import Cutouts
from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.stamps import stamp_starts

SHAPE = (120, 140)
X, Y = np.array([70.3, 2.0, 139.0, 70.6]), np.array([60.2, 3.0, 118.6, 60.7])
SOURCES = {"x": X, "y": Y, "bbox_size": np.array([12, 31, 64, 500], np.int32)}


def images(target, **options):
    star = np.array([70.3]), np.array([60.2]), np.array([2e3])
    return epochs(target, np.random.default_rng(80), SHAPE, star, star, **options)


def cut(target, sources=SOURCES, epoch=None, **config) -> Cutouts:
    with target.running():
        return cut_stamps(*(epoch or images(target)), sources, CutoutConfig(**config))


def stamp(target, cutouts, kind, k, plane="image"):
    """Stamp k, square."""
    start, flat = stamp_starts(cutouts.size), target.host(getattr(getattr(cutouts, kind), plane))
    return flat[start[k] : start[k + 1]].reshape(cutouts.size[k], cutouts.size[k])


def test_side_is_the_footprints_between_the_limits(target):
    """The box of the footprint, but not below 30 nor above 102 pixels; the source's pixel is the middle one."""
    cutouts = cut(target)
    np.testing.assert_array_equal(cutouts.size, [30, 31, 64, 102])
    np.testing.assert_array_equal(cutouts.x0 + cutouts.size // 2, np.rint(X))
    np.testing.assert_array_equal(cutouts.y0 + cutouts.size // 2, np.rint(Y))


def test_stamps_are_the_images_in_njy(target):
    """Flux density as on the image times nJy per unit, variance by its square, the mask as it is."""
    epoch = images(target)
    cutouts = cut(target, epoch=epoch)
    box = np.s_[45:75, 55:85]
    unit = np.float32(NJY_PER_ELECTRON)
    for kind, exposure in zip(("difference", "science", "template"), epoch, strict=True):
        pixels = exposure.pixels
        np.testing.assert_array_equal(stamp(target, cutouts, kind, 0), target.host(pixels.image)[box] * unit)
        np.testing.assert_array_equal(
            stamp(target, cutouts, kind, 0, "variance"), target.host(pixels.variance)[box] * (unit * unit)
        )
        np.testing.assert_array_equal(stamp(target, cutouts, kind, 0, "mask"), target.host(pixels.mask)[box])


def test_every_source_has_stamps(target):
    """At the border and off the image the missing pixels are NaN with NO_DATA; a lost position has nothing but those."""
    lost = {"x": np.array([2.0, -60.0, np.nan]), "y": np.array([3.0, 50.0, 50.0]), "bbox_size": np.full(3, 30)}
    cutouts = cut(target, lost)
    on = np.zeros((30, 30), dtype=bool)
    on[12:, 13:] = True  # columns from -13, rows from -12 on
    for k, seen in enumerate((on, np.zeros_like(on), np.zeros_like(on))):
        for kind in ("difference", "science", "template"):
            np.testing.assert_array_equal(np.isfinite(stamp(target, cutouts, kind, k)), seen)
            np.testing.assert_array_equal(stamp(target, cutouts, kind, k, "mask"), np.where(seen, 0, int(MaskPlane.NO_DATA)))
    assert np.isfinite(target.host(cutouts.science.psf)).all()


def test_each_source_has_the_psf_of_its_place(target):
    """The PSF stamps are the model's at the sources, centred, and sum to 1."""
    epoch = images(target)
    psf = epoch.science.psf
    slope = target.array(np.stack([target.host(psf.coefficients)[0], np.eye(25) / 500, np.zeros((25, 25))]))
    varying = replace(psf, coefficients=slope, order=1, x_scale=70.0, y_scale=60.0)
    cutouts = cut(target, epoch=epoch._replace(science=replace(epoch.science, psf=varying)))
    stamps = target.host(cutouts.science.psf)
    np.testing.assert_array_equal(stamps, target.host(varying.centred(target.array(X), target.array(Y))))
    np.testing.assert_allclose(stamps.sum(axis=(1, 2)), 1, rtol=1e-5)
    assert abs(stamps[0] - stamps[1]).max() > 1e-4 and len(target.host(cutouts.difference.psf)) == 4


def test_no_sources_give_empty_cutouts(target):
    """Nothing detected: length 0 everywhere."""
    cutouts = cut(target, {name: column[:0] for name, column in SOURCES.items()})
    assert len(cutouts) == 0 and len(cutouts.template.image) == 0 and cutouts.difference.psf.shape == (0, 25, 25)


def test_an_image_without_psf_is_refused(target):
    """A stamp needs the PSF of its image."""
    epoch = images(target)
    with pytest.raises(InputError, match="PSF"):
        cut(target, epoch=epoch._replace(template=replace(epoch.template, psf=None)))
