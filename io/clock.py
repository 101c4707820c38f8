"""Clocks: from the computer's seconds since 1970 (UTC) to MJD (TAI), the time of everything in tables."""

from __future__ import annotations

import time
import warnings
from datetime import UTC, datetime

import numpy as np

from nightstream.engine.values import Array

SECONDS_PER_DAY = 86400.0
UNIX_EPOCH_MJD = 40587.0  # 1970-01-01T00:00 UTC


def mjd_tai(unix_s: float | Array) -> float | Array:
    """MJD (TAI) of times in seconds since 1970 (UTC); an array takes the leap seconds of its latest time."""
    latest = datetime.fromtimestamp(float(np.max(unix_s)), UTC)
    return UNIX_EPOCH_MJD + (unix_s + tai_minus_utc_s(latest)) / SECONDS_PER_DAY


def now_mjd_tai() -> float:
    """The time now, MJD (TAI)."""
    return float(mjd_tai(time.time()))


def tai_minus_utc_s(moment: datetime) -> float:
    """Leap seconds, from the table of ERFA; unlike `astropy.time` it never looks for a newer one on the network."""
    import erfa

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", erfa.ErfaWarning)  # a year past the table takes its last value
        return float(erfa.dat(moment.year, moment.month, moment.day, 0.0))
