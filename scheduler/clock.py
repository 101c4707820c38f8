"""The time of day, as the catalogues count it."""

from __future__ import annotations


def now_mjd_tai() -> float:
    """Return the time as MJD TAI, days."""
    from astropy.time import Time

    return float(Time.now().tai.mjd)
