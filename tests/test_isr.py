"""Raw counts to electrons: the fused kernel."""

from __future__ import annotations

import numpy as np
import pytest

from nightstream.errors import CalibrationError, InputError
from nightstream.kernels.isr import (
    AmplifierTable,
    CalibrationPlane,
    remove_signature,
    remove_signature_reference,
)
from nightstream.kernels.mask import MaskPlane

SATURATION = 60000.0
OPERATIONS = 12  # roundings on the way from a count to an electron


def amplifiers(height=11, width=13, gains=(1.1, 0.9, 1.3), planes=(0, 0, 0)):
    """Three amplifiers side by side, each mirrored in another way, with a prescan of 2 columns and 1 row."""
    boxes = [(2, 1, width, height, k * width, 0, k % 2, k // 2) for k in range(3)]
    table = (np.array(boxes, np.int32), *(np.array(c, np.float32) for c in (gains, (20.0, 25.0, 30.0))))
    limits = np.full(3, SATURATION, np.float32), np.full(3, 0.8 * SATURATION, np.float32)
    return AmplifierTable(*table, *limits, np.array(planes, np.int32))


def scene(dtype=np.uint16, height=11, width=13, seed=3, margin=1):
    """Raw counts, levels and calibrations for `amplifiers`; the detector has ``margin`` uncovered columns."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(900, 65000, (3, height + 4, width + 8)).astype(dtype)
    rows = rng.normal(1000, 2, raw.shape[:2]).astype(np.float32)
    columns = rng.normal(0, 1, (3, width + 8)).astype(np.float32)
    shape = (height, 3 * width + margin)
    planes = {
        name: CalibrationPlane(rng.normal(mean, spread, shape).astype(np.float32), np.full(shape, var, np.float32))
        for name, mean, spread, var in (("bias", 5, 3, 2), ("dark", 0.1, 0.01, 1e-4), ("flat", 1, 0.05, 1e-6))
    }
    defects = rng.choice([0, int(MaskPlane.BAD)], shape, p=[0.9, 0.1]).astype(np.int32)
    return (raw, rows, columns), shape, {**planes, "defects": defects, "dark_time_s": 30.0, "has_light": False}


def on(target, value):
    """``value`` with its arrays on the target."""
    if isinstance(value, np.ndarray):
        return target.array(value)
    return type(value)(*map(target.array, value)) if isinstance(value, tuple) else value


def run_on(target, arrays, table, shape, options):
    with target.running():
        planes = remove_signature(
            *map(target.array, arrays), on(target, table), shape, **{k: on(target, v) for k, v in options.items()}
        )
    return [target.host(p) for p in planes]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("keep", [(), ("bias",), ("bias", "dark", "dark_time_s"), ("flat", "defects", "has_light"), None])
def test_targets_agree_bit_for_bit(target, dtype, keep):
    """Reference, Numba and CUDA give the same bits for any choice of calibrations and raw type."""
    arrays, shape, options = scene(dtype)
    options = options if keep is None else {name: options[name] for name in keep}
    found = run_on(target, arrays, amplifiers(), shape, options)
    for ours, wanted in zip(found, remove_signature_reference(*arrays, amplifiers(), shape, **options), strict=True):
        np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 7), (8, 64)])
def test_targets_agree_on_bad_values_and_odd_shapes(target, height, width):
    """NaN and infinite counts, and flats that are zero, negative or NaN, are treated alike everywhere."""
    arrays, shape, options = scene(np.float32, height, width)
    arrays[0].ravel()[::7] = np.nan
    arrays[0].ravel()[::11] = np.inf
    for k, value in enumerate((0, -1, np.nan)):
        options["flat"].image.ravel()[k::9] = value
    table = amplifiers(height, width, planes=(0, int(MaskPlane.BAD), 0))
    found = run_on(target, arrays, table, shape, options)
    wanted = remove_signature_reference(*arrays, table, shape, **options)
    for ours, plane in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, plane)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_thread_order_does_not_matter(order):
    """The CUDA kernel gives the same bits whichever thread runs first."""
    loader = pytest.importorskip("cudashim.loader")
    if not loader.has_compiler():
        pytest.skip("g++ is absent")
    arrays, shape, options = scene()
    with loader.host_cuda(order):
        found = remove_signature(*arrays, amplifiers(), shape, **options)
    for ours, wanted in zip(found, remove_signature_reference(*arrays, amplifiers(), shape, **options), strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_assembly_puts_every_pixel_in_its_place():
    """Each data pixel lands once, mirrored as its amplifier says; pre- and overscan do not land at all."""
    (raw, rows, columns), shape, _ = scene()
    table = amplifiers(gains=(1, 1, 1))
    image, mask, _ = remove_signature(raw, 0 * rows, 0 * columns, table, shape)
    data = raw[:, 1:12, 2:15].astype(np.float32)
    np.testing.assert_array_equal(image[:, :-1], np.hstack([data[0], data[1][:, ::-1], data[2][::-1]]))
    assert np.isnan(image[:, -1]).all() and (mask[:, -1] == MaskPlane.NO_DATA).all()


def test_any_added_pedestal_is_removed():
    """Counts and levels that rise together leave the image alone (float32 rounds counts of 2^16 at 2^-8)."""
    arrays, shape, options = scene(np.float32)
    image = remove_signature(*arrays, amplifiers(), shape, **options)[0]
    moved = remove_signature(arrays[0] + 256, arrays[1] + 256, arrays[2], amplifiers(), shape, **options)[0]
    np.testing.assert_allclose(moved, image, atol=OPERATIONS * 2**-8)


def test_a_flat_divided_by_itself_is_one():
    """An exposure equal to the flat, times a level, comes out flat."""
    (raw, rows, columns), shape, options = scene(margin=0)
    image, _, _ = remove_signature(raw, rows, columns, amplifiers(), shape)
    level = image.mean()
    flat = CalibrationPlane(image / level, np.zeros_like(image))
    divided = remove_signature(raw, rows, columns, amplifiers(), shape, flat=flat)[0]
    good = image > 0
    np.testing.assert_allclose(divided[good], level, rtol=OPERATIONS * np.finfo(np.float32).eps)


def test_saturated_and_suspect_pixels_are_flagged_on_raw_counts():
    """The levels apply to counts with their pedestal, and no calibration clears a flag."""
    arrays, shape, options = scene(margin=0)
    mask = remove_signature(*arrays, amplifiers(), shape, **options)[1]
    data = arrays[0][:, 1:12, 2:15]
    counts = np.hstack([data[0], data[1][:, ::-1], data[2][::-1]])
    np.testing.assert_array_equal((mask & MaskPlane.SAT) != 0, counts >= SATURATION)
    np.testing.assert_array_equal((mask & MaskPlane.SUSPECT) != 0, counts >= 0.8 * SATURATION)


def test_masks_only_grow():
    """Defects and amplifier planes are added to what the pixels themselves say."""
    arrays, shape, options = scene()
    alone = remove_signature(*arrays, amplifiers(), shape)[1]
    table = amplifiers(planes=(0, int(MaskPlane.VIGNETTED), 0))
    mask = remove_signature(*arrays, table, shape, **options)[1]
    assert (mask & alone == alone)[:, :-1].all()
    assert (mask & options["defects"] == options["defects"])[:, :-1].all()
    assert (mask[:, 13:26] & MaskPlane.VIGNETTED).all()


def test_nan_never_sits_in_an_unmasked_pixel():
    """A count, bias or flat that is not finite gives NaN in both planes with NO_DATA, or a BAD finite value."""
    arrays, shape, options = scene(np.float32)
    arrays[0][0, 3, 5] = np.nan
    options["bias"].image[4, 4] = np.inf
    options["flat"].image[5, 5:7] = np.nan, 0
    image, mask, variance = remove_signature(*arrays, amplifiers(), shape, **options)
    unknown = ~np.isfinite(image)
    np.testing.assert_array_equal(unknown, ~np.isfinite(variance))
    assert (mask[unknown] & MaskPlane.NO_DATA).all() and unknown[2, 3] and unknown[4, 4]
    assert (mask[5, 5:7] & MaskPlane.BAD).all() and np.isfinite(image[5, 5:7]).all()


def test_the_variance_plane_predicts_the_scatter():
    """Pulls of simulated counts against their true electrons are N(0, 1), from dark sky to bright."""
    rng, gain, read_noise, shape = np.random.default_rng(8), 1.7, 4.0, (200, 390)
    truth = np.repeat([20.0, 200.0, 20000.0], 130)[None, :] * np.ones((200, 1))
    response = rng.uniform(0.7, 1.3, shape)
    flat = CalibrationPlane(response.astype(np.float32), np.zeros(shape, np.float32))
    electrons = rng.poisson(truth * response + 5.0) + rng.normal(0, read_noise, shape)
    raw = np.rint(electrons / gain + 1000).astype(np.uint16).reshape(200, 3, 130).transpose(1, 0, 2)
    boxes = np.array([(0, 0, 130, 200, 130 * k, 0, 0, 0) for k in range(3)], np.int32)
    table = amplifiers(gains=(gain,) * 3)._replace(boxes=boxes)
    table = table._replace(noise_variance=np.full(3, read_noise**2 + gain**2 / 12, np.float32))
    dark = CalibrationPlane(np.full(shape, 0.5, np.float32), np.zeros(shape, np.float32))
    levels = np.full((3, 200), 1000, np.float32), np.zeros((3, 130), np.float32)
    planes = remove_signature(raw, *levels, table, shape, flat=flat, dark=dark, dark_time_s=10.0)
    for column in (0, 130, 260):
        there = np.s_[:, column : column + 130]
        image, variance = planes[0][there], planes[2][there]
        n = image.size
        # 20 electrons: counts scatter by 1/sqrt(N) and so do their own variances, which widens pulls by 3/(8 x 41)
        pulls = (image - truth[there]) / np.sqrt(variance)
        assert np.mean((image - truth[there]) ** 2) / variance.mean() == pytest.approx(1, abs=5 * np.sqrt(2 / n) + 0.01)
        assert pulls.std() == pytest.approx(1, abs=5 / np.sqrt(2 * n) + 0.03)


def test_calibration_noise_is_propagated():
    """An exposure equal in noise to its bias has twice the variance; a noisy flat adds (signal/flat)^2 var(flat)."""
    arrays, shape, options = scene(margin=0)
    table = amplifiers()
    bare = remove_signature(*arrays, table, shape)[2]
    zero = np.zeros(shape, np.float32)
    noisy = remove_signature(*arrays, table, shape, bias=CalibrationPlane(zero, bare))[2]
    np.testing.assert_array_equal(noisy, _add_in_order(bare, arrays, table, shape))
    image, _, variance = remove_signature(*arrays, table, shape, flat=CalibrationPlane(zero + 2, zero + np.float32(1e-4)))
    np.testing.assert_allclose(variance, (bare + image**2 * 1e-4) / 4, rtol=1e-6)


def _add_in_order(bare, arrays, table, shape):
    """The variance with a bias of variance ``bare``, in the stated order of additions."""
    signal = remove_signature(*arrays, table, shape)[0]
    noise = np.repeat(table.noise_variance, shape[1] // 3)[None, :]
    return (noise + bare) + np.maximum(signal, 0)


def test_inputs_are_not_changed():
    """Raw, levels, table and calibrations come out as they went in."""
    arrays, shape, options = scene()
    everything = [*arrays, *amplifiers(), *(a for p in ("bias", "dark", "flat") for a in options[p])]
    copies = [a.copy() for a in everything]
    remove_signature(*arrays, amplifiers(), shape, **options)
    for array, copy in zip(everything, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_shapes_that_do_not_fit_are_refused():
    """The message says got and wanted."""
    (raw, rows, columns), shape, options = scene()
    with pytest.raises(CalibrationError, match=r"flat has shape \(3, 3\), wanted \(11, 40\)"):
        flat = CalibrationPlane(np.ones((3, 3)), np.ones((3, 3)))
        remove_signature(raw, rows, columns, amplifiers(), shape, flat=flat)
    with pytest.raises(InputError, match=r"row levels have shape \(3, 4\), wanted \(3, 15\)"):
        remove_signature(raw, rows[:, :4], columns, amplifiers(), shape)
