"""Resampling: exact where nothing moves, accurate where it does, and honest about noise and missing
pixels."""

import numpy as np
import pytest
from scipy import ndimage

from nightstream.kernels.mask import MaskPlane
from nightstream.kernels.warp import (
    grid_shape,
    map_phases,
    noise_correlation,
    warp,
    warp_grid,
    warp_reference,
)
from nightstream.kernels.wcs import Wcs

STEP = 16


def linear_map(shape, xx=1.0, xy=0.0, x0=0.0, yx=0.0, yy=1.0, y0=0.0):
    j, i = np.mgrid[tuple(slice(n) for n in grid_shape(shape, STEP))] * float(STEP)
    return xx * i + xy * j + x0, yx * i + yy * j + y0


def noise_planes(shape, seed=1):
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 1, shape).astype(np.float32)
    return image, np.zeros(shape, np.int32), np.ones(shape, np.float32)


def moffat(shape, x0, y0, fwhm, beta=3.0):
    y, x = np.mgrid[: shape[0], : shape[1]]
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / beta) - 1)
    return (1 + ((x - x0) ** 2 + (y - y0) ** 2) / alpha**2) ** -beta


def run(target, planes, maps, shape, **options):
    with target.running():
        arrays = [target.array(a) for a in (*planes, *maps)]
        return [target.host(a) for a in warp(*arrays, STEP, shape, **options)]


def test_null_warp_is_the_identity(target):
    """A map onto itself returns every bit of image, mask and variance, borders and missing pixels
    included."""
    planes = noise_planes((45, 70))
    planes[0][7, 9], planes[2][7, 9], planes[1][7, 9] = np.nan, np.nan, MaskPlane.NO_DATA
    planes[1][20, 30] = MaskPlane.SAT
    for got, wanted in zip(run(target, planes, linear_map((45, 70)), (45, 70)), planes, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("order", [3, 4, 5])
@pytest.mark.parametrize("shape", [(40, 57), (1, 1), (17, 33)])
def test_all_targets_follow_the_definition(target, order, shape):
    """Rotation, scale and shift agree with the float64 formula to the table's 1e-6 and float32 sums."""
    planes = noise_planes((48, 40))
    planes[0][30, 30] = np.nan
    planes[1][10, 12] = MaskPlane.CR
    maps = linear_map(shape, 0.98, 0.03, 2.3, -0.03, 1.01, -4.2)
    stamp = noise_correlation(3)
    wanted = warp_reference(*planes, *maps, STEP, shape, order=order, noise_correlation=stamp)
    got = run(target, planes, maps, shape, order=order, noise_correlation=stamp)
    # (2 order)^2 float32 terms of size ~4 and a table error of 1e-6 of the pixels around
    np.testing.assert_allclose(got[0], wanted[0], atol=3e-5)
    np.testing.assert_array_equal(got[1], wanted[1])
    np.testing.assert_allclose(got[2], wanted[2], atol=3e-5)


def test_empty_output_is_allowed(target):
    """A detector without rows gives planes without rows."""
    maps = linear_map((0, 8))
    assert run(target, noise_planes((8, 8)), maps, (0, 8))[0].shape == (0, 8)


def gaussian(shape, x0, y0, sigma):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * sigma**2))


def ripple(profile, order, shift):
    """Largest error of Lanczos interpolation of a 1-D ``profile`` of peak 1 at pixels + ``shift``, from the formula."""
    at = np.arange(-15, 16) + shift
    taps = np.floor(at).astype(int)[:, None] + np.arange(1 - order, order + 1)
    t = at[:, None] - taps
    weights = np.sinc(t) * np.sinc(t / order)
    found = (weights * profile(taps)).sum(axis=1) / weights.sum(axis=1)
    return np.abs(found - profile(at)).max()


def worst_ripple(profile, order):
    """The largest `ripple` over all sub-pixel phases."""
    return max(ripple(profile, order, phase) for phase in np.linspace(0, 1, 101))


