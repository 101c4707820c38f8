"""Instrument signature removal: one raw detector to a calibrated image in electrons.

Owns the order of the steps and what makes a frame unprocessable; the arithmetic is in `kernels.overscan` and
`kernels.isr`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nightstream.engine.camera import Amplifier, Detector
from nightstream.engine.config import IsrConfig
from nightstream.engine.memory import to_host
from nightstream.engine.values import Calibrations, ExposureInfo, MaskedImage, RawDetector
from nightstream.errors import CalibrationError, InputError, UnprocessableError
from nightstream.kernels import isr, overscan
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import array_module

Array = Any
RAW_TYPES = ("uint16", "int16", "int32", "float32")
DEAD = int(MaskPlane.BAD | MaskPlane.NO_DATA)
LEVEL_METHODS = {
    "adaptive": overscan.adaptive_row_levels,
    "row_median": overscan.row_median_levels,
    "row_mean": overscan.row_mean_levels,
    "amplifier": overscan.amplifier_levels,
}


class OverscanLevels(NamedTuple):
    """The pedestal of a raw frame, adu, and the read noise measured beside it."""

    rows: Array  # (n_amp, ny_raw) float32
    columns: Array  # (n_amp, nx_raw) float32, zero without a parallel overscan
    read_noise_adu: np.ndarray | None  # (n_amp,) float32 on the host; None without a serial overscan


def remove_signature(raw: RawDetector, detector: Detector, calibrations: Calibrations, config: IsrConfig) -> MaskedImage:
    """Return the assembled image of ``raw``, (ny, nx), in electrons, with its mask and variance.

    Order: overscan, gain, assembly, bias, dark, flat, defects (`kernels.isr.remove_signature` has the equations).
    Calibrations lie on the device of ``raw.pixels``; those that are None are left out. Amplifiers that are dead (no
    valid gain, one value in all pixels, or more read noise than ``config.max_read_noise_electron``) become BAD.

    Raises InputError for a raw of the wrong detector, shape or type, CalibrationError for a calibration that does not
    fit, UnprocessableError if all amplifiers are dead or too few pixels are usable; each names visit and detector.
    """
    info = raw.info
    try:
        check_raw(raw, detector)
        check_calibrations(calibrations, detector)
        check_flat_band(calibrations, info)
        levels = measure_overscan(raw.pixels, detector, config)
        table = _amplifier_table(raw.pixels, detector, levels, config)
        planes = isr.remove_signature(
            raw.pixels,
            levels.rows,
            levels.columns,
            table,
            detector.shape,
            bias=_plane(calibrations.bias),
            dark=_plane(calibrations.dark),
            flat=_plane(calibrations.flat),
            defects=calibrations.defects,
            dark_time_s=info.dark_time_s,
            has_light=info.kind != "bias",
        )
        _check_usable(planes[1], config.max_unusable_fraction)
    except (InputError, CalibrationError, UnprocessableError) as error:
        raise error.locate(visit=info.visit, detector=info.detector, path=info.path or None) from None
    return MaskedImage(*planes)


def check_raw(raw: RawDetector, detector: Detector) -> None:
    """Raise InputError unless the raw frame is of this detector, of its shape, and of a type that ISR takes."""
    if raw.info.detector != detector.id:
        raise InputError(f"raw is of detector {raw.info.detector}, wanted {detector.id} ({detector.name})")
    if raw.pixels.shape != detector.raw_shape:
        raise InputError(
            f"raw has shape {raw.pixels.shape}, wanted {detector.raw_shape} (amplifiers, rows, columns)"
            f" for detector {detector.name}"
        )
    if raw.pixels.dtype.name not in RAW_TYPES:
        raise InputError(f"raw pixels are {raw.pixels.dtype.name}, wanted one of {', '.join(RAW_TYPES)}")


def check_calibrations(calibrations: Calibrations, detector: Detector) -> None:
    """Raise CalibrationError unless every plane has the detector's shape and number."""
    if calibrations.detector != detector.id:
        raise CalibrationError(f"calibrations are of detector {calibrations.detector}, wanted {detector.id}")
    for name in ("bias", "dark", "flat"):
        masked = getattr(calibrations, name)
        for plane in () if masked is None else (masked.image, masked.mask, masked.variance):
            if plane.shape != detector.shape:
                raise CalibrationError(f"{name} has shape {plane.shape}, wanted {detector.shape}")
    defects = calibrations.defects
    if defects is not None and defects.shape != detector.shape:
        raise CalibrationError(f"defects have shape {defects.shape}, wanted {detector.shape}")


