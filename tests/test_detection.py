"""Detection: score, false positives, footprints, peaks."""

import dataclasses

import numpy as np
import pytest
from scenes import SIGMA, blank, flux_of_snr, gaussian_psf, lattice, noisy, stars

from nightstream.errors import InputError
from nightstream.kernels.detection import correlate_score_reference, detect, detect_score, mark_detected, score_image
from nightstream.kernels.mask import MaskPlane

STAMP = gaussian_psf().centred(0.0, 0.0)[0]


def run(target, planes, **options):
    with target.running():
        return detect(*(target.array(p) for p in planes), target.array(STAMP), **options)


@pytest.mark.parametrize("shape", [(64, 48), (33, 600), (1, 1), (13, 1)])
def test_score_matches_the_definition(target, shape):
    """The twins agree with SciPy in float64, with masked and NaN pixels, on odd, long and tiny images."""
    rng = np.random.default_rng(5)
    image, mask, variance = blank(rng, shape, 3.0)
    mask[rng.random(shape) < 0.05] = int(MaskPlane.SAT)
    image[0, 0], variance[-1, -1] = np.nan, np.nan
    usable = (mask == 0) & np.isfinite(image) & np.isfinite(variance)
    stamp = STAMP[6:19, 6:19]
    with target.running():
        score = score_image(*(target.array(p) for p in (image, mask, variance)), target.array(stamp))
    wanted = np.where(usable, correlate_score_reference(image, variance, usable, stamp), 0)
    # 169 float32 additions: 169 * 6e-8 of the summed |P D| / sqrt(P^2 V), which is below 169^0.5 * 1
    np.testing.assert_allclose(target.host(score), wanted, atol=2e-4)


def test_twins_agree_bit_for_bit(target):
    """+ - * / sqrt in one order: the .cu source gives the very bits of Numba."""
    planes = blank(np.random.default_rng(6), (40, 70))
    with target.running():
        score = score_image(*(target.array(p) for p in planes), target.array(STAMP))
    np.testing.assert_array_equal(target.host(score), score_image(*planes, STAMP))


def test_noise_gives_the_expected_number_of_peaks():
    """White noise has as many peaks above a threshold as a smooth Gaussian random field has (Euler
    characteristic)."""
    n, threshold = 1024, 3.5
    found = detect(*blank(np.random.default_rng(7), (n, n)), STAMP, threshold=threshold)
    # The score's autocorrelation is exp(-r^2 / 4 sigma^2): density of maxima u exp(-u^2/2) / ((2 pi)^1.5 2 sigma^2).
    # A maximum lies on average r^2 = 1/6 from the nearest pixel, where the field is lower by r^2 / (4 sigma^2).
    u = threshold * (1 + 1 / 6 / (4 * SIGMA**2))
    expected = 2 * n * n / (2 * SIGMA**2) * u * np.exp(-(u**2) / 2) / (2 * np.pi) ** 1.5
    assert abs(len(found) - expected) < 4 * np.sqrt(expected)
    assert abs(found.is_negative.sum() - expected / 2) < 4 * np.sqrt(expected / 2)


def test_noise_has_unit_score(target):
    """The score of sky noise has standard deviation 1, masked pixels and changing variance or not."""
    rng = np.random.default_rng(8)
    image, mask, variance = blank(rng, (256, 256))
    scale = np.linspace(1, 5, 256, dtype=np.float32)
    mask[rng.random(mask.shape) < 0.1] = int(MaskPlane.BAD)
    with target.running():
        score = target.host(
            score_image(*(target.array(p) for p in (image * scale, mask, variance * scale**2)), target.array(STAMP))
        )
    # about 256^2 / (4 pi sigma^2) = 1300 independent values
    assert abs(score[mask == 0].std() - 1) < 4 / np.sqrt(2 * 1300)


def test_stars_of_both_signs_are_found(target):
    """Every star of S/N 15 is found within a pixel of its place, with its sign and its S/N."""
    rng = np.random.default_rng(9)
    x, y, shape = lattice(rng, 6, 30)
    sign = rng.choice([-1, 1], x.size)
    image, mask, variance = blank(rng, shape, 100.0)
    snr = 15.0
    image += stars(shape, x, y, sign * snr * np.sqrt(4 * np.pi * SIGMA**2 * 100)).astype(np.float32)
    found = run(target, (image, mask, variance))
    found_x, found_y, found_snr = (target.host(v) for v in (found.x, found.y, found.snr))
    assert len(found) == x.size
    nearest = np.hypot(found_x[None] - x[:, None], found_y[None] - y[:, None]).argmin(axis=1)
    # the position error of a peak is sqrt(2) sigma / snr = 0.2, plus half a pixel
    assert np.abs(found_x[nearest] - x).max() < 1.3
    np.testing.assert_array_equal(np.sign(found_snr[nearest]), sign)
    # peaks are biased high by noise (1 / snr) and low by pixel phase (1 %)
    assert abs(np.abs(found_snr).mean() - snr) < 4 / np.sqrt(x.size)