@pytest.mark.parametrize("order", [3, 4, 5])
@pytest.mark.parametrize("dx, dy", [(0.5, 0.5), (0.25, -0.4), (0.1, 0.9)])
def test_a_shifted_star_is_right_to_the_ripple_of_the_lanczos_window(target, order, dx, dy):
    """Sub-pixel shifts of a Gaussian star of FWHM 3 miss the analytic profile by no more than the window must."""
    sigma = 1.274
    star = gaussian((41, 41), 20, 20, sigma).astype(np.float32)
    planes = star, np.zeros(star.shape, np.int32), np.ones_like(star)
    image = run(target, planes, linear_map(star.shape, x0=dx, y0=dy), star.shape, order=order)[0]
    error_x, error_y = (ripple(lambda x: np.exp(-0.5 * (x / sigma) ** 2), order, shift) for shift in (dx, dy))
    # a product of two factors of at most 1, each off by its ripple; 1e-5 for the table of weights and float32 sums
    bound = error_x + error_y + error_x * error_y + 1e-5
    assert np.nanmax(np.abs(image - gaussian((41, 41), 20 - dx, 20 - dy, sigma))) < bound


def test_smooth_images_agree_with_spline_interpolation():
    """A Gaussian of sigma 3 resampled by a rotation agrees with scipy's quintic spline to the window's ripple."""
    y, x = np.mgrid[:60, :60]
    blob = np.exp(-((x - 28.3) ** 2 + (y - 31.1) ** 2) / 18).astype(np.float32)
    maps = linear_map((60, 60), 0.995, 0.1, -2.0, -0.1, 0.995, 4.0)
    planes = blob, np.zeros(blob.shape, np.int32), np.ones_like(blob)
    image = warp(*planes, *maps, STEP, (60, 60), order=4, conserve_flux=False)[0]
    source = [0.995 * y - 0.1 * x + 4.0, 0.995 * x + 0.1 * y - 2.0]
    wanted = ndimage.map_coordinates(blob.astype(float), source, order=5, mode="constant")
    good = np.isfinite(image)
    assert good.mean() > 0.7
    error = worst_ripple(lambda x: np.exp(-(x**2) / 18), 4)
    # along x and along y, the second on top of the first; the spline's own error and float32 are below 1e-5
    np.testing.assert_allclose(image[good], wanted[good], atol=2 * error + error**2 + 1e-5)


def test_a_hair_below_a_whole_pixel_is_that_pixel(target):
    """At -1e-17 the phase rounds up to 1: still within the tables, and the first pixel keeps its value."""
    planes = noise_planes((20, 20))
    image, _, variance = run(target, planes, linear_map((20, 20), x0=-1e-17, y0=-1e-17), (20, 20))
    np.testing.assert_array_equal((image[0, 0], variance[0, 0]), (planes[0][0, 0], 1))


def test_more_lobes_than_a_thread_holds_are_refused():
    """The message says how many there may be."""
    with pytest.raises(ValueError, match="order must be 1 to 5, got 6"):
        warp(*noise_planes((20, 20)), *linear_map((20, 20)), STEP, (20, 20), order=6)


def test_flux_is_conserved_when_the_scale_changes(target):
    """Counts of a star on pixels 0.8 times as wide sum to the same total (to the Lanczos ripple, 2e-3)."""
    star = moffat((61, 61), 30, 30, 5.0, 4.5).astype(np.float32)
    planes = star, np.zeros(star.shape, np.int32), np.ones_like(star)
    image = run(target, planes, linear_map((77, 77), 0.8, yy=0.8), (77, 77))[0]
    inside = np.nansum(image[5:72, 5:72])
    assert inside == pytest.approx(star[4:58, 4:58].sum(), rel=2e-3)


def test_missing_pixels_stay_missing_and_flags_spread(target):
    """A NaN removes only outputs that lean on it; a saturated pixel flags them; nothing unmasked is NaN."""
    planes = noise_planes((40, 40))
    planes[0][12, 12] = np.nan
    planes[1][25, 25] = MaskPlane.SAT
    image, mask, variance = run(target, planes, linear_map((40, 40), x0=0.5, y0=0.5), (40, 40))
    lost = (mask & MaskPlane.NO_DATA) != 0
    np.testing.assert_array_equal(np.isnan(image), lost)
    np.testing.assert_array_equal(np.isnan(variance), lost)
    assert lost[11:13, 11:13].all() and lost[5:35, 5:35].sum() <= 36  # the 6 x 6 support at most
    assert (mask[22:28, 22:28] & MaskPlane.SAT).astype(bool).sum() >= 20


def test_outside_the_input_there_is_no_data(target):
    """Output that falls off the input is NaN with NO_DATA and nothing else."""
    image, mask, _ = run(target, noise_planes((20, 20)), linear_map((20, 40), x0=100.0), (20, 40))
    assert np.isnan(image).all() and (mask == MaskPlane.NO_DATA).all()