def check_flat_band(calibrations: Calibrations, info: ExposureInfo) -> None:
    """Raise CalibrationError for a science exposure of another band than the flat's, as far as the flat's is known."""
    band = calibrations.provenance.get("flat_band", info.band)
    if info.kind == "science" and calibrations.flat is not None and band != info.band:
        raise CalibrationError(f"flat is of band {band}, wanted {info.band}")


def measure_overscan(pixels: Array, detector: Detector, config: IsrConfig) -> OverscanLevels:
    """Measure the pedestal of each raw row and column, and the read noise, from the overscans the detector has."""
    xp = array_module(pixels)
    n_amp, ny, nx = pixels.shape
    rows, columns = xp.zeros((n_amp, ny), xp.float32), xp.zeros((n_amp, nx), xp.float32)
    noise = None
    if all(amp.serial_overscan is not None for amp in detector.amplifiers):
        strips = _strips(pixels, detector, "serial_overscan", config)
        rows = _over_rows(LEVEL_METHODS[config.serial_overscan](strips), detector, ny)
        noise = to_host(overscan.measure_read_noise(strips))
    if config.parallel_overscan and all(amp.parallel_overscan is not None for amp in detector.amplifiers):
        columns = _column_levels(pixels, rows, detector, config)
    return OverscanLevels(rows, columns, noise)


def _strips(pixels: Array, detector: Detector, which: str, config: IsrConfig) -> Array:
    """The overscan boxes as one stack, without the columns (rows) next to the data and at the end."""
    xp = array_module(pixels)
    boxes = [getattr(amp, which) for amp in detector.amplifiers]
    shapes = {box.shape for box in boxes}
    if len(shapes) != 1:
        raise InputError(f"amplifiers of {detector.name} have {which} boxes of different shapes {sorted(shapes)}")
    stack = xp.stack([pixels[k][box.slices] for k, box in enumerate(boxes)])
    along = stack if which == "serial_overscan" else stack.swapaxes(1, 2)
    first, last = config.overscan_skip_leading, config.overscan_skip_trailing
    if along.shape[2] - first - last < 2:
        raise InputError(
            f"{which} of {detector.name} is {along.shape[2]} wide, wanted over {first + last + 1}: "
            f"{first} leading and {last} trailing pixels are skipped"
        )
    return along[:, :, first : along.shape[2] - last]


def _over_rows(levels: Array, detector: Detector, ny: int) -> Array:
    """Levels of the overscan's rows, spread to all raw rows; rows beyond the overscan take the nearest level."""
    xp = array_module(levels)
    first = [amp.serial_overscan.y0 for amp in detector.amplifiers]
    nearest = np.clip(np.arange(ny)[None, :] - np.array(first)[:, None], 0, levels.shape[1] - 1)
    return xp.take_along_axis(levels, xp.asarray(nearest), axis=1)


def _column_levels(pixels: Array, rows: Array, detector: Detector, config: IsrConfig) -> Array:
    """Levels of each raw column that the serial overscan has left, from the parallel overscan."""
    xp = array_module(pixels)
    strips = _strips(pixels, detector, "parallel_overscan", config)
    boxes = [amp.parallel_overscan for amp in detector.amplifiers]
    taken = [amp_rows[box.y0 : box.y1] for amp_rows, box in zip(rows, boxes, strict=True)]
    first, width = config.overscan_skip_leading, strips.shape[2]
    row_levels = xp.stack(taken)[:, None, first : first + width]
    levels = overscan.row_median_levels(strips - row_levels)
    levels = overscan.replace_outlying_levels(levels, config.parallel_max_deviation_adu)
    columns = xp.zeros((len(boxes), pixels.shape[2]), xp.float32)
    for k, box in enumerate(boxes):
        columns[k, box.x0 : box.x1] = levels[k]
    return columns


