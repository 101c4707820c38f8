"""Instrument signature removal of one detector, with known truth."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from raw_frames import GAINS, NX, NY, PEDESTALS, READ_NOISE, SHAPE, make_detector, make_raw

from nightstream.engine.config import IsrConfig
from nightstream.engine.isr import measure_overscan, remove_signature
from nightstream.engine.values import Calibrations, MaskedImage, RawDetector
from nightstream.errors import CalibrationError, InputError, UnprocessableError
from nightstream.kernels.mask import MaskPlane

DETECTOR, NONE = make_detector(), Calibrations(detector=7)
METHODS = ("adaptive", "row_median", "row_mean", "amplifier")


def constant(value, variance=0.0, shape=SHAPE):
    return MaskedImage(np.full(shape, value, np.float32), np.zeros(shape, np.int32), np.full(shape, variance, np.float32))


def with_pixels(raw, pixels):
    return RawDetector(info=raw.info, pixels=pixels)


@pytest.mark.parametrize("method", METHODS)
def test_overscan_removes_any_added_pedestal(method):
    """Whole counts added to a raw frame change no electron (float32 levels near 2^13 round at 2^-11)."""
    config = IsrConfig(serial_overscan=method)
    image = remove_signature(make_raw(300.0), DETECTOR, NONE, config).image
    moved = remove_signature(make_raw(300.0, pedestal=5000), DETECTOR, NONE, config).image
    np.testing.assert_allclose(moved, image, atol=8 * 2**-11 * max(GAINS))


@pytest.mark.parametrize("method", METHODS)
def test_a_flat_field_comes_back_in_electrons(method):
    """Both amplifiers give the true level, whatever their gain and pedestal; levels from 102 x 20 overscan pixels."""
    image = remove_signature(make_raw(1000.0), DETECTOR, NONE, IsrConfig(serial_overscan=method)).image
    for half in (image[:, :NX], image[:, NX:]):
        error = np.hypot(np.sqrt(1000) / np.sqrt(half.size), 1.2533 * READ_NOISE / np.sqrt(102 * 20))
        # the parallel overscan adds 6 x 80 pixels of its own
        error = np.hypot(error, 1.2533 * READ_NOISE / np.sqrt(6 * NX))
        assert abs(half.mean() - 1000) < 5 * error


@pytest.mark.parametrize("level", [0.0, 50.0, 5000.0])
def test_the_variance_plane_predicts_the_scatter(level):
    """Mean squared deviation over mean variance is 1 within 5 sqrt(2/N), and 1 % for the noise of the levels."""
    config = IsrConfig(serial_overscan="amplifier", parallel_overscan=False)
    found = remove_signature(make_raw(level), DETECTOR, NONE, config)
    ratio = np.mean((found.image - level) ** 2) / found.variance.mean()
    # without light half the pixels fall below 0 and the rest add their own noise as if it were light: 0.4 sigma
    bias = READ_NOISE * 0.4 / READ_NOISE**2 if level == 0 else 0
    assert ratio == pytest.approx(1 / (1 + bias), abs=5 * np.sqrt(2 / found.image.size) + 0.01)


def test_adaptive_levels_add_less_noise_to_rows():
    """Where the pedestal is steady, adaptive levels share under half the noise of row means among a row's pixels."""
    raw = make_raw()
    scatter = {m: measure_overscan(raw.pixels, DETECTOR, IsrConfig(serial_overscan=m)).rows.std(axis=1) for m in METHODS}
    assert (scatter["adaptive"] < 0.5 * scatter["row_mean"]).all()
    assert (scatter["row_mean"] < scatter["row_median"]).all()


def test_adaptive_levels_follow_rows_that_jump():
    """Where rows jump by much more than the noise, adaptive levels are row means."""
    raw = make_raw()
    jumps = np.rint(np.random.default_rng(1).normal(0, 60, NY + 6)).astype(np.int32)
    pixels = raw.pixels.astype(np.int32) + jumps[None, :, None]
    adaptive = measure_overscan(pixels, DETECTOR, IsrConfig()).rows
    means = measure_overscan(pixels, DETECTOR, IsrConfig(serial_overscan="row_mean")).rows
    assert abs(adaptive - means).max() < 0.2 * READ_NOISE


