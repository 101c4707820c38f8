"""Forced photometry: fluxes at given places, found or not."""

from dataclasses import replace

import numpy as np
import pytest
from exposures import NJY_PER_ELECTRON, epochs
from scenes import lattice

from nightstream.engine.force import force_photometry
from nightstream.errors import InputError
from nightstream.kernels.mask import MaskPlane


def positions(target, wcs, x, y):
    ra, dec = wcs.sky_from_pixel(x, y)
    return {"ra": target.array(ra), "dec": target.array(dec), "dia_object_id": target.array(np.arange(len(x)) + 10**12)}


def force(target, images, x, y):
    with target.running():
        return force_photometry(images.science, images.difference, positions(target, images.science.wcs, x, y))


def test_pulls_are_standard_normal_at_any_flux(target):
    """At known places fluxes from zero up come back unbiased in nJy, on difference and science image."""
    rng = np.random.default_rng(70)
    x, y, shape = lattice(rng, 15, 25)
    flux, base = np.linspace(0, 2e3, x.size), np.full(x.size, 3e3)
    table = force(target, epochs(target, rng, shape, (x, y, base + flux), (x, y, base)), x, y)
    for name, truth in (("psf", flux), ("science", base + flux)):
        pull = (table[f"{name}_flux"] - truth * NJY_PER_ELECTRON) / table[f"{name}_flux_err"]
        assert abs(pull.mean()) < 3 / np.sqrt(pull.size) and abs(pull.std() - 1) < 3 / np.sqrt(2 * pull.size)
    np.testing.assert_array_equal(table["dia_object_id"], np.arange(x.size) + 10**12)


def test_positions_off_the_image_are_dropped(target):
    """Only positions on the image have rows, in their order; those at its edge are flagged."""
    rng = np.random.default_rng(71)
    images = epochs(target, rng, (60, 70), *[(np.array([30.0]), np.array([30.0]), np.array([1e3]))] * 2)
    table = force(target, images, np.array([-20.0, 35.0, 80.0, 3.0]), np.array([10.0, 30.0, 30.0, 30.0]))
    np.testing.assert_array_equal(table["dia_object_id"], np.array([1, 3]) + 10**12)
    np.testing.assert_array_equal(table["psf_flux_flag_edge"], [False, True])
    np.testing.assert_allclose(table["x"], [35.0, 3.0], atol=1e-6)


def test_bad_pixels_are_flagged(target):
    """A position on unusable pixels keeps its row, with the flags set."""
    rng = np.random.default_rng(72)
    mask = np.zeros((60, 60), np.int32)
    mask[10:50, 10:50] = int(MaskPlane.NO_DATA)
    star = np.array([30.0]), np.array([30.0]), np.array([1e3])
    table = force(target, epochs(target, rng, (60, 60), star, star, mask), *star[:2])
    assert table["psf_flux_flag"].all() and table["science_flux_flag"].all()
    assert np.isnan(table["psf_flux"]).all()


def test_no_positions_and_no_difference(target):
    """Empty lists give empty columns; without a difference its fluxes are NaN and flagged."""
    rng = np.random.default_rng(73)
    star = np.array([30.0]), np.array([30.0]), np.array([1e4])
    images = epochs(target, rng, (60, 60), star, star)
    empty = force(target, images, np.zeros(0), np.zeros(0))
    assert all(len(column) == 0 for column in empty.values())
    table = force(target, images._replace(difference=None), *star[:2])
    assert np.isnan(table["psf_flux"]).all() and table["psf_flux_flag"].all() and np.isfinite(table["science_flux"]).all()


def test_table_fits_the_schema(target):
    """Every column has a place in the DIAForcedSource table."""
    from nightstream.io.apdb import DIA_FORCED_SOURCE
    from nightstream.io.schema import to_structured

    star = np.array([30.0]), np.array([30.0]), np.array([1e4])
    images = epochs(target, np.random.default_rng(74), (60, 60), star, star)
    assert len(to_structured(force(target, images, *star[:2]), DIA_FORCED_SOURCE)) == 1


def test_missing_columns_are_told(target):
    """A table without dia_object_id, or an image without a WCS, raises with what was wanted."""
    star = np.array([30.0]), np.array([30.0]), np.array([1e4])
    images = epochs(target, np.random.default_rng(75), (60, 60), star, star)
    with pytest.raises(InputError, match="dia_object_id"):
        force_photometry(images.science, images.difference, {"ra": np.zeros(1), "dec": np.zeros(1)})
    with pytest.raises(InputError, match="a WCS"):
        force_photometry(replace(images.science, wcs=None), None, positions(target, images.science.wcs, *star[:2]))