def _amplifier_table(pixels: Array, detector: Detector, levels: OverscanLevels, config: IsrConfig) -> isr.AmplifierTable:
    """Camera constants and this frame's measurements, one row an amplifier, on the device of ``pixels``."""
    xp = array_module(pixels)
    amps = detector.amplifiers
    gain = np.array([amp.gain for amp in amps], np.float32)
    noise = _read_noise(detector, levels, config)
    dead = _dead_amplifiers(pixels, gain, noise, config.max_read_noise_electron)
    if dead.all():
        limit = config.max_read_noise_electron
        reason = f"a frame of one value, or read noise above {limit:g} electron (got {noise.min():.3g} to {noise.max():.3g})"
        raise UnprocessableError(f"all {len(amps)} amplifiers of {detector.name} are dead: {reason}")
    quantisation = gain**2 / 12 if pixels.dtype.kind in "iu" else np.zeros_like(gain)
    columns = (
        np.array([_box_row(amp) for amp in amps], np.int32),
        np.where(dead, np.nan, gain).astype(np.float32),
        (noise**2 + quantisation).astype(np.float32),
        np.array([amp.saturation_adu for amp in amps], np.float32),
        np.array([amp.suspect_adu for amp in amps], np.float32),
        np.where(dead, DEAD, 0).astype(np.int32),
    )
    return isr.AmplifierTable(*map(xp.asarray, columns))


def _read_noise(detector: Detector, levels: OverscanLevels, config: IsrConfig) -> np.ndarray:
    """Read noise of each amplifier, electron: measured on the frame, or the camera's where that cannot be."""
    camera = np.array([amp.read_noise for amp in detector.amplifiers], np.float32)
    if config.read_noise == "camera" or levels.read_noise_adu is None:
        return camera
    gain = np.array([amp.gain for amp in detector.amplifiers], np.float32)
    return np.where(np.isfinite(levels.read_noise_adu), levels.read_noise_adu * gain, camera)


def _dead_amplifiers(pixels: Array, gain: np.ndarray, noise: np.ndarray, max_noise: float) -> np.ndarray:
    """Which amplifiers have no valid gain, too much noise, or one and the same value (or none) in all pixels."""
    xp = array_module(pixels)
    lowest, highest = pixels, pixels
    if pixels.dtype.kind == "f":
        known = xp.isfinite(pixels)
        lowest, highest = xp.where(known, pixels, xp.inf), xp.where(known, pixels, -xp.inf)
    varies = to_host(lowest.min(axis=(1, 2)) < highest.max(axis=(1, 2)))
    return ~varies | ~np.isfinite(gain) | (gain <= 0) | (noise > max_noise)


def _box_row(amp: Amplifier) -> tuple[int, ...]:
    """One amplifier's row of `isr.AmplifierTable.boxes`."""
    height, width = amp.data.shape
    if amp.detector.shape != (height, width):
        raise InputError(f"amplifier {amp.name}: data is {(height, width)}, its place {amp.detector.shape}")
    return amp.data.x0, amp.data.y0, width, height, amp.detector.x0, amp.detector.y0, amp.flip_x, amp.flip_y


def _plane(masked: MaskedImage | None) -> isr.CalibrationPlane | None:
    return None if masked is None else isr.CalibrationPlane(masked.image, masked.variance)


def _check_usable(mask: Array, limit: float) -> None:
    """Raise UnprocessableError if more than ``limit`` of the pixels are saturated, bad or without data."""
    unusable = float(((mask & int(MaskPlane.unusable())) != 0).mean())
    if unusable > limit:
        saturated = float(((mask & int(MaskPlane.SAT)) != 0).mean())
        raise UnprocessableError(
            f"{unusable:.1%} of the pixels are unusable ({saturated:.1%} saturated), wanted at most {limit:.1%}"
        )
