"""Forced photometry: fluxes at given places, found or not."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from exposures import NJY_PER_ELECTRON, epochs
from scenes import SIGMA, SKY, lattice

from nightstream.engine.config import ForceConfig
from nightstream.engine.force import force_photometry, join_positions, source_positions
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


def test_limit_is_five_errors_or_the_detectors(target):
    """Where a flux was measured the limit is 5 of its errors; on unusable pixels it is that of the rest of the detector."""
    shape, star = (120, 120), (np.array([60.0]), np.array([60.0]), np.array([10.0]))
    mask = np.zeros(shape, np.int32)
    mask[40:80, 40:80] = int(MaskPlane.NO_DATA)
    table = force(
        target, epochs(target, np.random.default_rng(76), shape, star, star, mask), np.array([60.0, 20.0]), np.full(2, 60.0)
    )
    assert np.isnan(table["psf_flux"][0]) and np.isfinite(table["psf_flux"][1])
    assert table["psf_flux_limit"][1] == 5 * table["psf_flux_err"][1]
    # Background noise alone, of two images: area 4 pi sigma^2, the same everywhere to the noise of a variance plane
    # made from the image: 200 counts over an area of 50 pixels scatter by 0.7 % each.
    expected = 5 * NJY_PER_ELECTRON * np.sqrt(2 * SKY * 4 * np.pi * SIGMA**2)
    np.testing.assert_allclose(table["psf_flux_limit"], expected, rtol=0.05)


def test_limits_are_unknown_without_any_noise(target):
    """A detector without a single usable pixel, or no difference, has no limit."""
    star = np.array([30.0]), np.array([30.0]), np.array([1e3])
    images = epochs(target, np.random.default_rng(77), (60, 60), star, star, np.full((60, 60), int(MaskPlane.BAD), np.int32))
    assert np.isnan(force(target, images, *star[:2])["psf_flux_limit"]).all()
    assert np.isnan(force(target, images._replace(difference=None), *star[:2])["psf_flux_limit"]).all()


def test_chunks_do_not_change_the_result(target):
    """Measured 7 at a time or all at once, every number is the same."""
    rng = np.random.default_rng(78)
    x, y, shape = lattice(rng, 5, 25)
    images = epochs(target, rng, shape, (x, y, np.full(x.size, 1e3)), (x, y, np.full(x.size, 1e3)))
    at = positions(target, images.science.wcs, x, y)
    with target.running():
        whole, parts = (force_photometry(*images[1::-1], at, ForceConfig(chunk_positions=n)) for n in (1000, 7))
    assert list(whole) == list(parts)
    for name, column in whole.items():
        np.testing.assert_array_equal(parts[name], column)


def test_rows_at_sources_name_the_source(target):
    """The ids of both kinds of positions come back; one object asked for twice is measured once, where it was first."""
    star = np.array([30.0]), np.array([30.0]), np.array([1e4])
    images = epochs(target, np.random.default_rng(79), (60, 60), star, star)
    ra, dec = images.science.wcs.sky_from_pixel(np.array([30.0, 20.0, 40.0]), np.array([30.0, 20.0, 40.0]))
    known = {"dia_object_id": np.array([7, 9]), "ra": ra[:2], "dec": dec[:2]}
    listed = {"dia_object_id": np.array([9, 5]), "ra": ra[1:], "dec": dec[1:]}
    sources = source_positions({"dia_source_id": np.array([11, 12]), "ra": ra[:2], "dec": dec[:2]})
    joined = join_positions(known, listed, None, sources)
    with target.running():
        table = force_photometry(images.science, images.difference, joined)
    np.testing.assert_array_equal(table["dia_object_id"], [7, 9, 5, 0, 0])
    np.testing.assert_array_equal(table["dia_source_id"], [0, 0, 0, 11, 12])
    np.testing.assert_array_equal(table["psf_flux"][:2], table["psf_flux"][3:])
    assert len(join_positions(None)["ra"]) == 0


def test_memory_is_that_of_the_result():
    """Ten times the positions need ten times the table, but no more room to measure them in."""
    star = np.array([30.0]), np.array([30.0]), np.array([1e4])
    images = epochs(NumpyTarget, np.random.default_rng(81), (60, 60), star, star)
    room = []
    for n in (1000, 1000, 10_000):  # the first run compiles
        rng = np.random.default_rng(82)
        at = positions(NumpyTarget, images.science.wcs, *rng.uniform(0, 59, (2, n)))
        tracemalloc.start()
        table = force_photometry(images.science, images.difference, at, ForceConfig(chunk_positions=500))
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        room.append(peak - held)
        assert len(table["ra"]) == n
    row = sum(column.itemsize for column in table.values())
    # Beyond the table: the pieces before they are joined (a few columns), and positions and their trigonometry.
    assert room[2] - room[1] < 9000 * 3 * row


class NumpyTarget:
    """NumPy arrays, for what is not about the target."""

    array = staticmethod(np.asarray)
