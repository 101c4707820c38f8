"""From the stack of raw amplifier images to the detector: the definition of where every data pixel lands."""

from __future__ import annotations

from nightstream.engine.camera import Amplifier, Detector
from nightstream.errors import InputError
from nightstream.kernels.target import array_module

Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


def assemble_amplifiers(pixels, detector: Detector):
    """Return the (ny, nx) image of ``detector`` from its raw stack, same dtype, overscan dropped.

    ``pixels`` is (n_amplifiers, ny, nx), on either target, unchanged. Detector pixels that no amplifier
    covers are 0; values (NaN too) are copied as they are. InputError when the stack has another shape.
    """
    if pixels.shape != detector.raw_shape:
        raise InputError(f"got raw pixels of shape {pixels.shape}, wanted {detector.raw_shape}", detector=detector.id)
    image = array_module(pixels).zeros(detector.shape, pixels.dtype)
    for raw, amplifier in zip(pixels, detector.amplifiers, strict=True):
        data = raw[amplifier.data.slices]
        image[amplifier.detector.slices] = data[_mirror(amplifier.flip_y), _mirror(amplifier.flip_x)]
    return image


def raw_from_detector(amplifier: Amplifier) -> Matrix:
    """Affine matrix A with (x, y) in the HDU = A (x, y, 1) on the detector, both 0-based pixel centres."""
    raw, data, detector = amplifier.raw, amplifier.data, amplifier.detector
    x_sign, x_offset = _line(raw.x0 + data.x0, raw.x0 + data.x1 - 1, detector.x0, amplifier.flip_x)
    y_sign, y_offset = _line(raw.y0 + data.y0, raw.y0 + data.y1 - 1, detector.y0, amplifier.flip_y)
    return (x_sign, 0.0, x_offset), (0.0, y_sign, y_offset)


def _mirror(flip: bool) -> slice:
    return slice(None, None, -1 if flip else None)


def _line(first: int, last: int, start: int, flip: bool) -> tuple[float, float]:
    """Slope and offset of the raw coordinate along one axis whose data begins at ``start`` on the detector."""
    return (-1.0, float(last + start)) if flip else (1.0, float(first - start))
