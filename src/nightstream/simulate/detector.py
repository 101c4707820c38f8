"""Forward model of one CCD: light in, raw counts out. What `nightstream.engine.isr` takes away is put in
here.

| step         | model                                                                                       |
|--------------|---------------------------------------------------------------------------------------------|
| response     | vignetting x dust x pixel-to-pixel variation; 0 in dead columns                             |
| dark current | uniform, plus hot pixels, electron / s                                                      |
| photon noise | Poisson on light and dark current together                                                  |
| cosmic rays  | straight tracks with some charge diffusion                                                  |
| read-out     | read noise, gain, bias structure, pedestal with a slow drift over the rows, 16-bit clipping |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nightstream.engine.camera import Amplifier, Detector
from nightstream.simulate.random import Stream, generator

PEDESTAL_ADU = 1000.0
DARK_CURRENT = 0.03  # electron / s / pixel
HOT_PIXELS_PER_MPIX, DEAD_COLUMNS = 40, 2
COSMIC_RAYS_PER_PIXEL_S = 2.0e-6  # about 1000 in a 4k x 4k CCD in 30 s
COSMIC_RAY_ELECTRONS = 900.0  # median, per pixel length of track
DIFFUSION_PIX = 0.25
DEPOSITS_PER_PIX = 8
BIAS_COLUMN_ADU, BIAS_GLOW_ADU = 1.0, 6.0
DRIFT_ADU, DRIFT_ROWS = 3.0, 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorTruth:
    """What is built into one detector: planes of the assembled shape (ny, nx), and raw planes of each
    amplifier."""

    detector: Detector
    response: np.ndarray  # float32, relative throughput, about 1
    dark: np.ndarray  # float32, electron / s
    dead: np.ndarray  # bool
    bias_adu: np.ndarray  # float32 (n_amplifiers, raw ny, raw nx), pedestal included


def make_detector_truth(detector: Detector, seed: int, vignetting: np.ndarray | float = 1.0) -> DetectorTruth:
    """Build the detector of this ``seed``; ``vignetting`` is its share of the telescope's throughput, (ny,
    nx)."""
    rng = generator(seed, Stream.DETECTOR, detector=detector.id)
    shape = detector.shape
    dead = np.zeros(shape, dtype=bool)
    for column in rng.integers(8, shape[1] - 8, DEAD_COLUMNS):
        dead[rng.integers(0, shape[0] // 2) :, column] = True
    response = vignetting * (1.0 + 0.005 * rng.standard_normal(shape)) * _dust(shape, rng)
    response = np.where(dead, 0.0, response).astype(np.float32)
    dark = np.full(shape, DARK_CURRENT, dtype=np.float32)
    hot = rng.integers(0, dark.size, max(1, int(HOT_PIXELS_PER_MPIX * dark.size / 1e6)))
    dark.flat[hot] = 10.0 ** rng.uniform(1.0, 3.0, len(hot))
    bias = np.stack([_bias_structure(amplifier, rng) for amplifier in detector.amplifiers])
    return DetectorTruth(detector=detector, response=response, dark=dark, dead=dead, bias_adu=bias)


def expose(
    truth: DetectorTruth, light: np.ndarray | None, *, dark_time_s: float, seed: int, exposure: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(pixels, cosmic_rays)`` of one exposure.

    ``light`` is the expected electrons a pixel of unit response (ny, nx), or None for a closed shutter.
    ``pixels`` is uint16, (n_amplifiers, raw ny, raw nx), counts as read; ``cosmic_rays`` float32 (ny, nx),
    the electrons they left. Deterministic in (``seed``, ``exposure``, detector).
    """
    detector = truth.detector
    rng = generator(seed, Stream.PIXELS, exposure, detector.id)
    expected = truth.dark * np.float32(dark_time_s)
    if light is not None:
        expected = expected + light * truth.response
    electrons = rng.poisson(expected).astype(np.float32)
    rays_rng = generator(seed, Stream.COSMIC_RAYS, exposure, detector.id)
    rays = draw_cosmic_rays(detector.shape, dark_time_s, rays_rng)
    return read_out(truth, electrons + rays, rng), rays


