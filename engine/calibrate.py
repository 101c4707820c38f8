"""Calibration images from raw frames: bias, dark, flat and defects, each using those before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nightstream import __version__
from nightstream.engine.camera import Detector
from nightstream.engine.config import CalibrateConfig, IsrConfig
from nightstream.engine.isr import remove_signature
from nightstream.engine.values import Calibrations, MaskedImage, RawDetector
from nightstream.errors import CalibrationError, UnprocessableError
from nightstream.kernels.combine import DEFAULT_PLANES, Combined, combine_frames
from nightstream.kernels.defects import find_outliers, merge_columns
from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.target import array_module, scipy_module

Array = Any
STAR_SIGMA = 5.0  # a smoothed residual of a sky flat this far above its noise is a star
CLIP_OF_GRADIENT = 3.0  # sigma; brighter pixels of a sky flat are stars, not its gradient
STAR_GROWTH_PIX = 3  # how far the mask of a star in a sky flat is grown


def build_calibrations(
    bias_raws: Iterable[RawDetector],
    dark_raws: Iterable[RawDetector],
    flat_raws: Iterable[RawDetector],
    detector: Detector,
    config: CalibrateConfig,
    isr_config: IsrConfig,
) -> Calibrations:
    """Return the bias, dark, flat and defects of one detector; a kind without frames is left out (None).

    ``defects`` also holds every pixel that a calibration could not measure. Raises CalibrationError without any frame,
    and what `remove_signature` raises for a frame that does not fit.
    """
    raws = {"bias": list(bias_raws), "dark": list(dark_raws), "flat": list(flat_raws)}
    if not any(raws.values()):
        raise CalibrationError(f"no bias, dark or flat frame of detector {detector.id} was given")
    bias = build_bias(raws["bias"], detector, config, isr_config) if raws["bias"] else None
    dark = build_dark(raws["dark"], bias, detector, config, isr_config) if raws["dark"] else None
    flat = build_flat(raws["flat"], bias, dark, detector, config, isr_config) if raws["flat"] else None
    return Calibrations(
        detector=detector.id,
        bias=bias,
        dark=dark,
        flat=flat,
        defects=find_defects(bias, dark, flat, detector, config),
        provenance=_provenance(raws, config, isr_config),
    )


def build_bias(frames: Sequence[RawDetector], detector: Detector, config: CalibrateConfig, isr_config: IsrConfig) -> MaskedImage:
    """Return the clipped mean of bias frames, electron: what is left of a zero exposure after its overscan."""
    images = _calibrated(frames, detector, Calibrations(detector=detector.id), isr_config, "bias")
    return _filled(_combine(images, np.ones(len(images)), config.clip_sigma), 0.0)


def build_dark(
    frames: Sequence[RawDetector],
    bias: MaskedImage | None,
    detector: Detector,
    config: CalibrateConfig,
    isr_config: IsrConfig,
) -> MaskedImage:
    """Return the dark current, electron / s: clipped mean of bias-subtracted darks over their dark times.

    Cosmic rays are clipped. Raises CalibrationError for a frame whose dark time is not positive.
    """
    times = np.array([raw.info.dark_time_s for raw in frames])
    if not (times > 0).all():
        raise CalibrationError(f"dark frames have dark times {times.tolist()} s, wanted all above 0")
    images = _calibrated(frames, detector, Calibrations(detector=detector.id, bias=bias), isr_config, "dark")
    return _filled(_combine(images, 1 / times, config.clip_sigma), 0.0)


def build_flat(
    frames: Sequence[RawDetector],
    bias: MaskedImage | None,
    dark: MaskedImage | None,
    detector: Detector,
    config: CalibrateConfig,
    isr_config: IsrConfig,
) -> MaskedImage:
    """Return the relative response, 1 on average over the detector's good pixels, from dome or sky flats.

    Each exposure is scaled by its own median level. Stars in sky flats are clipped, and those too faint for a single
    pixel to show are found in the smoothed residual and masked before a second mean.

    Raises UnprocessableError for an exposure whose level is not positive.
    """
    calibrations = Calibrations(detector=detector.id, bias=bias, dark=dark)
    images = _calibrated(frames, detector, calibrations, isr_config, "flat")
    levels = np.array([_level(image, raw) for image, raw in zip(images, frames, strict=True)])
    flat = _combine(images, 1 / levels, config.clip_sigma, config.flat_tolerance)
    if len(images) > 1 and config.flat_star_smoothing_pix:
        images = [
            _mask_stars(image, level, flat, config.flat_star_smoothing_pix) for image, level in zip(images, levels, strict=True)
        ]
        flat = _combine(images, 1 / levels, config.clip_sigma, config.flat_tolerance)
    return _normalised(flat)


def find_defects(
    bias: MaskedImage | None,
    dark: MaskedImage | None,
    flat: MaskedImage | None,
    detector: Detector,
    config: CalibrateConfig,
) -> Array:
    """Return an int32 mask (ny, nx) with BAD where a pixel's bias, dark current or response is not its neighbours'.

    Pixels that a calibration could not measure are BAD too, and those that the camera file lists. In each amplifier,
    columns with many defects are filled.
    Raises CalibrationError if there is no calibration to look at.
    """
    given = [(bias, config.bias_defect_electron), (dark, config.dark_defect_electron_s)]
    given = [(m, limit) for m, limit in [*given, (flat, config.flat_defect_fraction)] if m is not None]
    if not given:
        raise CalibrationError(f"no calibration of detector {detector.id} to find defects in")
    xp = array_module(given[0][0].image)
    is_bad = xp.zeros(detector.shape, bool)
    for masked, limit in given:
        window, sigma = config.defect_window_pix, config.defect_sigma
        is_bad |= find_outliers(masked.image, masked.variance, limit=limit, sigma=sigma, window_pix=window)
        is_bad |= (masked.mask & int(MaskPlane.BAD)) != 0
    for box in detector.defects:
        is_bad[box.slices] = True
    for amp in detector.amplifiers:
        there = amp.detector.slices
        is_bad[there] = merge_columns(is_bad[there], min_pixels=config.bad_column_pixels, max_gap_pix=config.bad_column_gap_pix)
    return xp.where(is_bad, int(MaskPlane.BAD), 0).astype(xp.int32)


def _calibrated(
    frames: Sequence[RawDetector], detector: Detector, calibrations: Calibrations, config: IsrConfig, kind: str
) -> list[MaskedImage]:
    """Remove the signature of all frames as far as ``calibrations`` go."""
    if not frames:
        raise CalibrationError(f"no {kind} frame of detector {detector.id} was given")
    return [remove_signature(raw, detector, calibrations, config) for raw in frames]


def _combine(images: list[MaskedImage], scales: np.ndarray, clip_sigma: float, tolerance: float = 0.0) -> Combined:
    """Clipped mean after scaling, each frame weighted by the inverse of its typical variance."""
    xp = array_module(images[0].image)
    planes = [xp.stack([getattr(m, name) for m in images]) for name in ("image", "mask", "variance")]
    typical = [_median_of(m.variance, m.mask) * scale**2 for m, scale in zip(images, scales, strict=True)]
    return combine_frames(
        *planes,
        scales=scales,
        weights=1 / np.array(typical),
        planes=DEFAULT_PLANES | MaskPlane.DETECTED,
        clip_sigma=clip_sigma,
        tolerance=tolerance,
    )


def _median_of(plane: Array, mask: Array) -> float:
    """Median over the pixels with none of the planes that spoil a calibration; NaN without any."""
    usable = plane[(mask & int(DEFAULT_PLANES)) == 0]
    return float(array_module(plane).median(usable)) if usable.size else float("nan")


def _level(image: MaskedImage, raw: RawDetector) -> float:
    """Median electrons of a flat exposure."""
    level = _median_of(image.image, image.mask)
    if not level > 0:
        error = UnprocessableError(f"flat has a median level of {level:.1f} electron, wanted above 0")
        raise error.locate(visit=raw.info.visit, detector=raw.info.detector, path=raw.info.path or None)
    return level


def _mask_stars(image: MaskedImage, level: float, flat: Combined, smoothing_pix: int) -> MaskedImage:
    """Set DETECTED where the smoothed excess of an exposure over the flat is significant."""
    xp = array_module(image.image)
    ndimage = scipy_module(xp, "ndimage")
    usable = ((image.mask & int(DEFAULT_PLANES)) == 0) & (flat.n_used > 0)
    # the exposure is part of the mean, so their difference has the difference of their variances
    noise = xp.maximum(image.variance - level**2 * flat.variance, 0.1 * image.variance)
    sigma = xp.sqrt(xp.where(usable, noise, 1))
    excess = xp.where(usable, (image.image - level * flat.image) / sigma, 0)
    excess = excess - _gradient(excess, 16 * smoothing_pix)
    # the mean of n^2 white pixels scatters by 1/n
    is_star = ndimage.uniform_filter(excess, smoothing_pix, mode="nearest") * smoothing_pix > STAR_SIGMA
    is_star = ndimage.binary_dilation(is_star, iterations=STAR_GROWTH_PIX, brute_force=True)  # all that CuPy has
    mask = image.mask | xp.where(is_star, int(MaskPlane.DETECTED), 0).astype(xp.int32)
    return MaskedImage(image.image, mask, image.variance)


def _gradient(excess: Array, window_pix: int) -> Array:
    """Local mean of what is not itself a star: the change of the sky's gradient between exposures."""
    xp = array_module(excess)
    smooth = scipy_module(xp, "ndimage").uniform_filter
    quiet = (xp.abs(excess) < CLIP_OF_GRADIENT).astype(xp.float32)
    weight = smooth(quiet, window_pix, mode="nearest")
    return smooth(excess * quiet, window_pix, mode="nearest") / xp.maximum(weight, 1e-3)


