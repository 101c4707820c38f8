"""Directions on the sky as unit vectors, in equatorial, ecliptic and galactic axes, and where Earth and Sun are.

Array programs. Axes are ICRS unless a name says otherwise; angles are degrees. Not for pointing telescopes: no aberration,
precession or light time.
"""

from __future__ import annotations

import numpy as np

from nightstream.kernels.target import array_module

ARCSEC_PER_RADIAN = np.degrees(1.0) * 3600.0
OBLIQUITY_DEG = 84381.406 / 3600.0  # of the mean ecliptic of J2000.0 (IAU 2006)
# Of the galactic pole in ICRS, and the galactic longitude of the celestial pole (Hipparcos catalogue, volume 1, section 1.5.3).
GALACTIC_POLE_RA_DEG, GALACTIC_POLE_DEC_DEG, GALACTIC_NODE_DEG = 192.85948, 27.12825, 122.93192
MJD_TT_MINUS_TAI = 32.184 / 86400.0  # days
MJD_J2000 = 51544.5

# Mean elements of J2000.0 and their change per Julian century, ecliptic axes: a (AU), e, i, L, longitude of perihelion,
# longitude of the node (deg); and the inverse mass, in Suns. Good to 20 arcsec, 1800 to 2050 (Standish, JPL approximate
# positions, table 1); the Earth stands for the Earth-Moon barycentre, 3e-5 AU away.
_EARTH = (
    (1.00000261, 0.01671123, -0.00001531, 100.46457166, 102.93768193, 0.0),
    (0.00000562, -0.00004392, -0.01294668, 35999.37244981, 0.32327364, 0.0),
)
_GIANTS = (
    ((5.20288700, 0.04838624, 1.30439695, 34.39644051, 14.72847983, 100.47390909),
     (-0.00011607, -0.00013253, -0.00183714, 3034.74612775, 0.21252668, 0.20469106), 1047.3486),
    ((9.53667594, 0.05386179, 2.48599187, 49.95424423, 92.59887831, 113.66242448),
     (-0.00125060, -0.00050991, 0.00193609, 1222.49362201, -0.41897216, -0.28867794), 3497.898),
    ((19.18916464, 0.04725744, 0.77263783, 313.23810451, 170.95427630, 74.01692503),
     (-0.00196176, -0.00004397, -0.00242939, 428.48202785, 0.40805281, 0.04240589), 22902.98),
    ((30.06992276, 0.00859048, 1.77004347, -55.12002969, 44.96476227, 131.78422574),
     (0.00026291, 0.00005105, 0.00035372, 218.45945325, -0.32241464, -0.00508664), 19412.24),
)  # fmt: skip


def unit_vectors(ra, dec):
    """Return (..., 3) float64 unit vectors of directions ``ra, dec`` (deg). NaN where either is NaN."""
    xp = array_module(ra, dec)
    ra, dec = xp.radians(xp.asarray(ra, dtype=np.float64)), xp.radians(xp.asarray(dec, dtype=np.float64))
    return xp.stack([xp.cos(dec) * xp.cos(ra), xp.cos(dec) * xp.sin(ra), xp.sin(dec)], axis=-1)


def sky_from_vectors(vectors):
    """Return ra in [0, 360) and dec (deg) of (..., 3) vectors of any length but 0; NaN where a vector is NaN."""
    xp = array_module(vectors)
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    ra = xp.degrees(xp.arctan2(y, x)) % 360.0
    return xp.where(ra == 360.0, 0.0, ra), xp.degrees(xp.arctan2(z, xp.hypot(x, y)))


def tangent_basis(ra, dec):
    """Return the (..., 3) unit vectors that point east and north at directions ``ra, dec`` (deg).

    At a pole they follow the given ``ra``, as the errors of a catalogue do there.
    """
    xp = array_module(ra, dec)
    ra, dec = xp.radians(xp.asarray(ra, dtype=np.float64)), xp.radians(xp.asarray(dec, dtype=np.float64))
    east = xp.stack([-xp.sin(ra), xp.cos(ra), xp.zeros_like(ra)], axis=-1)
    north = xp.stack([-xp.sin(dec) * xp.cos(ra), -xp.sin(dec) * xp.sin(ra), xp.cos(dec)], axis=-1)
    return east, north


