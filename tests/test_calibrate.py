"""Calibration images from raw frames, with known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from raw_frames import NX, READ_NOISE, SHAPE, make_detector, make_raw

from nightstream.engine.calibrate import build_bias, build_calibrations, build_dark, build_flat, find_defects
from nightstream.engine.camera import Box
from nightstream.engine.config import CalibrateConfig, IsrConfig
from nightstream.engine.isr import remove_signature
from nightstream.engine.values import Calibrations, MaskedImage
from nightstream.errors import CalibrationError, UnprocessableError
from nightstream.kernels.mask import MaskPlane

DETECTOR = make_detector()
CONFIG = CalibrateConfig()
# One level an amplifier: frames of 20 overscan columns would share row noise that no variance plane can hold.
ISR = IsrConfig(serial_overscan="amplifier", parallel_overscan=False)
LEVEL_ERROR = READ_NOISE / np.sqrt(102 * 20)  # electron, of one frame's overscan level
X = np.arange(SHAPE[1])[None, :]
BIAS = 20 * np.sin(X / 15.0) * np.ones((SHAPE[0], 1))
RESPONSE = np.random.default_rng(11).normal(1, 0.03, SHAPE) * (1.1 - 0.2 * X / SHAPE[1])
RESPONSE /= RESPONSE.mean()


def biases(n=8):
    return [make_raw(seed=k, bias=BIAS, kind="bias", visit=k) for k in range(n)]


def darks(rate=0.5, n=5):
    times = [100.0, 100.0, 200.0, 200.0, 400.0][:n]
    return [make_raw(rate * t, seed=50 + k, bias=BIAS, time_s=t, visit=50 + k) for k, t in enumerate(times)]


def flats(n=3, stars=None):
    levels = [20000, 26000, 14000, 30000][:n]
    extra = [0] * n if stars is None else stars
    return [
        make_raw((v + s) * RESPONSE, seed=90 + k, bias=BIAS, visit=90 + k)
        for k, (v, s) in enumerate(zip(levels, extra, strict=True))
    ]


@pytest.fixture(scope="module")
def bias():
    return build_bias(biases(), DETECTOR, CONFIG, ISR)


def pulls(masked: MaskedImage, truth) -> np.ndarray:
    return (masked.image - truth) / np.sqrt(masked.variance)


def assert_pulls_are_normal(values, systematic):
    """Mean 0 within 5/sqrt(N) and a systematic; width 1 within 5/sqrt(2N) and 5 %: Poisson noise of noise counted."""
    assert abs(values.mean()) < 5 / np.sqrt(values.size) + systematic
    assert values.std() == pytest.approx(1, abs=5 / np.sqrt(2 * values.size) + 0.05)


def test_the_bias_is_recovered_within_its_noise(bias):
    """Pulls against the true structure are N(0, 1) within the common error of the overscan levels."""
    assert_pulls_are_normal(pulls(bias, BIAS), 5 * LEVEL_ERROR / READ_NOISE)


def test_a_bias_minus_the_master_bias_averages_zero(bias):
    """Within 5 read_noise / sqrt(N) of the pixels and of the overscan that gave the level."""
    single = make_raw(seed=999, bias=BIAS, kind="bias")
    image = remove_signature(single, DETECTOR, Calibrations(detector=7, bias=bias), ISR).image
    error = np.hypot(READ_NOISE / np.sqrt(NX * SHAPE[0]), LEVEL_ERROR) * np.sqrt(1 + 1 / 8)
    assert abs(image[:, :NX].mean()) < 5 * error and abs(image[:, NX:].mean()) < 5 * error


def test_the_dark_is_a_rate_without_cosmic_rays(bias):
    """Frames of different times give electron / s; a hit in each frame leaves no trace, and pulls are N(0, 1)."""
    rate, frames = 0.5, darks()
    for k, raw in enumerate(frames):
        raw.pixels[0, 10 + k, 20:26] += 3000
    dark = build_dark(frames, bias, DETECTOR, CONFIG, ISR)
    # the bias and the levels are common to all frames: at most their error over the shortest exposure
    common = 5 * LEVEL_ERROR / 100 / np.sqrt(np.median(dark.variance))
    found = pulls(dark, rate)
    assert abs(found[10:15, 17:23]).max() < 6
    assert abs(found.mean()) < 5 / np.sqrt(found.size) + common
    assert found.std() == pytest.approx(1, abs=0.15)  # the bias's own noise is shared: sqrt(1 + 1/8) of one frame's


def test_the_flat_is_the_response_with_mean_one(bias):
    """The response is recovered within its noise at any exposure level, and averages 1."""
    flat = build_flat(flats(), bias, None, DETECTOR, CONFIG, ISR)
    assert flat.image.mean() == pytest.approx(1, abs=1e-6)
    assert_pulls_are_normal(pulls(flat, RESPONSE), 0.05)


def test_stars_in_sky_flats_leave_no_trace(bias):
    """Three dithered sky flats with bright and faint stars give the flat of the clear sky within 6 sigma."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    stars = []
    for dither in (0, 30, 60):
        field = np.zeros(SHAPE)
        for flux, x0, y0 in ((8000, 20, 20), (600, 50, 60), (20000, 90, 40)):
            field += flux * np.exp(-0.5 * ((x - x0 - dither) ** 2 + (y - y0) ** 2) / 2.0**2)
        stars.append(field)
    with_stars = build_flat(flats(stars=stars), bias, None, DETECTOR, CONFIG, ISR)
    found = pulls(with_stars, RESPONSE)
    assert abs(found).max() < 6
    near = np.hypot(x - 80, y - 60) < 4  # the faint star of the second exposure, 4 sigma at its peak
    assert abs(found[near].mean()) < 5 / np.sqrt(near.sum())