def _normalised(flat: Combined) -> MaskedImage:
    """Divide by the mean over good pixels; what no frame measured responds as 1, and is BAD."""
    xp = array_module(flat.image)
    good = (flat.n_used > 0) & (flat.image > 0)
    mean = float(xp.where(good, flat.image, 0).sum(dtype=xp.float64) / good.sum())
    scaled = Combined(
        (flat.image / mean).astype(xp.float32),
        flat.mask,
        (flat.variance / mean**2).astype(xp.float32),
        xp.where(good, flat.n_used, 0),
    )
    return _filled(scaled, 1.0)


def _filled(combined: Combined, neutral: float) -> MaskedImage:
    """A calibration without holes: pixels that no frame measured are neutral, without noise, and BAD."""
    xp = array_module(combined.image)
    known = combined.n_used > 0
    return MaskedImage(
        xp.where(known, combined.image, xp.float32(neutral)),
        xp.where(known, 0, int(MaskPlane.BAD)).astype(xp.int32),
        xp.where(known, combined.variance, xp.float32(0)),
    )


def _provenance(raws: dict[str, list[RawDetector]], config: CalibrateConfig, isr: IsrConfig) -> dict[str, str]:
    """What these calibrations were made of."""
    made = {f"{kind}_visits": ",".join(str(r.info.visit) for r in frames) for kind, frames in raws.items()}
    if raws["flat"]:
        made["flat_band"] = ",".join(sorted({raw.info.band for raw in raws["flat"]}))
    configs = {"calibrate_config": config.model_dump_json(), "isr_config": isr.model_dump_json()}
    return {"version": __version__, **made, **configs}