def ecliptic_from_equatorial(ra, dec):
    """Return longitude in [0, 360) and latitude (deg) on the mean ecliptic of J2000.0, of ICRS directions (deg)."""
    return _rotated(ra, dec, ecliptic_axes())


def galactic_from_equatorial(ra, dec):
    """Return galactic longitude in [0, 360) and latitude (deg) of ICRS directions (deg)."""
    return _rotated(ra, dec, galactic_axes())


def ecliptic_axes() -> np.ndarray:
    """Return the (3, 3) matrix whose rows are the axes of the ecliptic frame in equatorial coordinates."""
    cosine, sine = np.cos(np.radians(OBLIQUITY_DEG)), np.sin(np.radians(OBLIQUITY_DEG))
    return np.array([[1.0, 0.0, 0.0], [0.0, cosine, sine], [0.0, -sine, cosine]])


def galactic_axes() -> np.ndarray:
    """Return the (3, 3) matrix whose rows are the axes of the galactic frame in equatorial coordinates."""
    pole = unit_vectors(GALACTIC_POLE_RA_DEG, GALACTIC_POLE_DEC_DEG)
    celestial_pole = np.array([0.0, 0.0, 1.0])
    towards = celestial_pole - pole[2] * pole  # in the galactic plane, at longitude GALACTIC_NODE_DEG
    towards /= np.linalg.norm(towards)
    beside = np.cross(pole, towards)
    node = np.radians(GALACTIC_NODE_DEG)
    x = np.cos(node) * towards - np.sin(node) * beside
    return np.stack([x, np.cross(pole, x), pole])


def earth_position(mjd_tai):
    """Return (..., 3) AU, ICRS axes: the Earth seen from the barycentre of the Solar System, good to 2e-4 AU, 1900 to 2050."""
    return heliocentric_earth(mjd_tai) + sun_position(mjd_tai)


def sun_position(mjd_tai):
    """Return (..., 3) AU, ICRS axes: the Sun seen from the barycentre of the Solar System, as the giant planets pull it."""
    return -sum(_orbit(start, change, mjd_tai) / (mass + 1.0) for start, change, mass in _GIANTS) @ ecliptic_axes()


def heliocentric_earth(mjd_tai):
    """Return (..., 3) AU, ICRS axes: the Earth seen from the Sun, good to 2e-4 AU, 1900 to 2050."""
    return _orbit(*_EARTH, mjd_tai) @ ecliptic_axes()


def heliocentric_earth_velocity(mjd_tai):
    """Return (..., 3) AU / day, ICRS axes: the velocity of the Earth seen from the Sun, good to 1e-3 of itself."""
    step = 0.05  # days; the third derivative leaves 1e-7 of the velocity
    after, before = (heliocentric_earth(np.asarray(mjd_tai, dtype=np.float64) + sign * step) for sign in (1.0, -1.0))
    return (after - before) / (2 * step)


def _rotated(ra, dec, axes):
    return sky_from_vectors(unit_vectors(ra, dec) @ array_module(ra, dec).asarray(axes.T))


def _orbit(start, change, mjd_tai):
    """Return (..., 3) AU, ecliptic axes, heliocentric, from mean elements: Kepler's equation by Newton's method."""
    mjd = np.asarray(mjd_tai, dtype=np.float64)
    century = (mjd + MJD_TT_MINUS_TAI - MJD_J2000) / 36525.0
    a, e, inclination, longitude, perihelion, node = (s + c * century for s, c in zip(start, change, strict=True))
    inclination, node = np.radians(inclination), np.radians(node)
    anomaly = np.radians((longitude - perihelion + 180.0) % 360.0 - 180.0)
    eccentric = anomaly
    for _ in range(4):  # e <= 0.06: each step squares the error
        eccentric = eccentric - (eccentric - e * np.sin(eccentric) - anomaly) / (1.0 - e * np.cos(eccentric))
    x, y = a * (np.cos(eccentric) - e), a * np.sqrt(1.0 - e * e) * np.sin(eccentric)
    argument = np.radians(perihelion) - node
    along = np.cos(argument) * x - np.sin(argument) * y
    across = np.sin(argument) * x + np.cos(argument) * y
    level, up = np.cos(inclination) * across, np.sin(inclination) * across
    return np.stack([np.cos(node) * along - np.sin(node) * level, np.sin(node) * along + np.cos(node) * level, up], axis=-1)
