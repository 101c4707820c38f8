"""A small two-amplifier detector and raw frames of it with known truth, for tests."""

from __future__ import annotations

import numpy as np

from nightstream.engine.camera import Amplifier, Box, Detector
from nightstream.engine.values import ExposureInfo, RawDetector

NY, NX = 96, 80  # of one amplifier's data
GAINS, READ_NOISE = (1.5, 0.8), 5.0  # electron / adu, electron
PEDESTALS = (1000.0, 1300.0)
SHAPE = (NY, 2 * NX)


def make_detector(**changes) -> Detector:
    """Two amplifiers read away from each other, with 3 prescan columns, 20 overscan columns and 6 overscan rows."""
    amplifiers = tuple(
        Amplifier(
            **{
                "name": f"A{k}",
                "hdu": k,
                "raw": Box(0, NX + 23, 0, NY + 6),
                "data": Box(3, NX + 3, 0, NY),
                "serial_overscan": Box(NX + 3, NX + 23, 0, NY + 6),
                "parallel_overscan": Box(3, NX + 3, NY, NY + 6),
                "detector": Box(k * NX, (k + 1) * NX, 0, NY),
                "flip_x": k == 1,
                "flip_y": False,
                "gain": GAINS[k],
                "read_noise": READ_NOISE,
                "saturation_adu": 60000.0,
                **changes,
            }
        )
        for k in range(2)
    )
    return Detector(id=7, name="R00_S7", shape=SHAPE, amplifiers=amplifiers)


def make_raw(electrons=None, *, seed=0, kind="science", time_s=0.0, visit=42, pedestal=0.0, bias=None) -> RawDetector:
    """Read out ``electrons`` (expected, ny, nx) with Poisson and read noise, digitised; ``bias`` adds a structure."""
    rng = np.random.default_rng(seed)
    electrons = np.zeros(SHAPE) if electrons is None else np.broadcast_to(electrons, SHAPE)
    light = rng.poisson(electrons) + (0.0 if bias is None else bias)
    pixels = np.empty((2, NY + 6, NX + 23), np.uint16)
    for k in range(2):
        charge = np.zeros(pixels.shape[1:])
        half = light[:, k * NX : (k + 1) * NX]
        charge[:NY, 3 : NX + 3] = half[:, ::-1] if k else half
        counts = (charge + rng.normal(0, READ_NOISE, charge.shape)) / GAINS[k] + PEDESTALS[k] + pedestal
        pixels[k] = np.clip(np.rint(counts), 0, 65535)
    info = ExposureInfo(
        visit=visit,
        detector=7,
        camera="test",
        kind=kind,
        band="r",
        exposure_time_s=time_s,
        dark_time_s=time_s,
        midpoint_mjd_tai=60000.0,
        path=f"visit{visit}.fits",
    )
    return RawDetector(info=info, pixels=pixels)
