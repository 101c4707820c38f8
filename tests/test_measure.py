"""DIASources: complete, in the right units and places, and honest about residuals."""

from dataclasses import replace

import numpy as np
import pytest
from exposures import INFO, NJY_PER_ELECTRON, epochs
from scenes import flux_of_snr, lattice

from nightstream.engine.config import MeasureConfig
from nightstream.engine.measure import measure_dia_sources, source_ids
from nightstream.errors import InputError, UnprocessableError
from nightstream.kernels.mask import MaskPlane

CONFIG = MeasureConfig()
NOTHING = np.zeros(0), np.zeros(0), np.zeros(0)


def measure(target, images, config=CONFIG):
    with target.running():
        return measure_dia_sources(*images, config)


def nearest(table, x, y):
    """Index of the source nearest to each place, and its distance in pixels."""
    distance = np.hypot(table["x"][None] - x[:, None], table["y"][None] - y[:, None])
    return distance.argmin(axis=1), distance.min(axis=1)


def test_transients_come_back_in_njy(target):
    """New and vanished stars: one row each, right sign, flux pulls of mean 0 and width 1, in nJy."""
    rng = np.random.default_rng(60)
    x, y, shape = lattice(rng, 8, 40)
    new = np.arange(x.size) % 2 == 0
    flux = flux_of_snr(20.0)
    now, then = ((x[s], y[s], np.full(s.sum(), flux)) for s in (new, ~new))
    table = measure(target, epochs(target, rng, shape, now, then))
    index, distance = nearest(table, x, y)
    assert len(set(index)) == x.size and distance.max() < 1
    np.testing.assert_array_equal(table["is_negative"][index], ~new)
    pull = (table["psf_flux"][index] - np.where(new, 1, -1) * flux * NJY_PER_ELECTRON) / table["psf_flux_err"][index]
    # fitting the position adds 1 / snr per axis to the pull's mean, with the flux's sign
    pull = pull * np.where(new, 1, -1)
    assert abs(pull.mean()) < 3 / np.sqrt(pull.size) + 2 / 20 and abs(pull.std() - 1) < 3.5 / np.sqrt(2 * pull.size)
    assert not table["is_dipole"].any() and not table["star_residual"][index].any()
    # noise peaks above 5 sigma: less than 0.01 expected on 320^2 pixels
    assert len(table["x"]) == x.size


def test_forced_fluxes_are_those_of_the_images():
    """A star that brightens has science flux, template flux and their difference in one row."""
    rng = np.random.default_rng(61)
    x, y, shape = lattice(rng, 5, 50)
    now, then = (x, y, np.full(x.size, 3e4)), (x, y, np.full(x.size, 2e4))
    table = measure(Host(), epochs(Host(), rng, shape, now, then))
    for name, truth in (("science", 3e4), ("template", 2e4), ("psf", 1e4)):
        pull = (table[f"{name}_flux"] - truth * NJY_PER_ELECTRON) / table[f"{name}_flux_err"]
        # positions come from the difference: half a pixel off would cost 3 %; at S/N 40 they are right to 0.05 pixels
        assert abs(np.median(pull)) < 4 * 1.25 / np.sqrt(pull.size)
    # a circle of 6 sigma holds all the light of a Gaussian
    pull = (table["ap_flux"] - 1e4 * NJY_PER_ELECTRON) / table["ap_flux_err"]
    assert abs(np.median(pull)) < 4 * 1.25 / np.sqrt(pull.size)


