"""Raw counts to electrons in one pass: pedestal, gain, assembly, bias, dark, flat, mask and variance.

One thread a pixel reads the raw frame and each calibration once and writes the three planes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from nightstream.errors import CalibrationError, InputError
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import Launch, array_module, hot_loop

BAD, SAT, SUSPECT = int(MaskPlane.BAD), int(MaskPlane.SAT), int(MaskPlane.SUSPECT)
NOTHING_MEASURED = int(MaskPlane.BAD | MaskPlane.NO_DATA)
ZERO, ONE, NAN = np.float32(0), np.float32(1), np.float32(np.nan)


class AmplifierTable(NamedTuple):
    """The amplifiers of a detector as columns, on the device of the raw frame.

    ``boxes`` rows are: data x0, y0, width and height in the raw frame; x0, y0 on the detector; flip x, flip y.
    """

    boxes: Any  # (n_amp, 8) int32
    gain: Any  # (n_amp,) float32, electron / adu
    noise_variance: Any  # (n_amp,) float32, electron^2: read noise and quantisation
    saturation_adu: Any  # (n_amp,) float32, raw counts, pedestal included
    suspect_adu: Any  # (n_amp,) float32
    planes: Any  # (n_amp,) int32, mask planes of the whole amplifier


class CalibrationPlane(NamedTuple):
    """Image and variance of a bias (electron), dark (electron / s) or flat (1 on average), (ny, nx) float32."""

    image: Any
    variance: Any


@hot_loop("isr")
def assemble_electrons(
    raw,
    row_levels,
    column_levels,
    boxes,
    gain,
    noise_variance,
    saturation_adu,
    suspect_adu,
    planes,
    bias,
    bias_variance,
    dark,
    dark_variance,
    flat,
    flat_variance,
    defects,
    dark_time,
    has_light,
    has_bias,
    has_dark,
    has_flat,
    has_defects,
    image,
    mask,
    variance,
    n_amp,
    ny_raw,
    nx_raw,
    ny,
    nx,
    rows,
    columns,
):
    """Fill the planes; the arithmetic is that of `remove_signature_reference`, operation by operation."""
    for index in prange(n_amp * rows):
        amp = index // rows
        i = index - amp * rows
        if i >= boxes[amp, 3]:
            continue
        raw_y = boxes[amp, 1] + i
        y = boxes[amp, 5] + (boxes[amp, 3] - 1 - i if boxes[amp, 7] else i)
        for j in range(boxes[amp, 2]):
            raw_x = boxes[amp, 0] + j
            x = boxes[amp, 4] + (boxes[amp, 2] - 1 - j if boxes[amp, 6] else j)
            counts = raw[amp, raw_y, raw_x]
            signal = (counts - row_levels[amp, raw_y] - column_levels[amp, raw_x]) * gain[amp]
            bits = planes[amp]
            if counts >= saturation_adu[amp]:
                bits |= SAT
            if counts >= suspect_adu[amp]:
                bits |= SUSPECT
            if has_defects:
                bits |= defects[y, x]
            noise = noise_variance[amp]
            if has_bias:
                signal = signal - bias[y, x]
                noise = noise + bias_variance[y, x]
            if has_light and signal > ZERO:
                noise = noise + signal
            if has_dark:
                signal = signal - dark[y, x] * dark_time
                noise = noise + dark_variance[y, x] * (dark_time * dark_time)
            if has_flat:
                response = flat[y, x]
                if response > ZERO:
                    signal = signal / response
                    noise = (noise + signal * signal * flat_variance[y, x]) / (response * response)
                else:
                    bits |= BAD
            if not (np.isfinite(signal) and np.isfinite(noise)):
                signal, noise = NAN, NAN
                bits |= NOTHING_MEASURED
            image[y, x] = signal
            mask[y, x] = bits
            variance[y, x] = noise


def remove_signature(
    raw,
    row_levels,
    column_levels,
    amplifiers: AmplifierTable,
    shape: tuple[int, int],
    *,
    bias: CalibrationPlane | None = None,
    dark: CalibrationPlane | None = None,
    flat: CalibrationPlane | None = None,
    defects=None,
    dark_time_s: float = 0.0,
    has_light: bool = True,
) -> tuple[Any, Any, Any]:
    """Turn a raw frame into an assembled image, mask and variance, (ny, nx), in electrons.

    ``raw`` is (n_amp, ny_raw, nx_raw), adu, of any real dtype; whole counts below 2^24 are exact in float32.
    ``row_levels`` (n_amp, ny_raw) and ``column_levels`` (n_amp, nx_raw) are the overscan levels, adu. Per pixel::

        signal   = (raw - row level - column level) * gain - bias
        variance = noise_variance + var(bias) + max(signal, 0)
        signal   = signal - dark * t;       variance += var(dark) * t^2
        signal   = signal / flat;           variance = (variance + signal^2 var(flat)) / flat^2

    The Poisson term takes the electrons that were in the pixel, dark current included; without ``has_light`` (a bias
    frame, whose structure is no charge) there is none. SAT and SUSPECT are tested on
    raw counts, pedestal included; ``defects`` and the amplifier's planes are OR-ed in. A pixel whose flat is not
    positive is BAD and not divided; one whose result is not finite is NaN with BAD and NO_DATA, and so is, with
    NO_DATA alone, a pixel that no amplifier covers. Inputs are not changed.

    Raises InputError or CalibrationError for arrays whose shapes do not fit.
    """
    xp = array_module(raw)
    _check(raw, row_levels, column_levels, amplifiers, shape, (bias, dark, flat), defects)
    image = xp.full(shape, xp.nan, xp.float32)
    mask = xp.full(shape, int(MaskPlane.NO_DATA), xp.int32)
    variance = xp.full(shape, xp.nan, xp.float32)
    absent = xp.zeros((1, 1), xp.float32)
    calibrations = [
        xp.ascontiguousarray(plane, xp.float32) for pair in (bias, dark, flat) for plane in (pair or (absent, absent))
    ]
    n_amp, ny_raw, nx_raw = raw.shape
    rows, columns = _largest_box(amplifiers.boxes)
    has = [np.int32(given is not None) for given in (bias, dark, flat, defects)]
    assemble_electrons(
        Launch.over((n_amp, rows, columns), (32, 8, 1)),
        xp.ascontiguousarray(raw, xp.float32),
        xp.ascontiguousarray(row_levels, xp.float32),
        xp.ascontiguousarray(column_levels, xp.float32),
        *amplifiers,
        *calibrations,
        xp.zeros((1, 1), xp.int32) if defects is None else xp.ascontiguousarray(defects, xp.int32),
        np.float32(dark_time_s),
        np.int32(has_light),
        *has,
        image,
        mask,
        variance,
        *(np.int32(n) for n in (n_amp, ny_raw, nx_raw, *shape, rows, columns)),
    )
    return image, mask, variance


def _largest_box(boxes) -> tuple[int, int]:
    """Height and width that hold every amplifier's data."""
    return int(boxes[:, 3].max()), int(boxes[:, 2].max())