def test_the_variance_plane_predicts_the_scatter_of_white_and_of_correlated_noise():
    """After one and after two warps of white noise, variance over scatter squared is 1 within 5 sqrt(2 /
    N_eff)."""
    planes = noise_planes((256, 256), seed=7)
    maps = linear_map((250, 250), x0=2.5, y0=2.25)
    once = warp(*planes, *maps, STEP, (250, 250))
    again = linear_map((240, 240), x0=4.3, y0=4.4)
    stamp = noise_correlation(3, phase_x=[0.5], phase_y=[0.25])
    twice = warp(*once, *again, STEP, (240, 240), noise_correlation=stamp)
    for image, _, variance in (once, twice):
        good = np.isfinite(image)
        ratio = np.mean(image[good] ** 2) / np.mean(variance[good])
        assert ratio == pytest.approx(1, abs=5 * np.sqrt(2 / (good.sum() / 4)))  # ~4 pixels share their noise


def test_the_noise_correlation_stamp_is_what_resampled_noise_shows():
    """Lags of warped white noise match the stamp within 5 / sqrt(N_eff)."""
    planes = noise_planes((400, 400), seed=3)
    maps = linear_map((390, 390), 1.003, x0=3.0, yy=1.002, y0=3.0)  # drifts through all phases
    image = warp(*planes, *maps, STEP, (390, 390), conserve_flux=False)[0]
    stamp = noise_correlation(3, phase_x=map_phases(*maps)[0], phase_y=map_phases(*maps)[1])
    half = stamp.shape[0] // 2
    a = np.nan_to_num(image)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2)):
        got = np.mean(a[: 390 - dy, : 390 - dx] * a[dy:, dx:]) / np.mean(a * a)
        assert got == pytest.approx(stamp[half + dy, half + dx], abs=5 / np.sqrt(390**2 / 4))


def test_equal_wcs_gives_the_identity_map():
    """Through sky coordinates and back a pixel comes home exactly, thanks to the rounding of the map."""
    wcs = Wcs.tan(150.0, 2.0, 100.0, 80.0, 0.2, 30.0)
    map_x, map_y = warp_grid(wcs, wcs, (200, 180), STEP)
    wanted = linear_map((200, 180))
    np.testing.assert_array_equal(map_x, wanted[0])
    np.testing.assert_array_equal(map_y, wanted[1])


def test_warp_agrees_with_reproject():
    """Warping to a rotated WCS agrees with reproject's interpolation of a well sampled image."""
    reproject = pytest.importorskip("reproject")
    from astropy.wcs import WCS

    def header(angle):
        wcs = WCS(naxis=2)
        wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [41, 41]
        c, s = np.cos(np.radians(angle)) * 0.2 / 3600, np.sin(np.radians(angle)) * 0.2 / 3600
        wcs.wcs.cd = [[-c, s], [s, c]]
        return wcs

    def ours(wcs):
        return Wcs(crval=(150.0, 2.0), crpix=(40.0, 40.0), cd=tuple(map(tuple, wcs.wcs.cd)), kind="TAN")

    sigma = 3.8
    blob = gaussian((80, 80), 38.2, 41.7, sigma).astype(np.float32)
    a, b = header(0.0), header(20.0)
    maps = warp_grid(ours(b), ours(a), (80, 80), STEP)
    image = warp(blob, np.zeros((80, 80), np.int32), np.ones_like(blob), *maps, STEP, (80, 80))[0]
    wanted, _ = reproject.reproject_interp((blob, a), b, shape_out=(80, 80), order="bicubic")
    good = np.isfinite(image) & np.isfinite(wanted)
    ours_off = worst_ripple(lambda x: np.exp(-0.5 * (x / sigma) ** 2), 3)
    theirs_off = 5 / 384 * 3 / sigma**4  # a cubic spline's error: 5/384 of the largest fourth derivative
    np.testing.assert_allclose(image[good], wanted[good], atol=2 * (ours_off + theirs_off) + ours_off**2 + 1e-5)


def test_a_grid_of_the_wrong_shape_is_refused():
    """The message says which shape was wanted."""
    with pytest.raises(ValueError, match=r"wanted \(4, 4\)"):
        warp(*noise_planes((40, 40)), np.zeros((3, 3)), np.zeros((3, 3)), STEP, (40, 40))
