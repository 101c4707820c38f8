"""Proper motion and parallax: simulated tracks come back, with honest errors."""

import numpy as np
import pytest
from astropy.coordinates import SkyCoord, get_body_barycentric
from astropy.time import Time

from nightstream.errors import InputError
from nightstream.kernels.sky_frames import earth_position, sky_from_vectors, tangent_basis, unit_vectors
from nightstream.kernels.space_motion import MAS_PER_DEGREE, MAS_PER_RADIAN, fit_one_reference, fit_space_motion

FITTED = ("pm_ra", "pm_dec", "parallax")


def tracks(rng, n_objects=50, n_rows=30, days=365.0, err_mas=20.0, pm=300.0, parallax=100.0, ra=None, dec=None):
    """Noisy detections of moving stars, with correlated errors; their arrays and their truth."""
    truth = {"ra": rng.uniform(0, 360, n_objects) if ra is None else np.full(n_objects, ra)}
    truth["dec"] = np.degrees(np.arcsin(rng.uniform(-1, 1, n_objects))) if dec is None else np.full(n_objects, dec)
    truth |= {name: rng.uniform(-pm, pm, n_objects) for name in ("pm_ra", "pm_dec")}
    truth["parallax"] = rng.uniform(0, parallax, n_objects)
    time = 60000 + np.sort(rng.uniform(0, days, (n_objects, n_rows)), axis=1)
    years = (time - 60180) / 365.25
    axes = [axis[:, None, :] for axis in (unit_vectors(truth["ra"], truth["dec"]), *tangent_basis(truth["ra"], truth["dec"]))]
    earth = earth_position(time)
    sigma = err_mas * rng.uniform(0.5, 1.5, (2, n_objects, n_rows))
    rho = rng.uniform(-0.7, 0.7, (n_objects, n_rows))
    noise = rng.normal(size=(2, n_objects, n_rows))
    noise = sigma * np.stack([noise[0], rho * noise[0] + np.sqrt(1 - rho**2) * noise[1]])
    east, north = (
        truth[name][:, None] * years - truth["parallax"][:, None] * (earth * axis).sum(axis=-1) + error
        for name, axis, error in zip(FITTED, axes[1:], noise, strict=False)
    )
    vectors = axes[0] + (east[..., None] * axes[1] + north[..., None] * axes[2]) / MAS_PER_RADIAN
    ra, dec = sky_from_vectors(vectors.reshape(-1, 3))
    covariance = np.stack([sigma[0] ** 2, sigma[1] ** 2, rho * sigma[0] * sigma[1]], axis=-1).reshape(-1, 3) / MAS_PER_DEGREE**2
    start = np.arange(n_objects + 1) * n_rows
    return (ra, dec, covariance, time.ravel(), earth.reshape(-1, 3), start), truth


def test_pulls_are_normal(target):
    """(fit - truth) / error of motion and parallax is N(0, 1); chi2 is its degrees of freedom."""
    n = 400 if target.name == "numba" else 60
    arrays, truth = tracks(np.random.default_rng(1), n_objects=n)
    fit = {name: target.host(column) for name, column in fit_space_motion(*map(target.array, arrays)).items()}
    for name in FITTED:
        pull = (fit[name] - truth[name]) / fit[f"{name}_err"]
        assert abs(pull.mean()) < 5 / np.sqrt(n), name
        assert pull.std() == pytest.approx(1, abs=5 / np.sqrt(2 * n)), name
    assert fit["chi2"].mean() == pytest.approx(55, abs=5 * np.sqrt(110 / n))  # 60 coordinates, 5 parameters
    assert (fit["n_data"] == 30).all()


def test_position_pulls_are_normal():
    """The position at the reference epoch, carried there by the true motion, is right within its errors."""
    arrays, truth = tracks(np.random.default_rng(2), n_objects=400)
    fit = fit_space_motion(*arrays)
    years = (fit["epoch"] - 60180) / 365.25
    dec_pull = ((fit["dec"] - truth["dec"]) * MAS_PER_DEGREE - truth["pm_dec"] * years) / (fit["dec_err"] * MAS_PER_DEGREE)
    away = np.abs(truth["dec"]) < 60  # where moving in ra leaves dec alone
    assert abs(dec_pull[away].mean()) < 5 / np.sqrt(away.sum())
    assert dec_pull[away].std() == pytest.approx(1, abs=5 / np.sqrt(2 * away.sum()))


def test_fit_is_generalised_least_squares(target):
    """Parameters and covariance of one object are those of the definition."""
    arrays, _ = tracks(np.random.default_rng(3), n_objects=1, n_rows=12, ra=0.0, dec=0.0)
    fit = {name: target.host(column)[0] for name, column in fit_space_motion(*map(target.array, arrays)).items()}
    ra, dec, covariance, time, earth, _ = arrays
    basis = unit_vectors(ra[0], dec[0]), *tangent_basis(ra[0], dec[0])
    depth = unit_vectors(ra, dec) @ basis[0]
    east, north = (unit_vectors(ra, dec) @ axis / depth * MAS_PER_RADIAN for axis in basis[1:])
    years = (time - fit["epoch"]) / 365.25
    found, inverse = fit_one_reference(east, north, covariance * MAS_PER_DEGREE**2, years, -earth @ basis[1], -earth @ basis[2])
    np.testing.assert_allclose([fit[name] for name in FITTED], found[2:], rtol=1e-9)
    np.testing.assert_allclose([fit[f"{name}_err"] for name in FITTED], np.sqrt(np.diag(inverse)[2:]), rtol=1e-9)
    assert fit["pm_ra_pm_dec_cov"] == pytest.approx(inverse[2, 3], rel=1e-8)
    assert fit["ra_dec_cov"] * MAS_PER_DEGREE**2 == pytest.approx(inverse[0, 1], rel=1e-8)