def test_failed_forced_fluxes_are_flagged():
    """A source whose place on the visit image has no data has no science flux, and its flags say why; the others have none."""
    rng = np.random.default_rng(66)
    x, y, shape = lattice(rng, 3, 50)
    images = epochs(Host(), rng, shape, (x, y, np.full(x.size, 1e4)), NOTHING)
    pixels = images.science.pixels
    mask = np.zeros(shape, np.int32)
    mask[: int(y[0]) + 25, : int(x[0]) + 25] = int(MaskPlane.NO_DATA)
    table = measure(Host(), images._replace(science=replace(images.science, pixels=replace(pixels, mask=mask))))
    index, _ = nearest(table, x[:1], y[:1])
    for name in ("forced_psf_flux_flag", "forced_psf_flux_flag_no_good_pixels"):
        np.testing.assert_array_equal(table[name].nonzero()[0], index)
    assert np.isnan(table["science_flux"][index]).all() and not table["psf_flux_flag_no_good_pixels"].any()


def test_positions_on_the_sky_have_right_errors():
    """ra and dec are those of the WCS, and (measured - true) over their errors has width 1."""
    rng = np.random.default_rng(62)
    x, y, shape = lattice(rng, 10, 40)
    images = epochs(Host(), rng, shape, (x, y, np.full(x.size, flux_of_snr(30.0))), NOTHING)
    table = measure(Host(), images)
    index, _ = nearest(table, x, y)
    ra, dec = images.difference.wcs.sky_from_pixel(x, y)
    east = (table["ra"][index] - ra) * np.cos(np.radians(dec)) / table["ra_err"][index]
    north = (table["dec"][index] - dec) / table["dec_err"][index]
    for pull in (east, north):
        assert abs(pull.mean()) < 4 / np.sqrt(pull.size) and abs(pull.std() - 1) < 4 / np.sqrt(2 * pull.size)
    # 0.2 arcsec pixels: errors of x and y in degrees
    np.testing.assert_allclose(
        table["ra_err"] ** 2 + table["dec_err"] ** 2,
        (table["x_err"] ** 2 + table["y_err"] ** 2) * (0.2 / 3600) ** 2,
        rtol=1e-3,
    )


def test_moved_star_is_one_dipole_row(target):
    """A star that moved gives one row with the dipole's length, bearing and flux, not two sources."""
    rng = np.random.default_rng(63)
    x, y, shape = lattice(rng, 3, 70)
    flux = np.full(x.size, 2e5)
    images = epochs(target, rng, shape, (x + 2.0, y, flux), (x - 2.0, y, flux))
    table = measure(target, images)
    assert len(table["x"]) == x.size and table["is_dipole"].all() and table["dipole_fit_attempted"].all()
    # S/N of a lobe is 400: lengths to 4 pixels / 400 * a few for the overlap of the lobes
    assert np.abs(table["dipole_length"] / (4 * 0.2) - 1).max() < 0.1
    assert np.abs(table["dipole_mean_flux"] / (2e5 * NJY_PER_ELECTRON) - 1).max() < 0.1
    (ra1, dec1), (ra0, dec0) = (images.difference.wcs.sky_from_pixel(x[:1] + dx, y[:1]) for dx in (1, -1))
    bearing = np.degrees(np.arctan2((ra1 - ra0) * np.cos(np.radians(dec0)), dec1 - dec0)) % 360
    assert np.abs((table["dipole_angle"] - bearing + 180) % 360 - 180).max() < 5


def test_what_is_faint_in_the_wings_of_a_bright_star_is_marked():
    """0.3 % of a star's flux, 2 FWHM from it, is a residual; 2 % of it is a discovery; so are both on bare sky."""
    rng = np.random.default_rng(65)
    x, y, shape = lattice(rng, 2, 70)
    star = np.array([1e6, 1e6, 0, 0])
    new = np.array([3e3, 2e4, 3e3, 2e4])
    now = np.r_[x, x + 8], np.r_[y, y], np.r_[star, new]
    table = measure(Host(), epochs(Host(), rng, shape, now, (x, y, star)))
    index, distance = nearest(table, x + 8, y)
    assert distance.max() < 1.5  # pixels: S/N is 10 and more
    np.testing.assert_array_equal(table["star_residual"][index], [True, False, False, False])