def draw_cosmic_rays(shape: tuple[int, int], time_s: float, rng: np.random.Generator) -> np.ndarray:
    """Return the electrons, float32 (ny, nx), that cosmic rays leave in ``time_s``: straight tracks, slightly
    blurred."""
    ny, nx = shape
    count = rng.poisson(COSMIC_RAYS_PER_PIXEL_S * ny * nx * time_s)
    length = 1.0 + rng.exponential(6.0, count)
    angle, x, y = rng.uniform(0.0, 2.0 * np.pi, count), rng.uniform(0, nx, count), rng.uniform(0, ny, count)
    charge = COSMIC_RAY_ELECTRONS * rng.lognormal(0.0, 0.5, count) / DEPOSITS_PER_PIX
    deposits = np.maximum((length * DEPOSITS_PER_PIX).astype(np.int64), 1)
    track = np.repeat(np.arange(count), deposits)
    along = (np.arange(len(track)) - np.repeat(np.cumsum(deposits) - deposits, deposits)) / DEPOSITS_PER_PIX
    px = x[track] + along * np.cos(angle)[track] + rng.normal(0.0, DIFFUSION_PIX, len(track))
    py = y[track] + along * np.sin(angle)[track] + rng.normal(0.0, DIFFUSION_PIX, len(track))
    inside = (px >= 0) & (px < nx) & (py >= 0) & (py < ny)
    flat = py[inside].astype(np.int64) * nx + px[inside].astype(np.int64)
    return np.bincount(flat, charge[track][inside], ny * nx).astype(np.float32).reshape(shape)


def read_out(truth: DetectorTruth, electrons: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return raw counts, uint16 (n_amplifiers, ny, nx): every amplifier with its gain, noise, bias and
    drift."""
    detector = truth.detector
    counts = np.empty(detector.raw_shape, dtype=np.uint16)
    for index, amplifier in enumerate(detector.amplifiers):
        noise = amplifier.read_noise / amplifier.gain
        adu = rng.standard_normal(amplifier.raw.shape, dtype=np.float32) * np.float32(noise)
        adu += truth.bias_adu[index] + _drift(adu.shape[0], rng)[:, None]
        adu[amplifier.data.slices] += _unassemble(electrons, amplifier) / np.float32(amplifier.gain)
        counts[index] = np.clip(np.rint(adu), 0.0, 65535.0)
    return counts


def _unassemble(image: np.ndarray, amplifier: Amplifier) -> np.ndarray:
    """Return the amplifier's share of an assembled image, in the order in which it is read."""
    part = image[amplifier.detector.slices]
    return part[:: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1]


def _drift(rows: int, rng: np.random.Generator) -> np.ndarray:
    """The pedestal's change over one read-out, adu, float32: an offset, a settling start and a slow wave."""
    offset, settling, wave, phase = (
        rng.normal(0.0, DRIFT_ADU),
        rng.uniform(0.0, 10.0),
        rng.uniform(0, DRIFT_ADU),
        rng.random(),
    )
    row = np.arange(rows)
    value = offset + settling * np.exp(-row / 60.0) + wave * np.sin(2.0 * np.pi * (row / DRIFT_ROWS + phase))
    return value.astype(np.float32)


def _bias_structure(amplifier: Amplifier, rng: np.random.Generator) -> np.ndarray:
    """Pedestal, and in the data section a fixed pattern of columns and a glow towards the register, adu."""
    bias = np.full(amplifier.raw.shape, PEDESTAL_ADU + rng.uniform(-100.0, 100.0), dtype=np.float32)
    ny, nx = amplifier.data.shape
    columns = BIAS_COLUMN_ADU * rng.standard_normal(nx)
    glow = BIAS_GLOW_ADU * rng.uniform(0.3, 1.0) * np.exp(-np.arange(ny) / (0.2 * ny))
    bias[amplifier.data.slices] += columns[None, :] + glow[:, None]
    return bias


def _dust(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Out-of-focus dust: a few rings that take away some per cent of the light."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    dust = np.ones(shape)
    for _ in range(6):
        cx, cy, outer = rng.uniform(0, shape[1]), rng.uniform(0, shape[0]), rng.uniform(15.0, 40.0)
        radius = np.hypot(x - cx, y - cy)
        ring = 0.5 * (np.tanh((radius - 0.4 * outer) / 3.0) - np.tanh((radius - outer) / 3.0))
        dust *= 1.0 - rng.uniform(0.01, 0.03) * ring
    return dust
