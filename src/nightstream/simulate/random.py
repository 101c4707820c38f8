"""Random numbers of the simulator: one counter-based stream for every (seed, visit, detector, purpose)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream of random numbers is for. Streams never share a key, so adding draws to one changes no
    other."""

    SKY = 0
    OBSERVING = 1  # seeing, transparency, pointing, rotation of one visit
    DETECTOR = 2  # what is built into a detector: dust, hot pixels, bias structure
    PIXELS = 3  # noise of one exposure
    COSMIC_RAYS = 4
    REFERENCE = 5
    EPHEMERIDES = 6


def generator(seed: int, stream: Stream, visit: int = 0, detector: int = 0) -> np.random.Generator:
    """Return the generator of one stream: Philox keyed on ``seed`` and (visit, detector, stream).

    The same arguments give the same bits on every machine and in any order of calls.
    """
    key = (int(visit) << 20) | (int(detector) << 8) | int(stream)
    return np.random.Generator(np.random.Philox(key=np.array([seed, key], dtype=np.uint64)))