def _check(raw, row_levels, column_levels, amplifiers, shape, calibrations, defects) -> None:
    n_amp, ny_raw, nx_raw = raw.shape
    for name, array, wanted in (
        ("row levels", row_levels, (n_amp, ny_raw)),
        ("column levels", column_levels, (n_amp, nx_raw)),
        ("amplifier boxes", amplifiers.boxes, (n_amp, 8)),
    ):
        if array.shape != wanted:
            raise InputError(f"{name} have shape {array.shape}, wanted {wanted} for a raw of shape {raw.shape}")
    for name, pair in zip(("bias", "dark", "flat"), calibrations, strict=True):
        for plane in pair or ():
            if plane.shape != shape:
                raise CalibrationError(f"{name} has shape {plane.shape}, wanted {shape}")
    if defects is not None and defects.shape != shape:
        raise CalibrationError(f"defects have shape {defects.shape}, wanted {shape}")


def remove_signature_reference(
    raw,
    row_levels,
    column_levels,
    amplifiers: AmplifierTable,
    shape: tuple[int, int],
    *,
    bias: CalibrationPlane | None = None,
    dark: CalibrationPlane | None = None,
    flat: CalibrationPlane | None = None,
    defects=None,
    dark_time_s: float = 0.0,
    has_light: bool = True,
) -> tuple[Any, Any, Any]:
    """Definition of `remove_signature`: plain NumPy, float32 throughout, amplifier by amplifier."""
    planes = (
        np.full(shape, np.nan, np.float32),
        np.full(shape, int(MaskPlane.NO_DATA), np.int32),
        np.full(shape, np.nan, np.float32),
    )
    for amp, box in enumerate(amplifiers.boxes):
        x0, y0, width, height, out_x, out_y, flip_x, flip_y = map(int, box)
        there = np.s_[out_y : out_y + height, out_x : out_x + width]
        turn = np.s_[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        counts = raw[amp, y0 : y0 + height, x0 : x0 + width].astype(np.float32)
        pedestal_free = counts - row_levels[amp, y0 : y0 + height, None]
        pedestal_free = pedestal_free - column_levels[amp, None, x0 : x0 + width]
        bits = np.full(counts.shape, amplifiers.planes[amp], np.int32)
        bits[counts >= amplifiers.saturation_adu[amp]] |= SAT
        bits[counts >= amplifiers.suspect_adu[amp]] |= SUSPECT
        signal = (pedestal_free * amplifiers.gain[amp])[turn]
        pairs = [pair and (pair[0][there], pair[1][there]) for pair in (bias, dark, flat)]
        bits = bits[turn] | (0 if defects is None else defects[there])
        noise = amplifiers.noise_variance[amp]
        results = _calibrate(signal, bits, noise, *pairs, np.float32(dark_time_s), has_light)
        for plane, result in zip(planes, results, strict=True):
            plane[there] = result
    return planes


def _calibrate(signal, bits, noise, bias, dark, flat, dark_time, has_light) -> tuple[Any, Any, Any]:
    """The steps after assembly, for one amplifier."""
    with np.errstate(all="ignore"):
        if bias is not None:
            signal, noise = signal - bias[0], noise + bias[1]
        noise = noise + np.where(has_light & (signal > 0), signal, ZERO)
        if dark is not None:
            signal, noise = signal - dark[0] * dark_time, noise + dark[1] * (dark_time * dark_time)
        if flat is not None:
            good = flat[0] > 0
            response = np.where(good, flat[0], ONE)
            signal = signal / response
            noise = (noise + np.where(good, signal * signal * flat[1], ZERO)) / (response * response)
            bits = np.where(good, bits, bits | BAD)
    known = np.isfinite(signal) & np.isfinite(noise)
    bits = np.where(known, bits, bits | NOTHING_MEASURED)
    return np.where(known, signal, NAN), bits, np.where(known, noise, NAN)
