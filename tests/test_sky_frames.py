"""Frames of the sky: unit vectors, ecliptic and galactic axes, Earth and Sun. astropy is the oracle."""

import warnings

import numpy as np
import pytest

from nightstream.kernels.sky_frames import (
    earth_position,
    ecliptic_from_equatorial,
    galactic_from_equatorial,
    heliocentric_earth,
    heliocentric_earth_velocity,
    sky_from_vectors,
    sun_position,
    tangent_basis,
    unit_vectors,
)


@pytest.fixture
def sky():
    rng = np.random.default_rng(1)
    return rng.uniform(0, 360, 500), np.degrees(np.arcsin(rng.uniform(-1, 1, 500)))


def test_vectors_and_back(target, sky):
    """A direction comes back from its unit vector within rounding."""
    ra, dec = sky
    vectors = unit_vectors(target.array(ra), target.array(dec))
    back = [target.host(angle) for angle in sky_from_vectors(vectors)]
    np.testing.assert_allclose(np.linalg.norm(target.host(vectors), axis=1), 1.0, rtol=4e-16)
    np.testing.assert_allclose(back[1], dec, atol=1e-12)
    np.testing.assert_allclose(np.exp(1j * np.radians(back[0])), np.exp(1j * np.radians(ra)), atol=1e-12)


def test_east_and_north_are_the_derivatives(sky):
    """East is where ra grows, north where dec grows; at the pole they turn with ra."""
    ra, dec = sky
    east, north = tangent_basis(ra, dec)
    step = 1e-6
    cosine = np.cos(np.radians(dec))[:, None]
    np.testing.assert_allclose(
        (unit_vectors(ra + step, dec) - unit_vectors(ra, dec)) / np.radians(step), east * cosine, atol=1e-7
    )
    np.testing.assert_allclose((unit_vectors(ra, dec + step) - unit_vectors(ra, dec)) / np.radians(step), north, atol=1e-7)
    np.testing.assert_allclose(tangent_basis(90.0, 90.0)[0], [-1, 0, 0], atol=1e-15)


def test_ecliptic_and_galactic_agree_with_astropy(sky):
    """Within 0.1 arcsec: astropy's frames add the 0.02 arcsec between ICRS and the mean equator, and rounded constants."""
    from astropy.coordinates import SkyCoord

    coordinates = SkyCoord(*sky, unit="deg", frame="icrs")
    for ours, theirs in (
        (ecliptic_from_equatorial(*sky), coordinates.barycentricmeanecliptic),
        (galactic_from_equatorial(*sky), coordinates.galactic),
    ):
        lon, lat = theirs.spherical.lon.deg, theirs.spherical.lat.deg
        apart = np.linalg.norm(unit_vectors(*ours) - unit_vectors(lon, lat), axis=1)
        assert np.degrees(apart.max()) * 3600 < 0.1


def test_earth_and_sun_agree_with_astropy():
    """Earth and Sun within 2e-4 AU of ERFA's ephemerides over 80 years, Earth's velocity within 1e-3."""
    from astropy.coordinates import get_body_barycentric, get_body_barycentric_posvel
    from astropy.time import Time

    mjd = np.linspace(44000, 68000, 1001)
    with warnings.catch_warnings():  # leap seconds beyond the table
        warnings.simplefilter("ignore")
        time = Time(mjd, format="mjd", scale="tai")
        sun = get_body_barycentric("sun", time, ephemeris="builtin").xyz.to_value("au").T
        position, velocity = get_body_barycentric_posvel("earth", time, ephemeris="builtin")
        earth, speed = position.xyz.to_value("au").T, velocity.xyz.to_value("au/d").T
    np.testing.assert_allclose(earth_position(mjd), earth, atol=2e-4)
    np.testing.assert_allclose(sun_position(mjd), sun, atol=1e-4)
    np.testing.assert_allclose(heliocentric_earth(mjd), earth - sun, atol=2e-4)
    np.testing.assert_allclose(heliocentric_earth_velocity(mjd), speed, atol=2e-5)


def test_earth_of_one_time_is_a_vector():
    """A scalar time gives shape (3,)."""
    assert earth_position(60000.0).shape == (3,)