def test_residual_of_a_bright_star_is_marked():
    """A difference of 2 % of the star below it is a residual; one of half the star is not; nor is one on bare sky."""
    rng = np.random.default_rng(64)
    x, y, shape = lattice(rng, 3, 50)
    then = np.array([1e6, 1e6, 1e6, 1e4, 1e4, 1e4, 0, 0, 0])
    now = then + np.array([2e4, 2e4, -2e4, 5e3, 5e3, 5e3, 2e3, 2e3, 2e3])
    table = measure(Host(), epochs(Host(), rng, shape, (x, y, now), (x, y, then)))
    index, distance = nearest(table, x, y)
    assert distance.max() < 1
    np.testing.assert_array_equal(table["star_residual"][index], [True] * 3 + [False] * 6)


def test_mask_is_told_in_flags():
    """A saturated pixel beside a source sets its flag and marks it as residual; sources on no data are not made."""
    rng = np.random.default_rng(65)
    x, y, shape = lattice(rng, 3, 50)
    mask = np.zeros(shape, np.int32)
    mask[int(y[0]) + 3, int(x[0])] = int(MaskPlane.SAT)
    mask[100:, 100:] = int(MaskPlane.NO_DATA)
    images = epochs(Host(), rng, shape, (x, y, np.full(x.size, 1e4)), NOTHING, mask)
    table = measure(Host(), images)
    index, _ = nearest(table, x[:1], y[:1])
    np.testing.assert_array_equal(table["pixel_flags_saturated"].nonzero()[0], index)
    assert table["star_residual"][index].all() and not table["pixel_flags_saturated_center"].any()
    assert len(table["x"]) == 8 and not table["pixel_flags_nodata_center"].any()


def test_table_fits_the_schema():
    """Every column has a place in the DIASource table, with a type that takes its values; also without sources."""
    from nightstream.io.apdb import DIA_SOURCE
    from nightstream.io.schema import to_structured

    rng = np.random.default_rng(66)
    shape = (80, 90)
    star = np.array([40.0]), np.array([30.0]), np.array([1e4])
    for now, count in ((star, 1), (NOTHING, 0)):
        table = measure(Host(), epochs(Host(), rng, shape, now, NOTHING))
        assert all(type(column) is np.ndarray for column in table.values())
        assert len(to_structured(table, DIA_SOURCE)) == count


def test_source_numbers_are_unique_and_tell_their_origin():
    """Visit and detector can be read back from the number, which is positive and fits 64 bits."""
    ids = source_ids(2026112200123, 204, 1000)
    assert len(set(ids)) == 1000 and (ids > 0).all()
    assert set(ids >> 22) == {2026112200123} and set(ids >> 14 & 255) == {204}
    with pytest.raises(InputError, match="detector of a source number"):
        source_ids(1, 256, 1)
    with pytest.raises(InputError, match="at most 16384"):
        source_ids(1, 1, 20000)


def test_failed_subtraction_is_told():
    """More detections than allowed end the detector with one clear error."""
    rng = np.random.default_rng(67)
    x, y, shape = lattice(rng, 4, 40)
    images = epochs(Host(), rng, shape, (x, y, np.full(x.size, 1e4)), NOTHING)
    with pytest.raises(UnprocessableError, match="16 detections on the difference image, wanted at most 10"):
        measure(Host(), images, MeasureConfig(max_sources=10))


def test_without_wcs_positions_are_unknown():
    """A difference without a WCS has NaN ra and dec and everything else."""
    rng = np.random.default_rng(68)
    star = np.array([40.0]), np.array([40.0]), np.array([1e4])
    images = epochs(Host(), rng, (80, 80), star, NOTHING)
    table = measure(Host(), images._replace(difference=replace(images.difference, wcs=None)))
    assert np.isnan(table["ra"]).all() and table["visit"][0] == INFO.visit and np.isfinite(table["psf_flux"]).all()


class Host:
    """The plain CPU target, for claims that are about the engine and not about kernels."""

    def running(self):
        from contextlib import nullcontext

        return nullcontext()

    def array(self, values, dtype=None):
        return np.array(values, dtype=dtype)