def test_a_flat_divided_by_itself_is_one(bias):
    """A flat exposure calibrated with the flat made of it alone is one level."""
    frames = flats(1)
    flat = build_flat(frames, bias, None, DETECTOR, CONFIG, ISR)
    image = remove_signature(frames[0], DETECTOR, Calibrations(detector=7, bias=bias, flat=flat), ISR).image
    np.testing.assert_allclose(image / image.mean(), 1, rtol=12 * np.finfo(np.float32).eps)


def test_defects_are_found(bias):
    """A hot pixel, a dead pixel and a bad column with gaps are BAD; nearly nothing else is."""
    hot, dead = np.full(SHAPE, 0.5), RESPONSE.copy()
    hot[30, 40] = 60.0
    dead[50, 60] = 0.1
    dead[10:80, 120] = 0.5
    dead[40:45, 120] = RESPONSE[40:45, 120]
    dark = build_dark([make_raw(hot * 100, seed=k, bias=BIAS, time_s=100.0) for k in range(3)], bias, DETECTOR, CONFIG, ISR)
    flat = build_flat([make_raw(2e4 * dead, seed=k, bias=BIAS) for k in range(3)], bias, None, DETECTOR, CONFIG, ISR)
    defects = find_defects(bias, dark, flat, DETECTOR, CONFIG)
    expected = np.zeros(SHAPE, np.int32)
    expected[[30, 50], [40, 60]] = expected[10:80, 120] = MaskPlane.BAD
    np.testing.assert_array_equal(defects, expected)


def test_pixels_saturated_in_every_frame_become_defects():
    """What no flat could measure responds as 1 with no noise, and is BAD."""
    light = np.full(SHAPE, 20000.0)
    light[5, 6] = 2e5
    calibrations = build_calibrations([], [], [make_raw(light, seed=k) for k in range(3)], DETECTOR, CONFIG, ISR)
    assert calibrations.flat.image[5, 6] == 1 and calibrations.flat.variance[5, 6] == 0
    assert calibrations.defects[5, 6] == MaskPlane.BAD
    assert np.isfinite(calibrations.flat.image).all()


def test_calibrated_science_is_flat_and_its_variance_true():
    """A sky exposure through bias, dark and flat made of raw frames has the true level and pulls N(0, 1)."""
    calibrations = build_calibrations(biases(), darks(), flats(), DETECTOR, CONFIG, ISR)
    sky, rate, time_s = 800.0, 0.5, 60.0
    raw = make_raw(sky * RESPONSE + rate * time_s, seed=777, bias=BIAS, time_s=time_s)
    found = remove_signature(raw, DETECTOR, calibrations, ISR)
    good = found.mask == 0
    assert good.mean() > 0.999
    values = pulls(found, sky)[good]
    # 0.5: the common error of the levels, 5 x 0.11 electron, over the 29 electron noise of a pixel, is 0.02
    assert_pulls_are_normal(values, 0.02 + 5 * 1e-4 * sky / np.sqrt(sky))
    assert calibrations.provenance["bias_visits"] == "0,1,2,3,4,5,6,7"


def test_defects_that_the_camera_lists_are_masked(bias):
    """Traps that no bias, dark or flat shows come from the camera file."""
    listed = replace(DETECTOR, defects=(Box(3, 5, 10, 20),))
    found = find_defects(bias, None, None, listed, CONFIG)
    assert (found[10:20, 3:5] == MaskPlane.BAD).all()
    assert (found != 0).sum() == (find_defects(bias, None, None, DETECTOR, CONFIG) != 0).sum() + 20


def test_missing_calibration_frames_are_left_out():
    """Only flats give only a flat; nothing at all is an error."""
    calibrations = build_calibrations([], [], flats(2), DETECTOR, CONFIG, ISR)
    assert calibrations.bias is None and calibrations.dark is None and calibrations.flat is not None
    with pytest.raises(CalibrationError, match="no bias, dark or flat frame of detector 7"):
        build_calibrations([], [], [], DETECTOR, CONFIG, ISR)


def test_frames_that_cannot_be_used_are_refused(bias):
    """A dark without time and a flat without light say so, and the flat names its visit."""
    with pytest.raises(CalibrationError, match=r"dark times \[0.0\] s, wanted all above 0"):
        build_dark([make_raw()], bias, DETECTOR, CONFIG, ISR)
    with pytest.raises(UnprocessableError, match=r"flat has a median level of .* wanted above 0 .*visit 42"):
        build_flat([make_raw(bias=BIAS - 30)], bias, None, DETECTOR, CONFIG, ISR)
    with pytest.raises(CalibrationError, match="no bias frame"):
        build_bias([], DETECTOR, CONFIG, ISR)
