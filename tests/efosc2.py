"""The real EFOSC2 frames, reduced: five biases, three sky flats, two fields of three dithers each."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from nightstream.engine.calibrate import build_calibrations
from nightstream.engine.pipeline import DetectorPipeline, calibrate_together
from nightstream.engine.template import build_template
from nightstream.engine.values import Calibrations, RawDetector, Template
from nightstream.io.cameras import engine_config, load_camera
from nightstream.io.raw import read_raw

FIELDS = ("sci_Q1010-0100", "sci_J123410-332638")
DITHERS = (0, 1, 2)
CONFIG = engine_config(load_camera("efosc2"))


def detector():
    return load_camera("efosc2").detectors[0]


@cache
def raws(folder: Path) -> tuple[RawDetector, ...]:
    return tuple(read_raw(path, load_camera("efosc2")) for path in sorted(folder.glob("*.fits.fz")))


@cache
def calibrations(data: Path) -> Calibrations:
    biases, flats = raws(data / "bias"), raws(data / "skyflat_g")
    return build_calibrations(biases, (), flats, detector(), CONFIG.calibrate, CONFIG.isr)


@cache
def calibrated(data: Path, field: str):
    """The three dithers of a field, calibrated onto the frame and flux scale of the first."""
    pipeline = DetectorPipeline(detector(), calibrations(data), config=CONFIG, device="cpu")
    return tuple(calibrate_together(pipeline, raws(data / field)))


@cache
def template_without(data: Path, field: str, science: int) -> Template:
    """The template of a field from the two dithers that are not ``science``."""
    others = [done.exposure for dither, done in enumerate(calibrated(data, field)) if dither != science]
    return build_template(others, CONFIG.template)


def pipeline_for(data: Path, field: str, science: int) -> DetectorPipeline:
    return DetectorPipeline(detector(), calibrations(data), template_without(data, field, science), CONFIG, device="cpu")


def inject(raw: RawDetector, exposure, flat, x, y, electrons, seed: int) -> RawDetector:
    """Add stars of ``electrons`` at ``x, y`` to raw pixels, with their photon noise and the flat's response."""
    rng = np.random.default_rng(seed)
    amplifier = detector().amplifiers[0]
    light = np.zeros(detector().shape)
    half = exposure.psf.size // 2
    for stamp, column, row, flux in zip(exposure.psf.stamps(x, y), x, y, electrons, strict=True):
        j, i = round(float(row)), round(float(column))
        light[j - half : j + half + 1, i - half : i + half + 1] += flux * np.clip(stamp, 0, None) / np.clip(stamp, 0, None).sum()
    counts = rng.poisson(light * flat) / amplifier.gain
    pixels = raw.pixels.astype(np.float32)
    pixels[0][amplifier.data.slices] += counts.astype(np.float32)
    return replace(raw, pixels=np.minimum(np.rint(pixels), 65535).astype(raw.pixels.dtype))