def test_short_or_sparse_tracks_give_a_mean_position(target):
    """A month of detections, or many in five nights, cannot tell motion from parallax: weighted mean position, no motion."""
    rng = np.random.default_rng(4)
    month, _ = tracks(rng, n_objects=3, days=30.0, pm=0.0, parallax=0.0)
    nights, _ = tracks(rng, n_objects=3, pm=0.0, parallax=0.0)
    nights = nights[:3] + (
        60000 + np.repeat([0.0, 90, 180, 270, 360], 6)[np.arange(90) % 30] + np.arange(90) % 6 * 0.01,
        *nights[4:],
    )
    for arrays in (month, nights):
        fit = {name: target.host(column) for name, column in fit_space_motion(*map(target.array, arrays)).items()}
        assert np.isnan(fit["parallax"]).all() and np.isnan(fit["pm_ra_err"]).all() and (fit["n_data"] == 0).all()
        ra, dec, covariance = (a[:30] for a in arrays[:3])
        weights = np.linalg.inv(covariance[:, [[0, 2], [2, 1]]])
        turned = (ra - ra[0] + 180) % 360 - 180
        local = np.stack([turned * np.cos(np.radians(dec[0])), dec - dec[0]], axis=-1)
        total = np.linalg.inv(weights.sum(axis=0))
        mean = total @ np.einsum("nij,nj->i", weights, local)
        # the plane is curved: squares of 0.1 arcsec, 5e-13 degrees
        assert fit["dec"][0] - dec[0] == pytest.approx(mean[1], abs=2e-11)
        assert fit["dec_err"][0] == pytest.approx(np.sqrt(total[1, 1]), rel=1e-9)
        assert fit["ra_dec_cov"][0] == pytest.approx(total[0, 1], rel=1e-9)


def test_one_detection_is_its_own_position(target):
    """A single row: its position, errors and time, chi2 zero; none: NaN."""
    arrays = (np.array([359.9999]), np.array([-89.0]), np.array([[1e-10, 4e-10, 1e-10]]), np.array([60000.5]), np.ones((1, 3)))
    fit = fit_space_motion(*map(target.array, arrays), target.array(np.array([0, 1, 1])))
    fit = {name: target.host(column) for name, column in fit.items()}
    assert fit["ra"][0] == pytest.approx(359.9999, abs=1e-12) and fit["dec"][0] == pytest.approx(-89, abs=1e-12)
    assert fit["ra_err"][0] == pytest.approx(1e-5, rel=1e-9) and fit["epoch"][0] == 60000.5
    assert fit["chi2"][0] == 0 and np.isnan(fit["ra"][1]) and np.isnan(fit["epoch"][1])


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 10.0), (123.0, 89.9999)])
def test_positions_across_zero_ra_and_at_the_pole(ra, dec):
    """Detections on both sides of ra 0, or around the pole, average on the sphere."""
    arrays, truth = tracks(np.random.default_rng(5), n_objects=20, days=10.0, pm=0.0, parallax=0.0, ra=ra, dec=dec)
    fit = fit_space_motion(*arrays)
    away = SkyCoord(fit["ra"], fit["dec"], unit="deg").separation(SkyCoord(truth["ra"], truth["dec"], unit="deg")).mas
    assert away.max() < 5 * 1.5 * 20 * np.sqrt(2 / 30)


def test_parallax_of_a_still_star_against_astropy():
    """With Earth's position from astropy's ephemeris and no noise, our Earth gives the parallax back to 1e-3."""
    time = np.linspace(60000, 60365, 40)
    earth = get_body_barycentric("earth", Time(time, format="mjd", scale="tai")).xyz.to_value("AU").T
    origin = unit_vectors(80.0, -30.0), *tangent_basis(80.0, -30.0)
    shift = [-500.0 * earth @ axis / MAS_PER_RADIAN for axis in origin[1:]]
    ra, dec = sky_from_vectors(origin[0] + shift[0][:, None] * origin[1] + shift[1][:, None] * origin[2])
    covariance = np.tile([1e-12, 1e-12, 0], (40, 1))
    fit = fit_space_motion(ra, dec, covariance, time, earth_position(time), np.array([0, 40]))
    assert fit["parallax"][0] == pytest.approx(500, rel=1e-3)
    assert abs(fit["pm_ra"][0]) < 1e-3 * 500 and abs(fit["ra"][0] - 80) * 3.6e6 < 1e-3 * 500


def test_no_objects(target):
    """Nothing in, nothing out; objects without any rows are NaN."""
    empty = target.array(np.zeros(0))
    wide = target.array(np.zeros((0, 3)))
    for count in (0, 2):
        fit = fit_space_motion(empty, empty, wide, empty, wide, target.array(np.zeros(count + 1, np.int64)))
        assert len(fit["ra"]) == count and np.isnan(target.host(fit["ra"])).all()


def test_wrong_shapes_are_told():
    """The error says what was got and wanted."""
    row = np.ones(2)
    with pytest.raises(InputError, match="2 rows want"):
        fit_space_motion(row, row, np.ones((3, 3)), row, np.ones((2, 3)), np.array([0, 2]))