def test_a_ready_score_gives_the_same_detections(target):
    """`detect` is `detect_score` of `score_image`: every column has the same bits."""
    image, mask, variance = blank(np.random.default_rng(16), (96, 96))
    image += stars((96, 96), [30.0, 60.0], [30.0, 70.0], [400.0, -500.0]).astype(np.float32)
    planes = [target.array(p) for p in (image, mask, variance)]
    with target.running():
        whole = detect(*planes, target.array(STAMP), grow_pix=2)
        ready = detect_score(score_image(*planes, target.array(STAMP)), grow_pix=2)
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(*(target.host(getattr(found, field.name)) for found in (whole, ready)))


def test_positive_polarity_ignores_holes(target):
    """With polarity "positive" a negative star is not found."""
    image, mask, variance = blank(np.random.default_rng(10), (64, 64))
    image -= stars((64, 64), [32.0], [32.0], [500.0]).astype(np.float32)
    assert len(run(target, (image, mask, variance), polarity="positive")) == 0
    assert len(run(target, (image, mask, variance))) == 1


def test_lobes_of_a_dipole_share_a_footprint(target):
    """A star displaced by a pixel leaves one footprint with a peak of each sign; a far star has its own."""
    image, mask, variance = blank(np.random.default_rng(11), (96, 96))
    image += stars((96, 96), [40.0, 41.0, 80.0], [40.0, 40.5, 70.0], [600, -600, 400]).astype(np.float32)
    found = run(target, (image, mask, variance))
    order = np.argsort(target.host(found.x))
    footprint = target.host(found.footprint)[order]
    assert len(found) == 3
    assert footprint[0] == footprint[1] != footprint[2]


def test_peak_never_lies_on_a_masked_pixel(target):
    """A star whose centre is masked is still found, beside it."""
    image, mask, variance = blank(np.random.default_rng(12), (64, 64))
    image += stars((64, 64), [30.0], [30.0], [800.0]).astype(np.float32)
    image[30, 30], mask[30, 30] = 1e6, int(MaskPlane.SAT)
    found = run(target, (image, mask, variance))
    assert len(found) == 1
    x, y = target.host(found.x)[0], target.host(found.y)[0]
    assert 0 < np.hypot(x - 30, y - 30) < 1.5


def test_equal_pixels_give_one_peak(target):
    """A flat top, where neighbouring scores are equal, has one peak."""
    image = np.zeros((48, 48), np.float32)
    image[24, 24:26] = 100.0
    found = run(target, (image, np.zeros((48, 48), np.int32), np.ones((48, 48), np.float32)))
    assert len(found) == 1


def test_footprint_sizes_are_those_of_the_labels():
    """The area is what counting pixels gives; a stamp of the box's side about the peak holds them all, the next less does not."""
    rng = np.random.default_rng(13)
    x, y, shape = lattice(rng, 4, 30)
    x[1], y[1] = x[0] + 6, y[0] + 3  # two peaks in one footprint
    image, mask, variance = noisy(rng, stars(shape, x, y, np.full(x.size, flux_of_snr(30.0))))
    found = detect(image, mask, variance, STAMP)
    for k in range(len(found)):
        rows, columns = np.nonzero(found.labels == found.footprint[k])
        assert found.footprint_area[k] == len(rows)
        for side, fits in ((found.bbox_size[k], True), (found.bbox_size[k] - 2, False)):
            low = np.array([found.y[k], found.x[k]]) - side // 2
            offset = np.stack([rows, columns], axis=-1) - low
            assert (offset.min() >= 0 and offset.max() < side) == fits


def test_marks_grow_the_mask_by_sign():
    """DETECTED planes are set around the sources; no other bit changes and the input stays as it was."""
    image, mask, variance = blank(np.random.default_rng(14), (64, 64))
    image += stars((64, 64), [20.0, 45.0], [20.0, 45.0], [500.0, -500.0]).astype(np.float32)
    mask[3, 3] = int(MaskPlane.BAD)
    marked = mark_detected(mask, detect(image, mask, variance, STAMP))
    assert marked[20, 20] == MaskPlane.DETECTED and marked[45, 45] == MaskPlane.DETECTED_NEGATIVE
    assert marked[3, 3] == mask[3, 3] == MaskPlane.BAD and not mask[20, 20]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_usable_gives_nothing(target, value):
    """Images without a usable pixel have no detections and raise no warning."""
    image = np.full((20, 30), value, np.float32)
    found = run(target, (image, np.zeros((20, 30), np.int32), image))
    assert len(found) == 0 and not target.host(found.score).any()


def test_bad_arguments_are_told():
    """Unknown polarity and an even stamp raise with what was wanted."""
    planes = blank(np.random.default_rng(15), (20, 20))
    with pytest.raises(InputError, match="polarity"):
        detect(*planes, STAMP, polarity="up")
    with pytest.raises(InputError, match="odd"):
        detect(*planes, STAMP[:24, :24])