def test_read_noise_is_measured_beside_the_levels():
    """102 x 20 overscan pixels know each amplifier's noise to 5 sqrt(3/(4N)); levels are the pedestals."""
    levels = measure_overscan(make_raw(500.0).pixels, DETECTOR, IsrConfig())
    np.testing.assert_allclose(levels.read_noise_adu * GAINS, READ_NOISE, rtol=5 * np.sqrt(0.75 / (102 * 19)))
    np.testing.assert_allclose(levels.rows.mean(axis=1), PEDESTALS, atol=5 * READ_NOISE / np.sqrt(102 * 20) / min(GAINS))


def test_column_structure_is_removed_by_the_parallel_overscan():
    """A pedestal that steps along columns, seen in the parallel overscan, leaves no step in the image."""
    raw = make_raw()
    pixels = raw.pixels.copy()
    pixels[0, :, 3 : NX // 2] += 40
    image = remove_signature(with_pixels(raw, pixels), DETECTOR, NONE, IsrConfig()).image
    error = 1.2533 * READ_NOISE / np.sqrt(6 * NX / 2)
    assert abs(image[:, : NX // 2 - 3].mean() - image[:, NX // 2 - 3 : NX].mean()) < 5 * error * np.sqrt(2)


def test_saturated_pixels_stay_flagged_whatever_the_calibrations():
    """SAT is tested on raw counts; bias, dark, flat and defects do not clear it, and masks only grow."""
    light = np.full(SHAPE, 100.0)
    light[10, 10] = light[20, 100] = 2e5
    alone = remove_signature(make_raw(light), DETECTOR, NONE, IsrConfig()).mask
    full = Calibrations(
        detector=7,
        bias=constant(5e4),
        dark=constant(1.0),
        flat=constant(2.0),
        defects=np.full(SHAPE, MaskPlane.BAD, np.int32),
    )
    mask = remove_signature(make_raw(light), DETECTOR, full, IsrConfig(max_unusable_fraction=1)).mask
    np.testing.assert_array_equal(np.argwhere(alone & MaskPlane.SAT), [[10, 10], [20, 100]])
    np.testing.assert_array_equal(mask, alone | MaskPlane.BAD)


def test_targets_agree(target):
    """The whole stage gives the same bits with the CUDA source as with Numba."""
    raw = make_raw(np.linspace(0, 7e4, SHAPE[1])[None, :], time_s=30.0)
    calibrations = Calibrations(detector=7, bias=constant(3, 1), dark=constant(0.2, 0.01), flat=constant(1.1, 1e-4))
    wanted = remove_signature(raw, DETECTOR, calibrations, IsrConfig())
    on_target = {
        name: MaskedImage(*(target.array(getattr(getattr(calibrations, name), p)) for p in ("image", "mask", "variance")))
        for name in ("bias", "dark", "flat")
    }
    with target.running():
        moved = with_pixels(raw, target.array(raw.pixels))
        found = remove_signature(moved, DETECTOR, replace(calibrations, **on_target), IsrConfig())
    for name in ("image", "mask", "variance"):
        np.testing.assert_array_equal(target.host(getattr(found, name)), getattr(wanted, name))


def test_a_camera_without_overscan_uses_its_constants():
    """Without overscan the pedestal stays (a bias frame holds it) and the read noise is the camera's."""
    detector = make_detector(serial_overscan=None, parallel_overscan=None)
    found = remove_signature(make_raw(), detector, NONE, IsrConfig())
    expected = np.repeat(np.array(PEDESTALS) * GAINS, NX)
    np.testing.assert_allclose(found.image.mean(axis=0), expected, atol=5 * READ_NOISE / np.sqrt(NY) * 1.1)
    assert measure_overscan(make_raw().pixels, detector, IsrConfig()).read_noise_adu is None


@pytest.mark.parametrize("how", ["gain", "stuck", "noisy"])
def test_a_dead_amplifier_is_masked_and_the_other_lives(how):
    """No gain, one value everywhere or absurd noise: BAD and NO_DATA there, the other half as before."""
    raw, detector = make_raw(100.0), DETECTOR
    pixels = raw.pixels.copy()
    if how == "gain":
        dead = replace(detector.amplifiers[0], gain=float("nan"))
        detector = replace(detector, amplifiers=(dead, detector.amplifiers[1]))
    elif how == "stuck":
        pixels[0] = 0
    else:
        pixels[0] = np.random.default_rng(0).integers(0, 2000, pixels[0].shape)
    found = remove_signature(with_pixels(raw, pixels), detector, NONE, IsrConfig())
    assert (found.mask[:, :NX] == MaskPlane.BAD | MaskPlane.NO_DATA).all() and np.isnan(found.image[:, :NX]).all()
    np.testing.assert_array_equal(found.image[:, NX:], remove_signature(raw, DETECTOR, NONE, IsrConfig()).image[:, NX:])


def test_all_amplifiers_dead_is_unprocessable():
    """The error names visit, detector and file, and survives pickling."""
    raw = make_raw()
    with pytest.raises(UnprocessableError, match=r"all 2 amplifiers .*visit 42, detector 7, file visit42") as caught:
        remove_signature(with_pixels(raw, 0 * raw.pixels), DETECTOR, NONE, IsrConfig())
    assert pickle.loads(pickle.dumps(caught.value)).visit == 42


def test_a_frame_of_nan_is_unprocessable():
    """Nothing was measured anywhere."""
    raw = make_raw()
    with pytest.raises(UnprocessableError, match="amplifiers of R00_S7 are dead"):
        remove_signature(with_pixels(raw, np.full(raw.pixels.shape, np.nan, np.float32)), DETECTOR, NONE, IsrConfig())


def test_a_saturated_frame_is_unprocessable():
    """The message says how much is saturated and how much would have been allowed."""
    with pytest.raises(UnprocessableError, match=r"100.0% saturated\), wanted at most 90.0%.*visit 42"):
        remove_signature(make_raw(5e5), DETECTOR, NONE, IsrConfig())


def test_single_nan_pixels_are_masked():
    """A few NaN in a float raw become NO_DATA there, and nothing else changes."""
    raw = make_raw(100.0)
    pixels = raw.pixels.astype(np.float32)
    pixels[0, 5, 5] = np.nan
    found = remove_signature(with_pixels(raw, pixels), DETECTOR, NONE, IsrConfig())
    np.testing.assert_array_equal(np.argwhere(np.isnan(found.image)), [[5, 2]])
    assert found.mask[5, 2] == MaskPlane.BAD | MaskPlane.NO_DATA


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 5, 5), np.uint16), r"raw has shape \(2, 5, 5\), wanted \(2, 102, 103\)"),
        (np.zeros((1, 102, 103), np.uint16), r"raw has shape \(1, 102, 103\), wanted \(2"),
        (np.zeros((2, 102, 103), np.complex64), "raw pixels are complex64, wanted one of"),
    ],
)
def test_a_raw_that_does_not_fit_is_refused(pixels, message):
    """Wrong shape, missing amplifier or wrong type: got and wanted are named, with visit and detector."""
    with pytest.raises(InputError, match=message + ".*visit 42, detector 7"):
        remove_signature(with_pixels(make_raw(), pixels), DETECTOR, NONE, IsrConfig())


def test_a_calibration_that_does_not_fit_is_refused():
    """Wrong shape or wrong detector raises CalibrationError."""
    with pytest.raises(CalibrationError, match=r"flat has shape \(9, 9\), wanted \(96, 160\).*visit 42"):
        wrong = Calibrations(detector=7, flat=constant(1, shape=(9, 9)))
        remove_signature(make_raw(), DETECTOR, wrong, IsrConfig())
    with pytest.raises(CalibrationError, match="calibrations are of detector 8, wanted 7"):
        remove_signature(make_raw(), DETECTOR, Calibrations(detector=8), IsrConfig())


def test_inputs_are_not_changed():
    """The raw frame comes out as it went in."""
    raw = make_raw(100.0)
    copy = raw.pixels.copy()
    remove_signature(raw, DETECTOR, NONE, IsrConfig())
    np.testing.assert_array_equal(raw.pixels, copy)
